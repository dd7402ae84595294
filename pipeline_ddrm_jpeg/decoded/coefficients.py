"""The coefficients of the JPEG that an image was, as far as its pixels show them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..jpeg.planes import checked, clipped, cut_blocks, decoded, framed, planes_of
from .history import JPEGHistory

_MISFIT = 0.45  # root mean square misfit of a block, in grey levels, above which it is not taken to be exact
_ROUNDS, _AT_A_GLANCE = 8, 3  # of estimating what clipping took away


@dataclass(frozen=True, eq=False)
class DecodedCoefficients:
    """For each component `[blocks down, blocks across, 8, 8]`, float32, in units of the quantization steps."""

    levels: tuple[np.ndarray, ...]
    """The likeliest: integers, but in blocks that the border cuts."""
    low: tuple[np.ndarray, ...]
    """The lowest that the image allows."""
    high: tuple[np.ndarray, ...]
    """And the highest."""


def read_coefficients(pixels: np.ndarray, history: JPEGHistory) -> DecodedCoefficients:
    """The coefficients of the JPEG that an image, or its region, went through.

    What clipping to 0..255 took away is put back: the pixels get whatever clipping takes from the image that the
    coefficients decode to. Blocks that still do not fit have intervals as wide as their misfit asks for. Of blocks that
    the border cuts, the rest is mirrored; what they then have is taken for the middles of bins.
    """
    pixels = history.part(pixels)
    coefficients, levels = _unclipped(pixels, history, _ROUNDS)
    padding, found = history.padding(*pixels.shape[:2]), []
    for i, (c, level, table) in enumerate(zip(coefficients, levels, history.component_tables, strict=True)):
        misfit = _misfit(c, level * table)[:, :, None, None]
        reach = 3 * misfit * (misfit > _MISFIT) * (not history.assumed)  # with no bins of its own, it gets new ones
        cut = cut_blocks(history.subsampling(i), padding, pixels.shape[:2])[:, :, None, None]
        bounds = (np.where(cut, c / table, np.rint((c + move) / table)) for move in (-reach, reach))
        found.append([part.astype(np.float32) for part in (np.where(cut, c / table, level), *bounds)])
    return DecodedCoefficients(*map(tuple, zip(*found, strict=True)))


def exact_blocks(pixels: np.ndarray, history: JPEGHistory) -> tuple[np.ndarray, tuple[int, int]]:
    """Which whole blocks of luma are exactly those of a JPEG, `[down, across]`, and the row and column of the first."""
    (coefficients, *_), (levels, *_) = _unclipped(pixels, history, _AT_A_GLANCE)
    table = history.quantization_tables[0]
    padding = history.padding(*pixels.shape[:2])
    whole = ~cut_blocks((1, 1), padding, pixels.shape[:2])
    rows, columns = whole.any(axis=1), whole.any(axis=0)
    exact = _misfit(coefficients, levels * table) <= _MISFIT
    return exact[rows][:, columns], (-history.offset[0] % 8, -history.offset[1] % 8)


def _unclipped(pixels: np.ndarray, history: JPEGHistory, rounds: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The coefficients of each component, and the levels that they are nearest to."""
    components = len(history.sampling_factors)
    pixels = checked(pixels)
    if components > pixels.shape[2]:  # a part without colour of an image that has some
        pixels = pixels.repeat(components, axis=2)
    seen = planes_of(pixels)[:components]
    size = seen.shape[1:]
    padding, planes, levels = history.padding(*size), seen, None
    ways = [(history.subsampling(i), history.fancy_upsampling, padding) for i in range(len(seen))]
    for _ in range(rounds if ((pixels == 0) | (pixels == 255)).any() else 1):
        before = levels
        coefficients = [framed(plane, *way) for plane, way in zip(planes, ways, strict=True)]
        levels = [np.rint(c / q) for c, q in zip(coefficients, history.component_tables, strict=True)]
        if before is not None and all(map(np.array_equal, levels, before)):
            break
        each = zip(levels, history.component_tables, ways, strict=True)
        made = np.stack([decoded(level * table, *way, size) for level, table, way in each])
        planes = seen + made - clipped(made)
    return coefficients, levels


def _misfit(coefficients: np.ndarray, quantized: np.ndarray) -> np.ndarray:
    """Root mean square of what quantized coefficients miss, in grey levels of a block's pixels, `[down, across]`."""
    return np.sqrt(np.square(coefficients - quantized).mean(axis=(2, 3)))
