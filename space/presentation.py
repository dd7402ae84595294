"""What a visitor sees: facts, images and numbers as HTML, and the same work as Python."""

from __future__ import annotations

import base64
import io
import json
import math
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4
from zipfile import ZipFile

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image, ImageOps
from reader import Opened, png, read_within

from pipeline_ddrm_jpeg import Settings
from pipeline_ddrm_jpeg.decoded.image import DecodedJPEG
from pipeline_ddrm_jpeg.decoded.opening import Assumed
from pipeline_ddrm_jpeg.evaluation.metrics import psnr, ssim
from pipeline_ddrm_jpeg.files.formats import upright
from pipeline_ddrm_jpeg.files.results import Result
from pipeline_ddrm_jpeg.formatting import duration, percent, size
from pipeline_ddrm_jpeg.jpeg.colour import CMYK_SPACES
from pipeline_ddrm_jpeg.jpeg.file import JPEGFile
from pipeline_ddrm_jpeg.jpeg.metadata import Metadata

HEAT = colormaps["inferno"]
HINT = '<p class="hint">The restored image will appear here.</p>'
EXAMPLE = '<p class="note example">An example. Move the divider; then choose an image of your own.</p>'
_PRESETS = {
    "fast": ("fast", "a first idea, somewhat soft"),
    "balanced": ("balanced", "the usual choice"),
    "best": ("best", "a little nearer to the original"),
    "paper": ("paper (S)", "as published, for a far larger network"),
    "paper-average": ("paper (A)", "the mean of eight such"),
}


def preset_choices(seconds: dict[str, float | None]) -> list[tuple[str, str]]:
    """What the presets are called, with a word on each and the time that it takes, as far as that is known."""
    times = {name: f", about {duration(max(one, 1))}" if one else "" for name, one in seconds.items()}
    return [(f"{label}{times[name]}: {words}", name) for name, (label, words) in _PRESETS.items()]


def facts(opened: Opened, name: str) -> str:
    """What a JPEG file says about itself, or the pixels of an image about the file that it was.

    Args:
        opened: the file.
        name: what it is called.
    """
    file = opened.file
    if isinstance(file, DecodedJPEG):
        return _traces(file, name)
    colour = "greyscale" if file.color_space == "L" else file.color_space
    if len(file.components) >= 3:
        factors = ", ".join(f"{c.horizontal_factor}x{c.vertical_factor}" for c in file.components)
        colour += f" {file.chroma_subsampling or factors}"
    names = {"exif": "EXIF", "icc_profile": "ICC profile", "xmp": "XMP", "iptc": "IPTC", "comment": "comment"}
    rows = {
        "Size": f"{file.width} &times; {file.height}",
        "Quality factor": f"{'' if file.quality_factor_is_exact else 'about '}{file.quality_factor}",
        "Colour": colour,
        "Bits per pixel": f"{file.bits_per_pixel:.2f}",
        "File": f"{size(file.file_size)}, {'progressive' if file.progressive else 'baseline'}",
        "Metadata": ", ".join(f"{names[kind]} {size(count)}" for kind, count in opened.sizes.items()) or "none",
    }
    if file.color_space in CMYK_SPACES:
        rows["Inks"] = "Written as RGB"
    if file.orientation != 1:
        rows["Orientation"] = f"{file.orientation}, will be upright"
    if opened.earlier:
        rows["Its pixels"] = opened.earlier
    components: dict[str, list[str]] = {}
    for label, component in zip(file.colour.components, file.components, strict=True):
        components.setdefault(_cells(component.quantization_table), []).append(label)
    return _told(f"What {name} says", rows, {", ".join(of): cells for cells, of in components.items()})


def _traces(image: DecodedJPEG, name: str) -> str:
    history = image.history
    down, across = history.offset
    rows = {"Size": f"{image.width} &times; {image.height}"}
    if history.region:
        top, left, height, width = history.region
        rows["The JPEG in it"] = f"{width} &times; {height} from column {left}, row {top}; the rest stays as it is"
    rows |= {
        "Quality factor": f"about {history.quality_factor}",
        "Colour": "greyscale" if history.chroma_subsampling is None else f"YCbCr {history.chroma_subsampling}",
        "Cropped by": f"{down} rows, {across} columns" if down or across else "nothing",
    }
    if history.assumed:
        heading = f"What you say {name} was"
    else:
        heading = f"What the pixels of {name} show"
        rows["Blocks explained exactly"] = percent(history.explained)
        rows["Quantization steps shown"] = percent(history.share_determined)
    labels = ["grey"] if len(history.quantization_tables) == 1 else ["Y", "Cb, Cr"]
    tables = map(_cells, history.quantization_tables)
    return _told(heading, rows, dict(zip(labels, tables, strict=True)))


def _cells(table: np.ndarray) -> str:
    return "".join("<tr>" + "".join(f"<td>{step}</td>" for step in line) + "</tr>" for line in table.tolist())


