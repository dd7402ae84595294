"""The Space: drop a JPEG on the page, see what its file says, restore it, compare, download.

It parses, calls `pipeline_ddrm_jpeg` and presents. What a server may want to change is an environment variable; the
README beside this file lists them.
"""

from __future__ import annotations

import io
import logging
import math
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

try:  # on ZeroGPU, where it must be imported before torch
    import spaces
except ImportError:
    spaces = None

import cmap
import gradio as gr
import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGPipeline, DDRMScheduler, JPEGFile, JPEGFileError, QuantizationOperator
from pipeline_ddrm_jpeg.metrics import psnr, ssim
from pipeline_ddrm_jpeg.restoration import save_image

HERE = Path(__file__).parent
log = logging.getLogger("space")


def limit(name: str, default: float) -> float:
    """The environment variable `DDRM_JPEG_<name>`, a positive number, or its default."""
    text = os.environ.get(f"DDRM_JPEG_{name}", "")
    try:
        value = float(text or default)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise SystemExit(f"DDRM_JPEG_{name} is {text!r}; it must be a positive number")
    return value


PRIOR = os.environ.get("DDRM_JPEG_PRIOR")
MAX_MEGAPIXELS = limit("MAX_MEGAPIXELS", 4)
MAX_MEGABYTES = limit("MAX_MEGABYTES", 10)
MAX_SECONDS = limit("MAX_SECONDS", 300)
MAX_WAITING = int(limit("MAX_WAITING", 20))
CONCURRENCY = int(limit("CONCURRENCY", 1))
KEEP_MINUTES = limit("KEEP_MINUTES", 30)
MAX_SAMPLES = 16

PIPE = DDRMJPEGPipeline.from_prior(PRIOR) if PRIOR else DDRMJPEGPipeline.from_embedded()
PIPE.to("cuda" if torch.cuda.is_available() else "cpu")
PICTURES = VaeImageProcessor(vae_scale_factor=1)  # PIL images to tensors in [-1, 1] and back
HEAT = cmap.Colormap("inferno")

# Who waits or is being served, by session, and the file that is there as long as the work is to go on. A file, because
# on ZeroGPU the work is done in another process.
JOBS: dict[str, Path] = {}
GO_FOLDER = tempfile.TemporaryDirectory(prefix="ddrm-jpeg-space-")
GO = Path(GO_FOLDER.name)


# --- Refusals: every one is a sentence, and none names a path of this server ---


def refusal(sentence: str) -> gr.Error:
    return gr.Error(sentence[:1].upper() + sentence[1:], title="Not restored", print_exception=False)


@contextmanager
def refusals(name: str = "") -> Iterator[None]:
    """Turn what the package and Pillow raise about a visitor's input into one sentence on the page."""
    try:
        yield
    except (gr.Error, Stopped):
        raise
    except UnidentifiedImageError:
        raise refusal(f"{name}: not a picture that can be read") from None
    except JPEGFileError as error:
        raise refusal(str(error)) from None
    except (Image.DecompressionBombError, ValueError, SyntaxError, EOFError) as error:
        raise refusal(f"{name}: {error}".partition("\n")[0]) from None
    except FileNotFoundError:
        raise refusal(f"uploads are deleted after {KEEP_MINUTES:g} minutes; please upload it again") from None
    except OSError as error:
        raise refusal(f"{name}: {error.strerror or error}".partition("\n")[0]) from None
    except (MemoryError, torch.OutOfMemoryError):
        raise refusal("this server has not enough memory for it; try a smaller picture") from None
    except Exception:
        log.exception("unforeseen")
        raise refusal("something went wrong on this server, and was noted; it is not your file's fault") from None


