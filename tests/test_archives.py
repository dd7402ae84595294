"""Zips and compressed tars, by the same rules as tars, by the eyes of other readers."""

import gc
import io
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ddrm_jpeg, jpeg_bytes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline_ddrm_jpeg.files import archives
from pipeline_ddrm_jpeg.files.restoration import restore_files
from pipeline_ddrm_jpeg.files.tasks import plan

QUICK = {"preset": "paper", "settings": {"num_inference_steps": 2, "init_timestep": 40}}
JPEG = b"\xff\xd8\xff\xe0"
TIME = b"UT\5\0\1" + struct.pack("<I", 10**9)


def kept(source: Path, target: Path) -> list[archives.Member]:
    """Writes an archive anew in which what begins like a JPEG becomes something else; its members as they were read."""
    found = []

    def convert(members):
        for member in members:
            found.append(member)
            yield member, [(".png", b"picture"), (".mask.png", b"mask")] if member.data is not None else ()

    archives.rewrite(source, target, lambda start: start.startswith(b"\xff\xd8\xff"), convert)
    return found


def zipped(path: Path, *members: tuple, comment: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data, *options in members:
            info = zipfile.ZipInfo(name, (1999, 12, 31, 23, 59, 58))
            info.compress_type, info.extra, info.comment = (
                (options or [zipfile.ZIP_DEFLATED])[0],
                TIME,
                b"of " + name.encode(),
            )
            info.external_attr = (stat.S_IFREG | 0o640) << 16
            file.writestr(info, data)
        file.comment = comment
    return path


def test_pictures_in_a_zip_are_replaced_and_all_else_is_copied(pipe, photo, tmp_path):
    small = photo.resize((40, 24))
    data = jpeg_bytes(small, quality=20)
    ways = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    texts = [(f"{way}.txt", b"text" * 99, way) for way in ways]
    source = zipped(
        tmp_path / "a.cbz",
        ("./02.jpg", data),
        *texts,
        ("Kapitel é/01.jpeg", data, zipfile.ZIP_LZMA),
        ("Kapitel é/01.jpg", data[:-60]),
        ("empty/", b""),
        comment=b"a comic",
    )
    (task,) = plan([source], tmp_path / "out")
    (result,) = restore_files(pipe, [task], repair=True, **QUICK)
    assert (result.status, result.pictures, task.target.name) == ("restored", 3, "a.cbz")
    assert result.damage[0].startswith("Kapitel é/01.jpg: truncated")
    assert task.target.stat().st_mtime_ns == source.stat().st_mtime_ns
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(task.target) as new:
        assert new.testzip() is None
        assert new.comment == b"a comic"
        names = ["./02.png", *(name for name, *_ in texts), "Kapitel é/01.png", "Kapitel é/01.jpg.png"]
        assert new.namelist() == [*names, "Kapitel é/01.jpg.mask.png", "empty/"]
        for one in new.infolist():
            assert (one.date_time, one.external_attr >> 16, one.extra) == ((1999, 12, 31, 23, 59, 58), 0o100640, TIME)
        for name, text, way in texts:
            info = new.getinfo(name)
            assert (new.read(name), info.compress_type, info.comment) == (text, way, b"of " + name.encode())
        assert Image.open(new.open("./02.png")).size == (40, 24)
        assert old.read("./02.jpg") == data


def test_names_of_a_zip_stay_in_the_bytes_that_they_have(tmp_path):
    """Many programs write them in a character set that they do not name."""
    japanese = "第1話".encode("cp932")
    zipped(tmp_path / "a.zip", ("xxxxx/1.jpg", JPEG), ("xxxxx/1.txt", b"x"))
    data = (tmp_path / "a.zip").read_bytes().replace(b"xxxxx", japanese)
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" + data)  # as if it unpacked itself
    kept(tmp_path / "a.zip", tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", metadata_encoding="cp932") as file:
        assert file.namelist() == ["第1話/1.png", "第1話/1.mask.png", "第1話/1.txt"]
        assert file.testzip() is None
    assert japanese + b"/1.png" in (tmp_path / "b.zip").read_bytes()
    if shutil.which("unzip"):
        subprocess.run(["unzip", "-tqq", tmp_path / "b.zip"], check=True)


def test_a_damaged_member_costs_no_other_and_is_named(prior_folder, photo, tmp_path):
    data = jpeg_bytes(photo.resize((40, 24)))
    source = zipped(tmp_path / "a.zip", ("a.jpg", data, 0), ("b.jpg", data, 0), ("c.txt", b"text" * 99, 0))
    changed = (
        source.read_bytes().replace(data, data[:-30] + bytes(2) + data[-28:], 1).replace(b"texttext", b"textTEXT", 1)
    )
    source.write_bytes(changed)
    done = ddrm_jpeg("restore", source, "-o", tmp_path / "out", "--prior", prior_folder, "--steps", "2")
    assert done.returncode == 1
    assert "2 of 3 images stay as they were: a.jpg: it cannot be unpacked: Bad CRC-32" in done.stderr
    assert "c.txt: it cannot be unpacked" in done.stderr
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "out" / "a.zip") as new:
        assert new.namelist() == ["a.jpg", "b.png", "c.txt"]
        first, again = (one.fp.read() for one in (old, new) if one.fp.seek(0) == 0)
        assert data[:-30] + bytes(2) + data[-28:] in first
        assert data[:-30] + bytes(2) + data[-28:] in again
    assert not list(tmp_path.glob("*.txt"))


def test_a_run_that_stops_while_a_zip_is_written_leaves_nothing_and_is_silent(tmp_path, monkeypatch):
    unraised = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: unraised.append(told.exc_value))
    source = zipped(tmp_path / "a.zip", ("a.jpg", JPEG), ("b.txt", b"x"))

    def convert(members):
        yield next(members), [(".png", b"picture")]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archives.rewrite(source, tmp_path / "b.zip", lambda start: True, convert)
    gc.collect()
    assert unraised == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def encrypted(path: Path) -> None:
    zipped(path, ("a.jpg", JPEG, 0))
    data = bytearray(path.read_bytes())
    for start, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(start) + at] |= 1
    path.write_bytes(data)


