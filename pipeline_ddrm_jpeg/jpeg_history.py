"""Which JPEG a decoded picture went through: its grid, chroma subsampling, quantization tables and coefficients.

Coefficients of a decoded JPEG, on its grid and in its colour space, lie at multiples of its quantization steps, up to
what rounding to 8 bits adds (Fan and de Queiroz, 2003, "Identification of bitmap compression history: JPEG detection
and quantizer estimation", IEEE Trans. Image Processing 12(2)). Steps are proposed by their likelihoods, as there; what
is proposed is then tried on whole blocks, whose every sample must come out as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from .jpeg_tables import JFIF_FORWARD, JFIF_INVERSE, SUBSAMPLING_FACTORS, estimate_quality_factor, quality_tables

_ROUNDING = 0.3  # standard deviation, in grey levels, that rounding its samples adds to a coefficient
_REACH = 0.6  # how far rounding moves a sample, with some for the integer arithmetic of decoders
_REACH_ADDED = 3.5  # standard deviations that added noise may move one
_FANCY_REACH = 0.9  # and what undoing interpolation makes of its rounding
_WIDE = 5.0  # times the noise: its wide part, where a block has few coefficients
_SMALLEST = 8  # pixels a side below which there is no whole block
_SMALL = 96  # pixels a side of pictures whose borders are too much of them to be left out
_TILE, _TILES_A_SIDE = 256, 3  # what is looked at of a large picture
_RESOLUTION = 4  # bins of a histogram in a grey level
_BINS = _RESOLUTION * 1040 + 1  # a coefficient is at most 1024 in size, with overshoot a little more
_STEPS = np.arange(1, 256)
_WEIGHTS = np.random.default_rng(0).integers(2**36, size=64).astype(np.float64)  # by which blocks are told apart
_OUTLIERS = 0.02  # share of coefficients that are off for other reasons
_UNINFORMATIVE = 4.0  # times the noise: sizes that fit every step
_SURE = 5.0  # nats by which a step must be more likely than every other one
_TABLES = 6  # of libjpeg's that are tried
_AT_A_GLANCE, _CLOSELY = 256, 1024  # blocks that are looked at, of every grid and of the best
_SHARED = np.log(8.0)  # nats of a block that is explained by its DC alone, which rounding makes a multiple of 8
_MISFIT = 0.45  # root mean square misfit of a block, in grey levels, above which it is not taken to be exact
_GAUSSIAN = (2 * np.pi * np.e) ** 0.5  # width of the uniform distribution with a Gaussian's entropy, by its std
_COARSER = 1.3  # times the steps of a file, those of an earlier one that counts
_LOWER = 5  # and how far its quality factor is below that of the file
_ALL = 4  # how much more it counts to explain all blocks than to explain many
_ABOUT_AS_GOOD = 0.8  # of the evidence
_MISS = 2.0  # nats that a block speaks against a table which does not explain it
_SHOWN = 2  # blocks that must show a step
_ENOUGH, _EXPLAINED = 30.0, 0.3  # evidence, and share of the blocks, of a JPEG
_EXCEPTION = 15.0  # nats of a block of pixels that a JPEG does not explain
_FILLED = 4  # rounds of filling in clipped chroma
_CLIPPING_REACH = 5  # pixels around clipped ones in which chroma cannot be told exactly
_ROUNDS = 8  # of estimating what clipping took away
# sum over n of sqrt(2) (-pole)^|n| undoes averaging with weights 1/8, 6/8, 1/8.
_UNSMOOTH = 2**0.5 * (2 * 2**0.5 - 3.0) ** np.abs(np.arange(-9, 10))


@dataclass(frozen=True, eq=False)
class JPEGHistory:
    """The JPEG that a picture went through."""

    color_space: str
    """`"L"` or `"YCbCr"`."""
    chroma_subsampling: str | None
    """`"4:4:4"`, `"4:2:2"`, `"4:4:0"` or `"4:2:0"`; `None` for grey."""
    fancy_upsampling: bool
    """Whether its decoder interpolated chroma (libjpeg's triangular filter); otherwise it repeated it."""
    offset: tuple[int, int]
    """Rows and columns that the picture lacks of its first MCUs: (0, 0) for one that was not cropped."""
    quantization_tables: tuple[np.ndarray, ...] = field(repr=False)
    """Of luma and of chroma: integer steps `[8, 8]`, 1..255, rows are vertical frequencies."""
    determined: tuple[np.ndarray, ...] = field(repr=False)
    """Of each table, `[8, 8]`, which steps the picture shows; the others are those of libjpeg's nearest table."""
    evidence: float
    """Logarithm (nats) of how unlikely it is that so much of luma would agree by chance."""
    explained: float
    """Share of the luma blocks (0 to 1) of which every sample is explained."""
    added: float = 0.0
    """Standard deviation, in grey levels, of the noise that was added after decoding."""
    assumed: bool = False
    """Whether somebody said so, and nothing was estimated."""

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
        """Share of the steps (0 to 1) that the picture shows."""
        return float(np.mean(self.determined))

    def padding(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """((above, below), (left, right)): pixels that a picture lacks of whole MCUs."""
        return tuple(
            (lost, -(lost + pixels) % unit)
            for lost, pixels, unit in zip(self.offset, (height, width), self.mcu_size, strict=True)
        )


@dataclass(frozen=True, eq=False)
class HistoryCoefficients:
    """What a picture says of the coefficients of its JPEG: for each component `[blocks down, blocks across, 8, 8]`,
    float32, in units of the quantization steps.
    """

    levels: tuple[np.ndarray, ...]
    """The likeliest: integers where they are measured."""
    low: tuple[np.ndarray, ...]
    """The lowest that the picture allows; -inf in blocks that its border cuts."""
    high: tuple[np.ndarray, ...]


def estimate_history(pixels: np.ndarray, added: float = 0.0) -> JPEGHistory | None:
    """The JPEG that a picture went through last, or `None` where it shows none.

    Args:
        pixels: `[H, W]` or `[H, W, 3]` (RGB), uint8, as decoded: not resized, filtered or adjusted since.
        added: standard deviation, in grey levels, of noise that was added after decoding, as by coding it again.

    Raises:
        ValueError: for another shape or type.
    """
    pixels = _checked(pixels)
    if min(pixels.shape[:2]) < _SMALLEST:
        return None
    tiles = _tiles(pixels)
    planes = [_planes(tile) for tile in tiles]
    clipped = [((tile == 0) | (tile == 255)).any(axis=2) for tile in tiles]

    starts = [(top, left) for top in range(8) for left in range(8)]
    blocks = [_luma_blocks(planes, clipped, start) for start in starts]
    scores = [_scores(_dct() @ each @ _dct().T, np.hypot(_ROUNDING, added)) for each in blocks]
    reach = _REACH + _REACH_ADDED * added
    fits = [_best_fit(*each, 0, reach, added, _AT_A_GLANCE) for each in zip(scores, blocks, strict=True)]
    # Grids between the blocks explain many of them too, being regular themselves; the right one explains all.
    best = max(range(len(starts)), key=lambda i: fits[i].evidence * fits[i].explained ** _ALL)
    fit, lost = _best_fit(scores[best], blocks[best], 0, reach, added), tuple(-start % 8 for start in starts[best])
    if fit.evidence < _ENOUGH or fit.explained < _EXPLAINED:
        return None
    if planes[0].shape[0] == 1:
        return JPEGHistory("L", None, False, lost, (fit.table,), (fit.determined,), fit.evidence, fit.explained, added)
    trial, chroma = _chroma(planes, clipped, lost, added, estimate_quality_factor([fit.table])[0])
    return replace(
        trial,
        quantization_tables=(fit.table, chroma.table),
        determined=(fit.determined, chroma.determined),
        evidence=fit.evidence,
        explained=fit.explained,
    )


def estimate_earlier(pixels: np.ndarray, tables: Sequence[np.ndarray]) -> JPEGHistory | None:
    """The coarser JPEG that a picture had been before it was saved as the JPEG at hand; `None` where it shows none.

    Args:
        pixels: of the file, decoded, as for `estimate_history`.
        tables: quantization tables of the file, which say how much noise saving it again has added.
    """
    added = float(np.median(tables[0])) / 12**0.5
    earlier = estimate_history(pixels, added)
    if earlier is None or np.median(earlier.quantization_tables[0]) < _COARSER * np.median(tables[0]):
        return None
    # Where its own steps are hardly wider than rounding, a file is taken for one of about its own quality.
    return earlier if earlier.quality_factor <= estimate_quality_factor(tables)[0] - _LOWER else None


def assume_history(
    pixels: np.ndarray, quality_factor: int, chroma_subsampling: str = "4:2:0", offset: tuple[int, int] = (0, 0)
) -> JPEGHistory:
    """What somebody says of a picture whose pixels say nothing.

    Args:
        pixels: as for `estimate_history`; they decide between grey and colour.
        quality_factor: libjpeg's, 1..100.
        chroma_subsampling: `"4:4:4"`, `"4:2:2"`, `"4:4:0"` or `"4:2:0"`.
        offset: rows and columns that the picture lacks of its first MCUs.

    Raises:
        ValueError: for values outside these.
    """
    if chroma_subsampling not in ("4:4:4", "4:2:2", "4:4:0", "4:2:0"):
        raise ValueError(f"chroma_subsampling is {chroma_subsampling!r}; it must be 4:4:4, 4:2:2, 4:4:0 or 4:2:0")
    across, down = SUBSAMPLING_FACTORS[chroma_subsampling]
    luma, chroma = quality_tables(quality_factor)
    unknown = np.zeros((8, 8), bool)
    if _checked(pixels).shape[2] == 1:
        lost = offset[0] % 8, offset[1] % 8
        return JPEGHistory("L", None, False, lost, (luma,), (unknown,), 0.0, 0.0, assumed=True)
    lost = offset[0] % (8 * down), offset[1] % (8 * across)
    tables, shown = (luma, chroma), (unknown, unknown)
    return JPEGHistory("YCbCr", chroma_subsampling, False, lost, tables, shown, 0.0, 0.0, assumed=True)


def read_history(pixels: np.ndarray, history: JPEGHistory) -> HistoryCoefficients:
    """The coefficients of the JPEG that a picture went through.

    What clipping to 0..255 took away is put back: the pixels get whatever clipping takes from the picture that the
    coefficients decode to. Blocks that still do not fit have intervals as wide as their misfit asks for.

    Args:
        pixels: as for `estimate_history`.
        history: its result, or one that is assumed.
    """
    pixels = _checked(pixels)
    seen = _planes(pixels)
    if history.color_space == "L":
        seen = seen[:1]
    height, width = seen.shape[1:]
    padding = history.padding(height, width)
    planes, levels = seen, None
    for _ in range(_ROUNDS if ((pixels == 0) | (pixels == 255)).any() else 1):
        before = levels
        coefficients = [_framed(plane, history, i, padding) for i, plane in enumerate(planes)]
        levels = [np.rint(c / q) for c, q in zip(coefficients, history.component_tables, strict=True)]
        if before is not None and all(map(np.array_equal, levels, before)):
            break
        parts = enumerate(zip(levels, history.component_tables, strict=True))
        decoded = np.stack([_decoded(level * q, history, i, padding, (height, width)) for i, (level, q) in parts])
        planes = seen + decoded - _clipped(decoded)
    low, high = [], []
    for i, (c, level, table) in enumerate(zip(coefficients, levels, history.component_tables, strict=True)):
        misfit = np.sqrt(np.square(c - level * table).mean(axis=(2, 3), keepdims=True))
        reach = 3 * misfit * (misfit > _MISFIT) * (not history.assumed)  # with no bins of its own, it gets new ones
        cut = _cut(history, padding, (height, width), i)[:, :, None, None]
        levels[i] = np.where(cut, c / table, level)  # what is not measured starts as it is
        low.append(np.where(cut, -np.inf, np.rint((c - reach) / table)).astype(np.float32))
        high.append(np.where(cut, np.inf, np.rint((c + reach) / table)).astype(np.float32))
    return HistoryCoefficients(tuple(level.astype(np.float32) for level in levels), tuple(low), tuple(high))


# --- Pixels ---


def _checked(pixels: np.ndarray) -> np.ndarray:
    """`[H, W, 1 or 3]`: one channel where all are equal."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
        given = f"{pixels.dtype} {list(pixels.shape)}"
        raise ValueError(f"expected 8-bit pixels [H, W] or [H, W, 3], got {given}; convert them to L or RGB")
    if pixels.ndim == 2:
        return pixels[..., None]
    if (pixels == pixels[..., :1]).all():
        return pixels[..., :1]
    return pixels


def _tiles(pixels: np.ndarray) -> list[np.ndarray]:
    """The picture, or parts that are spread over a large one, from rows and columns that are multiples of 16."""
    height, width = pixels.shape[:2]
    if height * width <= (_TILE * _TILES_A_SIDE) ** 2:
        return [pixels]
    tops, lefts = (
        np.unique(np.linspace(0, max(side - _TILE, 0), _TILES_A_SIDE).astype(int) // 16 * 16)
        for side in (height, width)
    )
    return [pixels[top : top + _TILE, left : left + _TILE] for top in tops for left in lefts]


def _planes(pixels: np.ndarray) -> np.ndarray:
    """`[H, W, C]` -> Y, Cb, Cr or Y alone, `[C, H, W]` float32, all centred on 0.

    Decoders add rounded multiples of Cb and Cr to Y, all three integers; rounding gives those back, but for clipping.
    """
    planes = np.moveaxis(pixels, -1, 0).astype(np.float32)
    if len(planes) == 3:
        planes = np.tensordot(np.array(JFIF_FORWARD, np.float32), planes, axes=1)
    planes[0] -= 128
    return np.rint(planes)


def _clipped(planes: np.ndarray) -> np.ndarray:
    """What a decoder's clipping, of its planes and of RGB, makes of `[C, H, W]`."""
    planes = planes.clip(-128, 127)
    if len(planes) == 1:
        return planes
    inverse, forward = np.array(JFIF_INVERSE, np.float32), np.array(JFIF_FORWARD, np.float32)
    return np.tensordot(forward, np.tensordot(inverse, planes, axes=1).clip(-128, 127), axes=1)


# --- Blocks ---


@lru_cache(maxsize=1)
def _dct() -> np.ndarray:
    """Orthonormal DCT-II of eight points (T.81, A.3.3): row u, column x."""
    u, x = np.arange(8)[:, None], np.arange(8)
    matrix = 0.5 * np.cos((2 * x + 1) * u * np.pi / 16)
    matrix[0] /= 2**0.5
    return matrix.astype(np.float32)


def _in_units(plane: np.ndarray, unit: tuple[int, int], start: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The whole units of a plane from a row and a column on, `[down, across, *unit]`."""
    down, across = ((side - first) // n for side, first, n in zip(plane.shape, start, unit, strict=True))
    plane = plane[start[0] :, start[1] :][: unit[0] * down, : unit[1] * across]
    return plane.reshape(down, unit[0], across, unit[1]).swapaxes(1, 2)


def _downsampled(plane: np.ndarray, factors: tuple[int, int], fancy: bool) -> np.ndarray:
    """The chroma samples of which a decoder made a plane whose sides are multiples of `factors` (down, across).

    Both filters are linear. Repetition is undone by averaging; of the triangular one, with weights 3/4 and 1/4,
    averages are (1, 6, 1) / 8 of the samples, reflected at the borders.
    """
    for axis, factor in enumerate(factors):
        if factor == 1:
            continue
        pairs = plane.swapaxes(0, axis)
        pairs = (pairs[::2] + pairs[1::2]) / 2
        if fancy and len(pairs):
            reach = len(_UNSMOOTH) // 2
            padded = np.pad(pairs, ((reach, reach), (0, 0)), mode="symmetric")
            pairs = sum(weight * padded[i : i + len(pairs)] for i, weight in enumerate(_UNSMOOTH.astype(np.float32)))
        plane = pairs.swapaxes(0, axis)
    return plane


def _spread(mask: np.ndarray, reach: int) -> np.ndarray:
    """A mask `[H, W]` and what is at most `reach` rows and columns from it, or from the border of a larger picture."""
    beyond = min(mask.shape) > _SMALL
    for axis in (0, 1):
        lines = np.pad(mask.swapaxes(0, axis), ((reach, reach), (0, 0)), constant_values=beyond)
        mask = np.any([lines[i : i + mask.shape[axis]] for i in range(2 * reach + 1)], axis=0).swapaxes(0, axis)
    return mask


def _upsampled(plane: np.ndarray, factors: tuple[int, int], fancy: bool) -> np.ndarray:
    """As a decoder does it: `"fancy"` as libjpeg's `h2v1_fancy_upsample` and `h2v2_fancy_upsample` (jdsample.c)."""
    for axis, factor in enumerate(factors):
        if factor == 1:
            continue
        rows = plane.swapaxes(0, axis)
        made = np.repeat(rows, 2, axis=0)
        if fancy:
            padded = np.pad(rows, ((1, 1), (0, 0)), mode="edge")
            made = 0.75 * made
            made[::2] += 0.25 * padded[:-2]
            made[1::2] += 0.25 * padded[2:]
        plane = made.swapaxes(0, axis)
    return plane


def _framed(plane: np.ndarray, history: JPEGHistory, component: int, padding: tuple) -> np.ndarray:
    """The coefficients of the whole MCUs around a plane, of which the borders are repeated."""
    framed = np.pad(plane, padding, mode="edge")
    framed = _downsampled(framed, history.subsampling(component), history.fancy_upsampling)
    return _dct() @ _in_units(framed, (8, 8)) @ _dct().T


def _decoded(
    coefficients: np.ndarray, history: JPEGHistory, component: int, padding: tuple, size: tuple[int, int]
) -> np.ndarray:
    """The plane `[H, W]`, neither rounded nor clipped, of coefficients."""
    blocks = _dct().T @ coefficients.astype(np.float32) @ _dct()
    plane = blocks.swapaxes(1, 2).reshape(8 * len(blocks), -1)
    plane = _upsampled(plane, history.subsampling(component), history.fancy_upsampling)
    return plane[padding[0][0] :, padding[1][0] :][: size[0], : size[1]]


def _cut(history: JPEGHistory, padding: tuple, size: tuple[int, int], component: int) -> np.ndarray:
    """Which blocks of a component are not wholly in the picture, `[down, across]`."""
    inside = []
    for (before, after), pixels, factor in zip(padding, size, history.subsampling(component), strict=True):
        starts = np.arange(0, before + pixels + after, 8 * factor)
        inside.append((starts >= before) & (starts + 8 * factor <= before + pixels))
    return ~(inside[0][:, None] & inside[1])


# --- Likelihoods ---


@lru_cache(maxsize=4)
def _log_ratios(noise: float) -> np.ndarray:
    """`[bins, 255]`: logarithm of how much likelier a coefficient's size is with each step than without.

    A coefficient without quantization is about as likely anywhere between two multiples of a step; with it, it is near
    one of them. Around zero all are likely either way. Where a block has few coefficients, its pixels are rounded
    alike, which adds up, so that the noise has a wide part.
    """
    size = np.arange(_BINS)[:, None] / _RESOLUTION
    distance = np.abs(size - _STEPS * np.rint(size / _STEPS))
    density = np.full(distance.shape, _OUTLIERS)
    for share, std in ((0.7, noise), (0.3 - _OUTLIERS, _WIDE * noise)):
        for multiple in (-1, 0, 1):
            bell = np.exp(-0.5 * np.square((distance + multiple * _STEPS) / std))
            density += share * bell * _STEPS / (std * (2 * np.pi) ** 0.5)
    ratios = np.log(density)
    ratios[size[:, 0] < _UNINFORMATIVE * noise] = 0
    return ratios.astype(np.float32)


def _scores(coefficients: np.ndarray, noise: float) -> np.ndarray:
    """`[64, 255]`: the evidence for each step at each frequency, in nats, of blocks `[N, 8, 8]`."""
    bins = np.rint(np.abs(coefficients).reshape(-1, 64) * _RESOLUTION).astype(np.intp)
    bins = bins.clip(max=_BINS - 1) + _BINS * np.arange(64)
    counts = np.bincount(bins.ravel(), minlength=64 * _BINS).reshape(64, _BINS)
    last = int(np.flatnonzero(counts.any(axis=0)).max(initial=0)) + 1
    return counts[:, :last].astype(np.float32) @ _log_ratios(noise)[:last]


def _luma_blocks(planes: list[np.ndarray], clipped: list[np.ndarray], start: tuple[int, int]) -> np.ndarray:
    """Blocks `[N, 8, 8]` of luma on the grid that has one at this row and column: neither flat nor clipped, and of
    those that differ by their brightness alone, as they do in drawings, only one.
    """
    chosen = []
    for plane, extreme in zip(planes, clipped, strict=True):
        blocks = _in_units(plane[0], (8, 8), start)
        chosen.append(blocks[~_in_units(extreme, (8, 8), start).any(axis=(2, 3))])
    blocks = np.concatenate(chosen)
    keys = (blocks - blocks[:, :1, :1]).reshape(-1, 64).astype(np.float64) @ _WEIGHTS  # in integers: exact
    values, first = np.unique(keys, return_index=True)
    return blocks[np.sort(first[values != 0])]


@lru_cache(maxsize=2)
def _standard_tables(component: int) -> np.ndarray:
    """`[100, 64]`: libjpeg's tables of luma (0) or chroma (1) by quality factor."""
    return np.stack([quality_tables(factor)[component].ravel() for factor in range(1, 101)])


def _of_standard_tables(scores: np.ndarray, component: int) -> np.ndarray:
    """The evidence for each of libjpeg's hundred tables."""
    return scores[np.arange(64), _standard_tables(component) - 1].sum(axis=1)


class _Fit(NamedTuple):
    """How well a table explains blocks."""

    table: np.ndarray
    determined: np.ndarray
    """Steps of which explained blocks have multiples other than zero."""
    evidence: float
    """Logarithm of how unlikely so many explained blocks are by chance."""
    explained: float
    """Share of the blocks."""


def _best_fit(
    scores: np.ndarray,
    blocks: np.ndarray,
    component: int,
    reach: float,
    added: float,
    most: int = _CLOSELY,
    quality: int | None = None,
) -> _Fit:
    """The table that explains most, among libjpeg's likeliest and the one that is likeliest step by step.

    Args:
        scores: of the blocks' coefficients.
        blocks: samples `[N, 8, 8]` of luma or of downsampled chroma.
        component: 0 for luma, 1 for chroma.
        reach: how far a sample may be off.
        added: standard deviation of added noise.
        most: how many blocks are looked at.
        quality: a quality factor that is preferred to others which explain about as much.
    """
    blocks = blocks[:: -(-len(blocks) // most) or 1]
    coefficients = _dct() @ blocks @ _dct().T
    order = np.argsort(-_of_standard_tables(scores, component), kind="stable")[:_TABLES]
    every = np.arange(64)
    best = scores.argmax(axis=1)
    without = scores.copy()
    without[every, best] = -np.inf
    sure = scores[every, best] - without.max(axis=1) > _SURE
    fits = [
        _fit(table.reshape(8, 8), coefficients, blocks, reach, added) for table in _standard_tables(component)[order]
    ]
    nearest = max(fits, key=lambda fit: fit.evidence)
    if quality is not None:
        preferred = _fit(_standard_tables(component)[quality - 1].reshape(8, 8), coefficients, blocks, reach, added)
        if preferred.evidence >= _ABOUT_AS_GOOD * nearest.evidence and preferred.explained > nearest.explained - 0.01:
            nearest = preferred
    free = np.where(sure, _STEPS[best], nearest.table.ravel()).reshape(8, 8)
    own = _fit(free, coefficients, blocks, reach, added)
    if own.explained > nearest.explained and own.evidence > nearest.evidence + _SURE * (free != nearest.table).sum():
        return own._replace(determined=own.determined & sure.reshape(8, 8))
    return nearest


def _fit(table: np.ndarray, coefficients: np.ndarray, blocks: np.ndarray, reach: float, added: float) -> _Fit:
    """A table explains a block when the nearest multiples of its steps decode to all of its samples.

    By chance that happens once in as many times as there are values in the bins of the coefficients that are not zero.
    """
    if not len(blocks):
        return _Fit(table, np.zeros((8, 8), bool), 0.0, 0.0)
    levels, explained = _quantized(table, coefficients, blocks, reach)
    present = (levels != 0) & explained[:, None, None]
    chance = (present * np.log(table / max(1.0, _GAUSSIAN * added))).sum(axis=(1, 2)) - _SHARED
    evidence = float(np.where(explained, np.maximum(chance, 0), -_MISS).sum())
    return _Fit(table, present.sum(axis=0) >= _SHOWN, evidence, float(explained.mean()))


def _quantized(
    table: np.ndarray, coefficients: np.ndarray, blocks: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest multiples of a table's steps `[..., 8, 8]`, and which blocks they explain, `[...]`."""
    levels = np.rint(coefficients / table)
    decoded = _dct().T @ (levels * table).astype(np.float32) @ _dct()
    return levels, np.abs(blocks - decoded).max(axis=(-2, -1), initial=0) <= reach


# --- Chroma ---


def _chroma(
    planes: list[np.ndarray], clipped: list[np.ndarray], lost: tuple[int, int], added: float, quality: int
) -> tuple[JPEGHistory, _Fit]:
    """The chroma subsampling, upsampling and phase that describe chroma in the fewest nats, and the fit of its table.

    A block that a candidate explains takes its coefficients, any other as many nats as chroma takes that was not
    quantized (minimum description length: Rissanen, 1978). So of candidates that explain all, the most frugal is taken;
    two are compared where both can tell.
    """
    found = None
    for name in ("4:2:0", "4:2:2", "4:4:0", "4:4:4"):
        across, down = SUBSAMPLING_FACTORS[name]
        for y, x in ((y, x) for y in range(0, 8 * down, 8) for x in range(0, 8 * across, 8)):
            for fancy in (False,) if name == "4:4:4" else (True, False):
                trial = JPEGHistory("YCbCr", name, fancy, (lost[0] + y, lost[1] + x), (), (), 0.0, 0.0, added)
                nats, fit = _chroma_fit(planes, clipped, trial, quality)
                if found is None or np.isnan(found[0]).all() or np.nansum(nats - found[0]) < 0:
                    found = nats, trial, fit
    return found[1:]


def _chroma_fit(
    planes: list[np.ndarray], clipped: list[np.ndarray], trial: JPEGHistory, quality: int
) -> tuple[np.ndarray, _Fit]:
    """The nats that each block of 8 x 8 pixels, in Cb and in Cr, takes by one candidate, and its best table's fit.

    NaN where that cannot be told, in MCUs that the border cuts or that are mostly clipped. What clipping took away is
    filled in from what is decoded.
    """
    factors, fancy = trial.subsampling(1), trial.fancy_upsampling
    reach = _REACH + _REACH_ADDED * trial.added + _FANCY_REACH * fancy
    chosen = []
    for tile, extreme in zip(planes, clipped, strict=True):
        padding = trial.padding(*extreme.shape)
        inexact = np.pad(_spread(extreme, _CLIPPING_REACH * fancy), padding, mode="edge")
        exact = ~_in_units(inexact, trial.mcu_size).any(axis=(2, 3)) & ~_cut(trial, padding, extreme.shape, 1)
        chosen += [_framed(plane, trial, 1, padding)[exact] for plane in tile[1:]]
    chosen = np.concatenate(chosen)
    scores = _scores(chosen, np.hypot(_ROUNDING, trial.added))
    fit = _best_fit(scores, _dct().T @ chosen @ _dct(), 1, reach, trial.added, quality=quality)
    nats = []
    for plane, extreme in (
        (plane, extreme) for tile, extreme in zip(planes, clipped, strict=True) for plane in tile[1:]
    ):
        padding = trial.padding(*extreme.shape)
        cut, filled = _cut(trial, padding, extreme.shape, 1), plane
        for _ in range(_FILLED if extreme.any() else 1):
            coefficients = _framed(filled, trial, 1, padding)
            levels = np.rint(coefficients / fit.table)
            quantized = np.where(cut[..., None, None], coefficients, levels * fit.table)
            decoded = _decoded(quantized, trial, 1, padding, extreme.shape)
            filled = np.where(extreme, decoded, plane)
        off = np.pad(np.abs(decoded - filled), padding)
        explained = _in_units(off, trial.mcu_size).max(axis=(2, 3)) <= reach
        unquantized = _dct() @ _in_units(np.pad(filled, padding, mode="edge"), (8, 8)) @ _dct().T
        plain = _in_units(_code(unquantized), factors).sum(axis=(2, 3))
        # Added noise is in all blocks, so that one which is not explained says little.
        plain = np.full_like(plain, plain.mean()) if trial.added else plain + _EXCEPTION * np.prod(factors)
        own = np.where(explained, _code(levels), plain) / np.prod(factors)
        clear = _in_units(np.pad(~extreme, padding), trial.mcu_size).mean(axis=(2, 3)) >= 0.5
        own = np.where(cut | ~clear, np.nan, own).repeat(factors[0], axis=0).repeat(factors[1], axis=1)
        (above, below), (before, after) = ((a // 8, b // 8) for a, b in padding)
        nats.append(own[above : len(own) - below, before : own.shape[1] - after].ravel())
    return np.concatenate(nats), fit


def _code(levels: np.ndarray) -> np.ndarray:
    """About the nats that a code for integers of any size takes for each block of `[down, across, 8, 8]`.

    Two logarithms of each (Elias, 1975), of DC those of its difference from the block before.
    """
    levels = np.rint(levels)
    levels[:, 1:, 0, 0] -= levels[:, :-1, 0, 0].copy()
    return 2 * np.log1p(np.abs(levels)).sum(axis=(2, 3))
