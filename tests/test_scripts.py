"""The scripts that gather evaluations, on results whose deltas are known."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from PIL import Image

from pipeline_ddrm_jpeg import PRESETS

FACTORS = (10, 30, 50, 80)


@pytest.fixture
def results(tmp_path):
    """An evaluation in which ours is one decibel above JPEG, and another restorer's files are half as large."""
    folder = tmp_path / "balanced"
    folder.mkdir()
    rows = []
    for i, factor in enumerate(FACTORS):
        for method, rate, gain in (
            ("JPEG", 1.0, 0.0),
            ("waifu2x", 0.5, 0.0),
            ("Ours (S)", 1.0, 0.5),
            ("Ours (A)", 1.0, 1.0),
        ):
            row = {"dataset": "set", "images": 2, "operator": "libjpeg", "quality_factor": factor, "method": method}
            row["metrics"] = {"psnr": 25.0 + 3 * i + gain, "ssimulacra2": 20.0 + 15 * i + 4 * gain}
            row["bits_per_pixel"] = 0.25 * 2**i * rate
            if method.startswith("Ours"):
                row |= {"network_evaluations": 4 if method == "Ours (S)" else 16, "seconds": 1.5, "consistency": 1.0}
            rows.append(row)
    protocol = {"quality_factors": FACTORS, "operator": "libjpeg", "baselines": ["waifu2x"]}
    protocol["settings"] = {**PRESETS["balanced"], "correction": "ddrm"}
    record = {
        "protocol": protocol,
        "prior_sha256": "0" * 64,
        "dtype": "float32",
        "versions": {"torch": "2"},
        "commit": "c",
    }
    (folder / "evaluation.json").write_text(json.dumps({**record, "notes": {"lpips": "no network"}, "rows": rows}))
    return folder


def run(script, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_rate_distortion_finds_the_known_deltas(results):
    done = run("rate_distortion.py", results)
    assert done.returncode == 0, done.stderr
    lines = {line.split(" | ")[1]: line for line in done.stdout.splitlines() if line.startswith("| set")}
    rate, psnr, _, ssimulacra2 = lines["Ours (A)"].strip("| ").split(" | ")[2:]
    assert rate.startswith("-")
    assert (psnr, ssimulacra2) == ("+1.000", "+4.000")
    assert lines["waifu2x"].split(" | ")[2] == "-50.0 %"
    assert Image.open(results / "rate_distortion.png").width > 500
    assert "<svg" in (results / "rate_distortion.svg").read_text()[:600]


def test_rate_distortion_says_what_is_missing(results):
    record = json.loads((results / "evaluation.json").read_text())
    (results / "evaluation.json").write_text(json.dumps({**record, "rows": record["rows"][:4]}))
    done = run("rate_distortion.py", results)
    assert done.returncode == 2
    assert "Bjontegaard deltas need four quality factors or more" in done.stderr


def test_results_are_gathered_with_the_command_that_made_them(results, tmp_path):
    done = run("make_results.py", results, "--output", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "results.md").read_text()
    assert "evaluate set --output RESULTS --quality 10,30,50,80 --operator libjpeg --preset balanced" in text
    assert "| 10 | Ours (A) | +1.00 | 24.0 | 0.250 | 100.00 % | 16 | 1.50 |" in text
    assert "LPIPS is n/a: no network." in text
    gathered = json.loads((tmp_path / "results.json").read_text())
    assert len(gathered["rows"]) == 16
    assert gathered["rows"][0]["settings"]["num_samples"] == 4


def test_presets_are_compared_in_one_table(results, tmp_path):
    done = run("compare_presets.py", results, "--output", tmp_path / "presets")
    assert done.returncode == 0, done.stderr
    row = "| balanced | 16 | 1.5 |" + " +1.00 | +4.0 |" * 4
    assert row in done.stdout
    assert row in (tmp_path / "presets.md").read_text()
    assert Image.open(tmp_path / "presets.png").width > 500


def test_the_benchmark_measures_and_judges_by_a_ratio(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--sizes", "64x64", "--dtype", "float32"]
    done = subprocess.run([*script, "--output", str(tmp_path / "b"), "--check", "0"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "of the network's time" in done.stderr
    (row,) = json.loads((tmp_path / "b.json").read_text())["sizes"]
    assert row["seconds"]["correction"] < row["seconds"]["network"]
    assert "| peak memory, MiB |" in (tmp_path / "b.md").read_text()
