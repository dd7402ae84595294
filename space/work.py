"""The work: one visitor's restoration, its progress, and its end before time."""

from __future__ import annotations

import io
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

try:  # on ZeroGPU, where it must be imported before torch
    import spaces
except ImportError:
    spaces = None

import gradio as gr
import presentation
import torch
from diffusers.image_processor import VaeImageProcessor
from gradio.context import LocalContext
from limits import MAX_SECONDS, read_clean, read_jpeg, refusal, refusals
from PIL import Image, ImageOps

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, DDRMScheduler, JPEGFile, QuantizationOperator
from pipeline_ddrm_jpeg.formatting import duration
from pipeline_ddrm_jpeg.priors import EMBEDDED, fastest_dtype

log = logging.getLogger("space")

_PRIOR = os.environ.get("DDRM_JPEG_PRIOR")
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PIPE = DDRMJPEGPipeline.from_prior(_PRIOR or EMBEDDED, dtype=fastest_dtype(_DEVICE)).to(_DEVICE)


class Meter:
    """What the pipeline reports its calls of the prior to. It shows them, and ends the work when it has to end.

    Args:
        num_inference_steps, num_samples: of the pipeline's call.
        go: file that is there as long as the work is to go on. A file, because ZeroGPU works in another process.
        show: progress on the page.
    """

    def __init__(self, num_inference_steps: int, num_samples: int, go: Path, show: gr.Progress) -> None:
        self.num_inference_steps, self.num_samples = num_inference_steps, num_samples
        self.go, self.show = go, show
        self.total = self.done = 0
        self.step = self.samples_before = self.done_before = 0
        self.start = time.monotonic()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        log.info("%d of %d calls of the prior, %.1f s", self.done, self.total, time.monotonic() - self.start)

    def refresh(self) -> None:
        """The pipeline has set `total`."""
        self.show((0, self.total), desc=f"Step 1 of {self.num_inference_steps}", unit="calls of the prior")

    def update(self, calls: int) -> None:
        """The prior has been called this often since the last time."""
        self.done += calls
        if not self.go.exists():
            raise refusal("Stopped")
        elapsed = time.monotonic() - self.start
        left = elapsed * (self.total - self.done) / self.done
        # Soon enough to spare the wait, late enough to know.
        if elapsed > MAX_SECONDS or (elapsed > MAX_SECONDS / 10 and elapsed + left > 1.5 * MAX_SECONDS):
            raise refusal(
                f"This would take about {duration(elapsed + left)}; the limit of this server is {MAX_SECONDS:g} s."
                " Try a smaller picture, fewer samples or fewer steps"
            )
        calls_a_sample = self.total // (self.num_inference_steps * self.num_samples)
        sample = self.samples_before + math.ceil((self.done - self.done_before) / calls_a_sample)
        self.show(
            (self.done, self.total),
            desc=f"Step {self.step + 1} of {self.num_inference_steps}, sample {sample} of {self.num_samples},"
            f" {duration(left)} left",
            unit="calls of the prior",
        )

    def on_step_end(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict:
        """Callback of the pipeline. It takes as many samples through the steps together as memory allows."""
        self.step, self.done_before = step + 1, self.done
        if self.step == self.num_inference_steps:
            self.step = 0
            self.samples_before += len(tensors["sample"])
        return {}


class Visit(DDRMJPEGPipeline):
    """The pipeline of one visitor: a schedule and a meter of its own around the network that all share."""

    meter: Meter

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Meter:
        return self.meter


def run(source: Any, operator: Any, settings: dict[str, Any], seed: int, go: Path, show: gr.Progress) -> Any:
    """The pipeline's output for `source`.

    Raises:
        gr.Error: for what cannot be restored, or not in time, or when `go` is deleted meanwhile. Of other exceptions
            ZeroGPU would bring back only the name.
    """
    visit = Visit(PIPE.unet, DDRMScheduler.from_config(PIPE.scheduler.config), PIPE.config.denoiser_error)
    visit.meter = Meter(settings["num_inference_steps"], settings["num_samples"], go, show)
    generator = torch.Generator().manual_seed(seed)
    with refusals():
        return visit(source, operator, generator=generator, callback_on_step_end=visit.meter.on_step_end, **settings)


if spaces is not None:
    run = spaces.GPU(duration=int(MAX_SECONDS))(run)


# --- What is being worked at ---

_RUNNING: dict[str, set[Path]] = {}  # by session, the files that are there as long as its work is to go on
_FOLDER = TemporaryDirectory(prefix="ddrm-jpeg-space-")


def _queue() -> Any:
    """That of the page which is asking."""
    return LocalContext.blocks.get()._queue


@contextmanager
def job(request: gr.Request) -> Iterator[Path]:
    """The file that is there as long as the work is to go on."""
    go = Path(_FOLDER.name, uuid4().hex)
    go.touch()
    running = _RUNNING.setdefault(request.session_hash, set())
    running.add(go)
    try:
        if not _queue().is_wanted(LocalContext.event_id.get()):  # cancelled before it was known here
            raise refusal("Cancelled")
        yield go
    finally:
        go.unlink(missing_ok=True)
        running.discard(go)
        if not running:
            _RUNNING.pop(request.session_hash, None)


async def leave(request: gr.Request) -> None:
    """End what a session waits for or has running."""
    await _queue().give_up(request.session_hash)
    for go in list(_RUNNING.get(request.session_hash, ())):
        go.unlink(missing_ok=True)


# --- The work of the three tabs ---

AUTO = 0  # what the slider of init_timestep says for "auto"


def call_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as the pipeline's call takes them."""
    return settings | ({"init_timestep": "auto"} if settings["init_timestep"] == AUTO else {})


# What the Python of a result says about this server: no path of it.
_ENVIRONMENT = presentation.constructor(
    Path(_PRIOR).name if _PRIOR and Path(_PRIOR).is_dir() else _PRIOR, str(PIPE.unet.dtype).removeprefix("torch.")
)
_PICTURES = VaeImageProcessor(vae_scale_factor=1)  # PIL pictures to tensors in [-1, 1], and back


def restore(
    path: str,
    request: gr.Request,
    seed: int = 0,
    progress=gr.Progress(),  # noqa: B008  gradio looks for it here
    **settings: Any,
) -> list:
    """Restore a JPEG file."""
    start, settings = time.monotonic(), call_arguments(settings)
    with job(request) as go, refusals(path):
        progress(0, desc="Reading the file")
        file, before = read_jpeg(path)
        result = run(file, None, settings, seed, go, progress)
        name = f"{Path(path).stem}_restored.png"
        verdict = presentation.verdict(result.consistency_8bit[0], "coefficients", time.monotonic() - start)
        code = presentation.snippet(
            presentation.RESTORE, _ENVIRONMENT, settings, presentation.task(file.name, name, seed)
        )
        return presentation.present(result, {"JPEG": before}, name, verdict, code, file)


def explore(
    path: str,
    quality: int,
    subsampling: str,
    longest: int,
    request: gr.Request,
    seed: int = 0,
    progress=gr.Progress(),  # noqa: B008  gradio looks for it here
    **settings: Any,
) -> list:
    """Compress a clean picture to a JPEG file, and restore that."""
    start, settings = time.monotonic(), call_arguments(settings)
    with job(request) as go, refusals(path):
        clean, name, code = read_clean(path, longest)
        stream = io.BytesIO()
        stream.name = f"{Path(name).stem}_q{quality}.jpg"
        options = {"quality": quality} | ({"subsampling": subsampling} if clean.mode == "RGB" else {})
        clean.save(stream, "JPEG", **options)
        stream.seek(0)
        file = JPEGFile.open(stream)
        result = run(file, None, settings, seed, go, progress)
        before = Image.open(stream)
        after = ImageOps.exif_transpose(result.images[0])
        name = f"{Path(name).stem}_q{quality}_restored.png"
        verdict = presentation.verdict(result.consistency_8bit[0], "coefficients", time.monotonic() - start)
        verdict += presentation.numbers(clean, {"JPEG": before, "restored": after})
        arguments = "".join(f", {key}={value!r}" for key, value in options.items())
        code += f"picture.save({file.name!r}{arguments})\n"
        code += presentation.task(file.name, name, seed)
        code = presentation.snippet(presentation.EXPLORE, _ENVIRONMENT, settings, code)
        return presentation.present(result, {"JPEG": before, "original": clean}, name, verdict, code, file)


def dequantize(
    path: str,
    bits: int,
    reconstruction: str,
    longest: int,
    request: gr.Request,
    seed: int = 0,
    progress=gr.Progress(),  # noqa: B008  gradio looks for it here
    **settings: Any,
) -> list:
    """Keep a few bits of each channel of a clean picture, and restore that."""
    start, settings = time.monotonic(), call_arguments(settings)
    with job(request) as go, refusals(path):
        clean, name, code = read_clean(path, longest)
        operator = QuantizationOperator(bits, reconstruction)
        result = run(clean, operator, settings, seed, go, progress)
        tensor = _PICTURES.preprocess(clean.convert("RGB"))
        (before,) = _PICTURES.postprocess(operator.decode(operator.encode(tensor)))
        name = f"{Path(name).stem}_{bits}bit_restored.png"
        verdict = presentation.verdict(result.consistency_8bit[0], "measured levels", time.monotonic() - start)
        verdict += presentation.numbers(clean, {"quantized": before, "restored": result.images[0]})
        code += (
            f"operator = QuantizationOperator(bits={bits}, reconstruction={reconstruction!r})\n"
            f"generator = torch.Generator().manual_seed({seed})\n"
            "result = pipe(picture, operator=operator, generator=generator, **settings)\n"
            f"save_image(result.images[0], {name!r})\n"
        )
        code = presentation.snippet(presentation.DEQUANTIZE, _ENVIRONMENT, settings, code)
        return presentation.present(result, {"quantized": before, "original": clean}, name, verdict, code)
