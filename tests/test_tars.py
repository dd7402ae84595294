"""Shards, read by the library that they are for."""

import io
import json
import subprocess
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import webdataset
from conftest import ddrm_jpeg, jpeg_bytes
from PIL import Image
from processes import Process

from pipeline_ddrm_jpeg import JPEGFile, observe
from pipeline_ddrm_jpeg.files import archives
from pipeline_ddrm_jpeg.files.restoration import restore_file, restore_files
from pipeline_ddrm_jpeg.files.tasks import Task, plan

QUICK = {"preset": "paper", "settings": {"num_inference_steps": 2, "init_timestep": 40}}


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
    assert "1 of 3 images stay as they were: 00/d.jpg: truncated" in result.message
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
    assert "images restored: 2, at least 100 % of the coefficients kept of each" in done.stdout
    assert "none.tar" in done.stdout
    assert "no JPEG in it" in done.stdout
    assert "00/a.webp" in contents(tmp_path / "out" / "a.tar")
    (tmp_path / "out" / "b.tar").unlink()
    again = ddrm_jpeg(*command, "--json-log", "-")
    facts = [json.loads(line) for line in again.stdout.splitlines()]
    assert [(one["status"], one["pictures"]) for one in facts] == [("skipped", 0), ("skipped", 0), ("restored", 2)]
    told = [(one["member"], one["status"], one["consistency"]) for one in facts[2]["members"]]
    assert told[0][:2] == ("00/a.jpg", "restored")
    assert (facts[2]["members"][0]["target"], facts[2]["members"][0]["mask"]) == ("00/a.webp", None)
    assert min(kept for _, _, kept in told) == facts[2]["consistency"]


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
    assert "1 of 2 images stay as they were: c.png" in result.message
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


def kept(source, target, made=(".png", b"picture")):
    """Writes a shard anew in which what begins like a JPEG becomes something else."""

    def convert(members):
        for member in members:
            yield member, [made] if member.data is not None else ()

    archives.rewrite(source, target, lambda start: start.startswith(b"\xff\xd8\xff"), convert)


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def members(path, *listed, **options):
    with tarfile.open(path, "w", **options) as tar:
        for one in listed:
            header, data = one if isinstance(one, tuple) else (one, None)
            header = tarfile.TarInfo(header) if isinstance(header, str) else header
            header.size = len(data or b"")
            tar.addfile(header, data and io.BytesIO(data))
    return path


JPEG = b"\xff\xd8\xff\xe0"


def test_links_lead_to_what_their_members_became(tmp_path):
    listed = [
        link("s/first.jpg", "../a.jpg"),  # before what it leads to
        link("s/second.jpg", "first.jpg"),
        ("a.jpg", JPEG),
        link("b.jpg", "a.jpg", tarfile.LNKTYPE),
        link("c.jpg", "b.jpg", tarfile.LNKTYPE),
        link("latest", "a.jpg"),
        link("text.jpg", "text", tarfile.LNKTYPE),
        link("out.jpg", "/etc/passwd"),
        link("round.jpg", "about.jpg"),
        link("about.jpg", "round.jpg"),
    ]
    kept(members(tmp_path / "a.tar", ("text", b"text"), *listed), tmp_path / "b.tar")
    with tarfile.open(tmp_path / "b.tar") as tar:
        found = {member.name: member.linkname for member in tar}
        for name in ("a.png", "b.png", "c.png", "latest", "s/first.png", "s/second.png"):
            assert tar.extractfile(name).read() == b"picture", name
        assert tar.extractfile("text.jpg").read() == b"text"
    assert found["s/second.png"] == "first.png"
    assert (found["out.jpg"], found["round.jpg"], found["about.jpg"]) == ("/etc/passwd", "about.jpg", "round.jpg")
    assert len(found) == 1 + len(listed)


