"""The scripts of examples/, as they stand, on a small image."""

import json
import runpy
import shutil
import sys

import datasets
import numpy as np
import processes
import pytest
import torch
from conftest import ROOT, jpeg_bytes
from PIL import Image

from pipeline_ddrm_jpeg import DDRMJPEGPipeline


@pytest.fixture
def run(photo, tmp_path, monkeypatch):
    """Run a script in a folder that holds `small.jpg` and `small.png`."""
    small = photo.resize((40, 24))
    small.save(tmp_path / "small.png")
    (tmp_path / "small.jpg").write_bytes(jpeg_bytes(small, quality=10))
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")

    return run


def test_a_file_is_restored(run):
    run("restore_file.py", "small.jpg", "out.png")
    assert Image.open("out.png").size == (40, 24)


def test_a_batch_is_restored(run, capsys):
    run("restore_batch.py", "out", "small.jpg", "small.jpg")
    assert capsys.readouterr().out.splitlines() == ["small.jpg: 100 % of the coefficients kept"] * 2
    assert Image.open("out/small.png").size == (40, 24)


def test_a_dataset_is_restored(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for label in ("cats", "dogs"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        shutil.copy("small.jpg", tmp_path / "pictures" / label / "1.jpg")
    run("restore_dataset.py", "pictures", "restored")
    restored = datasets.load_from_disk("restored")
    assert restored["label"][:] == [0, 1]
    assert not np.array_equal(restored[0]["image"], Image.open("small.jpg"))
    assert restored[0]["image"].size == (40, 24)


def test_another_prior_restores(run, prior_folder):
    run("another_prior.py", prior_folder, "small.jpg", "out.png")
    assert Image.open("out.png").size == (40, 24)


def test_dequantization_gains(run, capsys):
    run("dequantize.py", "small.png", "out.png")
    before, after = (float(word) for word in capsys.readouterr().out.split() if word[0].isdigit())
    assert after > before + 1
    assert Image.open("out.png").size == Image.open("out_reduced.png").size == (40, 24)


def test_a_new_operator_doubles_the_size_and_keeps_the_file(run, capsys):
    run("new_operator.py", "small.jpg", "out.png")
    assert Image.open("out.png").size == (80, 48)
    assert capsys.readouterr().out == "100 % of the coefficients kept\n"


def test_ddrm_in_thirty_lines_is_the_pipeline_with_the_papers_settings(run):
    script = ROOT / "examples" / "ddrm_in_thirty_lines.py"
    pipe = DDRMJPEGPipeline.from_embedded(dtype=torch.float32)
    expected = pipe("small.jpg", generator=torch.Generator().manual_seed(3), output_type="pt", preset="paper")
    found = runpy.run_path(str(script))["restore"]("small.jpg", pipe.unet, torch.Generator().manual_seed(3))
    assert torch.allclose((found + 1) / 2, expected.images, rtol=0, atol=3.3e-6)
    run(script.name, "small.jpg", "out.png")
    assert Image.open("out.png").size == (40, 24)


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "saved without what it printed"
    code = "\n".join("".join(cell["source"]) for cell in cells)
    done = processes.run(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "quality factor 10" in done.stdout
    assert "% of the coefficients kept" in done.stdout
    with Image.open(ROOT / "examples" / "cat.jpg") as source, Image.open(tmp_path / "cat_restored.png") as restored:
        assert restored.size == source.size


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_without_arguments_a_script_says_how_it_is_called(script, run):
    with pytest.raises(SystemExit) as end:
        run(script.name)
    assert f"python examples/{script.name} " in end.value.code.splitlines()[0]
