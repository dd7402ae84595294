"""Where in pixels a JPEG is to be found: all over, in a part of them, as in a screenshot, or below a later save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..jpeg.planes import checked, in_units, planes_of
from ..jpeg.tables import estimate_quality_factor
from .coefficients import exact_blocks
from .detection import detect, detect_below
from .history import JPEGHistory, Region

_COARSER = 1.3  # times the steps of a file, those of an earlier one that counts
_LOWER = 5  # and how far its quality factor is below that of the file
_TILE, _TILES = 128, 4  # pixels a side, and number, of the parts in which a JPEG is looked for
_CELL = 32  # pixels that these are apart at least
_JUMP, _EDGE = 6.0, 32.0  # grey levels: the largest jump that counts in full, and the least that is drawn
_BAND, _BANDS = 32, 12  # rows, and number, of the bands that are enough to see that a JPEG is all there is
_ALL_OF_IT = 0.99  # share of their blocks that it then explains
_MOSTLY = 0.6  # share of the blocks of a part that its JPEG must explain
_LEAST = 16  # blocks of a part
_EDGE_JUMP = 2.0  # times the usual difference of neighbouring lines, that at the edge of an image on a page
_FLAT = -0.05  # of a block: what one in a single colour says for its being in that part


def estimate_history(pixels: np.ndarray) -> JPEGHistory | None:
    """The JPEG that an image, or a rectangle in it, went through last; `None` where it shows none.

    Of several that lie side by side that which shows most is found; once it is restored, it shows none any more.
    Pixels are `[H, W]` or `[H, W, 3]` (RGB), uint8, as decoded: not resized, filtered or adjusted since; others raise
    `ValueError`.
    """
    pixels = checked(pixels)
    whole = detect(pixels)
    if whole and len(pixels) > 2 * _BANDS * _BAND and _in_bands(pixels, whole):
        return whole
    luma = planes_of(pixels)[0]
    found = whole or _in_a_tile(pixels, luma)
    for _ in range(2):  # its tables are known better once its region is
        region = found and _region(pixels, luma, found)
        if not region:
            return whole
        found = detect(region.of(pixels))
        if found is None or found.explained < _MOSTLY:
            return whole
        found = replace(found, region=region)
    return found


def estimate_earlier(pixels: np.ndarray, tables: Sequence[np.ndarray]) -> JPEGHistory | None:
    """The coarser JPEG that an image had been before it was saved as the JPEG at hand; `None` where it shows none.

    The file's quantization tables say how much noise saving it again has added to its pixels.
    """
    added = float(np.median(tables[0])) / 12**0.5
    earlier = detect_below(pixels, tables[0], added) or detect(pixels, added)
    if earlier is None or np.median(earlier.quantization_tables[0]) < _COARSER * np.median(tables[0]):
        return None
    # Where its own steps are hardly wider than rounding, a file is taken for one of about its own quality.
    return earlier if earlier.quality_factor <= estimate_quality_factor(tables)[0] - _LOWER else None


# --- Regions ---


def _in_a_tile(pixels: np.ndarray, luma: np.ndarray) -> JPEGHistory | None:
    """The JPEG of that tile which shows one most clearly, of those whose rows and columns jump most every 8 pixels."""
    if min(pixels.shape[:2]) < _TILE or max(pixels.shape[:2]) < _TILE + _CELL:
        return None
    jumps = _jumps(luma) + _jumps(luma.T).T
    best = None
    for _ in range(_TILES):
        y, x = np.unravel_index(jumps.argmax(), jumps.shape)
        tile = Region(_CELL * int(y), _CELL * int(x), _TILE, _TILE)
        found = detect(tile.of(pixels))
        if found and (best is None or found.evidence > best.evidence):
            best = replace(found, region=tile)
        reach = _TILE // _CELL - 1
        jumps[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = -np.inf
    return best


def _jumps(plane: np.ndarray) -> np.ndarray:
    """How much more the columns of each tile jump at one of every 8 than at any other, `[down, across]`."""
    down, across = (side // _CELL for side in plane.shape)
    steps = np.abs(np.diff(plane, axis=1))
    excess = steps[:, 1:-1] - (steps[:, :-2] + steps[:, 2:]) / 2
    excess = np.where(np.maximum(np.maximum(steps[:, :-2], steps[:, 1:-1]), steps[:, 2:]) < _EDGE, excess, 0)
    excess = np.pad(excess.clip(-_JUMP, _JUMP), ((0, 0), (2, 1)))[: _CELL * down, : _CELL * across]
    cells = excess.reshape(down, _CELL, across, _CELL // 8, 8).mean(axis=(1, 3))
    tiles = sliding_window_view(cells, (_TILE // _CELL, _TILE // _CELL), axis=(0, 1)).mean(axis=(-2, -1))
    tiles.sort(axis=-1)
    return tiles[..., -1] - tiles[..., -2]


def _region(pixels: np.ndarray, luma: np.ndarray, history: JPEGHistory) -> Region | None:
    """The part of an image that a JPEG explains; `None` for all of it."""
    exact, start = exact_blocks(pixels, history.beyond_region())
    blocks = in_units(luma, (8, 8), start)
    flat = np.ptp(blocks, axis=(2, 3)) == 0
    votes = np.where(flat, _FLAT, np.where(exact, 1.0, -1.0))
    top, bottom, left, right = _densest(votes)
    inside = np.zeros(flat.shape, bool)
    inside[top:bottom, left:right] = True
    outside = votes[~inside]
    if (outside == -1).sum() <= max(_LEAST, (outside == 1).sum()) or votes[inside].sum() < _LEAST:
        return None
    rows, columns = slice(top, bottom), slice(left, right)
    rows = _grown(rows, exact[:, columns], blocks[:, columns])
    columns = _grown(columns, exact[rows].T, blocks[rows].swapaxes(0, 1))
    rows, columns = (
        slice(8 * n.start + first, 8 * n.stop + first) for n, first in zip((rows, columns), start, strict=True)
    )
    top, bottom = _to_edges(rows, luma[:, columns])
    left, right = _to_edges(columns, luma[rows].T)
    return Region(top, left, bottom - top, right - left)


def _in_bands(pixels: np.ndarray, history: JPEGHistory) -> bool:
    """Whether a JPEG explains bands of an image, from the first rows to the last."""
    missed = count = 0
    for top in np.linspace(0, len(pixels) - _BAND, _BANDS).astype(int):
        band = pixels[top : top + _BAND]
        exact, start = exact_blocks(band, history.below(int(top)))
        flat = np.ptp(in_units(planes_of(band)[0], (8, 8), start), axis=(2, 3)) == 0
        missed, count = missed + (~exact & ~flat).sum(), count + (~flat).sum()
    return missed <= (1 - _ALL_OF_IT) * count


def _grown(inside: slice, exact: np.ndarray, blocks: np.ndarray) -> slice:
    """Lines of blocks `[lines, blocks]`, with those beside them that are exact and not in one colour, as pages are."""
    good = exact.all(axis=1) & (np.ptp(blocks, axis=(1, 2, 3)) > 0)
    before, after = good[: inside.start][::-1], good[inside.stop :]
    more = [int(np.append(beside, False).argmin()) for beside in (before, after)]
    return slice(inside.start - more[0], inside.stop + more[1])


def _to_edges(inside: slice, lines: np.ndarray) -> tuple[int, int]:
    """First and end of lines of pixels, with those of a block that its JPEG's edge cuts; plain lines are a page's."""
    jumps = np.abs(np.diff(lines, axis=0)).mean(axis=1)  # of line i + 1 from line i
    usual = _EDGE_JUMP * max(jumps[inside][:-1].mean(), 1.0)
    plain = np.ptp(lines, axis=1) == 0

    def more(jumps: np.ndarray, plain: np.ndarray) -> int:
        count = int(plain.argmax()) if plain.any() else len(plain)
        near = jumps[: min(count + 1, 8)]
        if near.max(initial=0) > usual:
            return int((near >= near.max() / 2).argmax())
        return count if count == len(plain) < 8 else 0  # the image ends before the block does

    above = more(jumps[: inside.start][::-1], plain[: inside.start][::-1])
    return inside.start - above, inside.stop + more(jumps[inside.stop - 1 :], plain[inside.stop :])


def _densest(votes: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the rectangle with the largest sum (Bentley, 1984, for all pairs of rows)."""
    if len(votes) > votes.shape[1]:  # which there may be very many of
        left, right, top, bottom = _densest(votes.T)
        return top, bottom, left, right
    best, found = 0, (0, 0, 0, 0)
    for top in range(len(votes)):
        sums = np.pad(votes[top:].cumsum(axis=0).cumsum(axis=1), ((0, 0), (1, 0)))
        gains = sums - np.minimum.accumulate(sums, axis=1)
        if gains.max() > best:
            rows, right = np.unravel_index(gains.argmax(), gains.shape)
            left = int(sums[rows, : right + 1].argmin())
            best, found = gains.max(), (top, top + int(rows) + 1, left, int(right))
    return found
