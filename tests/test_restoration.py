import errno
import io
import os
import re
import struct
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import png
import pytest
import tifffile
import torch
from conftest import inks, jpeg_bytes
from PIL import Image, ImageCms, ImageDraw, ImageOps, features
from processes import run

from pipeline_ddrm_jpeg import Assumed, DDRMJPEGPipeline, DecodedJPEG, JPEGFile, JPEGFileError
from pipeline_ddrm_jpeg.decoded.history import Region, assume_history
from pipeline_ddrm_jpeg.files.formats import FORMATS, STREAM, encode, format_of, save_image, write_atomically
from pipeline_ddrm_jpeg.files.restoration import restore_file, restore_files
from pipeline_ddrm_jpeg.files.tasks import Task, plan
from pipeline_ddrm_jpeg.jpeg.metadata import Metadata

QUICK = {"preset": "paper", "settings": {"num_inference_steps": 2, "init_timestep": 40}}
CONSISTENT = {"preset": "paper", "settings": QUICK["settings"] | {"consistent": True}}


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
    assert names(plan([tmp_path], image_format="webp"), tmp_path) == {"a.jpg": "a_restored.webp"}
    assert names(plan([tmp_path], tmp_path), tmp_path) == {"a.jpg": "a.png", "a_restored.jpg": "a_restored.png"}


def test_one_collision_of_names_refuses_no_folder(tmp_path):
    touch(*(tmp_path / name for name in ("x/a.jpg", "y/a.jpg", "y/a.jpg.jpg", "y/a.jpeg", "y/b.jpg")))
    tasks = plan([tmp_path / "x", tmp_path / "y"], tmp_path / "out")
    made = {f"{task.source.parent.name}/{task.source.name}": (task.target.name, task.renamed) for task in tasks}
    assert made == {
        "x/a.jpg": ("a.jpg.png", True),
        "y/a.jpeg": ("a.jpeg.png", True),
        "y/a.jpg": ("a.jpg.2.png", True),
        "y/a.jpg.jpg": ("a.jpg.jpg.png", True),
        "y/b.jpg": ("b.png", False),
    }
    touch(tmp_path / "z" / "a.png")
    assert names(plan([tmp_path / "z"], tmp_path / "z"), tmp_path) == {"z/a.png": "z/a.2.png"}
    assert len(plan([tmp_path / "x", tmp_path / "x" / "a.jpg"], tmp_path / "out")) == 1


def test_a_file_asked_for_by_name_is_restored_whatever_it_is_called(tmp_path):
    touch(tmp_path / "b.jpg", tmp_path / "c.jpeg")
    with pytest.raises(ValueError, match=r"b\.jpg is the source itself, and would be replaced"):
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
    pipe.enable_tiling(1024)
    results = list(restore_files(pipe, plan([tmp_path], image_format="webp"), **QUICK))
    assert [result.status for result in results] == ["failed", "restored"]  # WebP ends at 16383 pixels
    assert "a.jpg" in results[0].message
    assert "\n" not in results[0].message


def test_a_source_is_never_replaced_and_must_exist(tmp_path):
    touch(tmp_path / "a.jpg")
    for output in ("a.jpg", "a.png"):
        touch(tmp_path / "a.mask.png")
        source = tmp_path / ("a.jpg" if output == "a.jpg" else "a.mask.png")
        with pytest.raises(ValueError, match="is the source itself, and would be replaced"):
            plan([source], tmp_path / output)
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
    asked = iter(plan([tmp_path]) * 4)
    next(restore_files(pipe, asked, **QUICK))
    assert len(list(asked)) > 6, "what there is nothing to do for is told at once, not at the end"


