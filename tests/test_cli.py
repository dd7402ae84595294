"""The command: what it says and does, in a process of its own where that is what is judged."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import tifffile
from conftest import ddrm_jpeg, jpeg_bytes
from PIL import Image
from processes import Process, run

from pipeline_ddrm_jpeg.threads import sleep_while_waiting

COMMAND = [sys.executable, "-m", "pipeline_ddrm_jpeg"]
QUICK = ["--steps", "2", "--init-timestep", "40", "--samples", "1"]


@pytest.fixture
def folder(photo, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(jpeg_bytes(photo.resize((40, 24)), quality=25))
    return tmp_path


def test_help_names_every_command_and_option(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    overview = ddrm_jpeg("--help").stdout
    assert all(command in overview for command in ("restore", "inspect", "degrade", "convert", "push"))
    details = ddrm_jpeg("restore", "--help").stdout
    for option in (
        *("--output", "--recursive", "--preset", "--samples", "--steps", "--init-timestep", "--eta", "--eta-b"),
        *("--correction", "--consistent", "--no-consistent", "--prior", "--device", "--dtype", "--seed"),
        *("--overwrite", "--format", "--depth", "--repair", "--json-log"),
        *("--sampler", "--class-label", "--classifier"),
    ):
        assert option in details


def test_version_is_that_of_the_package():
    from pipeline_ddrm_jpeg import __version__

    assert ddrm_jpeg("--version").stdout.strip() == f"ddrm-jpeg {__version__}"


def test_a_folder_is_restored_resumed_and_reported(folder, prior_folder):
    first = ddrm_jpeg("restore", folder, "-o", folder / "out", "--prior", prior_folder, *QUICK)
    assert first.returncode == 0, first.stderr
    assert "2 restored" in first.stdout
    assert first.stderr == "", "a bar is for terminals"
    assert Image.open(folder / "out" / "a.png").size == (40, 24)
    (folder / "out" / "a.png").unlink()
    second = ddrm_jpeg("restore", folder, "-o", folder / "out", "--prior", prior_folder, *QUICK)
    assert second.returncode == 0
    assert "1 restored, 1 skipped" in second.stdout
    made_with = json.loads(Image.open(folder / "out" / "a.png").info["ddrm-jpeg"])
    assert (made_with["prior"], made_with["seed"]) == (prior_folder.name, 0), "not where the prior lies"
    other = ddrm_jpeg("restore", folder, "-o", folder / "out", "--prior", prior_folder, *QUICK, "--seed", "1")
    assert other.stdout.count("is stale: it was made with other settings") == 2


def test_a_sampler_is_chosen_by_its_name(folder, prior_folder):
    settings = ("--prior", prior_folder, *QUICK)
    for sampler in ("ddrm", "pigdm"):
        target = folder / f"{sampler}.png"
        result = ddrm_jpeg("restore", folder / "a.jpg", "-o", target, "--sampler", sampler, *settings)
        assert result.returncode == 0, result.stderr
    assert (folder / "ddrm.png").read_bytes() != (folder / "pigdm.png").read_bytes()
    refused = ddrm_jpeg("restore", folder, "--sampler", "pigdm", "--eta-b", "0.4", *settings)
    assert refused.returncode == 2
    assert "PiGDMScheduler does not take --eta-b 0.4; leave it out" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_one_broken_file_fails_alone(folder, prior_folder):
    (folder / "b.jpg").write_bytes(b"\xff\xd8\xff\xd9")
    result = ddrm_jpeg("restore", folder, "--prior", prior_folder, "--quiet", *QUICK)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("ddrm-jpeg: ")
    assert "b.jpg: it ends without a frame header" in line
    assert (folder / "a_restored.png").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["restore", "missing.jpg"], 2, "missing.jpg does not exist"),
        (["restore", "."], 1, "no JPEG files"),
        (
            ["restore", ".", "--preset", "paper", "--steps", "301"],
            2,
            "--steps is 301; it must be at most --init-timestep, 300",
        ),
        (["restore", ".", "--init-timestep", "soon"], 2, "--init-timestep soon is neither a whole number nor auto"),
        (["restore", ".", "--eta", "2"], 2, "--eta"),
        (["restore", ".", "--format", "bmp"], 2, "--format"),
        (["restore"], 2, "INPUT"),
        (["inspect", "missing.jpg"], 1, "No such file"),
        (["inspect", "."], 1, "Is a directory"),
        (["degrade", "missing.png", "-q", "10"], 1, "No such file"),
        (["degrade", "missing.png", "-q", "0"], 2, "--quality"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(tmp_path, arguments, status, message):
    result = ddrm_jpeg(*arguments, cwd=tmp_path)
    assert result.returncode == status
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_prior_is_told_in_a_sentence(folder):
    result = ddrm_jpeg("restore", folder, "--prior", folder / "nothing", *QUICK)
    assert result.returncode == 1
    assert "--prior" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_line_of_json_tells_of_each_file(folder, prior_folder):
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:-60])
    (folder / "c.jpg").write_bytes(b"\xff\xd8\xff\xd9")
    log, quick = folder / "log.jsonl", [*QUICK, "--format", "webp"]
    first = ddrm_jpeg("restore", folder, "--prior", prior_folder, "--repair", "--json-log", log, *quick)
    assert first.returncode == 1
    assert "% made up" in first.stdout
    (folder / "c.jpg").unlink()
    again = ddrm_jpeg("restore", folder, "--format", "webp", "--json-log", "-")
    assert again.returncode == 0, "everything is there"
    lines, skipped = ([json.loads(line) for line in text.splitlines()] for text in (log.read_text(), again.stdout))
    assert [line["status"] for line in skipped] == ["skipped", "skipped"]
    assert [line["status"] for line in lines] == ["restored", "restored", "failed"]
    assert "c.jpg: it ends without a frame header" in lines[2]["message"]
    b = lines[1]
    assert (b["source"], b["target"]) == (str(folder / "b.jpg"), str(folder / "b_restored.webp"))
    assert 0 < b["invented"] < 1 == 1 - lines[0]["invented"]
    assert "truncated" in b["damage"][0]
    assert Image.open(b["mask"]).size == (40, 24)
    assert b["consistency"] > 0.9
    assert b["seconds"] > 0
    assert b["dtype"] in ("float32", "bfloat16")
    other = ddrm_jpeg("restore", folder, "--prior", prior_folder, "--json-log", log, *quick, "--seed", "1")
    assert other.stdout.count("is stale: it was made with other settings") == 2
    ddrm_jpeg("restore", folder, "--prior", prior_folder, "--json-log", log, *quick, "--overwrite", "--repair")
    same = ddrm_jpeg("restore", folder, "--prior", prior_folder, "--json-log", log, *quick)
    assert "2 skipped" in same.stdout.splitlines()


# Python that makes a process heed permissions even where the tests are run by root: it gives up its capabilities.
UNPRIVILEGED = """
import ctypes, os
if os.geteuid() == 0:
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0
"""


def test_a_picture_goes_through_standard_input_and_output(folder, prior_folder, monkeypatch):
    prior = ("--prior", str(prior_folder), *QUICK)
    os.mkfifo(folder / "pipe")
    piped = f"import os; os.dup2(os.open({str(folder / 'pipe')!r}, os.O_RDONLY), 0)"
    done = Process(None, "restore", "-", "--depth", "16", "--format", "tiff", *prior, prelude=piped)
    (folder / "pipe").write_bytes((folder / "a.jpg").read_bytes())
    assert done.wait() == 0, done.stderr.read_text()
    assert "coefficients kept" in done.stderr.read_text()
    assert tifffile.imread(done.stdout).shape == (24, 40, 3)
    assert tifffile.imread(done.stdout).dtype == "uint16"
    quiet = Process(None, "restore", folder / "b.jpg", "-o", "-", "--quiet", *prior)
    assert quiet.wait() == 0
    assert Image.open(quiet.stdout).format == "PNG"
    assert quiet.stderr.read_bytes() == b""
    with (folder / "a.jpg").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert ddrm_jpeg("restore", "-", "-o", folder / "new.webp", *prior).returncode == 0
    assert Image.open(folder / "new.webp").size == (40, 24)
    refused = ddrm_jpeg("restore", "-", "--json-log", "-", *prior)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert ddrm_jpeg("restore", "-", "--depth", "16", "--format", "webp", *prior).returncode == 2


def test_what_is_no_picture_is_passed_over_in_folders_and_counted(folder, prior_folder):
    for name in ("._a.jpg", "Thumbs.db", "notes.jpg"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "c").write_bytes((folder / "a.jpg").read_bytes())
    log = folder / "log"
    done = ddrm_jpeg("restore", folder, "--prior", prior_folder, "--json-log", log, *QUICK)
    assert done.returncode == 0, done.stderr
    named = f"named like JPEG files, and none: {folder / 'notes.jpg'}"
    assert done.stdout.splitlines()[-3:] == ["3 restored", "3 files were no JPEG images", named]
    assert [json.loads(line)["not_kept"] for line in log.read_text().splitlines()] == [[]] * 3
    assert ddrm_jpeg("restore", folder / "notes.jpg").returncode == 1


def test_images_are_as_old_as_their_sources_and_stale_ones_and_failures_are_named(folder, prior_folder, photo):
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-40])
    (folder / "c.jpg").symlink_to(folder / "b.jpg")
    for name in ("a.jpg", "b.jpg"):
        os.utime(folder / name, ns=(0, 10**18 + 1))
    command = ["restore", folder, "-o", folder / "out", "--prior", prior_folder, "--repair", *QUICK]
    assert ddrm_jpeg(*command).returncode == 0
    made = {path.name: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    assert made == dict.fromkeys(("a.png", "a.mask.png", "b.png", "c.png"), 10**18 + 1)
    os.utime(folder / "b.jpg", ns=(0, 10**18 + 10**10))
    (folder / "d.jpg").write_bytes((folder / "b.jpg").read_bytes()[:100])
    again = ddrm_jpeg(*command, "--no-times")
    assert f"b.png  is stale: {folder / 'b.jpg'} was changed after it" in again.stdout
    assert again.stdout.splitlines()[-2:] == ["1 skipped, 2 stale, 1 failed", f"failed: {folder / 'd.jpg'}"]
    ddrm_jpeg(*command, "--no-times", "--overwrite")
    assert min(path.stat().st_mtime_ns for path in (folder / "out").iterdir()) > 10**18 + 10**10


def test_pictures_of_other_formats_in_folders_are_told_of_and_taken_on_request(folder, prior_folder, photo):
    small = photo.resize((160, 128))
    Image.open(io.BytesIO(jpeg_bytes(small, quality=30))).save(folder / "shot.png")
    small.save(folder / "clean.png")
    (folder / "notes.txt").write_text("no image")
    command = ["restore", folder, "-o", folder / "out", "--prior", prior_folder, *QUICK]
    plain = ddrm_jpeg(*command).stdout.splitlines()[-1]
    assert plain == "3 files were no JPEG images, 2 of them other images (--any-format looks at these too)"
    log = folder / "log"
    done = ddrm_jpeg(*command, "--any-format", "--json-log", log)
    assert done.returncode == 0, done.stderr
    assert "clean.png: its pixels show no JPEG that it went through; left as it is" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["1 restored, 2 skipped, 1 untouched", "1 file was no image"]
    facts = [json.loads(line) for line in log.read_text().splitlines()]
    assert {Path(one["source"]).name: one["status"] for one in facts} == {
        "a.jpg": "skipped",
        "b.jpg": "skipped",
        "clean.png": "untouched",
        "shot.png": "restored",
    }
    (folder / "only").mkdir()
    small.save(folder / "only" / "clean.png")
    assert "--any-format looks at other images too" in ddrm_jpeg("restore", folder / "only").stderr
    assert ddrm_jpeg("restore", folder / "only", "--any-format", "--prior", prior_folder).returncode == 0


def test_what_may_not_be_read_or_written_is_told_in_a_sentence(photo, folder, prior_folder):
    for name in ("out", "secret", "in"):
        (folder / name).mkdir()
    data = jpeg_bytes(photo.resize((40, 24)))
    for path in ("in/a.jpg", "secret/b.jpg"):
        (folder / path).write_bytes(data)
    (folder / "b.jpg").chmod(0)
    (folder / "secret").chmod(0)
    (folder / "in").chmod(0o555)
    arguments = ["restore", folder, "--recursive", "--prior", prior_folder, *QUICK]
    result = run(None, *arguments, prelude=UNPRIVILEGED)
    (folder / "secret").chmod(0o755)
    assert result.returncode == 1
    told = [line for line in result.stderr.splitlines() if line.startswith("ddrm-jpeg: ")]
    names = ("secret", "b.jpg", "in/a_restored.png")
    assert told == [f"ddrm-jpeg: {folder / name}: Permission denied" for name in names]
    assert "1 restored, 3 failed" in result.stdout
    assert sorted(path.name for path in folder.rglob("*restored*")) == ["a_restored.png"]


def test_a_full_disk_fails_the_file_and_leaves_nothing_half_written(photo, folder, prior_folder):
    xmp = bytes(60_000)  # makes the image larger than the limit, and not what the reader writes
    (folder / "b.jpg").write_bytes(jpeg_bytes(photo.resize((40, 24)), xmp=xmp))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"
    arguments = ["restore", folder, "--prior", prior_folder, "--format", "tiff", *QUICK]
    process = Process(None, *arguments, prelude=limit)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert f"ddrm-jpeg: {folder / 'b_restored.tif'}: File too large" in errors
    assert sorted(path.name for path in folder.iterdir()) == ["a.jpg", "a_restored.tif", "b.jpg"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_cannot_be_written_is_one_sentence(folder):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*COMMAND, "inspect", str(folder / "a.jpg")], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert result.returncode == 1
    assert result.stderr == "ddrm-jpeg: standard output: No space left on device\n"


def test_the_same_settings_give_the_same_bytes_in_every_process_and_beside_every_file(folder, prior_folder, one_thread):
    arguments = ["--prior", prior_folder, *QUICK, "--samples", "3", "--seed", "5"]
    assert run(None, "restore", folder, "-o", folder / "both", *arguments).returncode == 0
    assert ddrm_jpeg("restore", folder / "b.jpg", "-o", folder / "alone", *arguments).returncode == 0
    assert (folder / "both" / "b.png").read_bytes() == (folder / "alone" / "b.png").read_bytes()


def test_ctrl_c_leaves_whole_files_only_and_says_how_to_go_on(photo, prior_folder, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(30):
        (tmp_path / "in" / f"{i:02}.jpg").write_bytes(jpeg_bytes(photo.resize((160, 120)), quality=10))
    arguments = ["restore", tmp_path / "in", "-o", tmp_path / "out", "--prior", prior_folder, "--steps", "9"]
    process = Process(None, *arguments)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "run the same command again to go on" in errors
    assert "Traceback" not in errors
    written = list((tmp_path / "out").iterdir())
    assert 1 <= len(written) < 30
    for path in written:
        assert path.suffix == ".png"
        Image.open(path).load()


def test_ctrl_c_does_not_wait_for_a_pipe_that_says_nothing(prior_folder, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    arguments = ["restore", tmp_path / "pipe.jpg", "-o", tmp_path / "out.png", "--prior", prior_folder]
    process = Process(None, *arguments)
    with open(tmp_path / "pipe.jpg", "wb"):  # opens once someone reads there
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "stopped after 0 of 1" in errors
    assert "Traceback" not in errors


def test_a_named_pipe_is_read_once_and_restored(photo, prior_folder, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    process = Process(None, "restore", tmp_path / "pipe.jpg", "-o", tmp_path / "out.png", "--prior", prior_folder)
    (tmp_path / "pipe.jpg").write_bytes(jpeg_bytes(photo.resize((24, 16))))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert Image.open(tmp_path / "out.png").size == (24, 16)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_one_bar_a_file_from_its_first_evaluation_on(folder, prior_folder):
    done = ddrm_jpeg("restore", folder, "-o", folder / "out", "--prior", prior_folder, *QUICK, err=Terminal())
    shown = [line for line in re.split("[\r\n]", done.stderr) if line.strip()]
    assert {line.partition(":")[0] for line in shown} == {"a.jpg (1 of 2)", "b.jpg (2 of 2)"}
    assert all(re.search(r" +\d+ %\|", line) for line in shown)


class StoppedOnceItSays(io.StringIO):
    """A standard error whose reader presses Ctrl-C when this word comes."""

    def __init__(self, word):
        super().__init__()
        self.word = word

    def write(self, text):
        if self.word in text:
            super().write(text)
            raise KeyboardInterrupt
        return super().write(text)


def test_a_long_restoration_is_announced(folder, prior_folder):
    arguments = ["--prior", prior_folder, "--preset", "paper", "--steps", 300, "--samples", 300]
    done = ddrm_jpeg("restore", folder / "a.jpg", *arguments, err=StoppedOnceItSays("about"))
    assert re.search(r"a\.jpg: about \d+ (s|minutes|hours)", done.stderr)
    assert done.returncode == 130


def test_inspect_prints_what_the_file_says(photo, tmp_path):
    data = jpeg_bytes(photo.resize((53, 38)), quality=35, progressive=True, comment=b"hello")
    (tmp_path / "a.jpg").write_bytes(data)
    facts = json.loads(ddrm_jpeg("inspect", tmp_path / "a.jpg", "--json").stdout)
    assert (facts["width"], facts["height"], facts["file_size"]) == (53, 38, len(data))
    assert (facts["color_space"], facts["chroma_subsampling"]) == ("YCbCr", "4:2:0")
    assert facts["color_space_reason"] == "JFIF marker"
    assert (facts["quality_factor"], facts["quality_factor_is_exact"]) == (35, True)
    assert facts["progressive"] is True
    assert facts["metadata_bytes"] == {"comment": 5}
    assert facts["quantization_tables"][0][0][0] == 23
    text = ddrm_jpeg("inspect", tmp_path / "a.jpg").stdout
    for expected in (
        "quality factor       35",
        "YCbCr (JFIF marker)",
        "chroma subsampling   4:2:0",
        "progressive          yes",
        "comment 5",
    ):
        assert expected in text


def test_degrade_writes_a_file_of_that_quality(photo, tmp_path):
    photo.resize((40, 24)).save(tmp_path / "a.png")
    result = ddrm_jpeg("degrade", tmp_path / "a.png", "-q", 12, "--subsampling", "4:4:4")
    assert result.returncode == 0, result.stderr
    facts = json.loads(ddrm_jpeg("inspect", tmp_path / "a_q12.jpg", "--json").stdout)
    assert (facts["quality_factor"], facts["chroma_subsampling"]) == (12, "4:4:4")
    again = ddrm_jpeg("degrade", tmp_path / "a.png", "-q", 12)
    assert again.returncode == 1
    assert "exists" in again.stderr
    assert "written as JPEG" in ddrm_jpeg("degrade", tmp_path / "a.png", "-q", 12, "-o", tmp_path / "b.png").stderr
    (tmp_path / "text.png").write_text("hello")
    assert "not an image" in ddrm_jpeg("degrade", tmp_path / "text.png", "-q", 12).stderr


def test_inspect_reads_from_a_pipe(photo):
    first = Image.open(io.BytesIO(jpeg_bytes(photo.crop((60, 60, 188, 188)), quality=20)))
    shown = io.BytesIO()
    first.save(shown, "png")
    for data, told in (
        (jpeg_bytes(first, quality=92), b"double compression"),
        (shown.getvalue(), b"estimated: a JPEG"),
    ):
        done = subprocess.run([*COMMAND, "inspect", "/dev/stdin"], input=data, capture_output=True)
        assert told in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("given", "found"), [({}, ["PASSIVE", "1000"]), ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "None"])]
)
def test_waiting_threads_of_the_command_do_not_spin_unless_a_user_wants_it(given, found, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    sleep_while_waiting()
    assert [str(os.environ.get(name)) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")] == found


def test_importing_the_package_changes_nothing_for_its_host_and_inspect_starts_without_torch(photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo.resize((16, 16))))
    fresh = """
