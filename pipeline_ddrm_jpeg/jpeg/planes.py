"""What a decoder makes of coefficients, as the linear maps they are, and back: colour, chroma samples, blocks.

Planes are float32 and centred on 0, as coefficients want them (T.81, A.3.1).
"""

from __future__ import annotations

import numpy as np

from .colour import JFIF_FORWARD, JFIF_INVERSE
from .tables import DCT

Sides = tuple[int, int]
Padding = tuple[Sides, Sides]

_DCT = DCT.astype(np.float32)
# sum over n of sqrt(2) (-pole)^|n| undoes averaging with weights 1/8, 6/8, 1/8.
_UNSMOOTH = 2**0.5 * (2 * 2**0.5 - 3.0) ** np.abs(np.arange(-9, 10))


def checked(pixels: np.ndarray) -> np.ndarray:
    """`[H, W, 1 or 3]`: one channel where all are equal."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
        given = f"{pixels.dtype} {list(pixels.shape)}"
        raise ValueError(f"expected 8-bit pixels [H, W] or [H, W, 3], got {given}; convert them to L or RGB")
    if pixels.ndim == 2:
        return pixels[..., None]
    parts = (pixels[::64], pixels)  # colour mostly shows in a few rows already
    return pixels[..., :1] if all((part == part[..., :1]).all() for part in parts) else pixels


def planes_of(pixels: np.ndarray) -> np.ndarray:
    """`[H, W, C]` -> Y, Cb, Cr or Y alone, `[C, H, W]` float32, all centred on 0.

    Decoders add rounded multiples of Cb and Cr to Y, all three integers; rounding gives those back, but for clipping.
    """
    planes = np.moveaxis(pixels, -1, 0).astype(np.float32)
    if len(planes) == 3:
        planes = np.tensordot(np.array(JFIF_FORWARD, np.float32), planes, axes=1)
    planes[0] -= 128
    return np.rint(planes)


def clipped(planes: np.ndarray) -> np.ndarray:
    """What a decoder's clipping, of its planes and of RGB, makes of `[C, H, W]`."""
    planes = planes.clip(-128, 127)
    if len(planes) == 1:
        return planes
    inverse, forward = np.array(JFIF_INVERSE, np.float32), np.array(JFIF_FORWARD, np.float32)
    return np.tensordot(forward, np.tensordot(inverse, planes, axes=1).clip(-128, 127), axes=1)


def block_dct(blocks: np.ndarray) -> np.ndarray:
    """Coefficients, rows vertical frequencies, of blocks `[..., 8, 8]`."""
    return _DCT @ blocks @ _DCT.T


def inverse_block_dct(coefficients: np.ndarray) -> np.ndarray:
    """Blocks of coefficients `[..., 8, 8]`."""
    return _DCT.T @ coefficients @ _DCT


def in_units(plane: np.ndarray, unit: tuple[int, int], start: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The whole units of a plane from a row and a column on, `[down, across, *unit]`."""
    down, across = ((side - first) // n for side, first, n in zip(plane.shape, start, unit, strict=True))
    plane = plane[start[0] :, start[1] :][: unit[0] * down, : unit[1] * across]
    return plane.reshape(down, unit[0], across, unit[1]).swapaxes(1, 2)


def downsampled(plane: np.ndarray, factors: tuple[int, int], fancy: bool) -> np.ndarray:
    """The chroma samples of which a decoder made a plane whose sides are multiples of `factors` (down, across).

    Both filters are linear. Repetition is undone by averaging; of the triangular one, with weights 3/4 and 1/4,
    averages are (1, 6, 1) / 8 of the samples, reflected at the borders.
    """
    for axis in (axis for axis in (0, 1) if factors[axis] > 1):
        pairs = plane.swapaxes(0, axis)
        pairs = (pairs[::2] + pairs[1::2]) / 2
        if fancy and len(pairs):
            reach = len(_UNSMOOTH) // 2
            padded = np.pad(pairs, ((reach, reach), (0, 0)), mode="symmetric")
            pairs = sum(weight * padded[i : i + len(pairs)] for i, weight in enumerate(_UNSMOOTH.astype(np.float32)))
        plane = pairs.swapaxes(0, axis)
    return plane


def upsampled(plane: np.ndarray, factors: tuple[int, int], fancy: bool) -> np.ndarray:
    """As a decoder does it: `"fancy"` as libjpeg's `h2v1_fancy_upsample` and `h2v2_fancy_upsample` (jdsample.c)."""
    for axis in (axis for axis in (0, 1) if factors[axis] > 1):
        rows = plane.swapaxes(0, axis)
        made = np.repeat(rows, 2, axis=0)
        if fancy:
            padded = np.pad(rows, ((1, 1), (0, 0)), mode="edge")
            made = 0.75 * made
            made[::2] += 0.25 * padded[:-2]
            made[1::2] += 0.25 * padded[2:]
        plane = made.swapaxes(0, axis)
    return plane


def framed(plane: np.ndarray, factors: Sides, fancy: bool, padding: Padding) -> np.ndarray:
    """The coefficients of the whole MCUs around a plane, which is mirrored at its borders."""
    plane = downsampled(np.pad(plane, padding, mode="symmetric"), factors, fancy)
    return block_dct(in_units(plane, (8, 8)))


def decoded(coefficients: np.ndarray, factors: Sides, fancy: bool, padding: Padding, size: Sides) -> np.ndarray:
    """The plane `[H, W]`, neither rounded nor clipped, of coefficients `[down, across, 8, 8]`."""
    blocks = inverse_block_dct(coefficients.astype(np.float32))
    plane = upsampled(blocks.swapaxes(1, 2).reshape(8 * len(blocks), -1), factors, fancy)
    return plane[padding[0][0] :, padding[1][0] :][: size[0], : size[1]]


def cut_blocks(factors: Sides, padding: Padding, size: Sides) -> np.ndarray:
    """Which blocks are not wholly in an image, `[down, across]`."""
    inside = []
    for (before, after), pixels, factor in zip(padding, size, factors, strict=True):
        starts = np.arange(0, before + pixels + after, 8 * factor)
        inside.append((starts >= before) & (starts + 8 * factor <= before + pixels))
    return ~(inside[0][:, None] & inside[1])
