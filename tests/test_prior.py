import io
import json
from pathlib import Path

import pytest
import torch
from conftest import jpeg_bytes
from PIL import Image
from safetensors.torch import load_file

import pipeline_ddrm_jpeg
from pipeline_ddrm_jpeg import DDRMJPEGPipeline
from pipeline_ddrm_jpeg.evaluation.metrics import psnr

FOLDER = Path(pipeline_ddrm_jpeg.__file__).parent / "prior"


@pytest.fixture(scope="module")
def embedded():
    pipe = DDRMJPEGPipeline.from_embedded(dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_embedded_prior_is_half_precision_on_disk_and_float32_in_use(embedded):
    (weights,) = (FOLDER / "unet").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}
    assert embedded.unet.dtype == torch.float32
    assert sum(parameter.numel() for parameter in embedded.unet.parameters()) == 6_458_659


def test_the_embedded_scheduler_has_the_papers_defaults(embedded):
    config = json.loads((FOLDER / "scheduler" / "scheduler_config.json").read_text())
    assert (config["eta"], config["eta_b"], config["init_timestep"]) == (1.0, 0.4, 300)
    assert embedded.scheduler.config.beta_end == 0.02


@pytest.mark.parametrize("quality", [5, 10])
def test_restored_pictures_are_nearer_to_the_original_than_the_jpeg(embedded, photo, quality):
    original = photo.crop((60, 70, 188, 198))
    data = jpeg_bytes(original, quality=quality)
    restored = embedded(data, generator=torch.Generator().manual_seed(0))
    assert restored.consistency == [1.0]
    assert psnr(restored.images[0], original) > psnr(Image.open(io.BytesIO(data)), original) + 0.3


def test_the_borders_of_windows_cannot_be_seen(embedded, photo):
    """The step across a border, against the restoration in one window; columns between borders are the measure."""
    data = jpeg_bytes(photo.crop((0, 64, 320, 192)), quality=10)

    def steps(size, overlap=None):
        embedded.enable_tiling(size, overlap)
        sampling = {"preset": "paper", "settings": {"init_timestep": 150}, "num_inference_steps": 3}
        generator = torch.Generator().manual_seed(0)
        image = embedded(data, output_type="pt", generator=generator, **sampling).images[0]
        return (image[..., 1:] - image[..., :-1]).abs().mean(dim=(0, 1))

    ratio = steps(128, 32) / steps(320)
    borders = torch.tensor([x - 1 for start in (0, 96, 192) for x in (start, start + 128) if 0 < x < 320])
    elsewhere = torch.ones(len(ratio), dtype=bool).index_fill(0, borders, False)
    assert ratio[borders].mean() < 1.03 * ratio[elsewhere].mean()