import os, sys
before = dict(os.environ)
from pipeline_ddrm_jpeg.cli import app
assert os.environ == before
app(["inspect", sys.argv[1]], standalone_mode=False)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", fresh, tmp_path / "a.jpg"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    forked = """
import os
before = dict(os.environ)
import pipeline_ddrm_jpeg.pipeline
assert os.environ == before
"""
    forgetting = processes.STRANGER + "del sys.modules['pipeline_ddrm_jpeg']"  # it is imported anew
    done = run(forked, prelude=forgetting)
    assert done.returncode == 0, done.stderr


def test_a_preset_is_where_the_options_start(folder, prior_folder):
    common = ["--steps", "2", "--init-timestep", "300", "--timestep-spacing", "leading", "--samples", "1"]
    common += ["--independent", "--temperature", "1", "--error-scale", "3", "--dtype", "float32"]
    for name, preset in (("a", "best"), ("b", "fast"), ("c", "paper")):
        arguments = ["restore", folder / "a.jpg", "-o", folder / f"{name}.png", "--prior", prior_folder]
        done = ddrm_jpeg(*arguments, "--preset", preset, *common)
        assert done.returncode == 0, done.stderr
    best, fast, paper = (Image.open(folder / f"{name}.png").tobytes() for name in "abc")
    assert best == fast, "what differs between them is overridden"
    assert paper != fast, "the paper's samples are not projected in the end"


def closed(number):
    """Python that closes a stream, and leaves what Python has for one that is closed when it starts."""
    return f"import os, sys; os.close({number}); sys.{('stdin', 'stdout', 'stderr')[number]} = None"


def full(number):
    """Python that has the stream of this number go where there is no place."""
    return f"import os; os.dup2(os.open('/dev/full', os.O_WRONLY), {number})"


@pytest.mark.parametrize(
    "streams",
    [closed(1), closed(2), "; ".join(map(closed, range(3))), full(1), full(2)],
    ids=["closed output", "closed errors", "no stream", "full output", "full errors"],
)
def test_streams_that_are_closed_or_full_cost_no_picture(folder, prior_folder, streams):
    if "/dev/full" in streams and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    log = folder / "log.jsonl"
    arguments = ["restore", folder, "--prior", prior_folder, "--json-log", log, *QUICK]
    process = Process(None, *arguments, prelude=streams)
    assert process.wait() == 0
    assert [json.loads(line)["status"] for line in log.read_text().splitlines()] == ["restored", "restored"]
    errors = process.stderr.read_text()
    assert "Traceback" not in errors
    if streams == full(1):
        told = [line for line in errors.splitlines() if "standard output" in line]
        assert told == ["ddrm-jpeg: standard output: No space left on device; the run goes on without it"]


def test_a_shell_may_start_it_without_any_stream(photo, tmp_path):
    photo.resize((40, 24)).save(tmp_path / "a.png")
    command = [*COMMAND, "degrade", tmp_path / "a.png", "-q", "10"]  # which needs no torch
    assert subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command]).returncode == 0
    assert Image.open(tmp_path / "a_q10.jpg").size == (40, 24)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_log_that_cannot_be_written_is_named_and_ends_nothing(folder, prior_folder):
    result = ddrm_jpeg("restore", folder, "--prior", prior_folder, "--quiet", "--json-log", "/dev/full", *QUICK)
    assert result.returncode == 1
    assert result.stderr == "ddrm-jpeg: /dev/full: No space left on device; the run goes on without it\n"
    assert len(list(folder.glob("*_restored.png"))) == 2


def test_a_folder_nineteen_hundred_levels_down_is_searched_and_written(photo, prior_folder, tmp_path):
    here, levels = Path.cwd(), 1900 - len(tmp_path.parts)
    try:
        os.chdir(tmp_path)
        for _ in range(levels):
            Path("d").mkdir()
            os.chdir("d")
        Path("a.jpg").write_bytes(jpeg_bytes(photo.resize((24, 16))))
        os.chdir(tmp_path)
        arguments = ["-r", "--prior", prior_folder, "--quiet", *QUICK]
        beside, apart = ddrm_jpeg("restore", "d", *arguments), ddrm_jpeg("restore", "d", "-o", "o", *arguments)
        assert (beside.returncode, beside.stderr) == (0, "")
        assert (apart.returncode, apart.stderr) == (0, "")
        assert Path(*["d"] * levels, "a_restored.png").exists()
        assert Path("o", *["d"] * (levels - 1), "a.png").exists()
    finally:
        for top in (tmp_path / "d", tmp_path / "o"):  # pytest, too, removes no more than a thousand levels
            subprocess.run(["rm", "-rf", str(top)], check=True)
        os.chdir(here)


def test_names_cannot_command_the_terminal_and_stay_exact_in_json(photo, prior_folder, tmp_path):
    evil = "\x1b]0;owned\x07\x1b[31m\nred\u202e\x9b7m"
    good, bad = tmp_path / f"{evil} é 写.jpg", tmp_path / f"bad{evil}.jpg"
    good.write_bytes(jpeg_bytes(photo.resize((24, 16))))
    bad.write_bytes(b"\xff\xd8\xff\xd9")
    log = tmp_path / "log.jsonl"
    results = [
        ddrm_jpeg("restore", tmp_path, "--prior", prior_folder, "--json-log", log, *QUICK),
        ddrm_jpeg("restore", good, "--format", "jpeg", "-o", f"{evil}.png"),
        ddrm_jpeg("restore", f"missing{evil}"),
        ddrm_jpeg("restore", good, f"--{evil}"),
        ddrm_jpeg("inspect", good),
        ddrm_jpeg("inspect", good, bad),
        ddrm_jpeg("inspect", bad),
        ddrm_jpeg("degrade", bad, "-q", 10),
        ddrm_jpeg("degrade", good, "-q", 10),
        ddrm_jpeg(evil),
    ]
    for result in results:
        for text in (result.stdout, result.stderr):
            text = text.replace("\x1b[A", "")  # by which the progress bar goes up a line
            assert not set(text) & set("\x1b\x07\u202e\x9b")
            assert "\nred" not in text
    assert r"\x1b]0;owned\x07\x1b[31m\nred\u202e\x9b7m é 写" in results[0].stdout
    assert r"\x1b]0;owned\x07\x1b[31m\nred" in results[0].stderr, "the progress bar"
    facts = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["source"] for line in facts} == {str(good), str(bad)}
    assert f"{bad}: it ends without a frame header" in next(line["message"] for line in facts if line["message"])
    assert json.loads(ddrm_jpeg("inspect", good, "--json").stdout)["file"] == str(good)


def test_ctrl_c_while_modules_are_imported_shows_no_traceback(tmp_path):
    """Each of the modules named is the first to be imported whose import is interrupted."""
    for module in ("numpy", "typer", "torch"):
        code = (
            "import os, signal, sys\n"
            "class Interrupt:\n"
            "    def find_spec(self, name, *_):\n"
            f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
            "sys.meta_path.insert(0, Interrupt())\n"
            "from pipeline_ddrm_jpeg.__main__ import main\n"
            "main()"
        )
        (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
        result = subprocess.run(
            [sys.executable, "-c", code, "restore", str(tmp_path)],
            capture_output=True,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert (result.returncode, result.stderr) == (130, "ddrm-jpeg: stopped\n"), module


def test_a_harmless_oddity_is_told(folder, prior_folder):
    path = folder / "b.jpg"
    path.write_bytes(path.read_bytes()[:-2] + bytes(600) + b"\xff\xd9")
    result = ddrm_jpeg("restore", path, "--prior", prior_folder, "--json-log", folder / "log.jsonl", *QUICK)
    assert result.returncode == 0, result.stderr
    assert "% of the coefficients kept; the file has more data than its blocks need" in result.stdout
    assert json.loads((folder / "log.jsonl").read_text())["remarks"] == ["more data than its blocks need"]
    assert "remarks              more data than its blocks need" in ddrm_jpeg("inspect", path).stdout
