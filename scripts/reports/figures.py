"""The paper's figures 1, 2 and 4 with the embedded prior, and one it lacks: how far the samples differ.

python scripts/reports/figures.py [PICTURE...] [--output docs/figures]

Images are public-domain originals of examples/ unless others are given. `figure_1.png`: JPEG files and their
restorations. `figure_2.png`: images quantized to 9 bits a colour (3 a channel), and restored. `figure_4.png`:
original, JPEG and restoration at several quality factors. `samples.png`: mean of the samples, their standard deviation
(spread), and the error of the mean. Each image is zoomed at its bottom right where restoration changed most.
`defects.png`, of images of its own: what restoration leaves or makes worse.
"""

import argparse
import io
import sys
from pathlib import Path

import graphics
import numpy as np
import torch
from common import ROOT
from comparison import EXAMPLES, LABEL, MARK, PATCH, beside, most_changed
from PIL import Image, ImageDraw, ImageFont

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, QuantizationOperator
from pipeline_ddrm_jpeg.evaluation.metrics import psnr
from pipeline_ddrm_jpeg.extras import needs

with needs("eval"):
    import matplotlib
    import skimage.data

ZOOM = 3
DEFECT = 88  # pixels a side of what is shown of a defect
SETTINGS = {"preset": "best"}


def jpeg(image: Image.Image, quality_factor: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality_factor)
    return stream.getvalue()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def labelled(image: Image.Image, label: str) -> Image.Image:
    sheet = Image.new("RGB", (image.width, image.height + LABEL), "white")
    sheet.paste(image, (0, LABEL))
    ImageDraw.Draw(sheet).text((0, 2), label, fill="black", font=ImageFont.load_default(14))
    return sheet


def zoomed(image: Image.Image, label: str, corner: tuple[int, int]) -> Image.Image:
    """The image under its label, with a patch of it enlarged in the bottom right."""
    left, top = corner
    image = image.convert("RGB")
    side = PATCH * ZOOM
    inset = image.crop((left, top, left + PATCH, top + PATCH)).resize((side, side), Image.Resampling.NEAREST)
    sheet = labelled(image, label)
    sheet.paste(inset, (image.width - side, sheet.height - side))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left, top + LABEL, left + PATCH, top + PATCH + LABEL), outline=MARK)
    draw.rectangle((image.width - side, sheet.height - side, image.width - 1, sheet.height - 1), outline=MARK)
    return sheet


def changed(before: Image.Image, after: Image.Image) -> tuple[int, int]:
    return most_changed(*(np.asarray(image.convert("RGB"), dtype=np.float64) for image in (before, after)))


def figure_1(pipe: DDRMJPEGPipeline, images: list[Image.Image]) -> Image.Image:
    """Pairs of a JPEG file of quality factor 10 and its restoration."""
    pairs = []
    for image in images:
        data = jpeg(image, 10)
        before, after = Image.open(io.BytesIO(data)), pipe(data, generator=generator(), **SETTINGS).images[0]
        corner = changed(before, after)
        pairs.append(beside([zoomed(before, "JPEG, quality factor 10", corner), zoomed(after, "restored", corner)]))
    return beside(pairs, down=True)