def _told(heading: str, rows: dict[str, str], tables: dict[str, str]) -> str:
    shown = "".join(f"<table><caption>{label}</caption>{cells}</table>" for label, cells in tables.items())
    return f"""
<h2>{escape(heading)}</h2>
<dl>{"".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in rows.items())}</dl>
<details><summary>Quantization tables</summary><div class="tables">{shown}</div></details>"""


def refused(sentence: str) -> str:
    return f'<p class="refusal" role="alert">{escape(sentence)}</p>'


def verdict(result: Result, of_what: str | None = None) -> str:
    """The consistency of the image as it is downloaded, and how much of a damaged file was not there to be kept."""
    lost = f"; {percent(result.invented)} of all were lost, and are made up" if result.damage or result.invented else ""
    kept = f"<strong>{percent(result.consistency)}</strong> of the {of_what or result.measured} kept"
    return f'<p class="verdict">{kept}, in {result.seconds:.1f} s{lost}</p>'


def count(restored: int, files: int, seconds: float) -> str:
    """What stands above the images of several files."""
    return f'<p class="verdict"><strong>{restored} of {files}</strong> restored, in {seconds:.1f} s</p>'


def numbers(clean: Image.Image, images: dict[str, Image.Image]) -> str:
    """PSNR and SSIM of images against the clean one, over 8-bit RGB."""
    reference = np.asarray(clean.convert("RGB"))
    rows = ""
    for name, image in images.items():
        pixels = np.asarray(image.convert("RGB"))
        rows += (
            f'<tr><th scope="row">{name}</th>'
            f"<td>{psnr(pixels, reference):.2f} dB</td><td>{ssim(pixels, reference):.4f}</td></tr>"
        )
    return (
        '<table class="numbers"><tr><td></td><th scope="col">PSNR</th><th scope="col">SSIM</th></tr>'
        + rows
        + "</table>"
    )


def comparison(left: dict[str, str], right: str, size: tuple[int, int]) -> str:
    """Images under a divider, that mouse, fingers and keys move and magnify (compare.js).

    `gr.ImageSlider` has no keys, no words for a screen reader, and takes wheel and finger away from the page.

    Args:
        left: addresses of the images to compare with, by what they are called.
        right: address of the restored image.
        size: width and height of the images, in pixels.
    """
    group = uuid4().hex

    def choice(name: str, label: str, values: dict[str, str]) -> str:
        return f'<div class="{name}" role="radiogroup" aria-label="{label}">' + "".join(
            f'<label><input type="radio" name="{name}{group}" value="{value}"{"" if i else " checked"}>{text}</label>'
            for i, (value, text) in enumerate(values.items())
        ) + "</div>"  # fmt: skip

    images = "".join(f'<img class="left{i}" src="{left[name]}" alt="{name}">' for i, name in enumerate(left))
    names = choice("side", "Left image", {f"left{i}": name for i, name in enumerate(left)})
    width, height = size
    return f"""
<div class="compare fit" style="--width: {width}px; --ratio: {width / height:.4f}">
<div class="frame"><div class="stage" tabindex="0" role="group" aria-label="Images, moved by arrow keys if magnified">
<div class="pair">{images}<img class="right" src="{right}" alt="restored"></div></div>
<input type="range" min="0" max="100" value="50" step="0.5" aria-label="Divider between before and after"></div>
<div class="tools">{names if len(left) > 1 else f"<span>{next(iter(left))}</span>"}
{choice("zoom", "Zoom", {"fit": "fit", "1": "1:1", "2": "2&times;", "4": "4&times;"})}<span>restored</span></div>
</div>"""


def compared(
    result: Any,
    left: dict[str, Image.Image],
    name: str,
    metadata: Metadata,
    file: JPEGFile | DecodedJPEG | None = None,
) -> tuple[Path, str, str]:
    """Put the images to where gradio serves and later deletes them.

    Args:
        result: output of the pipeline.
        left: images to compare the restored one with, by what they are called.
        name: file name of the restored image.
        metadata: what goes with it.
        file: what was restored, where that may lie on its side or have more than its pixels, such as transparency.

    Returns:
        Where the restored image is, and as HTML the comparison and how far off it may be.
    """
    folder = Path(get_upload_folder(), uuid4().hex)
    image, expected = result.images[0], result.expected_error[0]
    shown = result.std[0] if expected is None and len(result.samples[0]) > 1 else expected
    folder.mkdir()
    pixels = file.put_back(np.asarray(image)) if isinstance(file, DecodedJPEG) else np.asarray(image)
    pixels = np.ascontiguousarray(upright(pixels, file.orientation if file else 1))
    (folder / name).write_bytes(read_within(name, 0, png, pixels, metadata))  # as the command writes it
    images, how_far_off = dict(left), ""
    if shown is not None:
        images["deviation"], legend = heat_map(shown, image)
    for label, picture in images.items():  # with the profile of the restored one, or colours would seem to differ
        picture.save(folder / f"{label}.png", compress_level=1, icc_profile=image.info.get("icc_profile"))
    address = {path.name: f"gradio_api/file={quote(str(path))}" for path in folder.iterdir()}
    if shown is not None:
        how_far_off = deviation(address["deviation.png"], legend, *(SPREAD if expected is None else EXPECTED))
    width_and_height = ImageOps.exif_transpose(image).size
    pair = comparison({label: address[f"{label}.png"] for label in left}, address[name], width_and_height)
    return folder / name, pair, how_far_off


