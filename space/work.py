"""The work: one visitor's restoration, its progress, and its end before time."""

from __future__ import annotations

import io
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from html import escape
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
from gradio.utils import get_upload_folder
from limits import MAX_SECONDS, read_clean, read_jpeg, refusal, refusals
from PIL import Image, ImageOps

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, DDRMScheduler, JPEGFile, QuantizationOperator
from pipeline_ddrm_jpeg.formatting import duration
from pipeline_ddrm_jpeg.inks import restore_any
from pipeline_ddrm_jpeg.priors import EMBEDDED, fastest_dtype
from pipeline_ddrm_jpeg.tiling import count_windows, window_options

log = logging.getLogger("space")

_PRIOR = os.environ.get("DDRM_JPEG_PRIOR")
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PIPE = DDRMJPEGPipeline.from_prior(_PRIOR or EMBEDDED, dtype=fastest_dtype(_DEVICE)).to(_DEVICE)


_PATIENCE = 1.5  # how far beyond the limit an expected time may be before it is believed


def _too_long(seconds: float) -> gr.Error:
    return refusal(
        f"This would take about {duration(seconds)}; the limit of this server is {MAX_SECONDS:g} s."
        " Try a smaller picture, fewer samples or fewer steps"
    )


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
        if elapsed > MAX_SECONDS or (elapsed > MAX_SECONDS / 10 and elapsed + left > _PATIENCE * MAX_SECONDS):
            raise _too_long(elapsed + left)
        calls_a_sample = self.total // (self.num_inference_steps * self.num_samples)
        sample = self.samples_before + math.ceil((self.done - self.done_before) / calls_a_sample)
        sample = min(sample, self.num_samples)  # of four inks, which are two pictures
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
        options = {"generator": generator, "callback_on_step_end": visit.meter.on_step_end, **settings}
        return restore_any(visit, source, operator=operator, **options)


if spaces is not None:
    run = spaces.GPU(duration=int(MAX_SECONDS))(run)


# --- How long it takes ---

_pace = math.inf  # seconds for a pixel and an evaluation of the prior, at the fastest that a restoration here has been


def evaluated_pixels(settings: dict[str, Any], width: int, height: int) -> int:
    """How many pixels the prior sees, in all its evaluations, until a picture of this size is restored."""
    windows = window_options(PIPE.unet, None, None, None, PIPE.device)
    window = min(width, windows["window_size"]) * min(height, windows["window_size"])
    count = count_windows(PIPE.unet, height, width, **windows)
    return settings["num_samples"] * settings["num_inference_steps"] * count * window


def estimate(settings: dict[str, Any], width: int, height: int) -> float | None:
    """Seconds that a restoration takes when no other runs; `None` where nothing has been measured yet."""
    return None if _pace == math.inf else _pace * evaluated_pixels(settings, width, height)


def timed_run(
    source: Any, operator: Any, settings: dict[str, Any], seed: int, go: Path, show: gr.Progress, size: tuple[int, int]
) -> Any:
    """`run`, unless it is known beforehand that it would take too long."""
    global _pace
    expected = estimate(settings, *size)
    if expected is not None and expected > _PATIENCE * MAX_SECONDS:
        raise _too_long(expected)
    start = time.monotonic()
    result = run(source, operator, settings, seed, go, show)
    _pace = min(_pace, (time.monotonic() - start) / evaluated_pixels(settings, *size))
    return result


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


# --- The work of the tabs ---

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
    repair: bool,
    request: gr.Request,
    seed: int = 0,
    progress=gr.Progress(),  # noqa: B008  gradio looks for it here
    **settings: Any,
) -> list:
    """Restore a JPEG file, or with `repair` what is left of a damaged one."""
    settings = call_arguments(settings)
    with job(request) as go, refusals(path):
        progress(0, desc="Reading the file")
        verdict, file, (picture, *views) = _restored(path, repair, settings, seed, go, progress)
        code = presentation.snippet(
            presentation.RESTORE,
            _ENVIRONMENT,
            settings,
            presentation.task(file.name, picture.name, seed, bool(file.damage)),
        )
        return presentation.results(verdict, picture, *views, presentation.facts(file), code)


