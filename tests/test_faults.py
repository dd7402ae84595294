"""Runs that are killed, cut off from their readers or not alone: the command in processes of its own."""

import json
import os
import subprocess
import sys
import tarfile
import time

import psutil
import pytest
from conftest import jpeg_bytes

FILES = 8


@pytest.fixture
def run(photo, prior_folder, tmp_path):
    """Starts the command on a folder of eight files and a shard of three, which restores them to the folder named."""
    (tmp_path / "in").mkdir()
    for i in range(FILES):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(jpeg_bytes(photo.resize((96, 64 + i)), quality=10 + i))
    with tarfile.open(tmp_path / "in" / "s.tar", "w") as shard:
        for i in range(3):
            shard.add(tmp_path / "in" / f"{i}.jpg", f"{i}.jpg")

    def start(output, prelude=""):
        code = f"{prelude}\nfrom pipeline_ddrm_jpeg.cli import app; app()"
        command = [sys.executable, "-c", code, "restore", tmp_path / "in", "-o", tmp_path / output, "--json-log", "-"]
        command += ["--prior", prior_folder, "--steps", "4", "--init-timestep", "40"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    return start


def pictures(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def pictures_of_files(folder):
    """Without the shard, in which a picture that could not be read stays what it was."""
    return {name: data for name, data in pictures(folder).items() if name != "s.tar"}


def statuses(process):
    output, errors = process.communicate(timeout=300)
    return [json.loads(line)["status"] for line in output.splitlines()], errors


@pytest.fixture
def expected(run, tmp_path):
    """What a run gives that nothing befalls."""
    found, errors = statuses(run("whole"))
    assert found == ["restored"] * (FILES + 1), errors
    return pictures(tmp_path / "whole")


def wait_for(what, process):
    deadline = time.monotonic() + 120
    while not (found := what()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return found


@pytest.mark.parametrize("when", [1, 5, FILES], ids=["early", "amidst", "in the shard"])
def test_a_killed_run_goes_on_and_gives_the_bytes_of_one_that_was_not(run, expected, when, tmp_path):
    process, out = run("out"), tmp_path / "out"
    wait_for(lambda: out.exists() and len(pictures(out)) >= when, process)
    process.kill()
    process.communicate()
    before = pictures(out)
    assert before.items() <= expected.items(), "each is whole"
    found, errors = statuses(run("out"))
    assert found.count("skipped") == len(before), errors
    assert found.count("restored") == FILES + 1 - len(before)
    assert pictures(out) == expected


def test_two_runs_on_one_folder_at_once_end_well(run, expected, tmp_path):
    for process in [run("out"), run("out")]:
        found, errors = statuses(process)
        assert set(found) <= {"restored", "skipped"}, errors
        assert process.returncode == 0
    assert pictures(tmp_path / "out") == expected
    assert len(list((tmp_path / "out").iterdir())) == FILES + 1, "nothing unfinished is left"


def servers(process):
    """The processes that fork readers."""
    return psutil.Process(process.pid).children()


def test_readers_that_are_killed_in_the_middle_of_a_run_cost_their_own_files_at_most(run, expected, tmp_path):
    process = run("out")
    killed = 0
    while process.poll() is None:
        for server in servers(process) if process.poll() is None else ():
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
    assert pictures_of_files(tmp_path / "out").items() <= expected.items()
    statuses(run("out"))
    assert pictures_of_files(tmp_path / "out") == pictures_of_files(tmp_path / "whole")


def test_a_reader_that_hangs_in_the_middle_of_a_run_costs_its_file(run, expected, tmp_path):
    process = run("out", "from pipeline_ddrm_jpeg import jpeg_reader; jpeg_reader._READ_TIMEOUT = 3")
    server = wait_for(lambda: servers(process), process)[0]
    wait_for(lambda: (tmp_path / "out").exists() and pictures(tmp_path / "out"), process)
    server.suspend()
    found, errors = statuses(process)
    assert found.count("failed") == 1
    assert "reading its coefficients took more than 3 seconds" in errors
    assert not server.is_running()
    statuses(run("out"))
    assert pictures_of_files(tmp_path / "out") == pictures_of_files(tmp_path / "whole")
