import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, jpeg_bytes
from PIL import Image, ImageCms, ImageOps

from pipeline_ddrm_jpeg import JPEGFile, JPEGFileError
from pipeline_ddrm_jpeg.files import FORMATS, save_image, write_atomically
from pipeline_ddrm_jpeg.restoration import Task, mask_path, plan, restore_files

QUICK = {"num_inference_steps": 2, "init_timestep": 40}


@pytest.fixture
def small(photo):
    return jpeg_bytes(photo.resize((24, 16)), quality=30)


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if path.suffix == ".txt" else b"\xff\xd8\xff")


def names(tasks, folder):
    return {str(task.source.relative_to(folder)): str(task.target.relative_to(folder)) for task in tasks}


def test_pictures_go_beside_their_sources_by_default(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "b.JPEG", tmp_path / "notes.txt", tmp_path / "sub" / "c.jpg")
    assert names(plan([tmp_path]), tmp_path) == {"a.jpg": "a_restored.png", "b.JPEG": "b_restored.png"}
    deep = names(plan([tmp_path], recursive=True, image_format="webp"), tmp_path)
    assert deep == {
        "a.jpg": "a_restored.webp",
        "b.JPEG": "b_restored.webp",
        "sub/c.jpg": "sub/c_restored.webp",
    }


def test_an_output_folder_repeats_the_subfolders(tmp_path):
    touch(tmp_path / "in" / "a.jpg", tmp_path / "in" / "sub" / "c.jpg", tmp_path / "d.jpg")
    tasks = plan([tmp_path / "in", tmp_path / "d.jpg"], tmp_path / "out", recursive=True)
    assert names(tasks, tmp_path) == {"in/a.jpg": "out/a.png", "in/sub/c.jpg": "out/sub/c.png", "d.jpg": "out/d.png"}


def test_sources_that_would_meet_in_one_file_keep_their_full_names(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "a.jpeg", tmp_path / "b.jpg")
    tasks = plan([tmp_path], tmp_path / "out")
    assert names(tasks, tmp_path) == {"a.jpeg": "out/a.jpeg.png", "a.jpg": "out/a.jpg.png", "b.jpg": "out/b.png"}


def test_an_output_that_ends_like_a_picture_is_a_file_and_says_the_format(tmp_path):
    touch(tmp_path / "a.jpg")
    assert plan([tmp_path / "a.jpg"], tmp_path / "x.TIFF") == [Task(tmp_path / "a.jpg", tmp_path / "x.TIFF")]
    with pytest.raises(ValueError, match=r"ends in \.png, but the format is webp"):
        plan([tmp_path / "a.jpg"], tmp_path / "x.png", image_format="webp")
    with pytest.raises(ValueError, match="several inputs"):
        plan([tmp_path / "a.jpg"] * 2, tmp_path / "x.png")


def test_pictures_of_an_earlier_run_are_no_sources(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "a_restored.jpg")
    assert names(plan([tmp_path], image_format="jpeg"), tmp_path) == {"a.jpg": "a_restored.jpg"}


def test_sources_of_one_name_that_would_become_one_picture_are_refused(tmp_path):
    touch(tmp_path / "x" / "a.jpg", tmp_path / "y" / "a.jpg")
    with pytest.raises(ValueError, match="would both become"):
        plan([tmp_path / "x", tmp_path / "y"], tmp_path / "out")
    assert len(plan([tmp_path / "x", tmp_path / "x" / "a.jpg"], tmp_path / "out")) == 1


def test_a_file_asked_for_by_name_is_restored_whatever_it_is_called(tmp_path):
    touch(tmp_path / "b.jpg", tmp_path / "c.jpeg")
    with pytest.raises(ValueError, match="replaced by its own picture"):
        plan([tmp_path], tmp_path, image_format="jpeg")
    touch(tmp_path / "a.jpg", tmp_path / "a_restored.jpg")
    named = plan([tmp_path / "a.jpg", tmp_path / "a_restored.jpg"], image_format="jpeg")
    assert len(named) == 2