def figure_2(pipe: DDRMJPEGPipeline, images: list[Image.Image]) -> Image.Image:
    """Pairs of an image of 9 bits a colour and its restoration."""
    operator = QuantizationOperator(bits=3, reconstruction="center")
    pairs = []
    for image in images:
        levels = np.asarray(image.convert("RGB")) // operator.step
        before = Image.fromarray((levels * operator.step + operator.step // 2).astype(np.uint8))
        after = pipe(image, operator=operator, generator=generator(), **SETTINGS).images[0]
        corner = changed(before, after)
        labels = [
            f"{name}, {psnr(p, image.convert('RGB')):.2f} dB" for name, p in (("9 bits", before), ("restored", after))
        ]
        pairs.append(beside([zoomed(before, labels[0], corner), zoomed(after, labels[1], corner)]))
    return beside(pairs, down=True)


def figure_4(pipe: DDRMJPEGPipeline, images: list[Image.Image]) -> Image.Image:
    """Triplets of original, JPEG and restoration, a quality factor each."""
    rows = []
    for image, quality_factor in zip(images, (5, 10, 20, 30, 50), strict=False):
        data = jpeg(image, quality_factor)
        before, after = Image.open(io.BytesIO(data)), pipe(data, generator=generator(), **SETTINGS).images[0]
        corner = changed(before, after)
        labels = [
            f"{name}, {psnr(p, image):.2f} dB"
            for name, p in ((f"JPEG, QF {quality_factor}", before), ("restored", after))
        ]
        panels = zip((image, before, after), ("original", *labels), strict=True)
        rows.append(beside([zoomed(panel, label, corner) for panel, label in panels]))
    return beside(rows, down=True)


def samples(pipe: DDRMJPEGPipeline, image: Image.Image, quality_factor: int = 10) -> Image.Image:
    """JPEG, mean of the samples, their standard deviation a pixel, and the error of the mean."""
    data = jpeg(image, quality_factor)
    result = pipe(data, generator=generator(), **SETTINGS)
    before, mean = Image.open(io.BytesIO(data)), result.images[0]
    std = result.std[0].mean(axis=-1) * 255
    error = np.abs(np.asarray(mean, dtype=np.float64) - np.asarray(image)).reshape(*std.shape, -1).mean(axis=-1)
    corner = changed(before, mean)
    maps = []
    for values, label in ((std, "spread of the samples"), (error, "error of their mean")):
        top = float(np.percentile(np.concatenate([std, error]), 99))
        colours = matplotlib.colormaps["viridis"](np.clip(values / top, 0, 1))[..., :3]
        maps.append(
            zoomed(Image.fromarray((colours * 255).astype(np.uint8)), f"{label} (0 to {top:.0f} levels)", corner)
        )
    images = [zoomed(before, f"JPEG, QF {quality_factor}", corner)]
    images.append(zoomed(mean, f"mean of {len(result.samples[0])} samples", corner))
    return beside([beside(images), beside(maps)], down=True)


def defects(pipe: DDRMJPEGPipeline) -> Image.Image:
    """Colour patches, smeared letters and waxy skin, each beside the original and the JPEG."""
    face = Image.fromarray(skimage.data.astronaut()).crop((96, 0, 352, 256))
    page = graphics.page(np.random.default_rng(0), 256)
    cat = Image.open(EXAMPLES / "originals" / "cat.png").convert("RGB")
    rows = []
    for name, image, quality_factor, (left, top) in (
        ("patches of colour", cat, 5, (90, 150)),
        ("letters smeared", page, 5, (20, 60)),
        ("skin of wax", face, 10, (80, 70)),
    ):
        data = jpeg(image, quality_factor)
        panels = {
            "original": image,
            f"JPEG, QF {quality_factor}": Image.open(io.BytesIO(data)),
            f"restored: {name}": pipe(data, generator=generator()).images[0],
        }
        box = (left, top, left + DEFECT, top + DEFECT)
        size = (DEFECT * ZOOM, DEFECT * ZOOM)
        rows.append(
            beside(
                [
                    labelled(panel.convert("RGB").crop(box).resize(size, Image.Resampling.NEAREST), label)
                    for label, panel in panels.items()
                ]
            )
        )
    return beside(rows, down=True)


def make(pipe: DDRMJPEGPipeline, output: Path, paths: list[Path] | None = None) -> None:
    images = [Image.open(path) for path in paths or sorted((EXAMPLES / "originals").glob("*.png"))]
    images = [image if image.mode == "L" else image.convert("RGB") for image in images]
    if min(min(image.size) for image in images) < PATCH * ZOOM:
        sys.exit(f"images must have {PATCH * ZOOM} pixels or more on each side")
    pipe.set_progress_bar_config(desc="figures", leave=False)
    output.mkdir(parents=True, exist_ok=True)
    figures = {
        "figure_1": lambda: figure_1(pipe, images),
        "figure_2": lambda: figure_2(pipe, images),
        "figure_4": lambda: figure_4(pipe, images),
        "defects": lambda: defects(pipe),
        "samples": lambda: samples(pipe, max(images, key=lambda image: image.width * image.height)),
    }
    for name, draw in figures.items():
        path = output / f"{name}.png"
        draw().save(path, optimize=True)
        print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="*", help="clean images (default: examples/originals)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "figures", help="folder of the figures")
    arguments = parser.parse_args()
    make(DDRMJPEGPipeline.from_embedded(dtype="auto"), arguments.output, arguments.pictures)


if __name__ == "__main__":
    main()
