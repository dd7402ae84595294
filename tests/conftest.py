"""Real files and tiny real networks that the tests share.

torch and diffusers are imported where they are used: the process that hands out the tests to others needs neither.
"""

from __future__ import annotations

import io
import os
import subprocess
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hub_server  # before huggingface_hub is imported
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from pipeline_ddrm_jpeg.cli import app
from pipeline_ddrm_jpeg.sampling.settings import ABOUT

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from pipeline_ddrm_jpeg import DDRMJPEGPipeline

ROOT = Path(__file__).parent.parent

# However busy the machine is: what a property takes, or making its examples, is no reason to fail.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A public-domain photograph, 341 x 256, RGB."""
    return Image.open(ROOT / "examples" / "originals" / "cat.png").convert("RGB")


@pytest.fixture(scope="session")
def reference() -> dict[str, np.ndarray]:
    """Numbers of the released program, see tests/data/README.md."""
    with np.load(ROOT / "tests" / "data" / "sampler_reference.npz") as archive:
        return dict(archive)


@pytest.fixture
def one_thread():
    """As in the processes that accelerate starts; the last digits of a result depend on it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def jpeg_bytes(picture: Image.Image, **options) -> bytes:
    """The image as Pillow (libjpeg-turbo) writes it."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", **options)
    return stream.getvalue()


def inks(photo: Image.Image, ycck: bool, **options) -> bytes:
    """An image printed in four inks, with as much black as there can be, inverted as Adobe stores it."""
    rgb = np.asarray(photo.convert("RGB"), np.float32)
    light = rgb.max(axis=2)
    colours = 255 * rgb / np.maximum(light, 1)[..., None]  # what three inks let through
    if ycck:
        colours = np.asarray(Image.fromarray(np.rint(255 - colours).astype(np.uint8)).convert("YCbCr"))
    stored = np.rint(np.dstack([colours, light])).astype(np.uint8)
    data = jpeg_bytes(Image.fromarray(255 - stored, "CMYK"), **options)  # Pillow inverts what it writes
    adobe = data.index(b"Adobe")
    return data[: adobe + 11] + bytes([2 if ycck else 0]) + data[adobe + 12 :]


def save_odd_pictures(folder: Path) -> None:
    """A grey ramp of 16 bits, the same in floating point, a transparent image, and one stored on its side."""
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
    Image.fromarray(ramp).save(folder / "deep.png")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(folder / "float.tif")
    Image.new("RGBA", (48, 32), (255, 0, 255, 0)).save(folder / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 32), "teal").save(folder / "turned.png", exif=exif)


def ddrm_jpeg(
    *arguments: object, cwd: Path | None = None, err: io.StringIO | None = None
) -> subprocess.CompletedProcess[str]:
    """The command with these arguments: its status and words, without the seconds that a process takes to start."""
    out, err = io.StringIO(), err or io.StringIO()
    with chdir(cwd or os.curdir), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        app([*map(str, arguments)], prog_name="ddrm-jpeg")
    return subprocess.CompletedProcess(arguments, end.value.code, out.getvalue(), err.getvalue())


def paper(pipe: DDRMJPEGPipeline, *sources: Any, **options: Any) -> Any:
    """The pipeline's call with the settings of the paper and its scheduler, but for those that are given.

    Windows go to `enable_tiling`.
    """
    settings = dict.fromkeys(("eta", "eta_b", "init_timestep", "timestep_spacing")) | options.pop("settings", {})
    settings |= {name: options.pop(name) for name in [*options] if name in ABOUT}
    windows = {name.removeprefix("window_"): options.pop(name) for name in [*options] if name.startswith("window_")}
    before = vars(pipe.tiling)
    pipe.enable_tiling(**before | windows)
    try:
        return pipe(*sources, **{"preset": "paper"} | options, settings=settings)
    finally:
        pipe.enable_tiling(**before)


def make_unet(out_channels: int = 3, seed: int = 0) -> UNet2DModel:
    """A real network of two levels, small enough for a test; its random output is scaled down to stay tame."""
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=32,
        out_channels=out_channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    unet.conv_out.weight.data *= 0.3
    return unet.eval()


@pytest.fixture
def pipe() -> DDRMJPEGPipeline:
    from pipeline_ddrm_jpeg import DDRMJPEGPipeline, DDRMScheduler

    pipeline = DDRMJPEGPipeline(unet=make_unet(), scheduler=DDRMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def hub() -> hub_server.Hub:
    """The Hub, without repos, of a user who has downloaded nothing."""
    hub_server.HUB.empty()
    hub_server.forget_downloads()
    return hub_server.HUB


@pytest.fixture(scope="session")
def prior_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior on disk, in the layout of a Hub repo."""
    from pipeline_ddrm_jpeg import DDRMScheduler

    folder = tmp_path_factory.mktemp("prior")
    make_unet().save_pretrained(folder / "unet")
    DDRMScheduler().save_pretrained(folder / "scheduler")
    return folder
