"""The work: one visitor's restoration, its progress, and its end before time."""

from __future__ import annotations

import io
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple
from uuid import uuid4

try:  # on ZeroGPU, where it must be imported before torch
    import spaces
except ImportError:
    spaces = None

import gradio as gr
import numpy as np
import presentation
import torch
from diffusers.image_processor import VaeImageProcessor
from folders import own_folder
from gradio.context import LocalContext
from gradio.utils import get_upload_folder
from limits import MAX_SECONDS, read_clean, read_source, refusal, refusals, to_compare_with
from PIL import Image
from reader import Opened

from pipeline_ddrm_jpeg import (
    DDRMJPEGPipeline,
    DDRMJPEGPipelineOutput,
    JPEGFile,
    QuantizationOperator,
    Settings,
)
from pipeline_ddrm_jpeg.decoded.image import DecodedJPEG
from pipeline_ddrm_jpeg.decoded.opening import Assumed
from pipeline_ddrm_jpeg.files.formats import upright
from pipeline_ddrm_jpeg.files.results import Result, result_of
from pipeline_ddrm_jpeg.formatting import duration
from pipeline_ddrm_jpeg.jpeg.colour import CMYK_SPACES
from pipeline_ddrm_jpeg.priors import EMBEDDED, fastest_dtype
from pipeline_ddrm_jpeg.sampling.observation import to_bytes
from pipeline_ddrm_jpeg.sampling.tiling import count_windows

log = logging.getLogger("space")

PRIOR = os.environ.get("DDRM_JPEG_PRIOR")
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PIPE = DDRMJPEGPipeline.from_prior(PRIOR or EMBEDDED, dtype=fastest_dtype(_DEVICE)).to(_DEVICE)


_IMAGES = VaeImageProcessor(vae_scale_factor=1)  # PIL images to tensors in [-1, 1], and back
_PATIENCE = 1.5  # how far beyond the limit an expected time may be before it is believed
_BETWEEN_WORDS = 0.2  # seconds at least
_BETWEEN_PREVIEWS = 0.5
_PREVIEW_SIDE = 640  # pixels at most


def _too_long(seconds: float) -> gr.Error:
    return refusal(
        f"This would take about {duration(seconds)}; the limit of this server is {MAX_SECONDS:g} s."
        " Try a smaller image, fewer samples or fewer steps"
    )


class SoFar(NamedTuple):
    """How far a restoration is, as `presentation.so_far` takes it."""

    words: str
    done: int
    """Calls of the prior."""
    total: int
    image: Image.Image | None = None
    """What there is of it, where that is new."""


@dataclass
class Restored:
    """An image as the page needs it, in the orientation that is stored."""

    pixels: np.ndarray
    """`[H, W]` or `[H, W, 3]`, uint8."""
    deep: np.ndarray
    """The same, uint16."""
    doubt: np.ndarray | None
    """Standard deviation, `[H, W, C]` on the scale of [0, 1], if there is one."""
    calibrated: bool
    """Whether it is that of the distance from the original, and not that of the samples."""
    consistency: float
    """Of `pixels`."""


