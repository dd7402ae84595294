"""What diffusers' PipelineTesterMixin asks of every pipeline, one test a behaviour, in words of our own.

What of it does not apply, and why:

- prompts, their encoding in isolation, images per prompt, classifier-free guidance, and guidance changed by a callback:
  the prior is unconditional. `num_samples`, the nearest thing, is tested in test_pipeline.py;
- optional components: there are none;
- attention slicing, xformers, fused projections and attention processors, VAE slicing and tiling: they are methods of
  StableDiffusionMixin and of conditional UNets;
- sequential CPU offload to a GPU, and the memory formats and compilers of one: the tests run on a CPU, where accelerate
  refuses that one; test_accelerate.py runs the other hooks;
- dduf files: diffusers has taken them out;
- latents between pipelines, LoRA, IP adapters, single-file checkpoints: a pixel-space prior has none.
"""

import inspect
import json

import numpy as np
import pytest
import torch
from conftest import jpeg_bytes, make_unet, paper
from diffusers import DiffusionPipeline, UNet2DModel

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, DDRMScheduler

QUICK = {"num_inference_steps": 2, "init_timestep": 40, "output_type": "np"}


@pytest.fixture(scope="module")
def data(photo):
    return jpeg_bytes(photo.resize((40, 24)), quality=20)