def test_ctrl_c_comes_after_the_result_of_what_was_being_written(pipe, small, tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(small)
    started = []

    def interrupt(*_):
        if len(started) == 2:
            raise KeyboardInterrupt
        return {}

    results = restore_files(pipe, plan([tmp_path]), on_start=started.append, callback_on_step_end=interrupt, **QUICK)
    result = next(results)
    assert (result.status, result.task.source.name) == ("restored", "a.jpg")
    assert result.task.target.exists()
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert [task.source.name for task in started] == ["a.jpg", "b.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a_restored.png", "b.jpg", "c.jpg"]


def test_whoever_stops_asking_for_results_leaves_no_half_picture(pipe, small, tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(small)
    results = restore_files(pipe, plan([tmp_path]), **QUICK)
    next(results)
    results.close()
    assert {path.suffix for path in tmp_path.iterdir()} == {".jpg", ".png"}


def test_a_picture_does_not_depend_on_the_files_around_it(pipe, small, photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo.resize((40, 40))))
    (tmp_path / "b.jpg").write_bytes(small)
    together = list(restore_files(pipe, plan([tmp_path], tmp_path / "together"), seed=3, **QUICK))
    (alone,) = restore_files(pipe, plan([tmp_path / "b.jpg"], tmp_path / "alone"), seed=3, **QUICK)
    assert together[1].task.target.read_bytes() == alone.task.target.read_bytes()


def together_and_alone(pipe, tmp_path, **options):
    """Results of a folder whose windows share calls of the prior, eight at most, and of its files one by one."""
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    options = {"settings": QUICK["settings"] | {"correction": "posterior"}, "preset": "paper", "depth": 16, **options}
    alone = list(restore_files(pipe, plan([tmp_path / "in"], tmp_path / "alone"), **options))
    assert set(calls) == {1}
    calls.clear()
    pipe.enable_tiling(pipe.tiling.size, pipe.tiling.overlap, batch_size=8)
    together = list(restore_files(pipe, plan([tmp_path / "in"], tmp_path / "out"), **options))
    hook.remove()
    return together, alone, calls


def test_files_share_calls_of_the_prior_and_come_out_as_alone(pipe, photo, tmp_path):
    (tmp_path / "in").mkdir()
    for i, size in enumerate([(40, 40), (36, 48), (33, 20), (40, 40), (24, 40), (48, 40), (100, 60)]):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(jpeg_bytes(photo.resize(size), quality=10 + 10 * i))
    (tmp_path / "in" / "1a.jpg").write_bytes(jpeg_bytes(photo)[:-300])
    (tmp_path / "in" / "3a.jpg").write_bytes(inks(photo.resize((40, 40)), ycck=False, quality=30))
    with tarfile.open(tmp_path / "in" / "s.tar", "w") as shard:
        for name in ("0.jpg", "1a.jpg", "3a.jpg", "4.jpg"):
            shard.add(tmp_path / "in" / name, name)
    pipe.enable_tiling(64, 16)
    together, alone, calls = together_and_alone(pipe, tmp_path)
    assert max(calls) >= 4, "files of one size"
    assert [result.status for result in together] == [result.status for result in alone]
    assert [r.task.source for r in together] == [r.task.source for r in alone] == sorted((tmp_path / "in").iterdir())
    assert [r.message.replace("/out/", "/alone/") for r in together] == [r.message for r in alone]
    assert [result.pictures for result in together] == [1, 1, 0, 1, 1, 1, 1, 1, 1, 3]
    for i, result in enumerate(together):
        assert result.consistency == pytest.approx(alone[i].consistency, abs=1e-3) or result.pictures == 0
    read = {folder: [] for folder in ("out", "alone")}
    for folder, found in read.items():
        for path in sorted((tmp_path / folder).iterdir()):
            if path.suffix == ".tar":
                with tarfile.open(path) as shard:
                    found += [shard.extractfile(name).read() for name in shard.getnames() if name.endswith(".png")]
            else:
                found.append(path.read_bytes())
    assert len(read["out"]) == len(read["alone"]) == 11
    for one, other in zip(*read.values(), strict=True):
        pixels = [np.asarray(list(png.Reader(bytes=data).asDirect()[2]), int) for data in (one, other)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1, "of 65535"


def test_what_fails_a_call_for_several_files_costs_its_own_only(pipe, small, photo, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "c.jpg", "d.jpg"):
        (tmp_path / "in" / name).write_bytes(small)
    (tmp_path / "in" / "b.jpg").write_bytes(jpeg_bytes(photo.resize((16, 8)), quality=30))

    def refuse(pipeline, i, t, tensors):
        if tensors["sample"].shape[-1] == 16:
            raise MemoryError
        return {}

    together, alone, _ = together_and_alone(pipe, tmp_path, callback_on_step_end=refuse)
    for results in (together, alone):
        assert [result.status for result in results] == ["restored", "failed", "restored", "restored"]
        assert results[1].message == f"{tmp_path / 'in' / 'b.jpg'}: not enough memory"


def test_ctrl_c_among_files_that_share_calls_leaves_whole_pictures(pipe, small, tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(small)
    steps = []

    def interrupt(*_):
        steps.append(1)
        if len(steps) > 3:
            raise KeyboardInterrupt
        return {}

    pipe.enable_tiling(batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        list(restore_files(pipe, plan([tmp_path]), callback_on_step_end=interrupt, **QUICK))
    assert {path.suffix for path in tmp_path.iterdir()} == {".jpg"}


def test_the_reported_consistency_is_that_of_the_file_written(pipe, small, tmp_path):
    (tmp_path / "a.jpg").write_bytes(small)
    (result,) = restore_files(pipe, plan([tmp_path / "a.jpg"]), **CONSISTENT)
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


@pytest.mark.parametrize("name", ["x.bmp", "x", "x.png.txt"])
def test_a_name_that_ends_in_no_format_is_refused_in_a_sentence(name, tmp_path):
    with pytest.raises(ValueError, match="its name must end in one of"):
        save_image(Image.new("RGB", (2, 2)), tmp_path / name)
    with pytest.raises(ValueError, match="its name must end in one of"):
        Task(tmp_path / "a.jpg", tmp_path / name).image_format  # noqa: B018
    assert not any(tmp_path.iterdir())


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


def test_every_name_of_a_file_gets_its_image_which_is_computed_once(pipe, photo, tmp_path):
    data, album = jpeg_bytes(photo.resize((64, 48))), tmp_path / "album"
    for folder in (album / "sub", album / ".git", tmp_path / "store"):
        folder.mkdir(parents=True)
    for path, there in (("store/k1", data), ("store/k2", data[:-300]), (".git/k3.jpg", data)):
        (tmp_path / path if path.startswith("store") else album / path).write_bytes(there)
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        (album / name).symlink_to(tmp_path / "store" / "k1")
    (album / "d.jpg").symlink_to(tmp_path / "store" / "k2")
    (album / "e.jpg").hardlink_to(tmp_path / "store" / "k2")
    with tarfile.open(tmp_path / "store" / "s.tar", "w") as shard:
        shard.add(tmp_path / "store" / "k1", "0.jpg")
    for name in ("s.tar", "t.tar"):
        (album / name).symlink_to(tmp_path / "store" / "s.tar")
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    tasks = plan([album, album / "a.jpg"], tmp_path / "out", recursive=True)
    results = list(restore_files(pipe, tasks, repair=True, **QUICK))
    hook.remove()
    assert len(calls) == 3 * 2, "two steps of k1, of k2, and of the member of the tar"
    assert [one.status for one in results] == ["restored"] * 7, "and not what git keeps"
    assert [one.task for one in results] == tasks
    assert (results[3].damage, results[3].invented) == (results[2].damage, results[2].invented)
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert sorted(made) == sorted(
        ["a.png", "b.png", "c.png", "d.mask.png", "d.png", "e.mask.png", "e.png", "s.tar", "t.tar"]
    )
    for pair in (("a.png", "c.png"), ("a.png", "b.png"), ("d.png", "e.png"), ("s.tar", "t.tar")):
        assert made[pair[0]] == made[pair[1]]
    assert made["d.mask.png"] == made["e.mask.png"]
    (tmp_path / "out" / "a.png").rename(tmp_path / "store" / "k4")
    for name in ("a.png", "b.png"):  # as git-annex stores what is the same
        (tmp_path / "out" / name).unlink(missing_ok=True)
        (tmp_path / "out" / name).symlink_to(tmp_path / "store" / "k4")
    tasks = plan([album, album / "a.jpg"], tmp_path / "out", recursive=True)
    assert [one.status for one in restore_files(None, tasks, repair=True)] == ["skipped"] * 7


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
        "from pipeline_ddrm_jpeg.files.formats import save_image\n"
        "image = Image.effect_noise((300, 300), 90)\n"
        "for i in range(10**6): save_image(image, Path(sys.argv[1], f'{i % 7}.png'))"
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
    with Image.open(results[0].task.mask) as mask, Image.open(results[0].task.target) as picture:
        assert mask.size == picture.size == (48, 64)
        shade = np.asarray(mask) / 255
        assert shade.mean() == pytest.approx(results[0].invented, abs=0.01)
        assert shade[:, 0].mean() > shade[:, -1].mean(), "the end of the file is the left border of the upright image"


def test_a_mask_never_replaces_what_somebody_has_and_is_made_again_where_it_is_missing(pipe, photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo.resize((64, 48)))[:-300])
    (task,) = plan([tmp_path])
    task.mask.write_bytes(b"mine")
    (refused,) = restore_files(None, [task], repair=True)
    assert (refused.status, task.mask.read_bytes(), task.target.exists()) == ("failed", b"mine", False)
    assert f"its mask would replace {task.mask}" in refused.message
    assert [one.status for one in restore_files(pipe, [task], repair=True, overwrite=True, **QUICK)] == ["restored"]
    mask, image = task.mask.read_bytes(), task.target.read_bytes()
    task.target.unlink()  # as if the first run had been stopped between the two
    assert [one.status for one in restore_files(pipe, [task], repair=True, **QUICK)] == ["restored"]
    task.mask.unlink()
    (again,) = restore_files(None, [task], repair=True)
    assert (again.status, str(task.mask) in again.message, again.invented > 0) == ("skipped", True, True)
    assert (task.mask.read_bytes(), task.target.read_bytes()) == (mask, image)


def test_masks_and_images_get_names_of_their_own(pipe, photo, tmp_path):
    data = jpeg_bytes(photo.resize((64, 48)))
    for name, there in (("dog.jpg", data[:-300]), ("dog.mask.jpg", data), ("dog.png", data)):
        (tmp_path / name).write_bytes(there)
    tasks = plan([tmp_path / "dog.jpg", tmp_path / "dog.mask.jpg"], tmp_path / "out")
    assert names(tasks, tmp_path) == {"dog.jpg": "out/dog.png", "dog.mask.jpg": "out/dog.mask.jpg.png"}
    assert [one.status for one in restore_files(pipe, tasks, repair=True, **QUICK)] == ["restored"] * 2
    with Image.open(tmp_path / "out" / "dog.mask.png") as mask, Image.open(tasks[1].target) as image:
        assert (mask.mode, image.mode) == ("L", "RGB")
    (tmp_path / "dog.mask.png").write_bytes(data)
    beside = plan([tmp_path / "dog.jpg", tmp_path / "dog.mask.png"], tmp_path)
    assert names(beside, tmp_path) == {"dog.jpg": "dog.2.png", "dog.mask.png": "dog.mask.png.png"}


def test_a_damaged_file_is_not_written_where_its_mask_has_no_place(photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo.resize((64, 48)))[:-300])
    (refused,) = restore_files(None, plan([tmp_path / "a.jpg"], "-"), repair=True)
    assert refused.status == "failed"
    assert "standard output has no place for the mask" in refused.message


def test_what_is_being_written_or_was_when_a_run_was_killed_is_no_source(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "b.tmp")
    found, others = [], []

    def write(stream):
        stream.write(b"\xff\xd8\xff")
        stream.flush()
        found.extend([*tmp_path.iterdir()])
        found.extend(plan([tmp_path], on_other=others.append))

    write_atomically(tmp_path / "a_restored.jpg", write)
    assert len(found[:-2]) == 3
    assert names(found[-2:], tmp_path) == {"a.jpg": "a_restored.png", "b.tmp": "b_restored.png"}
    assert not others


def test_an_output_that_cannot_be_is_found_out_before_anything_is_computed(small, tmp_path):
    (tmp_path / "a.jpg").write_bytes(small)
    (tmp_path / "a_restored.png").mkdir()
    for overwrite in (False, True):
        (result,) = restore_files(None, plan([tmp_path]), overwrite=overwrite)
        assert (result.status, result.message) == ("failed", f"{tmp_path / 'a_restored.png'}: Is a directory")
    (tmp_path / "notes").write_text("no folder")
    with pytest.raises(ValueError, match="notes is a file, and no image"):
        plan([tmp_path], tmp_path / "notes")
    for output in ("notes/out", "notes/out/a.png"):
        with pytest.raises(ValueError, match="notes is no folder"):
            plan([tmp_path / "a.jpg"], tmp_path / output)


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
import ctypes, resource, sys
from pathlib import Path
from pipeline_ddrm_jpeg import DDRMJPEGPipeline
from pipeline_ddrm_jpeg.files.restoration import restore_file
from pipeline_ddrm_jpeg.files.tasks import Task

# What is freed goes back at once (M_MMAP_THRESHOLD, M_ARENA_MAX of malloc.h): the peak is of what was in use.
ctypes.CDLL(None).mallopt(-3, 1 << 17)
ctypes.CDLL(None).mallopt(-8, 1)
pipe = DDRMJPEGPipeline.from_prior(sys.argv[1], dtype="float32")
for source in map(Path, sys.argv[2:]):
    restore_file(pipe, Task(source, source.with_suffix(".tif")), settings={"num_inference_steps": 1})
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_grows_by_a_few_states_of_the_sampler_a_pixel(photo, prior_folder, tmp_path):
    """A float32 state takes 12 bytes a pixel: fewer than five at the peak. (Masked planes once made it ten.)"""
    sizes = [(1000, 1000), (1000, 1800)]  # of smaller ones the peak is that of starting up
    paths = [tmp_path / f"{height}.jpg" for _, height in sizes]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(jpeg_bytes(photo.resize(size), quality=90))
    done = run(_PEAK, prior_folder, *paths)
    assert done.returncode == 0, done.stderr
    peaks = [*map(int, done.stdout.split())]
    pixels = [width * height for width, height in sizes]
    growth = (peaks[1] - peaks[0]) / (pixels[1] - pixels[0])
    assert growth < 60, growth


def chroma(picture: Image.Image) -> np.ndarray:
    """Cb and Cr of JFIF, `[H, W, 2]`, of an image in RGB."""
    rgb = np.asarray(picture.convert("RGB"), dtype=float)
    return rgb @ np.array([[-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]]).T


@pytest.fixture(scope="module")
def text():
    """Black words on white, 96 x 64."""
    page = Image.new("L", (96, 64), "white")
    ImageDraw.Draw(page).text((4, 4), "Greys may\nnot become\ncolours", fill="black", font_size=18)
    return page


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("quality", [5, 10, 30, 75])
def test_a_black_and_white_picture_stored_as_colour_stays_black_and_white(pipe, photo, text, quality, subsampling):
    for grey in (photo.convert("L").resize((93, 62)), text):
        data = jpeg_bytes(grey.convert("RGB"), quality=quality, subsampling=subsampling)
        file = JPEGFile.open(data)
        assert file.tint == (0, 0)
        for settings in (QUICK, CONSISTENT | {"num_samples": 2}):
            result = pipe(file, **settings)
            assert result.images[0].mode == "RGB"
            assert not np.ptp(np.asarray(result.images[0]), axis=2).any()
            assert result.consistency_8bit[0] > 0.8
        exact = pipe(data, output_type="np", **QUICK)
        assert exact.images.shape == (1, *grey.size[::-1], 3)
        assert exact.std[0].shape == exact.expected_error[0].shape == exact.images.shape[1:]
        assert not np.ptp(exact.images, axis=3).any()


@pytest.mark.parametrize("quality", [30, 75])
def test_a_tint_that_is_the_same_everywhere_stays_so(pipe, text, quality):
    sepia = np.asarray(text)[..., None] * 0.5 + np.array([60, 48, 30])
    file = JPEGFile.open(jpeg_bytes(Image.fromarray(sepia.round().astype(np.uint8)), quality=quality))
    assert file.tint is not None
    assert file.tint != (0, 0)
    seen = chroma(pipe(file, **QUICK).images[0])
    assert np.abs(seen - file.tint).max() < 1, "as far as eight bits go"
    broken = np.asarray(sepia).copy()
    broken[20:60, 20:60, 0] += 40
    assert JPEGFile.open(jpeg_bytes(Image.fromarray(broken.round().astype(np.uint8)), quality=quality)).tint is None


def test_rgb_files_of_three_equal_planes_are_black_and_white(pipe, text):
    data = jpeg_bytes(text.convert("RGB"), quality=20, subsampling="4:4:4", keep_rgb=True)
    assert JPEGFile.open(data).color_space == "RGB"
    assert not np.ptp(np.asarray(pipe(data, **QUICK).images[0]), axis=2).any()


def test_files_in_folders_are_known_by_their_first_bytes(pipe, small, tmp_path):
    for name in ("a.jpg", "b", "c.dat"):
        (tmp_path / name).write_bytes(small)
    sidecar = tmp_path / "._a.jpg"
    sidecar.write_bytes(b"\0\5\x16\7" + bytes(60))
    for name in ("Thumbs.db", "notes.jpg", "empty.jpg"):
        (tmp_path / name).write_bytes(b"" if name == "empty.jpg" else b"no image")
    others = []
    tasks = plan([tmp_path], on_other=others.append)
    assert [task.source.name for task in tasks] == ["a.jpg", "b", "c.dat"]
    assert sorted(path.name for path in others) == ["._a.jpg", "Thumbs.db", "empty.jpg", "notes.jpg"]
    assert [result.status for result in restore_files(pipe, tasks, **QUICK)] == ["restored"] * 3
    again = []
    assert plan([tmp_path], on_other=again.append) == tasks
    assert again == others, "images of an earlier run are not counted"
    (refused,) = restore_files(pipe, plan([sidecar]), **QUICK)
    assert (refused.status, "not a JPEG" in refused.message) == ("failed", True)


def tree(tmp_path, photo):
    """A folder of JPEG files and others, of which two show that they were JPEGs, and what each shows."""
    source, small = tmp_path / "in", photo.resize((120, 96))
    (source / "sub").mkdir(parents=True)
    seen = Image.open(io.BytesIO(jpeg_bytes(small, quality=30)))
    (source / "a.jpg").write_bytes(jpeg_bytes(small, quality=30))
    seen.convert("RGB").save(source / "a.png")
    seen.convert("RGB").save(source / "sub" / "b.webp", lossless=True)
    small.save(source / "clean.tif")
    (source / "broken.png").write_bytes((source / "a.png").read_bytes()[:900])
    (source / "camera.tiff").write_bytes(b"II*\0" + bytes(60))
    (source / "notes.txt").write_text("no image")
    return source


def test_pictures_of_any_format_in_a_folder_are_restored_where_they_show_a_jpeg(pipe, photo, tmp_path):
    source, others = tree(tmp_path, photo), []
    run = partial(plan, [source], tmp_path / "out", recursive=True, any_format=True)
    results = list(restore_files(pipe, tasks := run(on_other=others.append), **QUICK))
    assert {str(one.task.source.relative_to(source)): one.status for one in results} == {
        "a.jpg": "restored",
        "a.png": "restored",
        "broken.png": "failed",
        "camera.tiff": "untouched",
        "clean.tif": "untouched",
        "sub/b.webp": "restored",
    }
    assert [result.task for result in results] == tasks, "in the order of their names"
    assert [path.name for path in others] == ["notes.txt"]
    assert {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")} == {
        "a.png",  # as without images of other formats
        "a.png.png",
        "sub/b.png",
    }
    again = [result.status for result in restore_files(pipe, run(), **QUICK)]
    assert again == ["skipped", "skipped", "failed", "untouched", "untouched", "skipped"]


@pytest.mark.parametrize("output", [None, "out"], ids=["beside", "in a folder below"])
def test_pictures_that_were_made_are_not_taken_for_sources(pipe, photo, tmp_path, output):
    source, others = tree(tmp_path, photo), []
    folder = output and source / output
    first = plan([source], folder, recursive=True, any_format=True)
    list(restore_files(pipe, first, **QUICK))
    assert plan([source], folder, recursive=True, any_format=True, on_other=others.append) == first
    assert [path.name for path in others] == ["notes.txt"]
    named = [task.source for task in first]
    as_webp = plan([source], folder, recursive=True, any_format=True, image_format="webp")
    assert [task.source for task in as_webp] == named


def test_a_folder_of_pictures_of_any_format_does_not_take_what_is_made_of_them(photo, tmp_path):
    with pytest.raises(ValueError, match="choose another output"):
        plan([tree(tmp_path, photo)], tmp_path / "in", any_format=True)


def test_a_named_picture_is_restored_or_fails_in_a_searched_folder_too(photo, tmp_path):
    source = tree(tmp_path, photo)
    for inputs in ([source / "clean.tif", source], [source, source / "clean.tif"]):
        tasks = plan(inputs, tmp_path / "out", any_format=True)
        assert len(tasks) == 5
        assert [task.any_format for task in tasks if task.source.name == "clean.tif"] == [False]


def stored_as(pixels, path):
    """A file of pixels `[H, W, C]`, uint8 or uint16, of 2 or 4 channels with alpha."""
    data, _ = encode(pixels[..., 0] if pixels.shape[2] == 1 else pixels, format_of(path), Metadata())
    path.write_bytes(data)


def pixels_of(path):
    """As a PNG stores them, `[H, W, C]`, by another reader."""
    width, height, rows, info = png.Reader(filename=path).asDirect()
    return np.array([*rows], np.uint16 if info["bitdepth"] == 16 else np.uint8).reshape(height, width, -1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_depth_and_transparency_stay_and_what_is_not_seen_is_not_touched(pipe, photo, kind, channels, tmp_path):
    rng, source = np.random.default_rng(0), tmp_path / ("a.png" if channels < 3 else "a.tif")
    stored = np.asarray(photo.resize((24, 16)).convert("RGBA"))[..., :channels].astype(kind)
    stored = stored if kind == np.uint8 else 256 * stored + rng.integers(256, size=stored.shape, dtype=kind)
    if channels in (2, 4):
        stored[..., -1] = rng.integers(np.iinfo(kind).max + 1, size=stored.shape[:2])
        stored[:8, :, -1] = 0
    stored_as(stored, source)
    task = Task(source, tmp_path / "a_restored.png")
    result = restore_file(pipe, task, assumed=Assumed(30), **QUICK)
    made = pixels_of(task.target)
    assert (made.shape, made.dtype, result.remarks) == (stored.shape, stored.dtype, ())
    assert np.abs(made[8:, :, 0].astype(int) - stored[8:, :, 0]).mean() < 0.2 * np.iinfo(kind).max
    assert (made != stored)[8:].any()
    if channels in (2, 4):
        np.testing.assert_array_equal(made[..., -1], stored[..., -1])
        np.testing.assert_array_equal(made[:8], stored[:8])
        (failed,) = restore_files(None, [replace(task, target=tmp_path / "a.jpg")], assumed=Assumed(30))
        assert ("jpeg has no transparency" if kind == np.uint8 else "jpeg has 8 bits a channel") in failed.message
    if kind == np.uint16:
        (failed,) = restore_files(None, [replace(task, target=tmp_path / "a.webp")], assumed=Assumed(30))
        assert "webp has 8 bits a channel" in failed.message


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_what_surrounds_a_jpeg_stays_bit_for_bit_whatever_depth_is_asked_for(kind, tmp_path):
    stored = np.random.default_rng(0).integers(np.iinfo(kind).max + 1, size=(48, 64, 4)).astype(kind)
    stored[..., -1] |= 1
    stored_as(stored, tmp_path / "page.png")
    region = Region(8, 16, 24, 40)
    image = DecodedJPEG.open(tmp_path / "page.png", lambda pixels: replace(assume_history(pixels, 30), region=region))
    for restored in (np.full((48, 64, 3), 7, np.uint8), np.full((48, 64, 3), 7 * 257, np.uint16)):
        made = image.put_back(restored)
        deep = np.uint16 in (kind, restored.dtype)
        expected = stored.astype(np.uint16) * 257 if deep and kind == np.uint8 else stored.copy()
        region.of(expected)[..., :3] = 7 * 257 if deep else 7
        assert made.dtype == expected.dtype
        np.testing.assert_array_equal(made, expected)


def test_transparency_by_a_colour_or_a_palette_stays_and_what_changes_is_told(pipe, photo, tmp_path):
    small = photo.resize((24, 16))
    key = small.getpixel((3, 4))
    small.save(tmp_path / "key.png", transparency=key)
    small.convert("L").save(tmp_path / "grey.png", transparency=small.convert("L").getpixel((3, 4)))
    small.quantize(64).save(tmp_path / "palette.png", transparency=5)
    Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24)).save(tmp_path / "deep.png", transparency=7)
    small.convert("CMYK").save(tmp_path / "inks.tif")
    for result in restore_files(pipe, plan([*tmp_path.iterdir()]), assumed=Assumed(30), **QUICK):
        source, made = result.task.source, pixels_of(result.task.target)
        if source.name == "inks.tif":
            assert (made.shape[2], result.remarks) == (3, ("the colour space CMYK, which is written as RGB",))
            continue
        with Image.open(source) as image:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if source.name == "deep.png":
            alpha = np.where(np.arange(384).reshape(16, 24) == 7, 0, 65535)
        assert made.shape[2] == (2 if source.name in ("grey.png", "deep.png") else 4)
        np.testing.assert_array_equal(made[..., -1], alpha)
        assert (alpha == 0).any()
        assert result.remarks == (("a palette, which is written as RGB",) if source.name == "palette.png" else ())


def test_pixels_that_are_not_read_in_full_are_not_restored(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 16, 24), np.uint16), photometric="rgb", planarconfig="separate")
    (failed,) = restore_files(None, plan([tmp_path / "a.tif"]), assumed=Assumed(30))
    assert "more than 8 bits a channel in a form that is not read in full" in failed.message


