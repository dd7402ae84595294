"""The grid, chroma subsampling and quantization tables of the JPEG that decoded pixels are.

Coefficients of a decoded JPEG, on its grid and in its colour space, lie at multiples of its quantization steps, up to
what rounding to 8 bits adds (Fan and de Queiroz, 2003, "Identification of bitmap compression history: JPEG detection
and quantizer estimation", IEEE Trans. Image Processing 12(2)). Steps are proposed by their likelihoods, as there; what
is proposed is then tried on whole blocks, whose every sample must come out as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..jpeg.planes import block_dct, checked, cut_blocks, decoded, framed, in_units, inverse_block_dct, planes_of
from ..jpeg.tables import HALVED_SUBSAMPLINGS, SUBSAMPLING_FACTORS, estimate_quality_factor, quality_tables
from .history import JPEGHistory

# Nothing records what these numbers were fitted on. docs/history.md judges them, by 20 images that libjpeg compressed
# at quality factors 5 to 90, whole and cropped, and by 624 that show no JPEG.
_ROUNDING = 0.3  # standard deviation, in grey levels, that rounding its samples adds to a coefficient
_REACH = 0.6  # how far rounding moves a sample, with some for the integer arithmetic of decoders
_REACH_ADDED = 3.5  # standard deviations that added noise may move one
_FANCY_REACH = 0.9  # and what undoing interpolation makes of its rounding
_WIDE = 5.0  # times the noise: its wide part, where a block has few coefficients
_SMALLEST = 8  # pixels a side below which there is no whole block
_SMALL = 96  # pixels a side of images whose borders are too much of them to be left out
_TILE, _TILES_A_SIDE = 256, 3  # what is looked at of a large image
_RESOLUTION = 4  # bins of a histogram in a grey level
_BINS = _RESOLUTION * 1040 + 1  # a coefficient is at most 1024 in size, with overshoot a little more
_STEPS = np.arange(1, 256)
_WEIGHTS = np.random.default_rng(0).integers(2**36, size=64).astype(np.float64)  # by which blocks are told apart
_RESAMPLED = 0.8  # how far rounding samples may move a coefficient that is rounded again
_OUTLIERS = 0.02  # share of coefficients that are off for other reasons
_UNINFORMATIVE = 4.0  # times the noise: sizes that fit every step
_SURE = 5.0  # nats by which a step must be more likely than every other one
_TABLES = 6  # of libjpeg's that are tried
_AT_A_GLANCE, _CLOSELY = 256, 1024  # blocks that are looked at, of every grid and of the best
_SHARED = np.log(8.0)  # nats of a block that is explained by its DC alone, which rounding makes a multiple of 8
_GAUSSIAN = (2 * np.pi * np.e) ** 0.5  # width of the uniform distribution with a Gaussian's entropy, by its std
_ALL = 4  # how much more it counts to explain all blocks than to explain many
_ABOUT_AS_GOOD = 0.8  # of the evidence
_MISS = 2.0  # nats that a block speaks against a table which does not explain it
_SHOWN = 2  # blocks that must show a step
_ENOUGH, _EXPLAINED = 30.0, 0.3  # evidence, and share of the blocks, of a JPEG
_OF_A_BLOCK = 1.5  # and evidence of a block, where coefficients are multiples of other steps already
_FINEST = 98  # quality factor above which steps are no wider than rounding; smooth gradients look like that
_EXCEPTION = 15.0  # nats of a block of pixels that a JPEG does not explain
_FILLED = 4  # rounds of filling in clipped chroma
_CLIPPING_REACH = 5  # pixels around clipped ones in which chroma cannot be told exactly


Tiles = list[tuple[np.ndarray, np.ndarray]]
"""Of each part of an image that is looked at its planes `[C, H, W]`, and which pixels `[H, W]` are clipped."""


def detect(pixels: np.ndarray, added: float = 0.0) -> JPEGHistory | None:
    """The JPEG that pixels, as for `estimate_history`, went through last, all of them; `None` where they show none.

    `added` is the standard deviation, in grey levels, of noise that was added after decoding, as by coding it again.
    """
    if min(pixels.shape[:2]) < _SMALLEST:
        return None
    tiles = _looked_at(pixels)
    starts = [(top, left) for top in range(8) for left in range(8)]
    blocks = [_luma_blocks(tiles, start) for start in starts]
    scores = [_scores(block_dct(each), np.hypot(_ROUNDING, added)) for each in blocks]

    def best_fit(scores: np.ndarray, blocks: np.ndarray, most: int) -> _Fit:
        return _best_fit(scores, 0, _whole_blocks(_some(blocks, most), _REACH + _REACH_ADDED * added, added))

    fits = [best_fit(*each, _AT_A_GLANCE) for each in zip(scores, blocks, strict=True)]
    # Grids between the blocks explain many of them too, being regular themselves; the right one explains all.
    best = max(range(len(starts)), key=lambda i: fits[i].evidence * fits[i].explained ** _ALL)
    fit = best_fit(scores[best], blocks[best], _CLOSELY)
    if fit.evidence < _ENOUGH or fit.explained < _EXPLAINED:
        return None
    if len(tiles[0][0]) > 1:  # the sum of three planes that were quantized is quantized in places
        green = _luma_blocks(_looked_at(pixels[..., 1]), starts[best])
        of_green = best_fit(_scores(block_dct(green), np.hypot(_ROUNDING, added)), green, _CLOSELY)
        if of_green.explained > fit.explained and of_green.evidence > fit.evidence:
            return None  # a JPEG whose components are R, G and B, which is not one of those that are estimated
    return _with_chroma(fit, tiles, tuple(-start % 8 for start in starts[best]), added)


def detect_below(pixels: np.ndarray, table: np.ndarray, added: float) -> JPEGHistory | None:
    """The coarser JPEG on the same grid that pixels were before they became the JPEG that they are.

    A coefficient was rounded to a multiple of one step, and then to one of another, that of luma's table `[8, 8]` of
    the later JPEG. So the first is within half the second step, and only the rounding of samples in between adds to
    that. `added`, as of `detect`, is for chroma, which is resampled in between.
    """
    tiles = _looked_at(pixels)
    blocks = _luma_blocks(tiles, (0, 0))
    if not len(blocks):  # none is whole, or all are flat or clipped
        return None
    coefficients = block_dct(blocks)
    some = _some(coefficients, _CLOSELY)
    fit = _best_fit(_scores_below(coefficients, table), 0, _rounded_again(some, table))
    if fit.evidence < max(_ENOUGH, _OF_A_BLOCK * len(some)) or fit.explained < _EXPLAINED:
        return None
    return _with_chroma(fit, tiles, (0, 0), added, whole=True)


def _with_chroma(
    fit: _Fit, tiles: Tiles, lost: tuple[int, int], added: float, whole: bool = False
) -> JPEGHistory | None:
    """The history whose luma is known; `whole`: that of an image from which nothing was cropped."""
    quality = estimate_quality_factor([fit.table])[0]
    if quality > _FINEST:
        return None
    history, fits = JPEGHistory("L", None, False, lost, (), (), added=added), [fit]
    if len(tiles[0][0]) > 1:
        history, chroma = _chroma(tiles, history, quality, whole)
        fits.append(chroma)
    tables, determined = tuple(each.table for each in fits), tuple(each.determined for each in fits)
    found = {"evidence": fit.evidence, "explained": fit.explained}
    return replace(history, quantization_tables=tables, determined=determined, **found)


# --- Likelihoods ---


def _looked_at(pixels: np.ndarray) -> Tiles:
    return [(planes_of(tile), ((tile == 0) | (tile == 255)).any(axis=2)) for tile in _tiles(checked(pixels))]


def _some(blocks: np.ndarray, most: int) -> np.ndarray:
    return blocks[:: -(-len(blocks) // most) or 1]


def _tiles(pixels: np.ndarray) -> list[np.ndarray]:
    """The image, or parts that are spread over a large one, from rows and columns that are multiples of 16."""
    height, width = pixels.shape[:2]
    if height * width <= (_TILE * _TILES_A_SIDE) ** 2:
        return [pixels]
    tops, lefts = (
        np.unique(np.linspace(0, max(side - _TILE, 0), _TILES_A_SIDE).astype(int) // 16 * 16)
        for side in (height, width)
    )
    return [pixels[top : top + _TILE, left : left + _TILE] for top in tops for left in lefts]


def _spread(mask: np.ndarray, reach: int) -> np.ndarray:
    """A mask `[H, W]` and what is at most `reach` rows and columns from it, or from the border of a larger image."""
    beyond = min(mask.shape) > _SMALL
    for axis in (0, 1):
        lines = np.pad(mask.swapaxes(0, axis), ((reach, reach), (0, 0)), constant_values=beyond)
        mask = np.any([lines[i : i + mask.shape[axis]] for i in range(2 * reach + 1)], axis=0).swapaxes(0, axis)
    return mask


@lru_cache(maxsize=4)
def _log_ratios(noise: float) -> np.ndarray:
    """`[bins, 255]`: logarithm of how much likelier a coefficient's size is with each step than without.

    Without quantization all sizes between two multiples of a step are about as likely; around zero all are likely
    either way. Where a block has few coefficients, its pixels are rounded alike, so that the noise has a wide part.
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


