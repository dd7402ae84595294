"""Runs that are killed, cut off from their readers or not alone: the command in processes of its own."""

import json
import tarfile
import time

import psutil
import pytest
from conftest import jpeg_bytes
from processes import Process

FILES = 8


@pytest.fixture(scope="module")
def source(photo, tmp_path_factory):
    """A folder of eight files and a shard of three."""
    folder = tmp_path_factory.mktemp("in")
    for i in range(FILES):
        (folder / f"{i}.jpg").write_bytes(jpeg_bytes(photo.resize((96, 64 + i)), quality=10 + i))
    with tarfile.open(folder / "s.tar", "w") as shard:
        for i in range(3):
            shard.add(folder / f"{i}.jpg", f"{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def run(source, prior_folder):
    """Starts the command on that folder, which restores it to the one named."""

    def start(output, prelude=""):
        arguments = ["restore", source, "-o", output, "--json-log", "-", "--prior", prior_folder]
        arguments += ["--steps", "4", "--init-timestep", "40"]
        return Process(None, *arguments, prelude=prelude)

    return start


def pictures(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def of_files(pictures):
    """Without the shard, in which an image that could not be read stays what it was."""
    return {name: data for name, data in pictures.items() if name != "s.tar"}


def statuses(process):
    output, errors = process.communicate(timeout=300)
    return [json.loads(line)["status"] for line in output.splitlines()], errors


@pytest.fixture(scope="module")
def expected(run, tmp_path_factory):
    """What a run gives that nothing befalls."""
    whole = tmp_path_factory.mktemp("expected") / "whole"
    found, errors = statuses(run(whole))
    assert found == ["restored"] * (FILES + 1), errors
    return pictures(whole)


def wait_for(what, process):
    deadline = time.monotonic() + 120
    while not (found := what()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return found


@pytest.mark.parametrize("when", [1, 5, FILES], ids=["early", "amidst", "in the shard"])
def test_a_killed_run_goes_on_and_gives_the_bytes_of_one_that_was_not(run, expected, when, tmp_path):
    out = tmp_path / "out"
    process = run(out)
    wait_for(lambda: out.exists() and len(pictures(out)) >= when, process)
    process.kill()
    process.communicate()
    before = pictures(out)
    assert before.items() <= expected.items(), "each is whole"
    found, errors = statuses(run(out))
    assert found.count("skipped") == len(before), errors
    assert found.count("restored") == FILES + 1 - len(before)
    assert pictures(out) == expected


def test_two_runs_on_one_folder_at_once_end_well(run, expected, tmp_path):
    for process in [run(tmp_path / "out"), run(tmp_path / "out")]:
        found, errors = statuses(process)
        assert set(found) <= {"restored", "skipped"}, errors
        assert process.returncode == 0
    assert pictures(tmp_path / "out") == expected
    assert len(list((tmp_path / "out").iterdir())) == FILES + 1, "nothing unfinished is left"


def servers(process):
    """The processes that fork readers; none of a process that has ended."""
    try:
        return psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return []


def test_readers_that_are_killed_in_the_middle_of_a_run_cost_their_own_files_at_most(run, expected, tmp_path):
    process = run(tmp_path / "out")
    killed = 0
    while process.poll() is None:
        for server in servers(process):
            try:
                for victim in (*server.children(), server)[:1]:
                    victim.kill()
                    killed += 1
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    found, _ = statuses(process)
    assert killed > 1
    assert len(found) == FILES + 1
    assert of_files(pictures(tmp_path / "out")).items() <= expected.items()
    statuses(run(tmp_path / "out"))
    assert of_files(pictures(tmp_path / "out")) == of_files(expected)


def test_a_reader_that_hangs_in_the_middle_of_a_run_costs_its_file(run, expected, tmp_path):
    process = run(tmp_path / "out", "from pipeline_ddrm_jpeg.jpeg import reader; reader._READ_TIMEOUT = 3")
    server = wait_for(lambda: servers(process), process)[0]
    wait_for(lambda: (tmp_path / "out").exists() and pictures(tmp_path / "out"), process)
    server.suspend()
    found, errors = statuses(process)
    assert found.count("failed") == 1
    assert "reading its coefficients took more than 3 seconds" in errors
    assert not server.is_running()
    statuses(run(tmp_path / "out"))
    assert of_files(pictures(tmp_path / "out")) == of_files(expected)
