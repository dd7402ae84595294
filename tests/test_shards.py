"""Shards, read by the library that they are for."""

import io
import json
import tarfile

import numpy as np
import pytest
import webdataset
from conftest import ddrm_jpeg, jpeg_bytes
from PIL import Image
from processes import Process

from pipeline_ddrm_jpeg import JPEGFile, observe
from pipeline_ddrm_jpeg.restoration import restore_file, restore_files
from pipeline_ddrm_jpeg.tasks import Task, plan

QUICK = {"num_inference_steps": 2, "init_timestep": 40}


@pytest.fixture
def files(photo):
    small = photo.resize((40, 24))
    broken, taken = jpeg_bytes(small)[:-60], io.BytesIO()
    small.save(taken, "png")
    return {
        "00/a.jpg": jpeg_bytes(small, quality=10),
        "00/a.json": b'{"label": 3}',
        "00/b.input.jpeg": jpeg_bytes(small.convert("L"), quality=20),
        "00/b.input.png": taken.getvalue(),
        "00/c.jpg": b"no JPEG at all",
        "00/d.jpg": broken,
    }


def shard(path, files):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(data), 1234567890.5, 0o640
            tar.addfile(member, io.BytesIO(data))
    return path


def contents(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


def test_pictures_are_replaced_and_all_else_is_carried_over(pipe, files, tmp_path):
    (task,) = plan([shard(tmp_path / "one.tar", files)], tmp_path / "out")
    (result,) = restore_files(pipe, [task], seed=3, **QUICK)
    assert (result.status, result.pictures) == ("failed", 2)
    assert "1 of 3 pictures stay as they were, first 00/d.jpg: truncated" in result.message
    found = contents(tmp_path / "out" / "one.tar")
    assert list(found) == ["00/a.png", "00/a.json", "00/b.input.jpeg.png", "00/b.input.png", "00/c.jpg", "00/d.jpg"]
    for name in ("00/a.json", "00/b.input.png", "00/c.jpg", "00/d.jpg"):
        assert found[name] == files[name]
    (tmp_path / "a.jpg").write_bytes(files["00/a.jpg"])
    restore_file(pipe, Task(tmp_path / "a.jpg", tmp_path / "a.png"), seed=3, **QUICK)
    assert found["00/a.png"] == (tmp_path / "a.png").read_bytes()
    with tarfile.open(tmp_path / "out" / "one.tar") as tar:
        assert {(member.mtime, member.mode) for member in tar} == {(1234567890.5, 0o640)}


def test_webdataset_reads_what_is_written(pipe, files, tmp_path):
    del files["00/d.jpg"], files["00/c.jpg"]
    (result,) = restore_files(pipe, plan([shard(tmp_path / "one.tar", files)], tmp_path / "out"), **QUICK)
    assert (result.status, result.pictures) == ("restored", 2)
    first, second = webdataset.WebDataset(str(tmp_path / "out" / "one.tar"), shardshuffle=False).decode("rgb8")
    assert (first["__key__"], first["json"]) == ("00/a", {"label": 3})
    observed = observe(JPEGFile.open(files["00/a.jpg"]))
    assert first["png"].shape == (*observed.size, 3)
    assert second["__key__"] == "00/b"
    assert "input.jpeg.png" in second


def test_long_names_and_other_members_survive(pipe, files, tmp_path):
    name = "x" * 150 + "/é.jpg"
    with tarfile.open(tmp_path / "one.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        folder, link = tarfile.TarInfo("folder"), tarfile.TarInfo("link")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "/etc/passwd"
        picture = tarfile.TarInfo(name)
        picture.size = len(files["00/a.jpg"])
        picture.pax_headers = {"comment": "kept"}
        for member, data in ((folder, None), (link, None), (picture, files["00/a.jpg"])):
            tar.addfile(member, data and io.BytesIO(data))
    (result,) = restore_files(pipe, plan([tmp_path / "one.tar"], tmp_path / "two.tar"), **QUICK)
    assert result.status == "restored"
    with tarfile.open(tmp_path / "two.tar") as tar:
        folder, link, picture = tar
        assert (folder.isdir(), link.linkname, picture.pax_headers["comment"]) == (True, "/etc/passwd", "kept")
        assert picture.name == name.replace(".jpg", ".png")
        assert Image.open(tar.extractfile(picture)).size == (40, 24)


@pytest.mark.parametrize("broken", [b"", b"no tar", "cut"], ids=["empty", "text", "cut short"])
def test_a_broken_shard_costs_no_other_and_leaves_nothing(pipe, files, tmp_path, broken):
    del files["00/d.jpg"]
    shard(tmp_path / "b.tar", files)
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 4] if broken == "cut" else broken)
    results = list(restore_files(pipe, plan([tmp_path / "*.tar"], tmp_path / "out"), **QUICK))
    assert [result.status for result in results] == ["failed", "restored"]
    assert "a.tar: it is no tar, or cut short" in results[0].message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.tar"]