def deep_files(data, plain):
    """Images of more than 8 bits of which Pillow reads 8, and the same with 8."""
    sgi = struct.pack(">hBBHHHH", 474, 0, 2, 3, 24, 16, 3).ljust(512, b"\0")
    j2k = io.BytesIO()
    Image.fromarray(plain).save(j2k, "JPEG2000", no_jp2=True)
    j2k = j2k.getvalue()
    siz = j2k.index(b"\xff\x51") + 40
    return {
        "p6.ppm": (b"P6 24 16 65535\n" + data, b"P6 24 16 255\n" + plain.tobytes()),
        "p3.ppm": (b"P3 24 16 1023\n" + b"7 " * 1152, b"P3 24 16 255\n" + b"7 " * 1152),
        "a.sgi": (sgi + data, sgi[:3] + b"\1" + sgi[4:] + plain.tobytes()),
        "a.j2k": (j2k[:siz] + b"\x0f\1\1" * 3 + j2k[siz + 9 :], j2k),
    }


def test_depths_that_are_rounded_while_they_are_read_are_refused():
    plain = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    files = deep_files((plain.astype(">u2") * 257).tobytes(), plain)
    if features.check("avif"):
        avif = io.BytesIO()
        Image.fromarray(plain).save(avif, "AVIF")
        deep = bytearray(avif.getvalue())
        deep[deep.index(b"av1C") + 6] |= 0x40  # what it says is enough, since it is not decoded
        deep = bytes(deep).replace(b"\3\x08\x08\x08", b"\3\x0a\x0a\x0a")
        files["a.avif"] = deep, avif.getvalue()
    for deep, shallow in files.values():
        assert DecodedJPEG.open(shallow, assume_history(plain, 50)).pixels.shape == plain.shape
        with pytest.raises(ValueError, match="more than 8 bits a channel"):
            DecodedJPEG.open(deep, assume_history(plain, 50))


