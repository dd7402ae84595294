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
from PIL import Image, ImageFilter
from reader import Opened, files, read_within

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
PRESETS = {"fast": "Fast", "balanced": "Balanced", "best": "Best"}
PUBLISHED = {"paper": "paper (S), one sample", "paper-average": "paper (A), the mean of eight"}


def preset_choices(seconds: dict[str, float | None]) -> list[tuple[str, str]]:
    """What the presets are called, with the time that each takes, as far as that is known."""
    times = {name: duration(max(one, 1)).replace(" ", "\N{NO-BREAK SPACE}") for name, one in seconds.items() if one}
    return [(f"{label}: {times[name]}" if name in times else label, name) for name, label in PRESETS.items()]


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
<details class="says"><summary><h2>{escape(heading)}</h2></summary>
<dl>{"".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in rows.items())}</dl>
<details><summary>Quantization tables</summary><div class="tables">{shown}</div></details></details>"""


def refused(sentence: str) -> str:
    return f'<p class="refusal" role="alert">{escape(sentence)}</p>'


_WITH = {  # what the image agrees with, by what its consistency is a share of
    "coefficients": "the file",
    "remaining coefficients": "what is left of the file",
    "estimated coefficients": "the JPEG that its pixels show",
    "assumed coefficients": "the JPEG that you say it was",
    "levels": "the levels that were kept",
}


def verdict(result: Result, measured: str | None = None) -> str:
    """The consistency of the image as it is downloaded, and how much of a damaged file was not there to be kept."""
    lost = f" {percent(result.invented)} of it were lost, and are made up." if result.damage or result.invented else ""
    agrees = f"Agrees with {_WITH[measured or result.measured]}: <strong>{percent(result.consistency)}</strong>"
    return f'<p class="verdict">{agrees} <span>in {result.seconds:.1f} s.{lost}</span></p>'


def progress(words: str, done: int, total: int) -> str:
    """How far the work is; a total of 0 is one that nobody knows yet."""
    share = f'value="{done}" max="{total}"' if total else ""
    words = escape(words)
    return f'<div class="progress"><progress {share} aria-label="{words}"></progress><p>{words}</p></div>'


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


def comparison(left: dict[str, str], right: str, size: tuple[int, int], sure: str | None = None) -> str:
    """Images under a divider, that mouse, fingers and keys move and magnify (page.js).

    `gr.ImageSlider` has no keys, no words for a screen reader, and takes wheel and finger away from the page.

    Args:
        left: addresses of the images to compare with, by what they are called.
        right: address of the restored image.
        size: width and height of the images, in pixels.
        sure: address of the map of how sure it is, if there is one.
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
    overlay = how_sure = ""
    if sure:
        overlay = f'<img class="sure" src="{sure}" alt="Map: how sure it is">'
        how_sure = '<label><input type="checkbox" value="sure">how sure</label>'
    return f"""
<div class="compare fit" style="--width: {width}px; --ratio: {width / height:.4f}">
<div class="frame"><div class="stage" tabindex="0" role="group" aria-label="Images, moved by arrow keys if magnified">
<div class="pair">{images}<img class="right" src="{right}" alt="restored">{overlay}</div></div>
<input type="range" min="0" max="100" value="50" step="0.5" aria-label="Divider between before and after"></div>
<div class="tools">{names if len(left) > 1 else f"<span>{next(iter(left))}</span>"}
{choice("zoom", "Zoom", {"fit": "fit", "1": "1:1", "2": "2&times;", "4": "4&times;"})}<span>restored</span></div>
<div class="ways"><button type="button" class="hold">Hold to see before</button>
<label><input type="checkbox" value="aside">side by side</label>{how_sure}
<button type="button" class="full">Full screen</button></div>
</div>"""