def read_upload(path: str | None) -> tuple[bytes, str]:
    """Bytes and name of an upload that is within the limits."""
    if path is None:
        raise refusal("choose a picture first")
    data, name = Path(path).read_bytes(), Path(path).name
    if len(data) > MAX_MEGABYTES * 1e6:
        raise refusal(f"{name} has {len(data) / 1e6:.1f} MB; the limit of this server is {MAX_MEGABYTES:g} MB")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            check_size(name, *picture.size)
    except (OSError, Image.DecompressionBombError, ValueError, SyntaxError):
        pass  # who reads it next says what is wrong with it
    return data, name


def check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise refusal(
            f"{name} has {width} x {height} pixels, {width * height / 1e6:.1f} megapixels;"
            f" the limit of this server is {MAX_MEGAPIXELS:g} megapixels"
        )


def read_jpeg(path: str | None) -> JPEGFile:
    data, name = read_upload(path)
    stream = io.BytesIO(data)
    stream.name = name  # what messages call it
    try:
        file = JPEGFile.open(stream)
    except JPEGFileError:
        with Image.open(io.BytesIO(data)) as picture:  # another format? Pillow knows its name
            if picture.format not in ("JPEG", "MPO"):
                raise refusal(
                    f"{name} is a {picture.format} picture; only a JPEG file holds the coefficients that a"
                    " restoration goes by. The Explore tab takes pictures of any format"
                ) from None
        raise
    check_size(name, file.width, file.height)
    return file


def read_picture(path: str | None, longest: int | None = None) -> tuple[Image.Image, str, str]:
    """A picture of any format, upright, grey or RGB, its name, and the Python that reads it so.

    Its longer side is at most `longest`: what was made smaller has lost the traces of earlier compression, too.
    """
    data, name = read_upload(path)
    with Image.open(io.BytesIO(data)) as opened:
        picture = ImageOps.exif_transpose(opened)
    code = f"picture = ImageOps.exif_transpose(Image.open({name!r}))\n"
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
        code += 'white = Image.new("RGBA", picture.size, "white")\n'
        code += 'picture = Image.alpha_composite(white, picture.convert("RGBA"))\n'
    mode = "L" if picture.mode in ("1", "L") else "RGB"
    picture = picture.convert(mode)
    code += f'picture = picture.convert("{mode}")\n'
    if longest is not None and max(picture.size) > longest:
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        code += f"picture.thumbnail(({longest}, {longest}), Image.Resampling.LANCZOS)\n"
    return picture, name, code


# --- The work ---


class Stopped(Exception):
    """The visitor has cancelled, or left."""


