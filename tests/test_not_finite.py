"""A result that is no number is a failure, told at the step where it happens, and no black image."""

import numpy as np
import pytest
import torch
from conftest import jpeg_bytes, make_unet, paper

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGPipeline, DDRMScheduler, Operator
from pipeline_ddrm_jpeg.evaluation.protocol import Protocol, find_images
from pipeline_ddrm_jpeg.evaluation.run import Evaluation
from pipeline_ddrm_jpeg.files.restoration import restore_files
from pipeline_ddrm_jpeg.files.tasks import plan
from pipeline_ddrm_jpeg.modular_blocks import DDRMJPEGBlocks

QUICK = {"preset": "paper", "settings": {"num_inference_steps": 2, "init_timestep": 40}}


def broken(weight: float, dtype: torch.dtype = torch.float32) -> DDRMJPEGPipeline:
    unet = make_unet()
    unet.conv_out.bias.data[1] = weight
    pipe = DDRMJPEGPipeline(unet.to(dtype), DDRMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def small(photo):
    return jpeg_bytes(photo.resize((40, 24)), quality=10)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_weights_that_are_no_numbers_end_the_first_step(small, weight):
    with pytest.raises(FloatingPointError, match=r"in float32, gives values that are no numbers.* at timestep 20;"):
        broken(weight)(small, **QUICK)


def test_what_overflows_names_the_prior_and_what_it_computes_in(small, prior_folder):
    pipe = DDRMJPEGPipeline.from_prior(prior_folder, dtype="float16")
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.conv_in.weight.data *= 1e6
    with pytest.raises(FloatingPointError, match=f"the prior {prior_folder.name}, computing in float16, .*float32 may"):
        paper(pipe, small, **QUICK)


def test_the_modular_form_says_the_same(small):
    blocks = DDRMJPEGBlocks().init_pipeline()
    blocks.update_components(unet=broken(float("nan")).unet, scheduler=DDRMScheduler())
    with pytest.raises(FloatingPointError, match="at timestep 20"):
        blocks(file=small, output="images", **QUICK)


def test_an_operator_that_makes_no_numbers_is_found_out(pipe, small):
    class Spoilt(Operator):
        def encode(self, x):
            return x

        def decode(self, y):
            return y / 0 * 0

    with pytest.raises(FloatingPointError):
        paper(pipe, torch.zeros(1, 3, 16, 16), operator=Spoilt(), **QUICK)


def test_a_folder_is_not_filled_with_black_pictures(small, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(small)
    results = list(restore_files(broken(float("nan")), plan([tmp_path], tmp_path / "out"), **QUICK))
    assert [result.status for result in results] == ["failed", "failed"]
    assert "no numbers" in results[0].message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scale", [float("nan"), -1, 0, float("inf"), "2"], ids=str)
def test_the_error_scale_is_a_number_above_zero(pipe, small, scale):
    with pytest.raises(ValueError, match=r"error_scale is .*; it must be a number above 0"):
        paper(pipe, small, correction="posterior", error_scale=scale, **QUICK)


def test_an_evaluation_fails_the_picture_and_goes_on(photo, tmp_path):
    photo.resize((40, 24)).save(tmp_path / "a.png")
    protocol = Protocol(quality_factors=(10,), size=None, metrics=(), settings=PRESETS["fast"])
    evaluation = Evaluation(tmp_path / "out", protocol, {})
    ((path, reason),) = evaluation.run(broken(float("nan")), find_images([tmp_path]))
    assert path.endswith("a.png")
    assert "no numbers" in reason


def test_large_values_are_numbers(small):
    picture = broken(1e4)(small, output_type="np", **QUICK).images[0]
    assert np.isfinite(picture).all()