def test_an_output_in_a_format_that_is_not_written_is_refused(tmp_path):
    touch(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"ends in \.bmp"):
        plan([tmp_path / "a.jpg"], tmp_path / "a.bmp")


def test_whatever_is_wrong_with_a_file_costs_only_that_file(pipe, small, photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo.resize((16400, 1)), quality=10))
    (tmp_path / "b.jpg").write_bytes(small)
    results = list(restore_files(pipe, plan([tmp_path], image_format="webp"), window_size=1024, **QUICK))
    assert [result.status for result in results] == ["failed", "restored"]  # WebP ends at 16383 pixels
    assert "a.jpg" in results[0].message
    assert "\n" not in results[0].message


def test_a_source_is_never_replaced_and_must_exist(tmp_path):
    touch(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="replaced by its own picture"):
        plan([tmp_path / "a.jpg"], tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        plan([tmp_path / "b.jpg"])


def test_a_link_to_a_folder_above_is_not_followed_forever(tmp_path):
    touch(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in", target_is_directory=True)
    assert len(plan([tmp_path / "in"], recursive=True)) == 1


@pytest.fixture
def described(photo):
    """A file with orientation 6, EXIF text, ICC profile, XMP and comment."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a cat"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"  # sub-directories, as every camera writes them
    exif.get_ifd(0x8825)[1] = "N"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    return jpeg_bytes(photo.resize((24, 16)), exif=exif, icc_profile=profile, xmp=xmp, comment=b"hello")


@pytest.mark.parametrize("image_format", FORMATS)
def test_pictures_are_upright_and_keep_their_metadata(pipe, described, image_format, tmp_path):
    source = tmp_path / "cat.jpg"
    source.write_bytes(described)
    (result,) = restore_files(pipe, plan([source], image_format=image_format), **QUICK)
    assert result.status == "restored", result.message
    with Image.open(result.task.target) as picture, Image.open(source) as original:
        assert picture.format.lower() == image_format
        assert picture.size == (16, 24) == ImageOps.exif_transpose(picture).size
        assert picture.getexif()[0x010E] == "a cat"
        assert picture.getexif().get_ifd(0x8769)[0x9003] == "2020:01:01 00:00:00"
        assert picture.info["icc_profile"] == original.info["icc_profile"]
        xmp = picture.info["xmp"]
        assert (xmp.encode() if isinstance(xmp, str) else xmp) == original.info["xmp"]
        upright = np.asarray(ImageOps.exif_transpose(original), dtype=float)
        restored = np.asarray(picture.convert("RGB"), dtype=float)
        assert np.abs(upright - restored).mean() < np.abs(upright[::-1] - restored).mean()


def test_greyscale_is_written_as_greyscale(pipe, photo, tmp_path):
    (tmp_path / "grey.jpg").write_bytes(jpeg_bytes(photo.convert("L").resize((24, 16))))
    for image_format in FORMATS:
        (result,) = restore_files(pipe, plan([tmp_path / "grey.jpg"], image_format=image_format), **QUICK)
        with Image.open(result.task.target) as picture:
            assert picture.mode == ("RGB" if image_format == "webp" else "L")


def test_a_run_goes_on_after_a_broken_file_and_skips_what_is_done(pipe, small, tmp_path):
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(small)
    (tmp_path / "b.jpg").write_bytes(small[:-40])
    results = list(restore_files(pipe, plan([tmp_path]), **QUICK))
    assert [result.status for result in results] == ["restored", "failed", "restored"]
    assert "b.jpg" in results[1].message
    assert "\n" not in results[1].message
    again = list(restore_files(pipe, plan([tmp_path]), **QUICK))
    assert [result.status for result in again] == ["skipped", "failed", "skipped"]
    first = results[0].task.target
    first.write_bytes(b"old")
    assert [r.status for r in restore_files(pipe, plan([tmp_path / "a.jpg"]), overwrite=True, **QUICK)] == ["restored"]
    assert first.read_bytes() != b"old"


def test_a_picture_does_not_depend_on_the_files_around_it(pipe, small, photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo.resize((40, 40))))
    (tmp_path / "b.jpg").write_bytes(small)
    together = list(restore_files(pipe, plan([tmp_path], tmp_path / "together"), seed=3, **QUICK))
    (alone,) = restore_files(pipe, plan([tmp_path / "b.jpg"], tmp_path / "alone"), seed=3, **QUICK)
    assert together[1].task.target.read_bytes() == alone.task.target.read_bytes()


def test_the_reported_consistency_is_that_of_the_file_written(pipe, small, tmp_path):
    (tmp_path / "a.jpg").write_bytes(small)
    (result,) = restore_files(pipe, plan([tmp_path / "a.jpg"]), consistent=True, **QUICK)
    assert 0.98 <= result.consistency <= 1


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_write_that_is_interrupted_leaves_what_was_there(tmp_path, problem):
    target = tmp_path / "a.png"
    target.write_bytes(b"before")

    def write(stream):
        stream.write(b"half")
        raise problem

    with pytest.raises(type(problem)):
        write_atomically(target, write)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert target.read_bytes() == b"before"


def test_a_very_long_name_is_written(tmp_path):
    target = tmp_path / ("x" * 251 + ".png")
    save_image(Image.new("RGB", (2, 2)), target)
    assert target.exists()


def test_a_name_that_grows_too_long_fails_its_file_only(pipe, small, tmp_path):
    for name in ("x" * 250 + ".jpg", "y.jpg"):
        (tmp_path / name).write_bytes(small)
    results = list(restore_files(pipe, plan([tmp_path]), **QUICK))
    assert [result.status for result in results] == ["failed", "restored"]
    assert results[0].message.endswith("x_restored.png: File name too long")


def test_links_in_a_circle_and_to_nowhere_fail_and_pipes_are_passed_over(pipe, small, tmp_path):
    (tmp_path / "a.jpg").write_bytes(small)
    (tmp_path / "b.jpg").symlink_to("b.jpg")
    (tmp_path / "c.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "d.jpg")
    (tmp_path / "e.jpg").symlink_to("/dev/zero")
    results = list(restore_files(pipe, plan([tmp_path]), **QUICK))
    assert [result.status for result in results] == ["restored", "failed", "failed"]
    assert "symbolic links" in results[1].message
    assert "No such file" in results[2].message


def test_a_folder_that_cannot_be_listed_is_told(tmp_path):
    touch(tmp_path / "in" / "a.jpg")
    deep = tmp_path / "in"
    here = Path.cwd()
    try:  # a path longer than the system takes cannot be listed, by whomever
        for _ in range(20):
            os.chdir(deep)
            deep = Path("y" * 250)
            deep.mkdir()
    finally:
        os.chdir(here)
    errors = []
    tasks = plan([tmp_path / "in"], recursive=True, on_error=errors.append)
    assert names(tasks, tmp_path) == {"in/a.jpg": "in/a_restored.png"}
    assert "File name too long" in errors[0].strerror
    with pytest.raises(OSError, match="File name too long"):
        plan([tmp_path / "in"], recursive=True)


def test_a_file_that_changes_while_it_is_read_is_read_whole_or_refused(photo, tmp_path):
    versions = [jpeg_bytes(photo.resize((320, 240)), quality=quality) for quality in (30, 95)]
    sizes, path, stop = {len(data) for data in versions}, tmp_path / "a.jpg", threading.Event()
    path.write_bytes(versions[0])

    def rewrite():
        while not stop.is_set():
            for data in versions:
                with path.open("wb", buffering=0) as stream:
                    stream.write(data[:5000])
                    stream.write(data[5000:])

    writer = threading.Thread(target=rewrite)
    writer.start()
    found, refused = set(), []
    try:
        for _ in range(12):
            try:
                found.add(JPEGFile.open(path).file_size)
            except JPEGFileError as error:
                refused.append(str(error))
    finally:
        stop.set()
        writer.join()
    assert found <= sizes
    assert all("truncated" in reason or "empty" in reason for reason in refused)


def test_a_process_killed_while_it_writes_leaves_a_whole_picture_or_none(tmp_path):
    code = (
        "import sys; from pathlib import Path; from PIL import Image\n"
        "from pipeline_ddrm_jpeg.files import save_image\n"
        "picture = Image.effect_noise((300, 300), 90)\n"
        "for i in range(10**6): save_image(picture, Path(sys.argv[1], f'{i % 7}.png'))"
    )
    for delay in (0.05, 0.12, 0.31):
        writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*.png"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        writer.kill()
        writer.wait()
        written = list(tmp_path.glob("*.png"))
        assert len(written) >= 3
        for path in written:
            with Image.open(path) as picture:
                picture.load()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir() if path.suffix != ".png")


def test_a_damaged_file_is_restored_on_request_with_a_mask_that_is_upright_too(pipe, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg_bytes(photo.resize((64, 48)), quality=60, exif=exif)
    (tmp_path / "a.jpg").write_bytes(data[: -len(data) // 4])
    (tmp_path / "b.jpg").write_bytes(data)
    plain = list(restore_files(pipe, plan([tmp_path]), **QUICK))
    assert [result.status for result in plain] == ["failed", "restored"]
    assert "--repair" in plain[0].message
    results = list(restore_files(pipe, plan([tmp_path]), repair=True, overwrite=True, **QUICK))
    assert [result.status for result in results] == ["restored", "restored"]
    assert "truncated" in results[0].damage[0]
    assert results[1].damage == ()
    assert results[1].invented == 0
    assert results[1].task.target.read_bytes() == Path(plain[1].task.target).read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "a_restored.mask.png",
        "a_restored.png",
        "b_restored.png",
    ]
    with Image.open(mask_path(results[0].task.target)) as mask, Image.open(results[0].task.target) as picture:
        assert mask.size == picture.size == (48, 64)
        shade = np.asarray(mask) / 255
        assert shade.mean() == pytest.approx(results[0].invented, abs=0.01)
        assert shade[:, 0].mean() > shade[:, -1].mean(), "the end of the file is the left border of the upright picture"


def test_an_unreadable_output_folder_is_one_sentence(pipe, small, tmp_path):
    (tmp_path / "a.jpg").write_bytes(small)
    (tmp_path / "out").write_bytes(b"a file, not a folder")
    (result,) = restore_files(pipe, [Task(tmp_path / "a.jpg", tmp_path / "out" / "a.png")], **QUICK)
    assert result.status == "failed"
    assert str(tmp_path / "out") in result.message


def test_seeds_change_the_picture(pipe, small, tmp_path):
    (tmp_path / "a.jpg").write_bytes(small)
    pictures = []
    for seed in (0, 1):
        torch.manual_seed(0)
        (result,) = restore_files(pipe, plan([tmp_path / "a.jpg"]), overwrite=True, seed=seed, **QUICK)
        pictures.append(result.task.target.read_bytes())
    assert pictures[0] != pictures[1]


_PEAK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import make_unet
from pipeline_ddrm_jpeg import DDRMJPEGPipeline, DDRMScheduler
from pipeline_ddrm_jpeg.restoration import Task, restore_file

pipe = DDRMJPEGPipeline(unet=make_unet(), scheduler=DDRMScheduler())
task = Task(Path(sys.argv[2]), Path(sys.argv[2]).with_suffix(".tif"))
restore_file(pipe, task, num_inference_steps=1, init_timestep=5)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_grows_by_a_few_states_of_the_sampler_a_pixel(photo, tmp_path):
    """A float32 state takes 12 bytes a pixel: fewer than seven more at the peak. (Masked planes once made it ten.)"""
    peaks, sizes = [], [(1200, 1000), (1200, 2000)]
    for size in sizes:
        path = tmp_path / f"{size[1]}.jpg"
        path.write_bytes(jpeg_bytes(photo.resize(size), quality=90))
        command = [sys.executable, "-c", _PEAK, str(ROOT / "tests"), str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    pixels = [width * height for width, height in sizes]
    growth = (peaks[1] - peaks[0]) / (pixels[1] - pixels[0])
    assert growth < 80, growth