def _restored(
    path: str, repair: bool, settings: dict[str, Any], seed: int, go: Path, show: Any
) -> tuple[str, JPEGFile, tuple[Path, str, str]]:
    """A restored file: the verdict on it, what it is, and what `presentation.compared` says of it."""
    start = time.monotonic()
    file, left = read_jpeg(path, repair)
    result = timed_run(file, None, settings, seed, go, show, (file.width, file.height))
    made_up = float(file.invented.mean()) if file.damage else None
    seconds = time.monotonic() - start
    kept_of = "remaining coefficients" if file.damage else "coefficients"
    verdict = presentation.verdict(result.consistency_8bit[0], kept_of, seconds, made_up)
    return verdict, file, presentation.compared(result, left, f"{Path(path).stem}_restored.png", file)


def several(
    paths: list[str] | None,
    request: gr.Request,
    seed: int = 0,
    progress=gr.Progress(),  # noqa: B008  gradio looks for it here
    **settings: Any,
) -> list:
    """Restore JPEG files one after the other, each as it would be alone; one that fails does not stop the others."""
    if not paths:
        raise refusal("Choose some pictures first")
    start, settings = time.monotonic(), call_arguments(settings)
    pictures, parts = [], []
    with job(request) as go:
        for number, path in enumerate(paths, 1):
            name = Path(path).name
            try:
                if time.monotonic() - start > MAX_SECONDS:
                    raise refusal(f"{name}: not begun; the limit of this server is {MAX_SECONDS:g} s")
                show = partial(_with_place, progress, f"{name} ({number} of {len(paths)})")
                with refusals(path):
                    verdict, _, (picture, pair, _) = _restored(path, False, settings, seed, go, show)
                pictures.append(picture)
                parts.append(f"<h2>{escape(name)}</h2>{verdict}{pair}")
            except gr.Error as error:
                if not go.exists():
                    raise
                parts.append(presentation.refused(error.message))
        if not pictures:
            raise refusal("None of these files could be restored")
        verdict = presentation.count(len(pictures), len(paths), time.monotonic() - start)
        return presentation.results(verdict, presentation.zipped(pictures), "".join(parts))


def _with_place(show: gr.Progress, place: str, progress: Any, desc: str, unit: str) -> None:
    show(progress, desc=f"{place}: {desc}", unit=unit)


def example(path: Path, settings: dict[str, Any]) -> tuple[list, Path] | None:
    """A file restored without a visitor: what the page shows of it, and where its picture is."""
    if spaces is not None:  # on ZeroGPU there is nothing to compute with before a visitor asks
        return None
    folder = Path(get_upload_folder(), uuid4().hex)
    folder.mkdir()
    shutil.copy(path, folder)
    go = Path(_FOLDER.name, uuid4().hex)
    go.touch()
    arguments = str(folder / path.name), False, settings, 0, go, lambda *_, **__: None
    verdict, file, (picture, pair, _) = _restored(*arguments)
    go.unlink()
    says = presentation.facts(file)
    return presentation.results(presentation.EXAMPLE + verdict, view=pair, what_it_says=says), picture


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
        result = timed_run(file, None, settings, seed, go, progress, clean.size)
        before = Image.open(stream)
        after = ImageOps.exif_transpose(result.images[0])
        name = f"{Path(name).stem}_q{quality}_restored.png"
        verdict = presentation.verdict(result.consistency_8bit[0], "coefficients", time.monotonic() - start)
        verdict += presentation.numbers(clean, {"JPEG": before, "restored": after})
        arguments = "".join(f", {key}={value!r}" for key, value in options.items())
        code += f"picture.save({file.name!r}{arguments})\n"
        code += presentation.task(file.name, name, seed)
        code = presentation.snippet(presentation.EXPLORE, _ENVIRONMENT, settings, code)
        picture, *views = presentation.compared(result, {"JPEG": before, "original": clean}, name, file)
        return presentation.results(verdict, picture, *views, presentation.facts(file), code)


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
        result = timed_run(clean, operator, settings, seed, go, progress, clean.size)
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
        picture, *views = presentation.compared(result, {"quantized": before, "original": clean}, name)
        return presentation.results(verdict, picture, *views, code=code)