def test_what_a_format_cannot_hold_is_refused_before_the_network_runs(photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo.resize((16400, 1)), quality=10))
    (result,) = restore_files(None, plan([tmp_path], image_format="webp"))
    assert "webp takes at most 16383 pixels a side, and the image has 16400 x 1" in result.message
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo.resize((8, 8)), exif=exif))
    (result,) = restore_files(None, plan([tmp_path], image_format="jpeg"), depth=16)
    assert "jpeg has 8 bits a channel; 16 are written as png or tiff" in result.message


def test_sixteen_bits_hold_what_eight_would_round_away(pipe, small, tmp_path):
    (tmp_path / "a.jpg").write_bytes(small)
    for image_format in ("png", "tiff"):
        task = Task(tmp_path / "a.jpg", tmp_path / f"a{FORMATS[image_format].suffixes[0]}")
        result = restore_file(pipe, task, depth=16, **CONSISTENT)
        exact = pipe(small, output_type="np", generator=torch.Generator().manual_seed(0), **CONSISTENT)
        assert result.consistency == exact.consistency[0] == 1
        if image_format == "tiff":
            values = tifffile.imread(task.target)
            assert values.dtype == np.uint16
            np.testing.assert_allclose(values / 65535, exact.images[0].clip(0, 1), atol=1e-5)
            assert len(np.unique(values)) > 256


