"""Odd pictures at each door: the package's reader, `evaluate`'s, the command `degrade`; the page's is in test_space."""

import numpy as np
import pytest
from conftest import ddrm_jpeg, save_odd_pictures
from PIL import Image

from pipeline_ddrm_jpeg import read_picture
from pipeline_ddrm_jpeg.evaluation import prepare


def degraded(path, _):
    """The picture as `degrade` writes it, at the best quality."""
    done = ddrm_jpeg("degrade", path, "-q", "100", "--overwrite")
    if done.returncode:
        raise ValueError(done.stderr)
    return Image.open(path.with_name(f"{path.stem}_q100.jpg"))


@pytest.mark.parametrize("read", [lambda path, _: read_picture(path), prepare, degraded])
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
    assert read_picture(tmp_path / "a.png").info["icc_profile"] == b"profile"
    assert degraded(tmp_path / "a.png", None).info["icc_profile"] == b"profile"
    photo.resize((8, 8)).convert("CMYK").save(tmp_path / "b.tif", icc_profile=b"profile")
    assert "icc_profile" not in degraded(tmp_path / "b.tif", None).info