def test_no_two_pictures_get_one_name_and_names_keep_their_form(tmp_path):
    names = ["./k.jpg", "./k.jpeg", "./k.json", "./k.jpg.png", ".jpg", "d/"]
    kept(members(tmp_path / "a.tar", *((name, JPEG) for name in names[:2]), (names[3], b"x")), tmp_path / "b.tar")
    assert list(contents(tmp_path / "b.tar")) == ["./k.png", "./k.jpeg.png", "./k.jpg.png"]
    forms = ["d//a.jpg", "d/./a.jpg", "a.jpg", "./a.jpg", "./a.JPG", "./b.jpg", "b.png"]
    kept(members(tmp_path / "e.tar", *((name, JPEG[: 4 * (name != "b.png")]) for name in forms)), tmp_path / "f.tar")
    found = ["d//a.png", "d/./a.png", "a.png", "./a.png", "./a.JPG.png", "./b.jpg.png", "b.png"]
    assert list(contents(tmp_path / "f.tar")) == found
    kept(members(tmp_path / "c.tar", ("", JPEG), (".jpg", JPEG)), tmp_path / "d.tar")
    assert list(contents(tmp_path / "d.tar")) == [".png", ".jpg.png"]


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_a_sparse_member_is_carried_over(tmp_path, form):
    hole, source = tmp_path / "hole", tmp_path / "a.tar"
    with open(hole, "wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    way = ["--format=gnu"] if form == "gnu" else ["--format=posix", f"--sparse-version={form}"]
    subprocess.run(["tar", "--sparse", *way, "-C", tmp_path, "-cf", source, "hole"], check=True)
    kept(source, tmp_path / "b.tar")
    assert contents(tmp_path / "b.tar") == {"hole": hole.read_bytes()}
    subprocess.run(["tar", "-C", tmp_path, "--compare", "-f", tmp_path / "b.tar"], check=True)


@pytest.mark.parametrize(
    "odd",
    [
        {"mtime": "nan"},
        {"mtime": "inf"},
        {"mtime": "-1e300"},
        {"uid": "9" * 60},
        {"comment": "\udcff"},
        {"path": "a\0b"},
    ],
    ids=str,
)
def test_a_member_with_an_odd_name_or_time_costs_no_other(tmp_path, odd):
    header = tarfile.TarInfo("odd")
    header.pax_headers = odd
    listed = [("a.jpg", JPEG), (header, b"odd"), ("z", b"last")]
    kept(members(tmp_path / "a.tar", *listed, format=tarfile.PAX_FORMAT), tmp_path / "b.tar")
    found = contents(tmp_path / "b.tar")
    assert (found.pop("a.png"), found.pop("z"), *found.values()) == (b"picture", b"last", b"odd")


def extended(kind: bytes, data: bytes, size: int | None = None) -> bytes:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, len(data) if size is None else size
    return header.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def record(keyword: bytes, value: bytes = b"") -> bytes:
    length = len(keyword) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, keyword, value)


PLAIN = extended(b"0", b"file") + bytes(1024)


def test_what_stays_is_copied_byte_for_byte(tmp_path):
    """A comment for all of them, as `git archive` writes it, and headers of three formats."""
    headers = [tarfile.TarInfo(name) for name in ("é" * 90, "y.txt", "z" * 120)]
    forms = (tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)
    kinds = zip(headers, forms, strict=True)
    stays = extended(b"g", record(b"comment", b"c0ffee")) + b"".join(one.tobuf(form) for one, form in kinds)
    (tmp_path / "a.tar").write_bytes(stays + extended(b"0", JPEG) + bytes(1024))
    kept(tmp_path / "a.tar", tmp_path / "b.tar")
    written = (tmp_path / "b.tar").read_bytes()
    assert written.startswith(stays)
    assert len(written) % tarfile.RECORDSIZE == 0
    assert contents(tmp_path / "b.tar")["x.png"] == b"picture"


@pytest.mark.parametrize("kind", [b"x", b"g", b"X"])
def test_no_byte_of_a_picture_is_taken_for_a_header(tmp_path, kind):
    picture = JPEG + bytes(152) + kind  # where a header would say that it is continued; so has a JPEG of quality 48
    kept(members(tmp_path / "a.tar", ("a.jpg", picture), ("b.jpg", picture)), tmp_path / "b.tar")
    assert contents(tmp_path / "b.tar") == {"a.png": b"picture", "b.png": b"picture"}


