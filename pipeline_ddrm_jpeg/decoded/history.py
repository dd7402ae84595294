"""What is known of the JPEG that an image went through."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..jpeg.planes import checked
from ..jpeg.tables import HALVED_SUBSAMPLINGS, SUBSAMPLING_FACTORS, estimate_quality_factor, quality_tables


class Region(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: np.ndarray) -> np.ndarray:
        """That part of `[H, W, ...]`."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True, eq=False)
class JPEGHistory:
    """The JPEG that an image went through."""

    color_space: str
    """`"L"` or `"YCbCr"`."""
    chroma_subsampling: str | None
    """One of `HALVED_SUBSAMPLINGS`; `None` for grey."""
    fancy_upsampling: bool
    """Whether its decoder interpolated chroma (libjpeg's triangular filter); otherwise it repeated it."""
    offset: tuple[int, int]
    """Rows and columns that the image, or its region, lacks of its first MCUs: (0, 0) where nothing was cropped."""
    quantization_tables: tuple[np.ndarray, ...] = field(repr=False)
    """Of luma and of chroma: integer steps `[8, 8]`, 1..255, rows are vertical frequencies."""
    determined: tuple[np.ndarray, ...] = field(repr=False)
    """Of each table, `[8, 8]`, which steps the image shows; the others are those of libjpeg's nearest table."""
    evidence: float = 0.0
    """Logarithm (nats) of how unlikely it is that so much of luma would agree by chance."""
    explained: float = 0.0
    """Share of the luma blocks (0 to 1) of which every sample is explained."""
    added: float = 0.0
    """Standard deviation, in grey levels, of the noise that was added after decoding."""
    assumed: bool = False
    """Whether somebody said so, and nothing was estimated."""
    region: Region | None = None
    """The part of the image that was the JPEG; `None` for all of it."""

    @property
    def sampling_factors(self) -> tuple[tuple[int, int], ...]:
        """(horizontal, vertical) of each component."""
        if self.chroma_subsampling is None:
            return ((1, 1),)
        return (SUBSAMPLING_FACTORS[self.chroma_subsampling], (1, 1), (1, 1))

    def subsampling(self, component: int) -> tuple[int, int]:
        """Pixels (down, across) that one sample of a component stands for."""
        across, down = self.sampling_factors[0] if component else (1, 1)
        return down, across

    @property
    def component_tables(self) -> tuple[np.ndarray, ...]:
        """The table of each component."""
        return (self.quantization_tables[0], *self.quantization_tables[1:] * 2)

    @property
    def mcu_size(self) -> tuple[int, int]:
        """(height, width) in pixels of a minimum coded unit."""
        across, down = self.sampling_factors[0]
        return 8 * down, 8 * across

    @cached_property
    def quality_factor(self) -> int:
        """The libjpeg quality factor (1..100) whose tables are nearest."""
        return estimate_quality_factor(self.quantization_tables)[0]

    @property
    def share_determined(self) -> float:
        """Share of the steps (0 to 1) that the image shows."""
        return float(np.mean(self.determined))

    def part(self, pixels: np.ndarray) -> np.ndarray:
        """The pixels `[H, W, ...]` of an image that were the JPEG."""
        return self.region.of(pixels) if self.region else pixels

    def beyond_region(self) -> JPEGHistory:
        """The same JPEG, were it as large as the image that it is a part of."""
        return self.below(-self.region.top, -self.region.left) if self.region else self

    def below(self, rows: int, columns: int = 0) -> JPEGHistory:
        """The history of what is so many rows and columns further in the image."""
        lost = zip(self.offset, (rows, columns), self.mcu_size, strict=True)
        return replace(self, offset=tuple((first + more) % unit for first, more, unit in lost), region=None)

    def padding(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """((above, below), (left, right)): pixels that an image lacks of whole MCUs."""
        return tuple(
            (lost, -(lost + pixels) % unit)
            for lost, pixels, unit in zip(self.offset, (height, width), self.mcu_size, strict=True)
        )


def assume_history(
    pixels: np.ndarray, quality_factor: int, chroma_subsampling: str = "4:2:0", offset: tuple[int, int] = (0, 0)
) -> JPEGHistory:
    """What somebody says of an image whose pixels say nothing.

    `pixels`, as for `estimate_history`, decide between grey and colour. `quality_factor` is libjpeg's, 1..100,
    `chroma_subsampling` one of `HALVED_SUBSAMPLINGS`, else `ValueError`; `offset` are rows and columns that the image
    lacks of its first MCUs.
    """
    if chroma_subsampling not in HALVED_SUBSAMPLINGS:
        names = ", ".join(HALVED_SUBSAMPLINGS)
        raise ValueError(f"chroma_subsampling is {chroma_subsampling!r}; it must be one of {names}")
    kind, tables = ("YCbCr", chroma_subsampling), quality_tables(quality_factor)
    if checked(pixels).shape[2] == 1:
        kind, tables = ("L", None), tables[:1]
    shown = tuple(np.zeros((8, 8), bool) for _ in tables)
    return JPEGHistory(*kind, False, (0, 0), tables, shown, assumed=True).below(*offset)
