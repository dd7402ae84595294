"""The tables and the DCT of the JPEG standard, and how encoders scale and name what they use."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np

# ITU-T T.81, Annex K, tables K.1 (luminance) and K.2 (chrominance), rows are vertical frequencies.
LUMA_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
CHROMA_TABLE = np.full((8, 8), 99)
CHROMA_TABLE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# ITU-T T.81, figure A.6: ZIGZAG[k] is the row-major position of the k-th coefficient of the stream.
ZIGZAG = np.array(sorted(range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8)))

# T.81, A.3.3: the orthonormal DCT-II of eight points, row u, column x.
DCT = np.array([[np.cos((2 * x + 1) * u * np.pi / 16) / (2 if u else 8**0.5) for x in range(8)] for u in range(8)])

# J:a:b notation -> (horizontal, vertical) sampling factors of luma; both chroma components have (1, 1).
SUBSAMPLING_FACTORS = {
    "4:4:4": (1, 1),
    "4:4:0": (1, 2),
    "4:2:2": (2, 1),
    "4:2:0": (2, 2),
    "4:1:1": (4, 1),
    "4:1:0": (4, 2),
}
WRITTEN_SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
"""Those that Pillow writes."""
HALVED_SUBSAMPLINGS = tuple(name for name, factors in SUBSAMPLING_FACTORS.items() if max(factors) <= 2)
"""Those that take at most every second pixel, which is all that is looked for in decoded images."""


def quality_tables(quality_factor: int, convention: str = "libjpeg") -> tuple[np.ndarray, np.ndarray]:
    """Luminance and chrominance quantization tables, integers `[8, 8]` in 1..255, rows are vertical frequencies.

    For a quality factor of 1 (most compressed) to 100. The convention `"libjpeg"` scales with the integer of
    `jpeg_quality_scaling`; `"released"` scales with a real number below 50, as the program released with Kawar et al.
    (2022) does. The two give different tables at 34 quality factors. Raises `ValueError` for other values.
    """
    if not isinstance(quality_factor, Integral) or not 1 <= quality_factor <= 100:
        raise ValueError(f"quality_factor is {quality_factor}; it must be a whole number between 1 and 100")
    if convention not in ("libjpeg", "released"):
        raise ValueError(f'convention is {convention!r}; it must be "libjpeg" or "released"')
    scale = 200 - 2 * quality_factor
    if quality_factor < 50:
        scale = 5000 // quality_factor if convention == "libjpeg" else 5000 / quality_factor
    tables = np.stack([LUMA_TABLE, CHROMA_TABLE])
    return tuple(np.clip(np.floor((scale * tables + 50) / 100), 1, 255).astype(np.int64))


def estimate_quality_factor(tables: Sequence[np.ndarray]) -> tuple[int, bool]:
    """The libjpeg quality factor whose tables are nearest to those of a file, and whether they are the same.

    Of `tables`, `[8, 8]` for each component, the first two count. Distance is the sum of absolute logarithms of the
    ratios, so that a factor of two counts the same at every step size.
    """
    given = np.stack(tables[:2]).astype(np.float64)
    candidates = np.stack([np.stack(quality_tables(factor)[: len(given)]) for factor in range(1, 101)])
    distances = np.abs(np.log(given / candidates)).sum(axis=(1, 2, 3))
    return int(distances.argmin()) + 1, bool(distances.min() == 0)


def chroma_subsampling_name(factors: Sequence[tuple[int, int]]) -> str | None:
    """J:a:b name of the (horizontal, vertical) sampling factors of a file's components; `None` where there is none."""
    if len(factors) < 3 or factors[1] != factors[2]:
        return None
    across, down = factors[1]
    return next((name for name, (h, v) in SUBSAMPLING_FACTORS.items() if factors[0] == (h * across, v * down)), None)