class Meter:
    """What the pipeline reports its calls of the prior to. It tells of them, and ends the work when it has to end.

    Args:
        num_inference_steps, num_samples: of the pipeline's call.
        go: file that is there as long as the work is to go on. A file, because ZeroGPU works in another process.
        tell: told now and then how far it is.
        preview: makes an image of samples `[samples, C, H, W]` in [0, 1].
    """

    def __init__(
        self,
        num_inference_steps: int,
        num_samples: int,
        go: Path,
        tell: Callable[[SoFar], None],
        preview: Callable[[torch.Tensor], Image.Image | None],
    ) -> None:
        self.num_inference_steps, self.num_samples = num_inference_steps, num_samples
        self.go, self.tell, self.preview = go, tell, preview
        self.told, self.previewed = -math.inf, time.monotonic()
        self.words = f"Step 1 of {num_inference_steps}"
        self.total = self.done = 0
        self.step = self.samples_before = self.done_before = self.calls_a_sample = 0
        self.start = time.monotonic()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        log.info("%d of %d calls of the prior, %.1f s", self.done, self.total, time.monotonic() - self.start)

    def refresh(self) -> None:
        """An image begins, whose calls the pipeline has added to `total`."""
        self.calls_a_sample = (self.total - self.done) // (self.num_inference_steps * self.num_samples)
        self.step = self.samples_before = 0
        self._tell()

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
        sample = self.samples_before + math.ceil((self.done - self.done_before) / self.calls_a_sample)
        of_samples = f", sample {sample} of {self.num_samples}" if self.num_samples > 1 else ""
        self.words = f"Step {self.step + 1} of {self.num_inference_steps}{of_samples}, {duration(left)} left"
        self._tell()

    def _tell(self, image: Image.Image | None = None) -> None:
        if image is not None or time.monotonic() - self.told > _BETWEEN_WORDS:
            self.tell(SoFar(self.words, self.done, self.total, image))
            self.told = time.monotonic()

    def on_step_end(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict:
        """Callback of the pipeline. It takes as many samples through the steps together as memory allows."""
        self.step, self.done_before = step + 1, self.done
        if time.monotonic() - self.previewed > _BETWEEN_PREVIEWS:
            self._tell(self.preview(tensors["preview"]))
            self.previewed = time.monotonic()
        if self.step == self.num_inference_steps:
            self.step = 0
            self.samples_before += len(tensors["preview"])
        return {}


class Visit(DDRMJPEGPipeline):
    """The pipeline of one visitor: a schedule and a meter of its own around the network that all share."""

    meter: Meter

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Meter:
        return self.meter


def run(source: Any, operator: Any, settings: Settings, seed: int, go: Path) -> Iterator[SoFar | Restored]:
    """How far it is, again and again, then what is restored of `source`.

    Raises:
        gr.Error: for what cannot be restored, or not in time, or when `go` is deleted meanwhile. Of other exceptions
            ZeroGPU would bring back only the name.
    """
    visit = Visit(PIPE.unet, PIPE.scheduler, PIPE.config.denoiser_error)
    said: SimpleQueue = SimpleQueue()

    def preview(x: torch.Tensor) -> Image.Image | None:
        whole = getattr(source, "color_space", None) not in CMYK_SPACES  # of which each is less than an image
        return _preview(x, source) if whole else None

    visit.meter = Meter(settings["num_inference_steps"], settings["num_samples"], go, said.put, preview)
    options = {
        "generator": torch.Generator().manual_seed(seed),
        "callback_on_step_end": visit.meter.on_step_end,
        "callback_on_step_end_tensor_inputs": ["preview"],
        "settings": settings,
        "output_type": "np",
    }

    def work() -> None:
        try:
            said.put(_restored_of(visit(source, operator=operator, **options)))
        except Exception as error:
            said.put(error)

    Thread(target=work, daemon=True).start()  # since the pipeline calls back
    while isinstance(told := said.get(), SoFar):
        yield told
    with refusals():
        if isinstance(told, Exception):
            raise told
    yield told


def _restored_of(output: DDRMJPEGPipelineOutput) -> Restored:
    image, expected = output.images[0].clip(0, 1), output.expected_error[0]
    image = image[..., 0] if image.shape[2] == 1 else image
    doubt = output.std[0] if expected is None and len(output.samples[0]) > 1 else expected
    pixels, deep = np.rint(image * 255).astype(np.uint8), np.rint(image * 65535).astype(np.uint16)
    return Restored(pixels, deep, doubt, expected is not None, output.consistency_8bit[0])


def _preview(x: torch.Tensor, source: Any) -> Image.Image:
    """The mean of samples as a small image, upright as that of its source will be."""
    scale = max(1, math.ceil(max(x.shape[2:]) / _PREVIEW_SIDE))
    pixels = to_bytes(x[:, :, ::scale, ::scale].mean(dim=0))
    return Image.fromarray(upright(pixels, getattr(source, "orientation", 1)).copy())


# --- How long it takes ---

_pace = math.inf  # seconds for a pixel and an evaluation of the prior, at the fastest that a restoration here has been


def restored_size(source: JPEGFile | DecodedJPEG | Image.Image) -> tuple[int, int]:
    """Width and height of what is restored of a source: of a screenshot the part that was a JPEG."""
    height, width = source.part.shape[:2] if isinstance(source, DecodedJPEG) else (source.height, source.width)
    return width, height


def evaluated_pixels(settings: Settings, width: int, height: int) -> int:
    """How many pixels the prior sees, in all its evaluations, until an image of this size is restored."""
    windows = PIPE.tiling.options(PIPE.unet, PIPE.device)
    window = min(width, windows["window_size"]) * min(height, windows["window_size"])
    count = count_windows(PIPE.unet, height, width, **windows)
    return settings["num_samples"] * settings["num_inference_steps"] * count * window


def estimate(settings: Settings, width: int, height: int) -> float | None:
    """Seconds that a restoration takes when no other runs; `None` where nothing has been measured yet."""
    return None if _pace == math.inf else _pace * evaluated_pixels(settings, width, height)


def lease(source: Any, operator: Any, settings: Settings, *_: Any) -> int:
    """Seconds to ask ZeroGPU for, with the arguments of `run`: who has less left of a quota is refused."""
    expected = estimate(settings, *restored_size(source))
    return _UNKNOWN if expected is None else math.ceil(min(_STARTING + _RESERVE * expected, _LONGEST))


_UNKNOWN = 60  # seconds, what ZeroGPU gives where nothing is asked for
_STARTING = 10  # seconds
_RESERVE = 2  # times what is expected, which is the fastest so far
_LONGEST = 120  # seconds; visitors without an account may ask for no more

if spaces is not None:
    MAX_SECONDS = min(MAX_SECONDS, _LONGEST - _STARTING)
    run = spaces.GPU(duration=lease)(run)


# What a visitor is shown meanwhile, as `presentation.results` would have it, and what comes of it.
Work = Generator[list, None, Any]


def timed_run(
    source: Any, operator: Any, settings: Settings, seed: int, go: Path, size: tuple[int, int], place: str = ""
) -> Work:
    """`run`, unless it is known beforehand that it would take too long; `place` goes before its words."""
    global _pace
    expected = estimate(settings, *size)
    if expected is not None and expected > _PATIENCE * MAX_SECONDS:
        raise _too_long(expected)
    start = time.monotonic()
    for result in run(source, operator, settings, seed, go):
        if isinstance(result, SoFar):
            yield presentation.so_far(place + result.words, *result[1:])
    _pace = min(_pace, (time.monotonic() - start) / evaluated_pixels(settings, *size))
    return result


def _result_of(work: Work) -> Any:
    """What comes of work at which nobody looks."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


# --- What is being worked at ---

_RUNNING: dict[Path, str] = {}  # the files that are there as long as work is to go on, and its session
_FOLDER = own_folder("ddrm-jpeg-space-")


def _queue() -> Any:
    """That of the page which is asking."""
    return LocalContext.blocks.get()._queue


@contextmanager
def job(request: gr.Request) -> Iterator[Path]:
    """The file that is there as long as the work is to go on."""
    go = _FOLDER / uuid4().hex
    go.touch()
    _RUNNING[go] = request.session_hash
    try:
        if not _queue().is_wanted(LocalContext.event_id.get()):  # cancelled before it was known here
            raise refusal("Cancelled")
        yield go
    finally:
        go.unlink(missing_ok=True)
        del _RUNNING[go]


async def leave(request: gr.Request) -> None:
    """End what a session waits for or has running."""
    await _queue().give_up(request.session_hash)
    for go, session in list(_RUNNING.items()):
        if session == request.session_hash:
            go.unlink(missing_ok=True)


# --- The work of the tabs ---

AUTO = 0  # what the slider of init_timestep says for "auto"


def chosen(controls: dict[str, Any]) -> Settings:
    """The settings that the controls have."""
    return Settings(**controls | ({"init_timestep": "auto"} if controls["init_timestep"] == AUTO else {}))


# What the Python of a result says about this server: no path of it.
_ENVIRONMENT = presentation.constructor(
    Path(PRIOR).name if PRIOR and Path(PRIOR).is_dir() else PRIOR, str(PIPE.unet.dtype).removeprefix("torch.")
)


def restore(
    path: str,
    repair: bool,
    double_compression: bool,
    quality: int,
    subsampling: str,
    request: gr.Request,
    seed: int = 0,
    **controls: Any,
) -> Iterator[list]:
    """Restore a JPEG file, with `repair` what is left of a damaged one, or an image that was one."""
    assumed = what_is_assumed(double_compression, quality, subsampling)
    with job(request) as go, refusals(path):
        settings = chosen(controls)
        verdict, opened, (image, *views) = yield from _restored(path, repair, assumed, settings, seed, go)
        file = opened.file
        name, known = Path(path).name, assumed if isinstance(file, DecodedJPEG) else Assumed()
        code = presentation.snippet(
            presentation.RESTORE if known == Assumed() else presentation.RESTORE_ASSUMED,
            _ENVIRONMENT,
            settings,
            presentation.task(name, image.name, seed, bool(file.damage), known),
        )
        yield presentation.results(verdict, image, *views, presentation.facts(opened, name), code)


def what_is_assumed(double_compression: bool, quality: int, subsampling: str) -> Assumed:
    """What a visitor says of the JPEG that an image was, as the controls have it."""
    return Assumed(
        quality or None, subsampling if quality else Assumed.chroma_subsampling, double_compression=double_compression
    )


def _restored(
    path: str, repair: bool, assumed: Assumed, settings: Settings, seed: int, go: Path, place: str = ""
) -> Work:
    """A restored file: the verdict on it, what was opened, and what `presentation.compared` says of it."""
    start = time.monotonic()
    yield presentation.so_far(f"{place}Reading the file", 0, 0)
    opened = read_source(path, repair, assumed)
    file, left = opened.file, to_compare_with(opened)
    result = yield from timed_run(file, None, settings, seed, go, restored_size(file), place)
    verdict = presentation.verdict(result_of(file, result.consistency, seconds=time.monotonic() - start))
    name = f"{Path(path).stem}_restored"
    return verdict, opened, presentation.compared(result, left, name, opened.metadata, file)


def several(
    paths: list[str] | None,
    request: gr.Request,
    seed: int = 0,
    **controls: Any,
) -> Iterator[list]:
    """Restore files one after the other, each as it would be alone; one that fails does not stop the others."""
    if not paths:
        raise refusal("Choose some images first")
    start = time.monotonic()
    images, parts = [], []
    with job(request) as go:
        with refusals():
            settings = chosen(controls)
        for number, path in enumerate(paths, 1):
            name = Path(path).name
            try:
                if time.monotonic() - start > MAX_SECONDS:
                    raise refusal(f"{name}: not begun; the limit of this server is {MAX_SECONDS:g} s")
                place = f"{name} ({number} of {len(paths)}): "
                with refusals(path):
                    verdict, _, (image, pair, _, formats) = yield from _restored(
                        path, False, Assumed(), settings, seed, go, place
                    )
                images.append(image)
                parts.append(f"<h2>{escape(name)}</h2>{verdict}{pair}{formats}")
            except gr.Error as error:
                if not go.exists():
                    raise
                parts.append(f"<h2>{escape(name)}</h2>{presentation.refused(error.message)}")
        verdict = presentation.count(len(images), len(paths), time.monotonic() - start)
        yield presentation.results(verdict, presentation.zipped(images) if images else None, "".join(parts))


def example(path: Path, settings: Settings) -> tuple[list, Path] | None:
    """A file restored without a visitor: what the page shows of it, and where its image is."""
    if spaces is not None:  # on ZeroGPU there is nothing to compute with before a visitor asks
        return None
    folder = Path(get_upload_folder(), uuid4().hex)
    folder.mkdir()
    shutil.copy(path, folder)
    go = _FOLDER / uuid4().hex
    go.touch()
    work = _restored(str(folder / path.name), False, Assumed(), settings, 0, go)
    verdict, opened, (image, pair, *_) = _result_of(work)
    go.unlink()
    says = presentation.facts(opened, path.name)
    return presentation.results(presentation.EXAMPLE + verdict, view=pair, what_it_says=says), image


def explore(
    path: str,
    quality: int,
    subsampling: str,
    longest: int,
    request: gr.Request,
    seed: int = 0,
    **controls: Any,
) -> Iterator[list]:
    """Compress a clean image to a JPEG file, and restore that."""
    start = time.monotonic()
    with job(request) as go, refusals(path):
        settings = chosen(controls)
        clean, _, name, code = read_clean(path, longest)
        stream = io.BytesIO()
        stream.name = f"{Path(name).stem}_q{quality}.jpg"
        options = {"quality": quality} | ({"subsampling": subsampling} if clean.mode == "RGB" else {})
        clean.save(stream, "JPEG", **options)
        stream.seek(0)
        file = JPEGFile.open(stream)
        result = yield from timed_run(file, None, settings, seed, go, clean.size)
        before = Image.open(stream)
        name = f"{Path(name).stem}_q{quality}_restored"
        verdict = presentation.verdict(result_of(file, result.consistency, seconds=time.monotonic() - start))
        verdict += presentation.numbers(clean, {"JPEG": before, "restored": Image.fromarray(result.pixels)})
        arguments = "".join(f", {key}={value!r}" for key, value in options.items())
        code += f"image.save({file.name!r}{arguments})\n"
        code += presentation.task(file.name, f"{name}.png", seed, False, Assumed())
        code = presentation.snippet(presentation.EXPLORE, _ENVIRONMENT, settings, code)
        image, *views = presentation.compared(result, {"JPEG": before, "original": clean}, name, file.metadata)
        opened = Opened(file, file.metadata, file.metadata.sizes(), None, None)
        yield presentation.results(verdict, image, *views, presentation.facts(opened, file.name), code)


def dequantize(
    path: str,
    bits: int,
    reconstruction: str,
    longest: int,
    request: gr.Request,
    seed: int = 0,
    **controls: Any,
) -> Iterator[list]:
    """Keep a few bits of each channel of a clean image, and restore that."""
    start = time.monotonic()
    with job(request) as go, refusals(path):
        settings = chosen(controls)
        clean, metadata, name, code = read_clean(path, longest)
        operator = QuantizationOperator(bits, reconstruction)
        result = yield from timed_run(clean, operator, settings, seed, go, clean.size)
        tensor = _IMAGES.preprocess(clean.convert("RGB"))
        (before,) = _IMAGES.postprocess(operator.decode(operator.encode(tensor)))
        name = f"{Path(name).stem}_{bits}bit_restored"
        told = Result(consistency=result.consistency, seconds=time.monotonic() - start)
        verdict = presentation.verdict(told, "levels")
        verdict += presentation.numbers(clean, {"quantized": before, "restored": Image.fromarray(result.pixels)})
        code += (
            f"operator = QuantizationOperator(bits={bits}, reconstruction={reconstruction!r})\n"
            f"generator = torch.Generator().manual_seed({seed})\n"
            "result = pipe(image, operator=operator, generator=generator, settings=settings)\n"
            f"save_image(result.images[0], {name + '.png'!r})\n"
        )
        code = presentation.snippet(presentation.DEQUANTIZE, _ENVIRONMENT, settings, code)
        image, *views = presentation.compared(result, {"quantized": before, "original": clean}, name, metadata)
        yield presentation.results(verdict, image, *views, code=code)
