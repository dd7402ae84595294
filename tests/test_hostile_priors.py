"""Priors and results of strangers: whatever is wrong with them is one sentence, told before memory is taken."""

import json
import shutil

import pytest
from conftest import jpeg_bytes
from processes import run

from pipeline_ddrm_jpeg import DDRMJPEGPipeline
from pipeline_ddrm_jpeg.evaluation.protocol import Protocol, find_images
from pipeline_ddrm_jpeg.evaluation.run import Evaluation

UNET, SCHEDULER, INDEX = "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"
CONFIGS = {
    "a text": (UNET, '"google/ddpm-celebahq-256"', "no object of JSON but 'google/ddpm-celebahq-256'"),
    "a list": (UNET, "[1]", "no object of JSON"),
    "nested": (UNET, "[" * 100_000, "nested without end"),
    "no groups": (UNET, {"norm_num_groups": 0}, "a number that is none"),
    "a million channels": (UNET, {"block_out_channels": [10**6, 10**6]}, "a number that is none"),
    "channels in words": (UNET, {"block_out_channels": "many"}, "a number that is none"),
    "many layers": (UNET, {"layers_per_block": 50_000}, "more than 100 layers"),
    "many blocks": (UNET, {"down_block_types": ["DownBlock2D"] * 100_000}, "no list of a few"),
    "another shape": (UNET, {"block_out_channels": [16, 32]}, "expected shape"),
    "a scheduler's text": (SCHEDULER, '"somebody/something"', "its scheduler has a config that is no object"),
    "a thousand million timesteps": (SCHEDULER, {"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000"),
    "betas that are none": (SCHEDULER, {"trained_betas": [float("nan")] * 10}, "betas of a schedule"),
    "an index that is a text": (INDEX, '"somebody/something"', "no object of JSON"),
    "errors that are none": (INDEX, '{"denoiser_error": {"luma": 3}}', "no table of errors"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_of_a_prior_that_is_none_is_one_sentence(prior_folder, tmp_path, kind):
    name, change, words = CONFIGS[kind]
    folder = shutil.copytree(prior_folder, tmp_path / "prior")
    if isinstance(change, dict):
        change = json.dumps(json.loads((folder / name).read_text()) | change)
    (folder / name).write_text(change)
    with pytest.raises((OSError, ValueError), match=words) as caught:
        DDRMJPEGPipeline.from_prior(folder)
    assert "huggingface.co" not in str(caught.value)


@pytest.mark.parametrize("broken", ["{", "[" * 100_000, '"text"', "[1]", '[{"dataset": "a"}]'], ids=range(5))
def test_results_that_are_broken_are_named(photo, tmp_path, broken):
    photo.resize((40, 24)).save(tmp_path / "a.png")
    pictures = find_images([tmp_path])
    evaluation = Evaluation(tmp_path / "out", Protocol(), {})
    place = evaluation._place(pictures[0])
    place.parent.mkdir(parents=True)
    place.write_text(broken)
    with pytest.raises(
        ValueError, match=rf"{place} (is broken|holds).*; delete it, and the same command makes it anew"
    ):
        evaluation.finish(pictures)


@pytest.mark.parametrize("broken", ["{", "[]"])
def test_a_record_that_is_broken_is_named(tmp_path, broken):
    (tmp_path / "evaluation.json").write_text(broken)
    with pytest.raises(ValueError, match=r"evaluation.json (is broken|holds)"):
        Evaluation(tmp_path, Protocol(), {})


@pytest.mark.parametrize("limit", [2_000, 20_000])  # less than the file, less than its coefficients
def test_a_limit_on_the_size_of_files_is_not_called_damage(photo, tmp_path, limit):
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes(photo))
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    done = run(None, "inspect", "--repair", tmp_path / "a.jpg", prelude=limited)
    assert done.returncode == 1
    assert "there is no room for its coefficients: File too large" in done.stderr
    assert "damage" not in done.stderr