def compared(
    result: Any,
    left: dict[str, Image.Image],
    name: str,
    metadata: Metadata,
    file: JPEGFile | DecodedJPEG | None = None,
) -> tuple[Path, str, str, str]:
    """Put the images to where gradio serves and later deletes them.

    Args:
        result: `work.Restored`.
        left: images to compare the restored one with, by what they are called.
        name: file name of the restored image, without its end.
        metadata: what goes with it.
        file: what was restored, where that may lie on its side or have more than its pixels, such as transparency.

    Returns:
        Where the restored image is, and as HTML the comparison, how far off it may be, and the other formats.
    """
    folder = Path(get_upload_folder(), uuid4().hex)
    orientation = file.orientation if file else 1

    def whole(pixels: np.ndarray) -> np.ndarray:
        pixels = file.put_back(pixels) if isinstance(file, DecodedJPEG) else pixels
        return np.ascontiguousarray(upright(pixels, orientation))

    folder.mkdir()
    pixels = whole(result.pixels)
    made = read_within(name, 0, files, pixels, whole(result.deep), metadata)  # as the command writes them
    for end, data in made.items():
        (folder / f"{name}{end}").write_bytes(data)
    images, legend = dict(left), ""
    if result.doubt is not None:
        images["how sure"], legend = doubt_map(upright(result.doubt, orientation))
    for label, picture in images.items():  # with the profile of the restored one, or colours would seem to differ
        picture.save(folder / f"{label}.png", compress_level=1, icc_profile=metadata.icc_profile)
    address = {path.name: f"gradio_api/file={quote(str(path))}" for path in folder.iterdir()}
    height, width = pixels.shape[:2]
    sides = {label: address[f"{label}.png"] for label in left}
    pair = comparison(sides, address[f"{name}.png"], (width, height), address.get("how sure.png"))
    how_far_off = deviation(legend, *(EXPECTED if result.calibrated else SPREAD)) if legend else ""
    links = [
        f'<a href="{address[name + end]}" download="{escape(name + end)}">{label}</a>'
        for end, label in FORMATS.items()
        if end in made
    ]
    return folder / f"{name}.png", pair, how_far_off, f'<p class="formats">Also as {", ".join(links)}</p>'


FORMATS = {".webp": "WebP", ".tif": "TIFF", "_16bit.png": "PNG of 16 bits"}


def so_far(words: str, done: int, total: int, image: Image.Image | None = None) -> list:
    """What `results` shows while an image is on its way: how far it is, and now and then what there is of it."""
    shown = [gr.skip()] * len(results())
    shown[0] = progress(words, done, total)
    if image is not None:
        stream = io.BytesIO()
        image.save(stream, "WebP", quality=80)
        address = f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
        shown[2] = (
            f'<figure class="preview" style="--ratio: {image.width / image.height:.4f}">'
            f'<img src="{address}" alt="The image so far"><figcaption>So far</figcaption></figure>'
        )
    return shown


def results(
    status: str = HINT,
    download: Path | None = None,
    view: str = "",
    how_far_off: str = "",
    formats: str = "",
    what_it_says: str = "",
    code: str = "",
) -> list:
    """What the components of `layout.Results` show, in their order; by default nothing yet."""
    button = gr.DownloadButton(value=download, visible=download is not None)
    return [status, button, view, how_far_off, what_it_says, gr.Accordion(visible=bool(code)), code, formats]


# The same in the browser, and before work that waits for its turn.
_HIDDEN = '{__type__: "update", visible: false}'
BEGUN = f'() => [{json.dumps(progress("Begins", 0, 0))}, {_HIDDEN}, "", "", ""]'
CLEARED = f'() => [{json.dumps(HINT)}, {_HIDDEN}, "", "", "", {_HIDDEN}, "", ""]'


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
    "How sure it is",
    "Expected distance from the original (standard deviation, mean of the channels): large where the file leaves open"
    " what was there. Calibrated with photographs; single ones may be off by half as much, or by one and a half times.",
)
SPREAD = (
    "Where the samples differ",
    "Standard deviation of the samples, mean of the channels: large where the image leaves open what was there. It"
    " says where, not how far.",
)
_SMOOTH = 8  # pixels, the side of the blocks that the map is not to show


def doubt_map(doubt: np.ndarray) -> tuple[Image.Image, str]:
    """A standard deviation `[H, W, C]`, on the scale of [0, 1], as an image to lay over another, and its legend.

    What is certain is transparent.
    """
    levels = 255 * doubt.mean(axis=-1)
    top = max(1, math.ceil(np.percentile(levels, 99.5)))
    shares = Image.fromarray(np.rint(255 * (levels / top).clip(0, 1)).astype(np.uint8))
    shares = np.asarray(shares.filter(ImageFilter.GaussianBlur(_SMOOTH)))
    heat = _colours(shares / 255)
    heat[..., 3] = 190 * (shares / 255) ** 1.5
    colours = ", ".join(to_hex(colour / 255) for colour in _colours(np.linspace(0, 1, 12)))
    legend = (
        f'<div class="legend"><i style="background: linear-gradient(90deg, transparent, {colours})"></i>'
        f"<span>sure</span><span>{top} grey levels off, or more</span></div>"
    )
    return Image.fromarray(heat), legend


def _colours(shares: np.ndarray) -> np.ndarray:
    return HEAT(0.35 + 0.65 * shares, bytes=True)


def deviation(legend: str, title: str, words: str) -> str:
    """What the map of a standard deviation means."""
    return f"<h2>{title}</h2>{legend}<p>{words}</p>"


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