def bomb(path: Path) -> None:
    zipped(path, ("a.jpg", JPEG + bytes(2**27)))


def shared(path: Path) -> None:
    """Members of which each is all of the others' bytes."""
    zipped(path, ("a.jpg", bytes(5000), 0), ("b.jpg", bytes(5000), 0))
    data = path.read_bytes()
    second = data.index(b"b.jpg") - 30
    path.write_bytes(data.replace(struct.pack("<I", second) + b"b.jpg", bytes(4) + b"b.jpg"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (encrypted, "a.zip: it is encrypted; unpack it with its password"),
        (bomb, "it is no zip, or cut short: it unpacks to more than"),
        (shared, "it is no zip, or cut short: its members lie upon one another"),
        (lambda path: path.write_bytes(b"Rar!\x1a\7\0"), "it is no zip, or cut short"),
        (lambda path: zipped(path, ("a", b"")).write_bytes(path.read_bytes()[:-30]), "it is no zip, or cut short"),
    ],
    ids=["encrypted", "a bomb", "shared bytes", "another archive", "cut short"],
)
def test_a_zip_that_cannot_be_rewritten_is_refused_in_a_sentence(make, words, tmp_path):
    make(tmp_path / "a.zip")
    (result,) = restore_files(None, plan([tmp_path / "a.zip"]))
    assert (result.status, words in result.message) == ("failed", True), result.message
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".TAR.GZ"])
def test_a_compressed_tar_stays_one(suffix, tmp_path):
    source = tmp_path / f"a.b{suffix}"
    with tarfile.open(source, "w:gz") as tar:
        for name, data in (("./0.jpg", JPEG), ("./0.txt", b"text")):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    (task,) = plan([tmp_path])
    assert (task.target.name, task.is_shard) == (f"a.b_restored{suffix}", True)
    kept(source, task.target)
    with tarfile.open(task.target, "r:gz") as tar:
        assert {one.name: tar.extractfile(one).read() for one in tar} == {
            "./0.png": b"picture",
            "./0.mask.png": b"mask",
            "./0.txt": b"text",
        }
    first = task.target.read_bytes()
    kept(source, task.target)
    assert task.target.read_bytes() == first, "no time of writing"
    assert len(plan([tmp_path])) == 1, "what was made is no source"


def test_a_tar_stays_a_tar_and_a_zip_a_zip(tmp_path):
    for name in ("a.tar", "a.zip"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="a tar stays a tar"):
        plan([tmp_path / "a.tar"], tmp_path / "b.cbz")
    assert plan([tmp_path / "a.zip"], tmp_path / "b.cbz")[0].is_shard
    (tmp_path / "x").mkdir()
    shutil.copy(tmp_path / "a.zip", tmp_path / "x")
    targets = [task.target.name for task in plan([tmp_path, tmp_path / "x"], tmp_path / "out")]
    assert targets == ["a.tar", "a.zip", "a.2.zip"]


WHOLE = io.BytesIO()
with zipfile.ZipFile(WHOLE, "w", zipfile.ZIP_DEFLATED) as _file:
    for _name in ("a.jpg", "b.txt", "c.jpg"):
        _file.writestr(_name, JPEG + b"some more")


@given(st.lists(st.tuples(st.integers(0, len(WHOLE.getvalue()) - 1), st.integers(0, 255)), max_size=6))
def test_a_broken_zip_is_rewritten_or_refused_and_nothing_else(tmp_path_factory, changes):
    folder = tmp_path_factory.getbasetemp()
    data = bytearray(WHOLE.getvalue())
    for place, value in changes:
        data[place] = value
    (folder / "a.zip").write_bytes(data)
    try:
        kept(folder / "a.zip", folder / "b.zip")
    except (*archives.BROKEN, ValueError) as error:
        assert isinstance(error, archives.BROKEN) or "encrypted" in str(error)  # noqa: PT017 any of them may come
        return
    with zipfile.ZipFile(folder / "b.zip") as file:
        file.infolist()
    assert (folder / "b.zip").stat().st_size < 2 * len(data)