def test_a_link_is_written_through_to_what_it_leads_to(pipe, small, tmp_path):
    (tmp_path / "a.jpg").write_bytes(small)
    (tmp_path / "elsewhere").mkdir()
    for name, content in (("old.png", b"old"), ("new.png", None)):
        behind = tmp_path / "elsewhere" / name
        if content:
            behind.write_bytes(content)
        link = tmp_path / name
        link.symlink_to(behind)
        (result,) = restore_files(pipe, [Task(tmp_path / "a.jpg", link)], overwrite=True, **QUICK)
        assert result.status == "restored", result.message
        assert link.is_symlink()
        with Image.open(behind) as picture:
            assert picture.size == (24, 16)
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["new.png", "old.png"]


def test_a_dash_is_a_stream_and_a_file_of_that_name_is_not(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("-").write_bytes(small)
    touch(Path("a.jpg"))
    assert plan(["-"]) == [Task(STREAM, STREAM)]
    assert plan(["-"], image_format="webp")[0].image_format == "webp"
    assert plan(["a.jpg"], "-", image_format="tiff") == [Task(Path("a.jpg"), STREAM, "tiff")]
    assert plan(["-"], "x.jpg") == [Task(STREAM, Path("x.jpg"))]
    assert plan([Path("-")]) == [Task(tmp_path / "-", tmp_path / "-_restored.png")]
    for inputs, output in ((["-", "a.jpg"], None), (["."], "-"), (["-"], "."), (["-"], "x.bmp")):
        with pytest.raises(ValueError, match=r"single file|name a file"):
            plan(inputs, output)


def test_a_progressive_file_of_fewer_scans_is_restored_with_a_remark(pipe, photo, tmp_path):
    whole = jpeg_bytes(photo.resize((64, 48)), quality=60, progressive=True)
    scans = [match.start() for match in re.finditer(b"\xff\xda", whole)]
    for name, scan in (("coarse.jpg", scans[3]), ("nearly.jpg", scans[-1])):
        (tmp_path / name).write_bytes(whole[: whole.rfind(b"\xff\xc4", 0, scan)] + b"\xff\xd9")
    coarse, nearly = restore_files(pipe, plan([tmp_path]), **QUICK)
    assert (coarse.status, nearly.status, coarse.damage) == ("restored", "restored", ())
    assert coarse.remarks == nearly.remarks != ()
    assert coarse.invented == JPEGFile.open(tmp_path / "coarse.jpg").invented.mean() > nearly.invented == 0
    assert min(coarse.consistency, nearly.consistency) > 0.99
    assert not coarse.task.mask.exists()


def test_what_is_not_kept_is_told(pipe, small, tmp_path):
    record = b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\0\0"
    comment = b"\xff\xfe\0\7hello"
    marker = b"\xff\xed" + (len(record) + 2).to_bytes(2, "big") + record
    (tmp_path / "a.jpg").write_bytes(small[:2] + marker + comment + small[2:])
    for image_format, lost in (
        ("png", ("IPTC and other Photoshop data",)),
        ("webp", ("IPTC and other Photoshop data", "comment")),
        ("tiff", ("comment",)),
        ("jpeg", ()),
    ):
        (result,) = restore_files(pipe, plan([tmp_path / "a.jpg"], image_format=image_format), **QUICK)
        assert result.not_kept == lost


@pytest.mark.parametrize("ycck", [False, True], ids=["CMYK", "YCCK"])
def test_four_inks_are_restored_and_written_as_rgb(photo, ycck, tmp_path):
    pipe = DDRMJPEGPipeline.from_embedded()
    photo = photo.resize((112, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = b"CMYK profile".ljust(200, b"\0")
    for quality in (12, 100):
        data = inks(photo, ycck, quality=quality, exif=exif, icc_profile=profile)
        (tmp_path / "print.jpg").write_bytes(data)
        task = Task(tmp_path / "print.jpg", tmp_path / "print.png")
        result = restore_file(pipe, task, preset="fast")
        assert result.remarks == (f"the colour space {'YCCK' if ycck else 'CMYK'}, which is written as RGB",)
        assert result.not_kept
        assert result.consistency > (0.99 if quality == 12 else 0.85)  # eight bits are coarse for fine steps
        with Image.open(io.BytesIO(data)) as before, Image.open(task.target) as after:
            assert after.mode == "RGB"
            assert after.size == (80, 112)
            assert "icc_profile" not in after.info
            before, after = (
                np.asarray(before.convert("RGB"), float),
                np.asarray(after.transpose(Image.ROTATE_90), float),
            )
        if quality == 100:
            assert np.abs(before - after).mean() < 1
        else:
            clean = np.asarray(photo, float)
            assert ((after - clean) ** 2).mean() < 0.95 * ((before - clean) ** 2).mean()
    restore_file(pipe, replace(task, target=tmp_path / "deep.png"), depth=16, preset="fast")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(data[: len(data) * 3 // 4])
    mended = restore_file(pipe, Task(cut, tmp_path / "cut.png"), repair=True, preset="fast")
    assert 0 < mended.invented < 0.5
