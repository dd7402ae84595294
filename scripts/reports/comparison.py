"""Draw before and after, side by side with a zoomed inset, for restored examples.

python scripts/reports/comparison.py FOLDER [OUTPUT]

FOLDER holds the restored images of `examples/` by name; the drawing goes to OUTPUT, FOLDER/comparison.png by default.
Where the original is known, its PSNR is printed and drawn.
"""

import sys
from pathlib import Path

import numpy as np
from common import ROOT
from PIL import Image, ImageDraw, ImageFont

from pipeline_ddrm_jpeg import JPEGFile
from pipeline_ddrm_jpeg.evaluation.metrics import psnr

EXAMPLES = ROOT / "examples"
ZOOM, PATCH, MARGIN, LABEL = 4, 40, 8, 22
MARK = (255, 210, 0)


def most_changed(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """Left and top of the PATCH x PATCH window in which the two images differ most."""
    change = np.abs(before - after).mean(axis=2)
    sums = np.pad(change, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[PATCH:, PATCH:] - sums[:-PATCH, PATCH:] - sums[PATCH:, :-PATCH] + sums[:-PATCH, :-PATCH]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return int(left), int(top)


def panel(image: Image.Image, label: str, left: int, top: int) -> Image.Image:
    """The image under its label, the window marked, and the window enlarged beside it."""
    side = PATCH * ZOOM
    sheet = Image.new("RGB", (image.width + side + MARGIN, max(image.height, side) + LABEL), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((0, 2), label, fill="black", font=ImageFont.load_default(14))
    sheet.paste(image, (0, LABEL))
    draw.rectangle((left, top + LABEL, left + PATCH, top + PATCH + LABEL), outline=MARK)
    inset = image.crop((left, top, left + PATCH, top + PATCH)).resize((side, side), Image.Resampling.NEAREST)
    sheet.paste(inset, (image.width + MARGIN, LABEL))
    draw.rectangle((image.width + MARGIN, LABEL, sheet.width - 1, LABEL + side - 1), outline=MARK)
    return sheet


def row(source: Path, restored: Path) -> Image.Image:
    """JPEG and restoration of one example, and its original where there is one."""
    images = {"JPEG": Image.open(source).convert("RGB"), "restored": Image.open(restored).convert("RGB")}
    reference = EXAMPLES / "originals" / f"{source.stem}.png"
    if reference.exists():
        images["original"] = Image.open(reference).convert("RGB")
    arrays = {name: np.asarray(image, dtype=np.float64) for name, image in images.items()}
    left, top = most_changed(arrays["JPEG"], arrays["restored"])

    labels = {"JPEG": f"JPEG, quality factor {JPEGFile.open(source).quality_factor}", "restored": "restored"}
    if "original" in arrays:
        values = {name: psnr(arrays[name], arrays["original"]) for name in labels}
        labels = {name: f"{label}, {values[name]:.2f} dB" for name, label in labels.items()} | {"original": "original"}
        gain = values["restored"] - values["JPEG"]
        print(f"{source.stem:12} JPEG {values['JPEG']:.2f} dB, restored {values['restored']:.2f} dB ({gain:+.2f} dB)")
    return beside([panel(images[name], label, left, top) for name, label in labels.items()])


def beside(images: list[Image.Image], down: bool = False) -> Image.Image:
    """Images in a line, on white."""
    widths, heights = [p.width for p in images], [p.height for p in images]
    gaps = 2 * MARGIN * (len(images) - 1)
    size = (max(widths), sum(heights) + gaps) if down else (sum(widths) + gaps, max(heights))
    sheet, offset = Image.new("RGB", size, "white"), 0
    for image in images:
        sheet.paste(image, (0, offset) if down else (offset, 0))
        offset += (image.height if down else image.width) + 2 * MARGIN
    return sheet


def make(folder: Path, output: Path) -> None:
    pairs = [(source, folder / f"{source.stem}.png") for source in sorted(EXAMPLES.glob("*.jpg"))]
    pairs = [(source, restored) for source, restored in pairs if restored.exists()]
    if not pairs:
        sys.exit(f"{folder} holds no restored example; run: ddrm-jpeg restore examples/*.jpg -o {folder}")
    beside([row(*pair) for pair in pairs], down=True).save(output)
    print(f"Before and after: {output}")


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    make(folder, Path(sys.argv[2]) if len(sys.argv) > 2 else folder / "comparison.png")


if __name__ == "__main__":
    main()
