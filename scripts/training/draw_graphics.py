"""Draw graphics to train on: pages of text, code, interfaces, plots, comics, half-tones, sprites.

python scripts/training/draw_graphics.py OUTPUT [--count 400] [--side 384] [--seed 0]

OUTPUT receives lossless WebP files, numbered, whose content follows from the seed alone. They are nobody's work, and
never were a JPEG. The drawings by which docs/graphics.md judges are others (scripts/reports/graphics.py).
"""

import argparse
import io
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from tqdm.auto import tqdm

from pipeline_ddrm_jpeg.extras import needs
from pipeline_ddrm_jpeg.files.formats import write_atomically

with needs("train"):
    import matplotlib.pyplot as plt
    from matplotlib import font_manager

Rng = np.random.Generator
Colour = tuple[int, int, int]

_FACES = ["DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "DejaVu Sans:bold", "DejaVu Serif:italic", "STIXGeneral"]
_LETTERS = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
_OFTEN = 1 / np.arange(3, 3 + len(_LETTERS))


def font(rng: Rng, least: int, most: int, face: str | None = None) -> ImageFont.FreeTypeFont:
    path = font_manager.findfont(font_manager.FontProperties(face or str(rng.choice(_FACES))))
    return ImageFont.truetype(path, int(rng.integers(least, most)))


def colour(rng: Rng, least: int = 0, most: int = 255) -> Colour:
    return tuple(int(value) for value in rng.integers(least, most + 1, 3))


def word(rng: Rng) -> str:
    text = "".join(rng.choice(_LETTERS, int(rng.integers(1, 10)), p=_OFTEN / _OFTEN.sum()))
    return text.capitalize() if rng.random() < 0.15 else text


def ink_and_paper(rng: Rng) -> tuple[Colour, Colour]:
    """Mostly dark on light, as most pages are."""
    dark, light = colour(rng, 0, 90), colour(rng, 205, 255)
    if rng.random() < 0.5:
        dark, light = (0, 0, 0), (255, 255, 255)
    return (dark, light) if rng.random() < 0.7 else (light, dark)


def page(rng: Rng, side: int) -> Image.Image:
    """Text in one or two columns, with headings, rules and now and then a coloured word."""
    ink, paper = ink_and_paper(rng)
    image = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(image)
    draw.fontmode = "1" if rng.random() < 0.15 else "L"  # without smoothing, as on old screens
    body, heading = font(rng, 8, 26), font(rng, 18, 44)
    columns = int(rng.integers(1, 3))
    for column in range(columns):
        left, y = column * side // columns + 8, int(rng.integers(-10, 10))
        right = (column + 1) * side // columns - 4
        while y < side:
            used, x = (heading if rng.random() < 0.06 else body), left
            while x < right:
                text = word(rng) + " "
                draw.text((x, y), text, colour(rng) if rng.random() < 0.03 else ink, used)
                x += int(draw.textlength(text, used))
            y += int(used.size * rng.uniform(1.15, 1.5))
            if rng.random() < 0.03:
                draw.line((left, y, right, y), ink, int(rng.integers(1, 3)))
                y += 4
    return image


def code(rng: Rng, side: int) -> Image.Image:
    """A monospaced listing with a few colours."""
    ink, paper = ink_and_paper(rng)
    image = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(image)
    used = font(rng, 9, 20, "DejaVu Sans Mono")
    colours = [ink, *(colour(rng, 40, 215) for _ in range(4))]
    advance, height = int(draw.textlength("m", used)), int(used.size * 1.3)
    for row in range(side // height + 1):
        x = advance * 4 * int(rng.integers(0, 4))
        for _ in range(int(rng.integers(0, 8))):
            text = word(rng) if rng.random() < 0.7 else "".join(rng.choice(list(string.punctuation), 2))
            draw.text((x, row * height), text, colours[int(rng.integers(len(colours)))], used)
            x += advance * (len(text) + 1)
    return image


def interface(rng: Rng, side: int) -> Image.Image:
    """Windows with title bars, buttons, boxes, lists and icons; flat, or shaded from top to bottom."""
    image = Image.new("RGB", (side, side), colour(rng, 60, 255))
    draw = ImageDraw.Draw(image)
    small = font(rng, 9, 17)
    for _ in range(int(rng.integers(2, 5))):
        left, top = (int(value) for value in rng.integers(-40, side - 60, 2))
        width, height = (int(value) for value in rng.integers(side // 3, side, 2))
        face, edge, accent = colour(rng, 190, 255), colour(rng, 0, 150), colour(rng)
        draw.rounded_rectangle((left, top, left + width, top + height), int(rng.integers(0, 12)), face, edge)
        for row in range(22):  # the title bar
            shade = tuple(int(value * (1 - row / 60)) for value in accent)
            draw.line((left + 1, top + 1 + row, left + width - 1, top + 1 + row), shade)
        draw.text((left + 8, top + 4), f"{word(rng)} {word(rng)}", "white" if sum(accent) < 380 else "black", small)
        for y in range(top + 32, top + height - 20, 28):
            kind, x = int(rng.integers(4)), left + 10
            if kind == 0:
                draw.rounded_rectangle((x, y, x + 80, y + 20), 4, colour(rng, 150, 255), edge)
            elif kind == 1:
                draw.rectangle((x, y + 3, x + 13, y + 16), "white", edge)
                if rng.random() < 0.5:
                    draw.line((x + 3, y + 9, x + 6, y + 13, x + 11, y + 5), "black", 2)
            elif kind == 2:
                draw.ellipse((x, y, x + 18, y + 18), colour(rng), colour(rng))
            draw.text((x + (10 if kind == 0 else 26), y + 2), word(rng), "black", small)
    return image


def plot(rng: Rng, side: int) -> Image.Image:
    """Curves, bars or points with axes, labels and a legend."""
    figure, axes = plt.subplots(figsize=(side / 100, side / 100), dpi=100, layout="constrained")
    kind, x = int(rng.integers(4)), np.arange(int(rng.integers(5, 40)))
    for _ in range(int(rng.integers(1, 5))):
        y = np.cumsum(rng.standard_normal(len(x)))
        shade = tuple(rng.random(3))
        if kind == 0:
            axes.plot(x, y, "-o" if rng.random() < 0.3 else "-", color=shade, lw=rng.uniform(0.5, 3), label=word(rng))
        elif kind == 1:
            axes.bar(x + rng.uniform(-0.3, 0.3), np.abs(y), rng.uniform(0.2, 0.9), color=shade, label=word(rng))
        elif kind == 2:
            axes.scatter(rng.random(60), rng.random(60), rng.uniform(2, 60), color=shade, label=word(rng))
        else:
            axes.fill_between(x, y, y + 1 + rng.random(len(x)), color=shade, alpha=0.6, label=word(rng))
    axes.set(title=f"{word(rng)} {word(rng)}", xlabel=word(rng), ylabel=word(rng))
    axes.legend() if rng.random() < 0.5 else axes.grid(lw=0.5)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    plt.close(figure)
    return Image.open(stream).convert("RGB")


def comic(rng: Rng, side: int) -> Image.Image:
    """Flat shapes with black outlines, drawn at twice the size, some filled with dots; balloons with text."""
    image = Image.new("RGB", (2 * side, 2 * side), colour(rng, 120, 255))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(8, 30))):
        centre, radius = rng.uniform(0, 2 * side, 2), rng.uniform(20, side * 0.7)
        turns = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 14))))
        reach = radius * rng.uniform(0.6, 1.1, len(turns))
        points = [tuple(centre + r * np.array([np.cos(a), np.sin(a)])) for r, a in zip(reach, turns, strict=True)]
        draw.polygon(points, colour(rng), "black", int(rng.integers(2, 10)))
        if rng.random() < 0.3:
            mask = Image.new("L", image.size)
            ImageDraw.Draw(mask).polygon(points, 255)
            image.paste(dots(rng, 2 * side), mask=mask)
    if rng.random() < 0.6:
        left, top = (int(value) for value in rng.integers(0, side, 2))
        draw.ellipse((left, top, left + side * 0.8, top + side * 0.4), "white", "black", 5)
        draw.text((left + side * 0.18, top + side * 0.15), word(rng).upper(), "black", font(rng, 30, 60))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def dots(rng: Rng, side: int) -> Image.Image:
    """A screen of dots whose size follows a smooth image, in one or two inks."""
    pitch, angle = rng.uniform(3, 12), rng.uniform(0, np.pi / 2)
    y, x = np.indices((side, side)) / pitch
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    small = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
    tone = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)) / 255
    screen = np.cos(2 * np.pi * u) + np.cos(2 * np.pi * v)
    covered = np.clip((screen / 2 - (2 * tone - 1)) * rng.uniform(3, 20) + 0.5, 0, 1)[..., None]
    pixels = covered * np.array(colour(rng, 0, 140)) + (1 - covered) * np.array(colour(rng, 180, 255))
    return Image.fromarray(pixels.round().astype(np.uint8))