def _scores_below(coefficients: np.ndarray, table: np.ndarray) -> np.ndarray:
    """`[64, 255]`: the evidence for each step at each frequency, of coefficients that were then rounded by a table."""
    scores = np.zeros((64, len(_STEPS)), np.float32)
    for i, step in enumerate(table.ravel()):
        sizes, counts = np.unique(np.rint(np.abs(coefficients[:, i // 8, i % 8]) / step), return_counts=True)
        sizes, counts = sizes[sizes > 0] * step, counts[sizes > 0]
        near = np.abs(sizes[:, None] - _STEPS * np.rint(sizes[:, None] / _STEPS)) <= step / 2 + _RESAMPLED
        density = np.where(near, (1 - _OUTLIERS) * _STEPS / (step + 2 * _RESAMPLED), 0) + _OUTLIERS
        scores[i] = counts @ np.where(step < _STEPS, np.log(density), 0)
    return scores


def _luma_blocks(tiles: Tiles, start: tuple[int, int]) -> np.ndarray:
    """Blocks `[N, 8, 8]` of luma on the grid that has one at `start`: not flat, nor clipped, nor alike but for DC."""
    chosen = []
    for planes, extreme in tiles:
        blocks = in_units(planes[0], (8, 8), start)
        chosen.append(blocks[~in_units(extreme, (8, 8), start).any(axis=(2, 3))])
    blocks = np.concatenate(chosen)
    keys = (blocks - blocks[:, :1, :1]).reshape(-1, 64).astype(np.float64) @ _WEIGHTS  # in integers: exact
    values, first = np.unique(keys, return_index=True)
    return blocks[np.sort(first[values != 0])]


@lru_cache(maxsize=2)
def _standard_tables(component: int) -> np.ndarray:
    """`[100, 8, 8]`: libjpeg's tables of luma (0) or chroma (1) by quality factor."""
    return np.stack([quality_tables(factor)[component] for factor in range(1, 101)])


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
    scores: np.ndarray, component: int, fit: Callable[[np.ndarray], _Fit], quality: int | None = None
) -> _Fit:
    """The table that explains most, among libjpeg's likeliest and the one that is likeliest step by step.

    `component` is 0 for luma, 1 for chroma; a given quality factor is preferred to others that explain about as much.
    """
    standard, every = _standard_tables(component), np.arange(64)
    order = np.argsort(-scores[every, standard.reshape(-1, 64) - 1].sum(axis=1), kind="stable")[:_TABLES]
    best = scores.argmax(axis=1)
    second, first = np.partition(scores, -2, axis=1)[:, -2:].T
    sure = first - second > _SURE
    nearest = max((fit(table) for table in standard[order]), key=lambda fit: fit.evidence)
    if quality is not None:
        preferred = fit(standard[quality - 1])
        if preferred.evidence >= _ABOUT_AS_GOOD * nearest.evidence and preferred.explained > nearest.explained - 0.01:
            nearest = preferred
    free = np.where(sure, _STEPS[best], nearest.table.ravel()).reshape(8, 8)
    own = fit(free)
    if own.explained > nearest.explained and own.evidence > nearest.evidence + _SURE * (free != nearest.table).sum():
        return own._replace(determined=own.determined & sure.reshape(8, 8))
    return nearest


def _whole_blocks(blocks: np.ndarray, reach: float, added: float) -> Callable[[np.ndarray], _Fit]:
    """A table explains a block of samples `[8, 8]` when multiples of its steps decode to all of them within `reach`.

    Equal rows or columns, as of labels and pixel art that were enlarged, are rounded alike. So their fewer numbers are
    known less exactly, and each is counted once, however many coefficients it shows in.
    """
    coefficients = block_dct(blocks)
    free = _distinct_rows(blocks) * _distinct_rows(blocks.swapaxes(1, 2))
    width = np.maximum((64 / free) ** 0.5, _GAUSSIAN * added)[:, None, None]

    def fit(table: np.ndarray) -> _Fit:
        levels = np.rint(coefficients / table)
        made = inverse_block_dct((levels * table).astype(np.float32))
        explained = np.abs(blocks - made).max(axis=(1, 2), initial=0) <= reach
        return _fit(table, levels, explained, width, free - 1)

    return fit


def _distinct_rows(blocks: np.ndarray) -> np.ndarray:
    """How many rows of each block `[N, 8, 8]` differ from each other, `[N]`."""
    keys = np.sort(np.rint(blocks * _RESOLUTION).astype(np.float64) @ _WEIGHTS[:8], axis=1)
    return 1 + (np.diff(keys, axis=1) != 0).sum(axis=1)


def _rounded_again(coefficients: np.ndarray, later: np.ndarray) -> Callable[[np.ndarray], _Fit]:
    """A table explains a block of coefficients when each is where a later table may have moved a multiple."""

    def fit(table: np.ndarray) -> _Fit:
        levels = np.rint(coefficients / table)
        explained = (np.abs(coefficients - levels * table) <= later / 2 + _RESAMPLED).all(axis=(1, 2))
        return _fit(table, levels, explained, np.minimum(later + 2 * _RESAMPLED, table))

    return fit


def _fit(
    table: np.ndarray, levels: np.ndarray, explained: np.ndarray, width: np.ndarray, free: int | np.ndarray = 63
) -> _Fit:
    """By chance a block is explained once in as many times as there are widths in the bins of what is not zero.

    Of that at most as many as are `free` are counted.
    """
    if not len(levels):
        return _Fit(table, np.zeros((8, 8), bool), 0.0, 0.0)
    present = (levels != 0) & explained[:, None, None]
    chance = (present * np.log(table / width).clip(min=0)).sum(axis=(1, 2))
    chance = chance * np.minimum(1, free / np.maximum(present.sum(axis=(1, 2)), 1)) - _SHARED
    evidence = float(np.where(explained, np.maximum(chance, 0), -_MISS).sum())
    return _Fit(table, present.sum(axis=0) >= _SHOWN, evidence, float(explained.mean()))


# --- Chroma ---


def _chroma(tiles: Tiles, luma: JPEGHistory, quality: int, whole: bool) -> tuple[JPEGHistory, _Fit]:
    """The chroma subsampling, upsampling and phase that describe chroma in the fewest nats, and the fit of its table.

    A block that a candidate explains takes its coefficients, any other as many nats as chroma takes that was not
    quantized (minimum description length: Rissanen, 1978). So of candidates that explain all, the most frugal is taken;
    two are compared where both can tell.
    """
    found = None
    for name in reversed(HALVED_SUBSAMPLINGS):  # where both explain it, the coarser one
        across, down = SUBSAMPLING_FACTORS[name]
        for y, x in np.ndindex((1, 1) if whole else (down, across)):
            for fancy in (False,) if name == "4:4:4" else (True, False):
                offset = luma.offset[0] + 8 * y, luma.offset[1] + 8 * x
                trial = JPEGHistory("YCbCr", name, fancy, offset, (), (), added=luma.added)
                nats, fit = _chroma_fit(tiles, trial, quality)
                if found is None or np.isnan(found[0]).all() or np.nansum(nats - found[0]) < 0:
                    found = nats, trial, fit
    return found[1:]


def _chroma_fit(tiles: Tiles, trial: JPEGHistory, quality: int) -> tuple[np.ndarray, _Fit]:
    """The nats that each block of 8 x 8 pixels, in Cb and in Cr, takes by one candidate, and its best table's fit.

    NaN where that cannot be told, in MCUs that the border cuts or that are mostly clipped. What clipping took away is
    filled in from what is decoded.
    """
    factors, fancy = trial.subsampling(1), trial.fancy_upsampling
    reach = _REACH + _REACH_ADDED * trial.added + _FANCY_REACH * fancy
    chosen = []
    for planes, extreme in tiles:
        padding = trial.padding(*extreme.shape)
        inexact = np.pad(_spread(extreme, _CLIPPING_REACH * fancy), padding, mode="edge")
        exact = ~in_units(inexact, trial.mcu_size).any(axis=(2, 3)) & ~cut_blocks(factors, padding, extreme.shape)
        chosen += [framed(plane, factors, fancy, padding)[exact] for plane in planes[1:]]
    chosen = np.concatenate(chosen)
    blocks = _some(inverse_block_dct(chosen), _CLOSELY)
    explain = _whole_blocks(blocks, reach, trial.added)
    if trial.added:  # resampled and rounded once more, chroma says little of its table
        fit = explain(_standard_tables(1)[quality - 1])
    else:
        fit = _best_fit(_scores(chosen, _ROUNDING), 1, explain, quality)
    nats = []
    for plane, extreme in ((plane, extreme) for planes, extreme in tiles for plane in planes[1:]):
        padding = trial.padding(*extreme.shape)
        cut, filled = cut_blocks(factors, padding, extreme.shape), plane
        for _ in range(_FILLED if extreme.any() else 1):
            coefficients = framed(filled, factors, fancy, padding)
            levels = np.rint(coefficients / fit.table)
            quantized = np.where(cut[..., None, None], coefficients, levels * fit.table)
            made = decoded(quantized, factors, fancy, padding, extreme.shape)
            filled = np.where(extreme, made, plane)
        off = np.pad(np.abs(made - filled), padding)
        explained = in_units(off, trial.mcu_size).max(axis=(2, 3)) <= reach
        unquantized = block_dct(in_units(np.pad(filled, padding, mode="edge"), (8, 8)))
        plain = in_units(_code(unquantized), factors).sum(axis=(2, 3))
        # Added noise is in all blocks, so that one which is not explained says little.
        plain = np.full_like(plain, plain.mean()) if trial.added else plain + _EXCEPTION * np.prod(factors)
        own = np.where(explained, _code(levels), plain) / np.prod(factors)
        clear = in_units(np.pad(~extreme, padding), trial.mcu_size).mean(axis=(2, 3)) >= 0.5
        own = np.where(cut | ~clear, np.nan, own).repeat(factors[0], axis=0).repeat(factors[1], axis=1)
        (above, below), (before, after) = ((a // 8, b // 8) for a, b in padding)
        nats.append(own[above : len(own) - below, before : own.shape[1] - after].ravel())
    return np.concatenate(nats), fit


def _code(levels: np.ndarray) -> np.ndarray:
    """About the nats of a code for integers of any size for each block: two logarithms of each (Elias, 1975)."""
    levels = np.rint(levels)
    levels[:, 1:, 0, 0] -= levels[:, :-1, 0, 0].copy()
    return 2 * np.log1p(np.abs(levels)).sum(axis=(2, 3))