def preview(image: Image.Image) -> list:
    """What `results` shows while an image is on its way: that, as far as it is, and nothing else anew."""
    stream = io.BytesIO()
    image.save(stream, "WebP", quality=80)
    address = f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
    ratio = image.width / image.height
    shown = [gr.skip()] * len(results())
    shown[2] = (
        f'<figure class="preview" style="--ratio: {ratio:.4f}"><img src="{address}" alt="The image so far">'
        "<figcaption>So far</figcaption></figure>"
    )
    return shown


def results(
    status: str = HINT,
    download: Path | None = None,
    view: str = "",
    how_far_off: str = "",
    what_it_says: str = "",
    code: str = "",
) -> list:
    """What the components of `layout.Results` show, in their order; by default nothing yet."""
    button = gr.DownloadButton(value=download, visible=download is not None)
    return [status, button, view, how_far_off, what_it_says, gr.Accordion(visible=bool(code)), code]


# The same in the browser.
_HIDDEN = '{__type__: "update", visible: false}'
CLEARED = f'() => [{json.dumps(HINT)}, {_HIDDEN}, "", "", "", {_HIDDEN}, ""]'


def zipped(images: list[Path]) -> Path:
    """Images in one file, which gradio serves and later deletes; those of one name are numbered."""
    folder = Path(get_upload_folder(), uuid4().hex)
    folder.mkdir()
    with ZipFile(folder / "restored.zip", "w") as archive:  # PNGs are compressed already
        for number, path in enumerate(images, 1):
            taken = path.name in archive.namelist()
            archive.write(path, f"{path.stem}_{number}.png" if taken else path.name)
    return folder / "restored.zip"


EXPECTED = (
    "How far off it may be",
    "Expected distance from the original (standard deviation, mean of the channels): large where the file leaves open"
    " what was there. Calibrated with photographs; single ones may be off by half as much, or by one and a half times.",
)
SPREAD = (
    "Where the samples differ",
    "Standard deviation of the samples, mean of the channels: large where the image leaves open what was there. It"
    " says where, not how far.",
)


def heat_map(std: np.ndarray, like: Image.Image) -> tuple[Image.Image, str]:
    """A standard deviation as an image, and its legend.

    Args:
        std: `[H, W, C]`, on the scale of [0, 1].
        like: the image that it is of, whose orientation it takes.
    """
    levels = 255 * std.mean(axis=-1)
    top = max(1, math.ceil(np.percentile(levels, 99.5)))
    heat = Image.fromarray(HEAT(levels / top, bytes=True)[..., :3])
    heat.info.update(like.info)
    colours = ", ".join(map(to_hex, HEAT(np.linspace(0, 1, 12))))
    legend = (
        f'<div class="legend"><i style="background: linear-gradient(90deg, {colours})"></i>'
        f"<span>0</span><span>{top} grey levels or more</span></div>"
    )
    return ImageOps.exif_transpose(heat), legend


def deviation(address: str, legend: str, title: str, words: str) -> str:
    """The map of a standard deviation, with words."""
    return f"""
<h2>{title}</h2>
<figure><img src="{address}" alt="Map: {title.lower()}"><figcaption>{legend}
{words}</figcaption></figure>"""


def constructor(prior: str | None, dtype: str) -> str:
    """Python that makes this server's pipeline."""
    return f"from_prior({prior!r}, dtype={dtype!r})" if prior else f"from_embedded(dtype={dtype!r})"


def snippet(imports: str, pipe: str, settings: Settings, body: str) -> str:
    """Python that does again what the page has done."""
    usual = Settings()
    arguments = "".join(f"    {name}={value!r},\n" for name, value in settings.items() if value != usual[name])
    made = f"Settings(\n{arguments})" if arguments else "Settings()"
    return f"{imports}\npipe = DDRMJPEGPipeline.{pipe}\nsettings = {made}\n{body}"


def task(source: str, target: str, seed: int, repair: bool, assumed: Assumed) -> str:
    """The last lines of `snippet` for a file."""
    options = f"seed={seed}{', repair=True' * repair}{f', assumed={assumed}' * (assumed != Assumed())}"
    return f"task = Task(Path({source!r}), Path({target!r}))\nrestore_file(pipe, task, {options}, settings=settings)\n"


RESTORE = """\
from pathlib import Path

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, Settings, Task, restore_file
"""
RESTORE_ASSUMED = RESTORE.replace("import DDRM", "import Assumed, DDRM")
EXPLORE = """\
from pathlib import Path

from PIL import Image, ImageOps

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, Settings, Task, read_image, restore_file
"""
DEQUANTIZE = """\
import torch
from PIL import Image, ImageOps

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, QuantizationOperator, Settings, read_image, save_image
"""
