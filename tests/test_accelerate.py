"""The ways diffusers and accelerate have of placing a model, with the hooks that also run on a CPU."""

import accelerate
import pytest
import torch
from conftest import jpeg_bytes, make_unet, paper
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, DDRMScheduler

QUICK = {"num_inference_steps": 2, "init_timestep": 40, "output_type": "pt"}


@pytest.fixture(scope="module")
def data(photo):
    return jpeg_bytes(photo.resize((40, 24)), quality=20)


def restore(pipe, data, **kwargs):
    pipe.set_progress_bar_config(disable=True)
    return paper(pipe, data, generator=torch.Generator().manual_seed(0), **QUICK, **kwargs).images


@pytest.fixture
def expected(pipe, data):
    return restore(pipe, data)


def test_to_a_device_and_a_dtype_and_back(pipe, data, expected):
    pipe.to("cpu", torch.bfloat16)
    rough = restore(pipe, data)
    assert rough.dtype == torch.float32
    assert 0 < (rough - expected).abs().mean() < 0.02


def test_model_cpu_offload(pipe, data, expected):
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(restore(pipe, data), expected)
    assert torch.equal(restore(pipe, data), expected)


def test_group_offload(pipe, data, expected):
    pipe.unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(restore(pipe, data), expected)


def test_cpu_offload_of_accelerate(pipe, data, expected):
    accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    assert torch.equal(restore(pipe, data), expected)


def test_disk_offload_of_accelerate(pipe, data, expected, tmp_path):
    accelerate.disk_offload(pipe.unet, tmp_path, torch.device("cpu"))
    assert torch.equal(restore(pipe, data), expected)


def test_device_map(data, expected, prior_folder):
    unet = UNet2DModel.from_pretrained(prior_folder, subfolder="unet", device_map={"": "cpu"})
    pipe = DDRMJPEGPipeline(unet=unet, scheduler=DDRMScheduler())
    torch.testing.assert_close(restore(pipe, data), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_any_ddpm_in_memory_becomes_a_pipeline(kind, data):
    unet = make_unet()
    if kind == "ddpm":
        source = DDPMPipeline(unet, DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"))
    else:
        source = DDIMPipeline(unet, DDIMScheduler(beta_end=0.015))
    pipe = DDRMJPEGPipeline.from_pipe(source)
    assert pipe.unet is unet
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod, source.scheduler.alphas_cumprod, atol=1e-6, rtol=1e-5)
    assert pipe.scheduler.config.prediction_type == source.scheduler.config.prediction_type
    assert restore(pipe, data).shape == (1, 3, 24, 40)


@pytest.mark.parametrize("layout", ["folders", "root"])
def test_any_ddpm_on_disk_serves_as_a_prior(layout, data, tmp_path):
    source = DDPMPipeline(make_unet(out_channels=6), DDPMScheduler(variance_type="learned_range", beta_end=0.015))
    if layout == "folders":
        source.save_pretrained(tmp_path)
    else:  # as google/ddpm-cifar10-32 and its sisters were saved
        source.unet.save_pretrained(tmp_path)
        source.scheduler.save_pretrained(tmp_path)
    pipe = DDRMJPEGPipeline.from_prior(tmp_path)
    assert pipe.scheduler.config.beta_end == 0.015
    assert restore(pipe, data).shape == (1, 3, 24, 40)


def test_class_conditional_priors_take_labels(data):
    torch.manual_seed(0)
    config = {name: value for name, value in make_unet().config.items() if not name.startswith("_")}
    unet = UNet2DModel(**{**config, "num_class_embeds": 10}).eval()
    torch.nn.init.normal_(unet.class_embedding.weight, std=5.0)
    pipe = DDRMJPEGPipeline(unet=unet, scheduler=DDRMScheduler())
    one, two = (restore(pipe, data, class_labels=label) for label in (1, 2))
    assert not torch.equal(one, two)
    for windows in (1, 2):
        generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        both = paper(
            pipe, [data, data], generator=generators, class_labels=[1, 2], window_batch_size=windows, **QUICK
        ).images
        torch.testing.assert_close(both, torch.cat([one, two]), atol=1e-6, rtol=0)
    for labels, message in ((None, "class-conditional"), (10, "between 0 and 9"), ([1, 2], "2 class_labels for 1")):
        with pytest.raises(ValueError, match=message):
            restore(pipe, data, class_labels=labels)


def test_labels_for_a_prior_without_classes_are_refused(pipe, data):
    with pytest.raises(ValueError, match="not class-conditional"):
        restore(pipe, data, class_labels=1)