@pytest.fixture
def saved(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def restore(pipe, data, **options):
    pipe.set_progress_bar_config(disable=True)
    return paper(pipe, data, **{**QUICK, "generator": torch.Generator().manual_seed(0), **options})


def load(folder, **options):
    return DDRMJPEGPipeline.from_pretrained(folder, **options)


def test_the_call_takes_what_every_pipeline_takes():
    parameters = inspect.signature(DDRMJPEGPipeline.__call__).parameters
    usual = {"num_inference_steps", "generator", "output_type", "return_dict", "callback_on_step_end"}
    assert usual | {"callback_on_step_end_tensor_inputs"} < set(parameters)
    assert all(one.default is not one.empty for one in parameters.values() if one.name not in ("self", "moved"))


@pytest.mark.parametrize("method", ["save_pretrained", "push_to_hub"])
def test_methods_are_called_as_those_of_the_base_class(method):
    ours, base = (
        [name for name, one in inspect.signature(getattr(cls, method)).parameters.items() if one.kind <= 1]
        for cls in (DDRMJPEGPipeline, DiffusionPipeline)
    )
    shared = [name for name in base if name != "subfolder"]
    assert ours[: len(shared)] == shared


def test_a_saved_pipeline_restores_as_before(pipe, saved, data):
    assert np.array_equal(restore(load(saved), data).images, restore(pipe, data).images)


def test_an_unknown_keyword_is_told_and_ignored(saved, caplog):
    assert load(saved, no_such_option=1).unet is not None
    assert "no_such_option" in caplog.text


def test_a_half_precision_save_comes_back_in_half_precision(saved, data):
    half = load(saved, dtype=torch.float16)
    assert half.unet.dtype == half.dtype == torch.float16
    half.save_pretrained(saved.parent / "half", variant="fp16")
    again = load(saved.parent / "half", variant="fp16", dtype=torch.float16)
    assert np.array_equal(restore(again, data).images, restore(half, data).images)


def test_half_precision_is_close_to_single(saved, data):
    single = restore(load(saved), data).images
    for dtype in (torch.float16, torch.bfloat16):
        assert np.abs(restore(load(saved, dtype=dtype), data).images - single).max() < 0.05


def test_the_dtype_may_be_given_by_component(saved):
    assert load(saved, dtype={"unet": torch.bfloat16, "default": torch.float32}).unet.dtype == torch.bfloat16


def test_to_moves_and_casts_every_module(pipe):
    assert pipe.to(torch.bfloat16).unet.dtype == torch.bfloat16
    assert pipe.to(dtype=torch.float32).dtype == torch.float32
    assert pipe.to("cpu").device == torch.device("cpu")


def test_variants_load_by_their_name_only(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert load(tmp_path, variant="fp16").unet.dtype == torch.float32
    with pytest.raises((OSError, ValueError), match="no_such"):
        load(tmp_path, variant="no_such")
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        load(tmp_path)


def test_components_make_another_pipeline_that_gives_the_same(pipe, data):
    assert set(pipe.components) == {"unet", "scheduler"}
    again = DDRMJPEGPipeline(**pipe.components)
    assert again.unet is pipe.unet
    assert np.array_equal(restore(again, data).images, restore(pipe, data).images)
    with_error = DDRMJPEGPipeline(
        **pipe.components, denoiser_error=DDRMJPEGPipeline.from_embedded().config.denoiser_error
    )
    assert DDRMJPEGPipeline(**with_error.components).config.denoiser_error == with_error.config.denoiser_error


def test_from_pipe_shares_the_network(pipe, data):
    again = DDRMJPEGPipeline.from_pipe(pipe)
    assert again.unet is pipe.unet
    assert np.array_equal(restore(again, data).images, restore(pipe, data).images)


def test_the_index_says_what_the_config_says(pipe, saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert load(saved).config.denoiser_error == pipe.config.denoiser_error


def test_a_component_may_be_given_to_from_pretrained(saved):
    unet = make_unet(seed=3)
    assert load(saved, unet=unet).unet is unet
    assert load(saved, scheduler=DDRMScheduler(eta=0.1)).scheduler.config.eta == 0.1


def test_a_batch_of_one_is_what_it_is_alone(pipe, data, photo):
    other = jpeg_bytes(photo.resize((40, 24)), quality=70)
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    together = restore(pipe, [data, other], generator=seeds).images
    alone = restore(pipe, other, generator=torch.Generator().manual_seed(2)).images
    assert np.array_equal(together[1:], alone)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_batch_gives_as_many_pictures(pipe, data, count):
    assert len(restore(pipe, [data] * count).images) == count


def test_tuple_and_dict_are_the_same(pipe, data):
    assert np.array_equal(restore(pipe, data, return_dict=False)[0], restore(pipe, data)["images"])


def test_the_same_seed_gives_the_same_picture_twice(pipe, data):
    assert np.array_equal(restore(pipe, data).images, restore(pipe, data).images)


def test_every_tensor_that_a_callback_may_have_can_be_had_and_changed(pipe, data):
    seen = []

    def callback(pipeline, i, t, tensors):
        seen.append(set(tensors))
        return {"sample": torch.zeros_like(tensors["sample"])} if i == pipeline.num_timesteps - 1 else {}

    names = DDRMJPEGPipeline._callback_tensor_inputs
    result = restore(pipe, data, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert seen == [set(names)] * 2
    assert (result.images == 0.5).all()
    with pytest.raises(ValueError, match="no_such"):
        restore(pipe, data, callback_on_step_end_tensor_inputs=["no_such"])


def test_the_progress_bar_can_be_named_and_silenced(pipe, data, capsys):
    pipe.set_progress_bar_config(desc="restoring", disable=False)
    paper(pipe, data, **QUICK)
    assert "restoring" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    paper(pipe, data, **QUICK)
    assert capsys.readouterr().err == ""


def test_model_offload_gives_the_same_and_is_taken_off(pipe, data):
    expected = restore(pipe, data).images
    pipe.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(restore(pipe, data).images, expected)
    assert pipe.unet._hf_hook is not None
    pipe.remove_all_hooks()
    assert np.array_equal(restore(pipe, data).images, expected)


def test_group_offload_gives_the_same(pipe, data):
    expected = restore(pipe, data).images
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert np.array_equal(restore(pipe, data).images, expected)


def test_layerwise_casting_stays_close(pipe, data):
    expected = restore(pipe, data).images
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert np.abs(restore(pipe, data).images - expected).mean() < 0.05


@pytest.mark.parametrize("device_map", ["cpu", "balanced"])
def test_a_device_map_of_the_pipeline_loads(saved, data, pipe, device_map):
    loaded = load(saved, device_map=device_map)
    assert np.array_equal(restore(loaded, data).images, restore(pipe, data).images)


def test_what_is_passed_in_is_not_changed(pipe, data):
    before = dict(pipe.scheduler.config), pipe.scheduler.timesteps.clone()
    restore(pipe, data)
    assert dict(pipe.scheduler.config) == before[0]
    assert torch.equal(pipe.scheduler.timesteps, before[1])


def test_a_network_alone_loads_from_a_saved_pipeline(pipe, saved):
    unet = UNet2DModel.from_pretrained(saved, subfolder="unet")
    assert torch.equal(unet.conv_in.weight, pipe.unet.conv_in.weight)