def sprites(rng: Rng, side: int) -> Image.Image:
    """Symmetric figures of a few colours, enlarged pixel by pixel, some softened."""
    factor, palette = int(rng.integers(1, 9)), np.array([colour(rng) for _ in range(int(rng.integers(3, 9)))], np.uint8)
    cells = side // factor + 1
    picture = np.zeros((cells, cells), int)
    for _ in range(max(4, cells * cells // 300)):
        size = int(rng.integers(4, 13))
        half = rng.integers(0, len(palette), (size, (size + 1) // 2)) * (rng.random((size, (size + 1) // 2)) < 0.7)
        figure = np.concatenate([half, half[:, : size // 2][:, ::-1]], axis=1)
        top, left = rng.integers(0, max(cells - size, 1), 2)
        part = picture[top : top + size, left : left + size]
        part[:] = np.where(figure, figure, part)[: part.shape[0], : part.shape[1]]
    image = Image.fromarray(palette[picture].repeat(factor, 0).repeat(factor, 1)[:side, :side])
    return image.filter(ImageFilter.GaussianBlur(0.6)) if rng.random() < 0.15 else image


KINDS: list[Callable[[Rng, int], Image.Image]] = [page, page, code, interface, interface, plot, comic, dots, sprites]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=400, help="drawings (400)")
    parser.add_argument("--side", type=int, default=384, help="pixels a side (384)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for number in tqdm(range(arguments.count), unit="drawing", disable=None):
        kind = KINDS[number % len(KINDS)]
        image = kind(np.random.default_rng((arguments.seed, number)), arguments.side)
        path = arguments.output / f"drawn-{kind.__name__}-{number:05d}.webp"
        write_atomically(path, lambda stream, image=image: image.save(stream, "WEBP", lossless=True, quality=60))
    print(f"{arguments.count} drawings in {arguments.output}")


if __name__ == "__main__":
    main()
