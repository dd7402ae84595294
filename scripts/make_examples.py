"""Make `examples/` anew from public-domain pictures that scikit-image carries.

python scripts/make_examples.py
"""

from pathlib import Path

import skimage.data
from PIL import Image

FOLDER = Path(__file__).parent.parent / "examples"

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


def main() -> None:
    (FOLDER / "originals").mkdir(parents=True, exist_ok=True)
    for name, load, box, size, options in PICTURES:
        picture = Image.fromarray(load()).resize(size, Image.Resampling.LANCZOS, box=box)
        picture.save(FOLDER / "originals" / f"{name}.png", optimize=True)
        picture.save(FOLDER / f"{name}.jpg", **options)
        print(FOLDER / f"{name}.jpg", picture.mode, picture.size, options)


if __name__ == "__main__":
    main()
