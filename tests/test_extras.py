"""A plain environment, without the packages of the extras: what needs them says so in a sentence."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution

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

# Runs programs one after the other, so that torch is loaded once; each with the name of the folder it may write to.
RUN = """
import contextlib, io, json, runpy, sys
found = {}
for name, arguments in json.loads(sys.argv[1]):
    sys.path.insert(0, name.rpartition("/")[0])
    sys.argv, said = [name, *arguments], io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            runpy.run_path(name, run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            status = repr(error)
    found[name] = [status, said.getvalue()]
    sys.path.pop(0)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An environment in which nothing can be imported but what the package itself depends on."""
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
    return [sys.executable, "-S"], os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "MPLBACKEND": "Agg"}


def test_every_program_starts_or_names_the_extra_that_it_needs(plain):
    command, environment = plain
    programs = json.dumps([[str(path), ["--help"]] for path in PROGRAMS])
    done = subprocess.run([*command, "-c", RUN, programs], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    needed = {}
    for name, (status, said) in json.loads(done.stdout.splitlines()[-1]).items():
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


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["evaluate", ".", "-o", "out", "--metrics", "ssim"], "eval"),
        (["evaluate", ".", "-o", "out", "--metrics", "lpips"], "eval"),
        (["evaluate", ".", "-o", "out", "--baseline", "waifu2x"], "baselines"),
        (["restore", "photo.jpg", "--class-label", "auto", "--prior", "PRIOR"], "classes"),
    ],
)
def test_a_command_that_needs_an_extra_names_it(plain, photo, tmp_path, tmp_path_factory, arguments, extra):
    python, environment = plain
    if "PRIOR" in arguments:  # one that knows classes
        prior = tmp_path_factory.mktemp("conditional")
        UNet2DModel(**{**make_unet().config, "num_class_embeds": 3}).save_pretrained(prior / "unet")
        DDRMScheduler().save_pretrained(prior / "scheduler")
        arguments = [*arguments[:-1], str(prior)]
    (tmp_path / "photo.jpg").write_bytes(jpeg_bytes(photo.resize((32, 32))))
    command = [*python, "-m", "pipeline_ddrm_jpeg", *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert f"pip install 'pipeline-ddrm-jpeg[{extra}]'" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_the_library_names_the_extra_too(plain):
    command, environment = plain
    code = (
        "from pipeline_ddrm_jpeg.evaluation.metrics import METRICS, unavailable;"
        "print({name: unavailable(name) for name in METRICS})"
    )
    done = subprocess.run([*command, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pipeline-ddrm-jpeg[eval]") == 4
