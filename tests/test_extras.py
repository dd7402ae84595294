"""A plain environment, without the packages of the extras: what needs them says so in a sentence."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import ROOT, jpeg_bytes, make_unet
from diffusers import UNet2DModel
from packaging.requirements import Requirement

from pipeline_ddrm_jpeg import DDRMScheduler

PROGRAMS = sorted(
    path
    for path in [*ROOT.glob("scripts/**/*.py"), *ROOT.glob("examples/*.py"), ROOT / "space" / "app.py"]
    if "__main__" in path.name or re.search(r'^if __name__ == "__main__"|^if len\(sys.argv\)', path.read_text(), re.M)
)

# Runs programs and the command one after the other, so that torch is loaded once, each in a folder of its own; and asks
# the library.
RUN = """
import contextlib, io, json, os, runpy, sys
from pipeline_ddrm_jpeg.cli import app
from pipeline_ddrm_jpeg.evaluation.metrics import METRICS, unavailable

def ended(call):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            call()
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            status = repr(error)
    return [status, said.getvalue()]

programs, commands = json.loads(sys.argv[1])
found = {"programs": {}, "commands": []}
for folder, arguments in commands:
    os.chdir(folder)
    found["commands"].append(ended(lambda: app(arguments, prog_name="ddrm-jpeg")))
for name in programs:
    sys.path.insert(0, name.rpartition("/")[0])
    sys.argv = [name, "--help"]
    found["programs"][name] = ended(lambda: runpy.run_path(name, run_name="__main__"))
    sys.path.pop(0)
found["library"] = {name: unavailable(name) for name in METRICS}
print(json.dumps(found))
"""

# What needs an extra, and which; PRIOR is one that knows classes.
COMMANDS = [
    (["evaluate", ".", "-o", "out", "--metrics", "ssim"], "eval"),
    (["evaluate", ".", "-o", "out", "--metrics", "lpips"], "eval"),
    (["evaluate", ".", "-o", "out", "--baseline", "waifu2x"], "baselines"),
    (["restore", "photo.jpg", "--class-label", "auto", "--prior", "PRIOR"], "classes"),
]


@pytest.fixture(scope="module")
def plain(photo, tmp_path_factory):
    """What is found in an environment in which nothing can be imported but what the package itself depends on."""
    folder = tmp_path_factory.mktemp("plain")
    wanted, seen = ["pipeline-ddrm-jpeg"], set()
    while wanted:
        found = distribution(wanted.pop())
        if found.name in seen:
            continue
        seen.add(found.name)
        needed = [Requirement(line) for line in found.requires or ()]
        wanted += [one.name for one in needed if not one.marker or one.marker.evaluate({"extra": ""})]
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists() and not top.endswith(".pth"):
                (folder / top).symlink_to(found.locate_file(top))
    prior = tmp_path_factory.mktemp("conditional")
    UNet2DModel(**{**make_unet().config, "num_class_embeds": 3}).save_pretrained(prior / "unet")
    DDRMScheduler().save_pretrained(prior / "scheduler")
    commands = []
    for arguments, _ in COMMANDS:
        place = tmp_path_factory.mktemp("command")
        (place / "photo.jpg").write_bytes(jpeg_bytes(photo.resize((32, 32))))
        commands.append((str(place), [str(prior) if word == "PRIOR" else word for word in arguments]))
    work = json.dumps([[str(path) for path in PROGRAMS], commands])
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "MPLBACKEND": "Agg"}
    done = subprocess.run([sys.executable, "-S", "-c", RUN, work], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    places = [Path(place) for place, _ in commands]
    return json.loads(done.stdout.splitlines()[-1]) | {"places": places}


def test_every_program_starts_or_names_the_extra_that_it_needs(plain):
    needed = {}
    for name, (status, said) in plain["programs"].items():
        short = name.removeprefix(f"{ROOT}/")
        if status == 2:
            sentence = re.fullmatch(
                r"\w+ is not installed; the extra (\w+) brings it: pip install 'pipeline-ddrm-jpeg\[\1\]'\n", said
            )
            assert sentence, (short, said)
            needed[short] = sentence[1]
        else:  # help was printed, or the program ended with how it is used
            assert status in (0, None) or short in str(status), (short, status, said)
    assert needed.items() >= {
        ("examples/restore_dataset.py", "datasets"),
        ("scripts/make_examples.py", "eval"),
        ("scripts/reports/__main__.py", "eval"),
        ("scripts/reports/figures.py", "eval"),
        ("scripts/reports/graphics.py", "eval"),
        ("scripts/reports/presets.py", "eval"),
        ("scripts/reports/rate_distortion.py", "eval"),
        ("scripts/screenshots.py", "browser"),
        ("scripts/training/train_prior.py", "train"),
        ("space/app.py", "space"),
    }
    assert "scripts/reports/comparison.py" not in needed, "make demo draws with the plain environment"


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=lambda number: " ".join(COMMANDS[number][0]))
def test_a_command_that_needs_an_extra_names_it(plain, number):
    status, said = plain["commands"][number]
    assert status == 2, said
    assert len(said.splitlines()) == 1
    assert f"pip install 'pipeline-ddrm-jpeg[{COMMANDS[number][1]}]'" in said
    assert [path.name for path in plain["places"][number].iterdir()] == ["photo.jpg"]


def test_the_library_names_the_extra_too(plain):
    assert str(plain["library"]).count("pipeline-ddrm-jpeg[eval]") == 4
