"""What decides the numbers of an evaluation, and the images it is of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..decoded.image import read_image
from ..jpeg.tables import WRITTEN_SUBSAMPLINGS
from ..sampling.settings import DEFAULT, PRESETS, Settings
from .baselines import BASELINES
from .metrics import METRICS

JPEG, SINGLE, AVERAGE = "JPEG", "Ours (S)", "Ours (A)"
"""The methods of the paper's Table 1, beside baselines."""

_CHOICES = {"convention": ("libjpeg", "released"), "chroma_subsampling": WRITTEN_SUBSAMPLINGS}


@dataclass(frozen=True)
class Protocol:
    """All that decides the numbers of an evaluation, but for the prior and the images.

    Raises `ValueError` for a value that is not one of these.
    """

    quality_factors: tuple[int, ...] = (5, 10, 30)
    convention: str = "libjpeg"
    """Real files, written by Pillow, are read back and restored; or, `"released"`, `JPEGOperator` simulates the program
    released with the paper, without a file."""
    chroma_subsampling: str = "4:2:0"
    size: int | None = 256
    """Images are cropped to their central square and resized to so many pixels (bilinear), as in the paper."""
    preset: str | None = None
    """Name in `PRESETS` of the settings, for the record; `None` for others."""
    settings: Settings = PRESETS[DEFAULT]
    metrics: tuple[str, ...] = tuple(METRICS)
    """Those that are computed beside PSNR."""
    lpips_weights: Path | None = None
    baselines: tuple[str, ...] = ()
    """Names from `BASELINES`; they need files, and so the convention `"libjpeg"`."""
    seed: int = 0
    """From which, with the name of an image and the quality factor, each restoration's own seed is made."""

    def __post_init__(self) -> None:
        if wrong := [factor for factor in self.quality_factors if not 1 <= factor <= 100]:
            raise ValueError(f"the quality factor is {wrong[0]}; it must be between 1 and 100")
        if not self.quality_factors or len(set(self.quality_factors)) < len(self.quality_factors):
            raise ValueError("give every quality factor once, and at least one")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"the {name.replace('_', ' ')} is {getattr(self, name)!r}, not {' or '.join(choices)}")
        if self.size is not None and self.size < 16:
            raise ValueError(f"the size is {self.size}; it must be at least 16 pixels")
        known = {"preset": (PRESETS, [self.preset] if self.preset else []), "metric": (METRICS, self.metrics)}
        for kind, (table, names) in (known | {"baseline": (BASELINES, self.baselines)}).items():
            if unknown := [name for name in names if name not in table]:
                raise ValueError(f"the {kind} {unknown[0]} is not one of {', '.join(table)}")
        if self.baselines and self.convention == "released":
            raise ValueError("the baselines restore files, which the convention released does not write; use libjpeg")


@dataclass(frozen=True)
class Picture:
    """An image to degrade and restore, and the set it counts for."""

    dataset: str
    path: Path


def find_images(inputs: Iterable[Path], limit: int | None = None) -> list[Picture]:
    """The images of folders, and of text files that name one a line, relative to themselves.

    The name of each input, without suffix, is that of its set; `limit` is how many of a set are taken at most, spread
    evenly over it. Raises `FileNotFoundError` if an input does not exist, and `ValueError` if a set has no images, or
    two have the same name.
    """
    images: list[Picture] = []
    for source in inputs:
        if not source.exists():
            raise FileNotFoundError(f"{source} does not exist")
        if source.is_dir():
            dataset, readable = source.resolve().name, Image.registered_extensions()
            paths = sorted(path for path in source.iterdir() if path.suffix.lower() in readable)
        elif source.suffix.lower() in Image.registered_extensions():
            raise ValueError(f"{source} is an image; give its folder, or a text file that names it")
        else:
            dataset = source.stem
            lines = (line.strip() for line in source.read_text(encoding="utf-8").splitlines())
            paths = [source.parent / line for line in lines if line]
        if not paths:
            raise ValueError(f"{source} holds no images")
        if any(image.dataset == dataset for image in images):
            raise ValueError(f"two sets are called {dataset}; rename one")
        if limit is not None and limit < len(paths):
            paths = [paths[round(i)] for i in np.linspace(0, len(paths) - 1, limit)]
        if twice := [name for name, count in Counter(path.name for path in paths).items() if count > 1]:
            raise ValueError(f"{source} names {min(twice)} twice")
        images.extend(Picture(dataset, path) for path in paths)
    return images


def prepare(path: Path, size: int | None) -> Image.Image:
    """An image as the paper uses it: upright 8-bit RGB, its central square, resized to `size` pixels (bilinear).

    Raises `ValueError` if its values have no known range, `OSError` if it cannot be read.
    """
    image = ImageOps.exif_transpose(read_image(path)).convert("RGB")
    if size is None:
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
