"""Odd images at each door: the package's reader, `evaluate`'s, the command `degrade`; the page's is in test_space."""

import struct

import numpy as np
import pytest
from conftest import ddrm_jpeg, save_odd_pictures
from PIL import Image
from processes import run

from pipeline_ddrm_jpeg import DecodedJPEG, read_image
from pipeline_ddrm_jpeg.decoded.opening import open_image
from pipeline_ddrm_jpeg.evaluation import prepare


def degraded(path, _):
    """The image as `degrade` writes it, at the best quality."""
    done = ddrm_jpeg("degrade", path, "-q", "100", "--overwrite")
    if done.returncode:
        raise ValueError(done.stderr)
    return Image.open(path.with_name(f"{path.stem}_q100.jpg"))


@pytest.mark.parametrize("read", [lambda path, _: read_image(path), prepare, degraded])
def test_every_door_reads_odd_pictures_alike(tmp_path, read):
    save_odd_pictures(tmp_path)
    deep = np.asarray(read(tmp_path / "deep.png", None).convert("L"), np.float32)
    assert np.abs(deep - np.linspace(0, 255, 64)).max() <= 1
    assert np.asarray(read(tmp_path / "clear.png", None).convert("RGB")).min() >= 254
    with pytest.raises(ValueError, match="floating-point numbers has no known range"):
        read(tmp_path / "float.tif", None)
    turned = read(tmp_path / "turned.png", None)
    assert turned.size == (48, 32) if read.__name__ == "<lambda>" else (32, 48)
    assert (turned.getexif().get(0x0112, 1) == 6) == (turned.size == (48, 32)), "upright, or it says how to turn it"


def test_a_profile_is_kept_where_it_still_holds(photo, tmp_path):
    photo.resize((8, 8)).save(tmp_path / "a.png", icc_profile=b"profile")
    assert read_image(tmp_path / "a.png").info["icc_profile"] == b"profile"
    assert degraded(tmp_path / "a.png", None).info["icc_profile"] == b"profile"
    photo.resize((8, 8)).convert("CMYK").save(tmp_path / "b.tif", icc_profile=b"profile")
    assert "icc_profile" not in degraded(tmp_path / "b.tif", None).info


def test_files_of_several_pages_or_frames_are_left_alone_and_one_that_was_chosen_is_taken(photo, tmp_path):
    pages = [photo.resize((24, 16)), photo.resize((24, 16)).rotate(180)]
    (tmp_path / "out").mkdir()
    for name in ("pages.tif", "anim.png", "anim.webp", "anim.gif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        for reads in (read_image, DecodedJPEG.open, open_image, lambda path: degraded(path, None)):
            with pytest.raises(ValueError, match="it holds several pages or frames"):
                reads(tmp_path / name)
        pages[0].save(tmp_path / "out" / name)
        read_image(tmp_path / "out" / name)
    with Image.open(tmp_path / "pages.tif") as chosen:
        chosen.seek(1)
        np.testing.assert_array_equal(np.asarray(read_image(chosen)), np.asarray(pages[1]))
    pages[0].save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=pages[1:])
    assert read_image(tmp_path / "phone.jpg").size == (24, 16), "what follows are previews and the like"
    named = ddrm_jpeg("restore", tmp_path / "pages.tif", "-o", tmp_path / "one.png", "--assume-quality", "30")
    assert (named.returncode, named.stderr.count("several pages or frames")) == (1, 1)
    found = ddrm_jpeg("restore", tmp_path, "--any-format", "-o", tmp_path / "made", "--steps", "1")
    assert found.stdout.count("it holds several pages or frames, of which one would be left; left as it is") == 4
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["phone.png"]


def test_a_picture_that_claims_a_size_out_of_all_proportion_is_refused_before_it_is_decoded(tmp_path):
    side = struct.pack("<H", 12_000)
    frame = b"," + bytes(4) + 2 * side + b"\0\2\2\x44\1\0;"
    bomb = b"GIF89a" + 2 * side + b"\x80\0\0" + bytes(6) + frame
    for reads in (read_image, DecodedJPEG.open, open_image):
        with pytest.raises(ValueError, match="claims 12000 x 12000 pixels in 35 bytes, which is out of all proportion"):
            reads(bomb)
    start, comments = b"GIF89a" + 2 * side + b"\0\0\0", b"!\xfe\1x\0" * 5000
    for reads in (read_image, DecodedJPEG.open, open_image):
        for gif in (start + comments + frame, start + frame[:-1] + comments + frame):
            with pytest.raises(ValueError, match="its comments, or the values of its tags, are out of all proportion"):
                reads(gif)
    (tmp_path / "bomb.gif").write_bytes(bomb)
    done = run(None, "inspect", tmp_path / "bomb.gif")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, "Pillow's warning is not shown as well"