HOSTILE = {
    "a chain of headers": (extended(b"L", b"name\0") * 5000 + PLAIN, "headers of headers"),
    "a size below zero": (extended(b"x", record(b"size", b"-2048")) + PLAIN, "below zero|is none"),
    "a header of a gigabyte": (extended(b"x", b"", 2**30) + PLAIN, "a header of"),
    "a number without end": (extended(b"x", record(b"comment", b"9" * 500_000)) + PLAIN, "that is none"),
    "records without end": (extended(b"x", b"5 aa\n" * 100_000 + b"=") + PLAIN, "that is none"),
    "global headers": (
        extended(b"g", b"".join(record(b"k%d" % i) for i in range(50_000))) + PLAIN,
        "global headers",
    ),
    "a path for all members": (extended(b"g", record(b"path", b"x")) + PLAIN, "gives all members one path"),
    "a sparse member of terabytes": (
        extended(b"x", record(b"GNU.sparse.map", b"0,1") + record(b"GNU.sparse.size", b"9" * 14)) + PLAIN,
        "out of all proportion",
    ),
    "sparse parts that overlap": (
        extended(b"x", record(b"GNU.sparse.map", b"4,4,0,4") + record(b"GNU.sparse.size", b"9")) + PLAIN,
        "one behind the other",
    ),
    "a sparse map of words": (extended(b"x", record(b"GNU.sparse.map", b"a,b")) + PLAIN, "a header that is none"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_tar_that_would_cost_too_much_is_refused_in_a_sentence(tmp_path, kind):
    data, words = HOSTILE[kind]
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(tarfile.ReadError, match=words):
        kept(tmp_path / "a.tar", tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


@pytest.mark.parametrize(("compressed", "fast"), [("gz", {}), ("bz2", {"compresslevel": 1}), ("xz", {"preset": 0})])
def test_a_tar_that_unpacks_out_of_all_proportion_is_refused(tmp_path, compressed, fast):
    header = tarfile.TarInfo("zeros")
    header.size = 5 * 2**24
    with tarfile.open(tmp_path / "a.tar", f"w:{compressed}", **fast) as tar, open("/dev/zero", "rb") as zeros:
        tar.addfile(header, zeros)
    with pytest.raises(tarfile.ReadError, match="out of all proportion"):
        kept(tmp_path / "a.tar", tmp_path / "b.tar")
    small = members(tmp_path / "c.tar", ("a.jpg", JPEG), ("b", bytes(1000)))
    with tarfile.open(tmp_path / "d.tar", f"w:{compressed}") as packed, tarfile.open(small) as tar:
        for member in tar:
            packed.addfile(member, tar.extractfile(member))
    kept(tmp_path / "d.tar", tmp_path / "e.tar")
    assert contents(tmp_path / "e.tar") == {"a.png": b"picture", "b": bytes(1000)}


def test_damage_in_a_shard_is_told_and_masked(pipe, files, tmp_path):
    (tmp_path / "d.jpg").write_bytes(files["00/d.jpg"])
    alone = restore_file(pipe, Task(tmp_path / "d.jpg", tmp_path / "d.png"), repair=True, **QUICK)
    source = shard(tmp_path / "one.tar", {"a.jpg": files["00/a.jpg"], "d.jpg": files["00/d.jpg"]})
    (result,) = restore_files(pipe, plan([source], tmp_path / "out"), repair=True, **QUICK)
    assert (result.status, result.pictures) == ("restored", 2)
    assert result.invented == alone.invented > 0
    assert result.damage == tuple(f"d.jpg: {words}" for words in alone.damage)
    whole, damaged = result.members
    assert (whole.member, whole.damage, whole.invented) == ("a.jpg", (), 0)
    assert (whole.written, damaged.written) == (("a.png",), ("d.png", "d.mask.png"))
    assert replace(damaged, task=alone.task, member=None, seconds=alone.seconds, written=()) == alone
    found = contents(tmp_path / "out" / "one.tar")
    assert list(found) == ["a.png", "d.png", "d.mask.png"]
    assert found["d.mask.png"] == (tmp_path / "d.mask.png").read_bytes()


def test_what_is_not_kept_of_a_member_is_told(pipe, files, tmp_path):
    described = files["00/a.jpg"][:2] + b"\xff\xed\0\x06what" + files["00/a.jpg"][2:]
    (result,) = restore_files(pipe, plan([shard(tmp_path / "a.tar", {"a.jpg": described})], tmp_path / "out"), **QUICK)
    assert result.not_kept == ("APP13 segment what",)
