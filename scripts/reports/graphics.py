"""Draw text, diagrams and screens, a set of images that are no photographs.

python scripts/reports/graphics.py FOLDER [--seed N] [--size N]

Every seed gives other words, colours and numbers. Letters are those of the DejaVu fonts, which matplotlib carries.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import presets
from common import evaluation, page_of, write
from PIL import Image, ImageDraw, ImageFont

from pipeline_ddrm_jpeg.evaluation.tables import evaluation_tables
from pipeline_ddrm_jpeg.extras import needs

with needs("eval"):
    import matplotlib.pyplot as plt
    from matplotlib import font_manager

WORDS = (
    "a block keeps what its steps allow and drops the rest so edges ring letters smear colours bleed past their lines"
    " while flat parts stay flat until one more save moves the grid and every border shows again at half the size"
)
PAPER = ("#ffffff", "#fdf6e3", "#f3f4f6", "#e8f0e4")
INK = ("#111111", "#1f3a5f", "#5b2333", "#20402b")
BRIGHT = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#e377c2", "#17becf")
Draw = Callable[[np.random.Generator, int], Image.Image]


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont(name), size)


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join(rng.choice(WORDS.split(), count))


def _of_figure(figure: plt.Figure, size: int) -> Image.Image:
    figure.set_dpi(100)
    figure.set_size_inches(size / 100, size / 100)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return Image.fromarray(pixels)


def _text(rng: np.random.Generator, size: int, font: str, heights: tuple[int, ...], dark: bool = False) -> Image.Image:
    paper, ink = rng.choice(PAPER), rng.choice(INK)
    image = Image.new("RGB", (size, size), ink if dark else paper)
    draw, top = ImageDraw.Draw(image), 8
    while top < size:
        height = int(rng.choice(heights))
        draw.text((8, top), _words(rng, 12), fill=paper if dark else ink, font=_font(font, height))
        top += int(1.4 * height)
    return image


def page(rng: np.random.Generator, size: int) -> Image.Image:
    return _text(rng, size, "DejaVu Serif", (11, 12))


def headlines(rng: np.random.Generator, size: int) -> Image.Image:
    return _text(rng, size, "DejaVu Sans", (14, 20, 32))


def terminal(rng: np.random.Generator, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), "#10141a")
    draw, font = ImageDraw.Draw(image), _font("DejaVu Sans Mono", 11)
    for top in range(6, size, 15):
        draw.text((6, top), "$" if rng.random() < 0.3 else f"{rng.integers(10000):5d}", fill="#7fd962", font=font)
        draw.text((48, top), _words(rng, 5), fill=str(rng.choice(("#c5cdd9", "#e6b450", "#59c2ff"))), font=font)
    return image


def code(rng: np.random.Generator, size: int) -> Image.Image:
    return _text(rng, size, "DejaVu Sans Mono", (12,), dark=True)


def plot(rng: np.random.Generator, size: int) -> Image.Image:
    figure, axes = plt.subplots(layout="constrained")
    for colour in rng.choice(BRIGHT, 4, replace=False):
        axes.plot(np.cumsum(rng.normal(size=60)), color=colour, lw=1.2, label=_words(rng, 1))
    axes.legend(fontsize=6)
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.4)
    axes.set_title(_words(rng, 3), fontsize=8)
    return _of_figure(figure, size)


def bars(rng: np.random.Generator, size: int) -> Image.Image:
    figure, axes = plt.subplots(layout="constrained")
    labels = rng.choice(sorted(set(WORDS.split())), 7, replace=False)
    axes.barh(labels, rng.uniform(1, 10, 7), color=rng.choice(BRIGHT, 7), edgecolor="black", hatch="//")
    axes.tick_params(labelsize=7)
    return _of_figure(figure, size)


def formulas(rng: np.random.Generator, size: int) -> Image.Image:
    figure = plt.figure()
    lines = (
        r"$x_{t-1}=\sqrt{\bar\alpha_{t-1}}\,\hat x_0+\sigma_t\epsilon$",
        r"$\int_0^{\pi/%d}\cos^{%d}\theta\,d\theta$",
        r"$\sum_{k=%d}^{\infty}\frac{(-1)^k}{2k+%d}$",
        r"$\|y-Hx\|^2\leq%d\,\delta^{%d}$",
    )
    for number, line in enumerate(lines):
        values = tuple(rng.integers(2, 9, line.count("%d")))
        figure.text(0.04, 0.85 - 0.23 * number, line % values, fontsize=rng.integers(10, 15), color=rng.choice(INK))
    return _of_figure(figure, size)


def line_art(rng: np.random.Generator, size: int) -> Image.Image:
    scale = 4
    image = Image.new("L", (scale * size, scale * size), 255)
    draw = ImageDraw.Draw(image)
    for _ in range(26):
        steps = np.cumsum(rng.normal(scale=0.12, size=80)) + rng.uniform(0, 2 * np.pi)
        path = rng.uniform(0, size, 2) + 4 * np.cumsum(np.stack((np.cos(steps), np.sin(steps)), 1), 0)
        draw.line([tuple(point) for point in scale * path], fill=0, width=int(rng.integers(4, 10)), joint="curve")
    return image.resize((size, size), Image.Resampling.BOX).convert("RGB")


def window(rng: np.random.Generator, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), "#d7dce2")
    draw, font = ImageDraw.Draw(image), _font("DejaVu Sans", 11)
    draw.rectangle((0, 0, size, 22), fill=str(rng.choice(BRIGHT)))
    draw.text((8, 5), _words(rng, 3), fill="white", font=font)
    for top in range(34, size - 20, 32):
        draw.text((10, top), _words(rng, 1), fill="#222222", font=font)
        draw.rounded_rectangle((76, top - 4, size - 60, top + 16), 4, fill="white", outline="#8a94a0")
        draw.text((82, top), _words(rng, 2), fill="#444444", font=font)
        draw.rounded_rectangle((size - 52, top - 4, size - 10, top + 16), 4, fill=str(rng.choice(BRIGHT)))
        draw.text((size - 44, top), "OK", fill="white", font=font)
    return image


def boxes(rng: np.random.Generator, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), str(rng.choice(PAPER)))
    draw, font = ImageDraw.Draw(image), _font("DejaVu Sans", 10)
    places = [(x, y) for y in range(14, size - 30, 62) for x in range(10, size - 70, 84)]
    for (x, y), (to_x, to_y) in zip(places, rng.permutation(places), strict=True):
        draw.line((x + 35, y + 15, int(to_x) + 35, int(to_y) + 15), fill="#555555")
    for x, y in places:
        draw.rectangle((x, y, x + 70, y + 30), fill=str(rng.choice(BRIGHT)), outline="black", width=2)
        draw.text((x + 6, y + 9), _words(rng, 1), fill="white", font=font)
    return image


def pixels(rng: np.random.Generator, size: int) -> Image.Image:
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (*BRIGHT, "#ffffff", "#000000")], np.uint8)
    half = rng.integers(len(palette), size=(size // 8, size // 16))
    half[rng.random(half.shape) < 0.6] = len(palette) - 2
    return Image.fromarray(palette[np.hstack((half, half[:, ::-1]))]).resize((size, size), Image.Resampling.NEAREST)


def chart(rng: np.random.Generator, size: int) -> Image.Image:
    figure, axes = plt.subplots(layout="constrained")
    x, y = np.meshgrid(np.linspace(-2, 2, 80), np.linspace(-2, 2, 80))
    a, b, c = rng.uniform(0.5, 2, 3)
    lines = axes.contour(x, y, np.sin(a * x + c) * np.cos(b * y) + 0.3 * x, levels=9, cmap="viridis", linewidths=0.9)
    axes.clabel(lines, fontsize=5)
    axes.tick_params(labelsize=6)
    return _of_figure(figure, size)


DRAWINGS: tuple[Draw, ...] = (
    *(page, headlines, terminal, code, plot, bars, formulas, line_art, window, boxes, pixels, chart),
)


def draw(folder: Path, seed: int = 0, size: int = 256) -> Path:
    """Draw the set into a folder: a PNG for each of `DRAWINGS`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, drawing in enumerate(DRAWINGS):
        drawing(np.random.default_rng([seed, number]), size).save(folder / f"{drawing.__name__}.png")
    return folder


def make(folders: dict[str, Path], with_others: Path, output: Path) -> None:
    """Write the page.

    Args:
        folders: evaluations by the name of their settings.
        with_others: that of them with other programs.
        output: the page.
    """
    rows = {name: next(iter(presets.gains(folder).values())) for name, folder in folders.items()}
    record = evaluation(with_others)
    tables = evaluation_tables(record["rows"], record["notes"])
    gains = presets.gain_table(rows, ("psnr", "ssimulacra2"))
    write(output, page_of("graphics", record["prior_sha256"], count=len(DRAWINGS), gains=gains, tables=tables))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the images go")
    parser.add_argument("--seed", type=int, default=0, help="of words, colours and numbers (0)")
    parser.add_argument("--size", type=int, default=256, help="pixels a side (256)")
    arguments = parser.parse_args()
    print(draw(arguments.folder, arguments.seed, arguments.size))


if __name__ == "__main__":
    main()