def test_the_command_restores_shards_by_a_pattern_and_goes_on(files, prior_folder, tmp_path):
    del files["00/d.jpg"]
    for name in "ab":
        shard(tmp_path / f"{name}.tar", files)
    shard(tmp_path / "none.tar", {"x.txt": b"text"})
    command = ["restore", tmp_path / "*.tar", "-o", tmp_path / "out", "--prior", prior_folder]
    command += ["--steps", "2", "--format", "webp"]
    done = ddrm_jpeg(*command)
    assert done.returncode == 0, done.stderr
    assert "a.tar" in done.stdout
    assert "pictures restored: 2, at least 100 % of the coefficients kept of each" in done.stdout
    assert "none.tar" in done.stdout
    assert "no JPEG in it" in done.stdout
    assert "00/a.webp" in contents(tmp_path / "out" / "a.tar")
    (tmp_path / "out" / "b.tar").unlink()
    again = ddrm_jpeg(*command, "--json-log", "-")
    facts = [json.loads(line) for line in again.stdout.splitlines()]
    assert [(one["status"], one["pictures"]) for one in facts] == [("skipped", 0), ("skipped", 0), ("restored", 2)]


def test_pictures_of_any_format_in_a_shard_are_restored_where_they_show_a_jpeg(pipe, photo, tmp_path):
    clean, shown = photo.resize((160, 128)), io.BytesIO()
    Image.open(io.BytesIO(jpeg_bytes(clean, quality=30))).save(shown, "png")
    never = io.BytesIO()
    clean.save(never, "png")
    files = {"a.png": shown.getvalue(), "b.png": never.getvalue(), "b.json": b"{}", "c.png": shown.getvalue()[:900]}
    source = shard(tmp_path / "one.tar", files)
    (untouched,) = restore_files(pipe, plan([source], tmp_path / "plain"), **QUICK)
    assert (untouched.status, untouched.pictures) == ("restored", 0)
    (result,) = restore_files(pipe, plan([source], tmp_path / "out", any_format=True), **QUICK)
    assert (result.status, result.pictures) == ("failed", 1)
    assert "1 of 2 pictures stay as they were, first c.png" in result.message
    found = contents(tmp_path / "out" / "one.tar")
    assert found["a.png"] != files.pop("a.png")
    assert {name: found[name] for name in files} == files


def test_sixteen_bits_in_a_shard(pipe, files, tmp_path):
    (task,) = plan([shard(tmp_path / "one.tar", {"a.jpg": files["00/a.jpg"]})], tmp_path / "out")
    (result,) = restore_files(pipe, [task], depth=16, **QUICK)
    assert result.status == "restored", result.message
    data = contents(task.target)["a.png"]
    assert data[24] == 16  # bits a channel, in the header of a PNG
    (refused,) = restore_files(pipe, plan([task.source], tmp_path / "w", image_format="webp"), depth=16, **QUICK)
    assert "webp has 8 bits" in refused.message
    assert np.all([not path.exists() for path in (tmp_path / "w",)])


def test_a_full_disk_fails_the_shard_and_leaves_nothing_half_written(files, prior_folder, tmp_path):
    del files["00/d.jpg"]
    shard(tmp_path / "one.tar", files | {"z.bin": bytes(60_000)})  # more than the limit, and not what a reader writes
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))"
    command = ["restore", tmp_path / "one.tar", "-o", tmp_path / "out", "--prior", prior_folder, "--steps", "2"]
    process = Process(None, *command, prelude=limit)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert f"{tmp_path / 'out' / 'one.tar'}: File too large" in errors
    assert not list((tmp_path / "out").iterdir())