class Meter:
    """What the pipeline reports its calls of the prior to. It shows them, and ends the work where it must end."""

    def __init__(self, num_inference_steps: int, num_samples: int, go: Path, show: gr.Progress) -> None:
        self.steps, self.samples = num_inference_steps, num_samples
        self.go, self.show = go, show
        self.total = self.done = 0
        self.step = self.first_sample = self.done_before_step = 0
        self.start = time.monotonic()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        log.info("%d of %d calls of the prior, %.1f s", self.done, self.total, time.monotonic() - self.start)

    def refresh(self) -> None:
        """The total is known now."""

    def update(self, calls: int) -> None:
        self.done += calls
        if not self.go.exists():
            raise Stopped
        elapsed = time.monotonic() - self.start
        left = elapsed * (self.total - self.done) / self.done
        # Soon enough to spare everybody the wait, late enough to know.
        if elapsed > MAX_SECONDS or (elapsed > MAX_SECONDS / 10 and elapsed + left > 1.5 * MAX_SECONDS):
            raise refusal(
                f"this would take about {elapsed + left:.0f} s; the limit of this server is {MAX_SECONDS:g} s."
                " Try a smaller picture, fewer samples or fewer steps"
            )
        calls_a_sample = self.total // (self.steps * self.samples)
        sample = self.first_sample + math.ceil((self.done - self.done_before_step) / calls_a_sample)
        self.show(
            (self.done, self.total),
            desc=f"Step {self.step + 1} of {self.steps}, sample {sample} of {self.samples}, {duration(left)} left",
            unit="calls of the prior",
        )

    def on_step_end(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict:
        """Callback of the pipeline. Samples of one picture may go through the steps together, some at a time."""
        self.step, self.done_before_step = step + 1, self.done
        if self.step == self.steps:
            self.step = 0
            self.first_sample += len(tensors["sample"])
        return {}


class Visit(DDRMJPEGPipeline):
    """The pipeline of one visitor: a schedule and a meter of its own around the network that all share."""

    meter: Meter

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Meter:
        return self.meter


def compute(source: Any, operator: Any, settings: dict[str, Any], seed: int, go: Path, show: gr.Progress) -> Any:
    """The pipeline's output, or `None` if the visitor has cancelled."""
    visit = Visit(PIPE.unet, DDRMScheduler.from_config(PIPE.scheduler.config))
    visit.meter = Meter(settings["num_inference_steps"], settings["num_samples"], go, show)
    generator = torch.Generator().manual_seed(seed)
    try:
        with refusals():
            return visit(
                source,
                operator=operator,
                generator=generator,
                callback_on_step_end=visit.meter.on_step_end,
                **settings,
            )
    except Stopped:
        return None


if spaces is not None:
    compute = spaces.GPU(duration=int(MAX_SECONDS))(compute)


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


# --- What the page shows ---


def table(rows: dict[str, str]) -> str:
    return '<dl class="facts">' + "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in rows.items()) + "</dl>"


def describe(path: str | None) -> str:
    """What the uploaded file says, as HTML."""
    if path is None:
        return ""
    try:
        with refusals(Path(path).name):
            file = read_jpeg(path)
    except gr.Error as error:
        return f'<p class="refusal" role="alert">{escape(error.message)}.</p>'
    colour = {"L": "greyscale", "YCbCr": "YCbCr", "RGB": "RGB, coded as it is"}[file.color_space]
    if len(file.components) == 3:
        factors = ", ".join(f"{c.horizontal_factor}x{c.vertical_factor}" for c in file.components)
        colour += f", {file.chroma_subsampling or 'sampling factors ' + factors}"
    quality = f"{file.quality_factor}" if file.quality_factor_is_exact else f"about {file.quality_factor}"
    metadata = [
        f"{label} {size(len(value))}"
        for label, value in (
            ("EXIF", file.exif),
            ("ICC profile", file.icc_profile),
            ("XMP", file.xmp),
            ("comment", file.comment),
        )
        if value
    ]
    rows = {
        "Size": f"{file.width} × {file.height} pixels",
        "Colour": colour,
        "Quality factor": f'<strong>{quality}</strong> <span class="bar"><i style="width:{file.quality_factor}%"></i></span>',
        "Data": f"{size(file.file_size)}, {file.bits_per_pixel:.2f} bits per pixel",
        "Coding": "progressive" if file.progressive else "baseline",
        "Metadata": ", ".join(metadata) or "none",
    }
    if file.orientation != 1:
        rows["Orientation"] = "stored turned or mirrored; shown and saved upright"
    steps: dict[str, list[str]] = {}
    names = {1: ["grey"], 3: ["Y", "Cb", "Cr"] if file.color_space == "YCbCr" else ["R", "G", "B"]}
    for label, component in zip(names[len(file.components)], file.components, strict=True):
        lines = component.quantization_table.tolist()
        html = "".join("<tr>" + "".join(f"<td>{step}</td>" for step in line) + "</tr>" for line in lines)
        steps.setdefault(html, []).append(label)
    tables = "".join(
        f"<figure><table>{html}</table><figcaption>{', '.join(labels)}</figcaption></figure>"
        for html, labels in steps.items()
    )
    return table(rows) + f"<details><summary>Quantization tables</summary><div class=tables>{tables}</div></details>"


def size(count: int) -> str:
    return f"{count} bytes" if count < 1000 else f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def percent(share: float) -> str:
    """100 only if it is all of them."""
    return f"{math.floor(share * 10000) / 100:.4g} %" if share < 1 else "100 %"


def uncertainty(std: np.ndarray, like: Image.Image) -> tuple[Image.Image, str]:
    """Standard deviation of the samples, `[H, W, C]` on [0, 1], as a picture upright as `like` is, and its legend."""
    levels = 255 * std.mean(axis=-1)
    top = max(1, math.ceil(np.percentile(levels, 99.5)))
    heat = Image.fromarray(HEAT(levels / top, bytes=True)[..., :3])
    heat.info.update(like.info)
    colours = HEAT.to_css(max_stops=12).splitlines()[-1]
    legend = (
        f'<div class="legend"><span>0</span><i style="{colours}"></i><span>{top} or more grey levels</span></div>'
        "<p>How far the samples differ (standard deviation, mean of the channels): bright where the file leaves open"
        " what was there.</p>"
    )
    return ImageOps.exif_transpose(heat), legend


def snippet(imports: str, body: str, settings: dict[str, Any]) -> str:
    """Python that does again what the page has just done."""
    arguments = "".join(f"    {name}={value!r},\n" for name, value in settings.items())
    pipe = f"from_prior({PRIOR!r})" if PRIOR else "from_embedded()"
    return f"{imports}\npipe = DDRMJPEGPipeline.{pipe}\nsettings = dict(\n{arguments})\n{body}"


RESTORE_IMPORTS = """\
from pathlib import Path

from pipeline_ddrm_jpeg import DDRMJPEGPipeline
from pipeline_ddrm_jpeg.restoration import Task, restore_file
"""
EXPLORE_IMPORTS = RESTORE_IMPORTS.replace("\nfrom pipe", "\nfrom PIL import Image, ImageOps\n\nfrom pipe", 1)
DEQUANTIZE_IMPORTS = """\
import torch
from PIL import Image, ImageOps

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, QuantizationOperator
from pipeline_ddrm_jpeg.restoration import save_image
"""


def restored_name(name: str) -> str:
    return f"{Path(name).stem}_restored.png"


def finish(result: Any, before: Image.Image, after_name: str, verdict: str, code: str) -> dict:
    """Write the pictures to where gradio serves and later deletes them, and fill the right side of the page."""
    folder = Path(demo.GRADIO_CACHE, uuid.uuid4().hex)
    after = folder / after_name
    image = result.images[0]
    save_image(ImageOps.exif_transpose(image), after)
    before.save(folder / "before.png", compress_level=1, icc_profile=image.info.get("icc_profile"))
    several = len(result.samples[0]) > 1
    heat, legend = uncertainty(result.std[0], image) if several else (None, "")
    return {
        status: verdict,
        results: gr.Column(visible=True),
        slider: (folder / "before.png", after),
        download: after,
        spread: gr.Accordion(visible=several),
        spread_map: heat,
        spread_legend: legend,
        code_panel: code,
    }


def compared(reference: Image.Image, before: Image.Image, after: Image.Image, label: str) -> str:
    """PSNR and SSIM against the clean picture, over 8-bit RGB, before and after."""
    clean = np.asarray(reference.convert("RGB"))
    rows = ""
    for name, picture in ((label, before), ("restored", after)):
        pixels = np.asarray(picture.convert("RGB"))
        rows += f"<tr><th>{name}</th><td>{psnr(pixels, clean):.2f} dB</td><td>{ssim(pixels, clean):.4f}</td></tr>"
    return f'<table class="numbers"><tr><th></th><th>PSNR</th><th>SSIM</th></tr>{rows}</table>'


def kept(share: float, of_what: str, start: float) -> str:
    seconds = time.monotonic() - start
    return f'<p class="verdict"><strong>{percent(share)}</strong> of the {of_what} kept. {seconds:.1f} s.</p>'


# --- What happens when something is pressed ---


def admit(request: gr.Request) -> tuple:
    """Take a place in the queue, or say that there is none."""
    if len(JOBS) >= MAX_WAITING and request.session_hash not in JOBS:
        raise refusal(
            f"{len(JOBS)} pictures are waiting already; the limit of this server is {MAX_WAITING}."
            " Please try again in a minute"
        )
    JOBS[request.session_hash] = GO / uuid.uuid4().hex
    return busy(True)


@contextmanager
def job(request: gr.Request) -> Iterator[Path]:
    """The place in the queue, held while the work lasts: a file that is there as long as the work is to go on."""
    go = JOBS.setdefault(request.session_hash, GO / uuid.uuid4().hex)
    go.touch()
    try:
        yield go
    finally:
        go.unlink(missing_ok=True)
        if JOBS.get(request.session_hash) == go:
            del JOBS[request.session_hash]


def leave(request: gr.Request) -> None:
    """End the work of a session, whether it waits or runs."""
    go = JOBS.pop(request.session_hash, None)
    if go is not None:
        go.unlink(missing_ok=True)


def cancel(request: gr.Request) -> tuple:
    leave(request)
    return ('<p class="hint">Cancelled.</p>', *busy(False))


def busy(working: bool) -> tuple:
    """The buttons that start, and the one that cancels."""
    return (*(gr.Button(interactive=not working) for _ in start_buttons), gr.Button(visible=working))


def restore(path: str, request: gr.Request, seed: int = 0, progress=gr.Progress(), **settings: Any) -> dict:
    """Restore a JPEG file."""
    start = time.monotonic()
    with job(request) as go, refusals("the upload"):
        progress(0, desc="Reading the file")
        file = read_jpeg(path)
        result = compute(file, None, settings, seed, go, progress)
        if result is None:
            return {status: gr.skip()}
        name = Path(path).name
        with Image.open(path) as opened:
            before = ImageOps.exif_transpose(opened)
        count = sum(plane.size for plane in file.coefficients)
        task = f"restore_file(pipe, Task(Path({name!r}), Path({restored_name(name)!r})), seed={seed}, **settings)\n"
        return finish(
            result,
            before,
            restored_name(name),
            kept(result.consistency_8bit[0], f"file's {count:,} coefficients are", start),
            snippet(RESTORE_IMPORTS, task, settings),
        )


def explore(
    path: str,
    quality: int,
    subsampling: str,
    longest: int,
    request: gr.Request,
    seed: int = 0,
    progress=gr.Progress(),
    **settings: Any,
) -> dict:
    """Compress a clean picture to a JPEG file, and restore that."""
    start = time.monotonic()
    with job(request) as go, refusals("the upload"):
        picture, name, code = read_picture(path, longest or None)
        options = {"quality": quality} | ({"subsampling": subsampling} if picture.mode == "RGB" else {})
        stream = io.BytesIO()
        picture.save(stream, "JPEG", **options)
        file = JPEGFile.open(stream.getvalue())
        result = compute(file, None, settings, seed, go, progress)
        if result is None:
            return {status: gr.skip()}
        before = Image.open(stream)
        stem = f"{Path(name).stem}_q{quality}"
        arguments = "".join(f", {key}={value!r}" for key, value in options.items())
        code += f'picture.save("{stem}.jpg"{arguments})\n'
        task = f'restore_file(pipe, Task(Path("{stem}.jpg"), Path("{stem}_restored.png")), seed={seed}, **settings)\n'
        label = f"JPEG, {size(file.file_size)}, {file.bits_per_pixel:.2f} bits per pixel"
        return finish(
            result,
            before,
            f"{stem}_restored.png",
            kept(result.consistency_8bit[0], "JPEG's coefficients are", start)
            + compared(picture, before, result.images[0], label),
            snippet(EXPLORE_IMPORTS, code + task, settings),
        )


def dequantize(
    path: str,
    bits: int,
    reconstruction: str,
    longest: int,
    request: gr.Request,
    seed: int = 0,
    progress=gr.Progress(),
    **settings: Any,
) -> dict:
    """Keep a few bits of every channel of a clean picture, and restore that."""
    start = time.monotonic()
    with job(request) as go, refusals("the upload"):
        picture, name, code = read_picture(path, longest or None)
        picture = picture.convert("RGB")
        operator = QuantizationOperator(bits, reconstruction)
        result = compute(picture, operator, settings, seed, go, progress)
        if result is None:
            return {status: gr.skip()}
        before = PICTURES.postprocess(operator.decode(operator.encode(PICTURES.preprocess(picture))))[0]
        code += (
            f"operator = QuantizationOperator(bits={bits}, reconstruction={reconstruction!r})\n"
            f"generator = torch.Generator().manual_seed({seed})\n"
            "result = pipe(picture, operator=operator, generator=generator, **settings)\n"
            f"save_image(result.images[0], {restored_name(name)!r})\n"
        )
        return finish(
            result,
            before,
            restored_name(name),
            kept(result.consistency_8bit[0], "measured levels are", start)
            + compared(picture, before, result.images[0], f"{bits} bits a channel"),
            snippet(DEQUANTIZE_IMPORTS, code, settings),
        )


def chosen(preset: str) -> list:
    """The settings of a preset, in the order of `settings`."""
    values = DEFAULTS | PRESETS[preset]
    return [values[name] for name in settings]


def preset_of(*values: Any) -> str | None:
    """The preset with these settings, if there is one."""
    return next((name for name in PRESETS if chosen(name) == list(values)), None)


def from_address(request: gr.Request) -> list:
    """Preset, settings and seed as the query of the page's address gives them."""
    query = dict(request.query_params)
    preset = query.get("preset", DEFAULT_PRESET)
    if preset not in PRESETS:
        gr.Warning(f"The address names an unknown preset; there are {', '.join(PRESETS)}.")
        preset = DEFAULT_PRESET
    values = dict(zip(settings, chosen(preset), strict=True)) | {"seed": 0}
    for name, component in {**settings, "seed": seed_number}.items():
        if name not in query:
            continue
        try:
            text = query[name]
            values[name] = component.preprocess(
                text == "true"
                if isinstance(component, gr.Checkbox)
                else text
                if isinstance(component, gr.Radio)
                else float(text)
            )
        except (gr.Error, ValueError, OverflowError):
            gr.Warning(f"The address gives a value for {name} that does not fit; the preset's is used.")
    seed = values.pop("seed")
    return [preset_of(*values.values()), *values.values(), seed]


TO_ADDRESS = """(preset, %s, seed) => {
  const query = new URLSearchParams(preset ? {preset, seed} : {%s, seed}).toString();
  history.replaceState(null, "", "?" + query);
  if (window.parent !== window) window.parent.postMessage({queryString: query}, "https://huggingface.co");
}"""

# --- The page ---

DEFAULT_PRESET = "fast"
DEFAULTS = {
    "eta": PIPE.scheduler.config.eta,
    "eta_b": PIPE.scheduler.config.eta_b,
    "correction": "paper",
    "consistent": False,
}
PRESET_LABELS = {"paper": "paper (S)", "paper-average": "paper (A)"}
EXAMPLES = HERE / "examples"


class Upload(gr.Image):
    """An image input that hands over the path of the bytes as they were sent, whatever they are.

    `gr.Image` opens them first, and fails on broken ones with a message that names the path.
    """

    is_template = True  # the same component in the browser

    def preprocess(self, payload: Any) -> str | None:
        return None if payload is None else payload.path


def upload(label: str, examples: str, **kwargs: Any) -> Upload:
    image = Upload(
        label=label,
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=280,
        buttons=["fullscreen"],
        **kwargs,
    )
    files = sorted(EXAMPLES.glob(examples))
    if files:
        gr.Examples([[str(file)] for file in files], [image], label="Examples, public domain")
    return image


def smaller() -> gr.Radio:
    return gr.Radio(
        [("256", 256), ("512", 512), ("1024", 1024), ("as it is", 0)],
        value=512,
        label="Longer side, pixels",
        info="Large pictures are made smaller first.",
    )


with gr.Blocks(title="DDRM-JPEG", delete_cache=(30, int(60 * KEEP_MINUTES)), analytics_enabled=False) as demo:
    gr.HTML(
        "<header><h1>DDRM-JPEG</h1><p>Restores pictures that JPEG has ruined, and keeps to what their files say.</p>"
        "</header>"
    )
    with gr.Row(elem_id="columns"):
        with gr.Column(scale=5, min_width=320):
            with gr.Tabs():
                with gr.Tab("Restore") as restore_tab:
                    jpeg = upload("JPEG file", "*.jpg", placeholder="# Drop a JPEG here\nor click, or paste a file")
                    facts = gr.HTML(elem_id="facts")
                with gr.Tab("Explore") as explore_tab:
                    clean = upload("Clean picture", "*.png", placeholder="# Drop a clean picture here\nof any format")
                    with gr.Row():
                        quality = gr.Slider(1, 100, 10, step=1, label="Quality factor", min_width=200)
                        subsampling = gr.Radio(
                            ["4:4:4", "4:2:2", "4:2:0"], value="4:2:0", label="Chroma subsampling", min_width=200
                        )
                    explore_size = smaller()
                with gr.Tab("Dequantize") as dequantize_tab:
                    deep = upload("Clean picture", "*.png", placeholder="# Drop a clean picture here\nof any format")
                    with gr.Row():
                        bits = gr.Slider(1, 7, 3, step=1, label="Bits a channel", min_width=200)
                        reconstruction = gr.Radio(
                            ["left", "center"], value="left", label="Level decodes to", min_width=200
                        )
                    dequantize_size = smaller()
            preset = gr.Radio(
                [(PRESET_LABELS.get(name, name), name) for name in PRESETS],
                value=DEFAULT_PRESET,
                label="Preset",
                info="fast takes seconds, best minutes; the paper's own settings are made for a far larger prior.",
                elem_id="preset",
            )
            with gr.Row():
                start_buttons = [
                    gr.Button("Restore", variant="primary", size="lg", elem_id="restore"),
                    gr.Button("Compress, then restore", variant="primary", size="lg", visible=False, elem_id="explore"),
                    gr.Button("Quantize, then restore", variant="primary", size="lg", visible=False, elem_id="dequantize"),
                ]
                cancel_button = gr.Button("Cancel", variant="stop", size="lg", visible=False, elem_id="cancel")
            with gr.Accordion("Settings", open=False, elem_id="settings"):
                start = dict(DEFAULTS | PRESETS[DEFAULT_PRESET])
                settings = {
                    "num_samples": gr.Slider(
                        1, MAX_SAMPLES, start["num_samples"], step=1, label="num_samples",
                        info='Independent samples to average; 1 is the paper\'s "(S)", 8 its "(A)".',
                    ),
                    "num_inference_steps": gr.Slider(
                        1, 100, start["num_inference_steps"], step=1, label="num_inference_steps",
                        info="Network evaluations in a sample.",
                    ),
                    "init_timestep": gr.Slider(
                        1, len(PIPE.scheduler), start["init_timestep"], step=1, label="init_timestep",
                        info="Where sampling starts, from the noised measurement.",
                    ),
                    "eta": gr.Slider(
                        0, 1, start["eta"], step=0.05, label="eta", info="Weight of fresh against predicted noise.",
                    ),
                    "eta_b": gr.Slider(
                        0, 1, start["eta_b"], step=0.05, label="eta_b", info="Weight of the corrected picture.",
                    ),
                    "correction": gr.Radio(
                        ["paper", "nearest"], value=start["correction"], label="correction",
                        info="How a picture is made to agree with the file at every step.",
                    ),
                    "consistent": gr.Checkbox(
                        start["consistent"], label="consistent",
                        info="Project the result onto what the file says, coefficient by coefficient.",
                    ),
                }  # fmt: skip
                seed_number = gr.Number(0, label="seed", precision=0, minimum=0, maximum=2**53 - 1)
                gr.HTML("<p class=hint>The address of this page holds these settings: copy it to share them.</p>")
        with gr.Column(scale=7, min_width=320):
            status = gr.HTML('<p class="hint">The restored picture will appear here.</p>', elem_id="status")
            with gr.Column(visible=False, elem_id="results") as results:
                slider = gr.ImageSlider(
                    label="Before and after", format="png", interactive=False, buttons=["fullscreen"], max_height=640,
                    elem_id="slider",
                )  # fmt: skip
                download = gr.DownloadButton("Download PNG", variant="primary", elem_id="download")
                with gr.Accordion("Where it is uncertain", open=True, visible=False, elem_id="spread") as spread:
                    spread_map = gr.Image(
                        label="Standard deviation of the samples", format="png", interactive=False,
                        buttons=["fullscreen"], alt_text="Map of the standard deviation of the samples",
                    )  # fmt: skip
                    spread_legend = gr.HTML()
                with gr.Accordion("The same in Python", open=False, elem_id="python"):
                    code_panel = gr.Code(language="python", interactive=False, label="Python", show_line_numbers=False)

    outputs = [status, results, slider, download, spread, spread_map, spread_legend, code_panel]
    buttons = [*start_buttons, cancel_button]
    runs = []
    for button, tab, work, inputs in zip(
        start_buttons,
        (restore_tab, explore_tab, dequantize_tab),
        (restore, explore, dequantize),
        (
            [jpeg],
            [clean, quality, subsampling, explore_size],
            [deep, bits, reconstruction, dequantize_size],
        ),
        strict=True,
    ):
        tab.select(
            lambda which=button: [gr.Button(visible=one is which) for one in start_buttons],
            None, start_buttons, queue=False, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        run = button.click(admit, None, buttons, queue=False, show_progress="hidden", api_visibility="private").success(
            work, inputs, outputs, inputs_kwargs={**settings, "seed": seed_number}, show_progress_on=status,
            concurrency_limit=CONCURRENCY, concurrency_id="work", api_name=work.__name__,
        )  # fmt: skip
        run.then(lambda: busy(False), None, buttons, queue=False, show_progress="hidden", api_visibility="private")
        runs.append(run)
    cancel_button.click(
        cancel, None, [status, *buttons], cancels=runs, queue=False, show_progress="hidden", api_visibility="private"
    )
    demo.unload(leave)

    jpeg.change(
        describe, jpeg, facts, show_progress="minimal", concurrency_limit=4, concurrency_id="describe",
        api_name="inspect",
    )  # fmt: skip

    share = {
        "fn": None,
        "inputs": [preset, *settings.values(), seed_number],
        "js": TO_ADDRESS % (", ".join(settings), ", ".join(settings)),
        "api_visibility": "private",
    }
    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    preset.input(chosen, preset, list(settings.values()), **quiet).then(**share)
    gr.on(
        [component.input for component in settings.values()], preset_of, list(settings.values()), preset, **quiet
    ).then(**share)
    seed_number.input(**share)
    demo.load(from_address, None, [preset, *settings.values(), seed_number], **quiet)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    demo.queue(max_size=10 * MAX_WAITING, default_concurrency_limit=None)
    demo.launch(
        theme=gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"]),
        css_paths=HERE / "style.css",
        max_file_size=int(MAX_MEGABYTES * 1e6),
        footer_links=["api", "gradio"],
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
