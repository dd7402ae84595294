"""Make `examples/` anew from public-domain images that scikit-image carries, and draw text and lines for the page.

python scripts/make_examples.py
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipeline_ddrm_jpeg.extras import needs

with needs("eval"):
    import skimage.data

FOLDER = Path(__file__).parent.parent / "examples"
PAGE = Path(__file__).parent.parent / "space" / "examples"

# Name, crop of the original (left, top, right, bottom) or None, size, options of Pillow's JPEG writer.
PICTURES = [
    ("cat", skimage.data.chelsea, (42, 0, 426, 288), (341, 256), {"quality": 10}),
    (
        "galaxies",
        skimage.data.hubble_deep_field,
        (300, 380, 556, 612),
        (256, 232),
        {"quality": 20, "progressive": True},
    ),
    ("cameraman", skimage.data.camera, None, (256, 256), {"quality": 10}),
    ("cat-crushed", skimage.data.chelsea, (170, 60, 426, 260), (256, 200), {"quality": 5}),
]


def lettering() -> Image.Image:
    """Letters of several sizes, thin lines and flat colours."""
    image = Image.new("RGB", (320, 256), "#fbfaf5")
    draw = ImageDraw.Draw(image)
    for top, size, text in [
        (10, 30, "Lettering"),
        (50, 18, "Quick wafting zephyrs"),
        (76, 13, "vex bold Jim. 0123456789"),
    ]:
        draw.text((14, top), text, fill="#1d2733", font=ImageFont.load_default(size))
    for number, colour in enumerate(("#c23b22", "#1f6fb2", "#2e8b57", "#e0a100")):
        left, height = 20 + 30 * number, 30 + 25 * number
        draw.rectangle((left, 240 - height, left + 20, 240), fill=colour)
    draw.line((14, 240, 146, 240), fill="#1d2733", width=2)
    for radius in range(8, 72, 8):
        draw.ellipse((236 - radius, 172 - radius, 236 + radius, 172 + radius), outline="#1d2733")
    draw.line((166, 240, 306, 106), fill="#c23b22", width=2)
    return image


def main() -> None:
    (FOLDER / "originals").mkdir(parents=True, exist_ok=True)
    for name, load, box, size, options in PICTURES:
        image = Image.fromarray(load()).resize(size, Image.Resampling.LANCZOS, box=box)
        image.save(FOLDER / "originals" / f"{name}.png", optimize=True)
        image.save(FOLDER / f"{name}.jpg", **options)
        print(FOLDER / f"{name}.jpg", image.mode, image.size, options)
    image = lettering()
    image.save(PAGE / "lettering.png", optimize=True)
    image.save(PAGE / "lettering.jpg", quality=10)


if __name__ == "__main__":
    main()
