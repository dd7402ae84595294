"""Entropy-coded data (ITU-T T.81, annexes F and G): what a damaged file still says, coefficient by coefficient.

Whole files are read by libjpeg-turbo, many times as fast; it does not say, though, where damage begins.
"""

from __future__ import annotations

import re
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .tables import DCT, ZIGZAG

UNMEASURED = 16
"""Missing bits of a coefficient that no scan has given; coefficients have fewer."""

# Impossible bits are often preceded by some that were misread already: this many MCUs before them are not believed.
# Of 512 bytes overwritten in a photograph, the first misread MCU is among them 9 times out of 10.
_DISTRUST = 16
_MOST_PLACES = 20  # of damage that are told
_PATIENCE = 1024  # MCUs between two looks at the clock
_ZIGZAG = ZIGZAG.tolist()
# Any number of fill bytes may come before a marker (T.81, B.1.1.2); looked for from the first of them on only, because
# a run that ends in no marker would otherwise be read again from each of its bytes.
RESTART = re.compile(rb"(?<!\xff)\xff+([\xd0-\xd7])")
_FALSE_MARKER = re.compile(rb"\xff[^\x00]", re.DOTALL)
_LONGEST_BLOCK = 64 * 32 // 8  # bytes; a code has 16 bits at most, and so has the value after it


@dataclass
class Scan:
    """A scan: its header (T.81, B.2.3), the tables in force, and its entropy-coded bytes."""

    components: tuple[int, ...]  # positions in the frame
    table_numbers: tuple[tuple[int, int], ...]  # (DC, AC) Huffman tables of each component
    spectral_start: int
    spectral_end: int
    successive_high: int
    successive_low: int
    restart_interval: int
    tables: dict[tuple[int, int], bytes] = field(repr=False)
    """(class, number) -> 16 counts of codes by length, then the symbols; class 0 is DC, 1 is AC."""
    data: bytes = field(default=b"", repr=False)


class OutOfTime(Exception):
    """Decoding took longer than it may."""


class _Stop(Exception):
    """The block at hand cannot be decoded, and none after it in its restart interval."""

    def __init__(self, reason: str, doubtful: bool = True) -> None:
        super().__init__(reason)
        self.doubtful = doubtful  # whether blocks just before are in doubt as well


@dataclass
class _Plane:
    """One component on its way, in blocks of whole MCUs."""

    horizontal_factor: int
    vertical_factor: int
    rows: int  # blocks of the component itself, without those that only fill MCUs
    columns: int
    stride: int  # blocks across, with those
    quantization_table: np.ndarray
    values: array  # 64 a block, row by row
    missing: np.ndarray  # [blocks, 64] int8

    @property
    def blocks(self) -> np.ndarray:
        """The values, `[blocks, 64]` int16."""
        return np.frombuffer(self.values, dtype=np.int16).reshape(-1, 64)


def decode_scans(
    scans: Sequence[Scan],
    factors: Sequence[tuple[int, int]],
    shapes: Sequence[tuple[int, int]],
    quantization_tables: Sequence[np.ndarray],
    progressive: bool,
    seconds: float = float("inf"),
) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Decode scan after scan; after damage go on with the next restart interval, or else the next scan.

    Of each component are given (horizontal, vertical) sampling factors, which are (1, 1) of a single one, the blocks
    down and across (T.81, A.1.1), and the table `[8, 8]`. The result is of each the coefficients, int16
    `[down, across, 8, 8]`, and as many missing bits, int8: 0 where a coefficient is known, n where its lowest n bits
    are not, `UNMEASURED` where nothing is; and a few words for each of the first places of damage. Raises `OutOfTime`
    after those seconds of processor time: scan after scan over blocks that cost no bits would take hours.
    """
    end = time.thread_time() + seconds

    def check_time() -> None:
        if time.thread_time() > end:
            raise OutOfTime

    down = max(-(-rows // v) for (rows, _), (_, v) in zip(shapes, factors, strict=True))
    across = max(-(-columns // h) for (_, columns), (h, _) in zip(shapes, factors, strict=True))
    planes = []
    for (h, v), (rows, columns), table in zip(factors, shapes, quantization_tables, strict=True):
        blocks = down * v * across * h
        missing = np.full((blocks, 64), UNMEASURED, dtype=np.int8)
        planes.append(_Plane(h, v, rows, columns, across * h, table, array("h", bytes(128 * blocks)), missing))
    damage = []
    for number, scan in enumerate(scans, 1):
        where = f" of scan {number}" if len(scans) > 1 else ""
        damage += [f"{words}{where}" for words in _decode_scan(scan, planes, progressive, (down, across), check_time)]
        del damage[_MOST_PLACES:]

    coefficients, missing = [], []
    for number, plane in enumerate(planes, 1):
        if progressive:  # a value is known only after its last scan, and which of them went wrong is not
            odd = impossible(plane.blocks, plane.quantization_table) & (plane.missing == 0).all(axis=1)
            plane.missing[odd] = UNMEASURED
            if odd.any():
                damage.append(f"values that no image has in {odd.sum()} blocks of component {number}")
        parts = (part.reshape(-1, plane.stride, 8, 8) for part in (plane.blocks, plane.missing))
        values, lost = (part[: plane.rows, : plane.columns] for part in parts)
        values[lost == UNMEASURED] = 0
        coefficients.append(values)
        missing.append(lost)
    return coefficients, missing, damage


def _decode_scan(
    scan: Scan, planes: list[_Plane], progressive: bool, mcus: tuple[int, int], check_time: Callable[[], None]
) -> Iterator[str]:
    """Decode one scan into the planes; yields a few words for each restart interval that is damaged."""
    check_time()
    chosen = [planes[position] for position in scan.components]
    factors = [(plane.vertical_factor, plane.horizontal_factor) for plane in chosen]
    if len(chosen) == 1:  # not interleaved: the blocks of the component itself, row by row (A.2.2)
        mcus, factors = (chosen[0].rows, chosen[0].columns), [(1, 1)]
    count = mcus[0] * mcus[1]
    try:
        decoder = _Decoder(scan, chosen, progressive)
    except _Stop as stop:
        yield str(stop)
        return

    blocks = [_blocks_of(mcus, plane.stride, *own) for plane, own in zip(chosen, factors, strict=True)]
    stops = []  # MCUs that an end-of-band run does not pass over unread
    if progressive and scan.successive_high and scan.spectral_start:
        stops = np.flatnonzero(decoder.occupied[blocks[0][:, 0]]).tolist()
    stops.append(count)
    decoded, visits = np.zeros(count, dtype=bool), 0
    for first, data, is_last in _intervals(scan, count):
        end = min(first + (scan.restart_interval or count), count)
        false = _FALSE_MARKER.search(data)
        data = (data[: false.start()] if false else data).replace(b"\xff\x00", b"\xff")
        mcu, trouble = first, None
        decoder.start(data)
        try:
            while mcu < end:
                if decoder.run and (skipped := min(decoder.run, min(end, stops[bisect_left(stops, mcu)]) - mcu)):
                    decoder.run -= skipped  # blocks that are over before they begin
                    mcu += skipped
                    continue
                visits += 1
                if visits % _PATIENCE == 0:
                    check_time()
                for i, (plane, own) in enumerate(zip(chosen, blocks, strict=True)):
                    for index in own[mcu].tolist():
                        decoder.block(plane.values, index, i)
                mcu += 1
            if decoder.left >= 16 and mcu < count:  # some writers leave a byte, and after the last MCU more
                trouble = _Stop(f"{decoder.left // 8} bytes too many", doubtful=False)
        except _Stop as stop:
            trouble = _Stop("a marker that does not belong there") if false and decoder.left < 0 else stop
        decoded[first:mcu] = True
        if trouble:
            yield f"{trouble} at MCU {mcu} of {count}"
            cut = is_last and not false and decoder.left < 0  # the end is missing, not something before it
            if trouble.doubtful and not cut:
                decoded[max(first, mcu - _DISTRUST) : mcu] = False
    if not progressive:
        odd = np.zeros(count, dtype=bool)
        for plane, own in zip(chosen, blocks, strict=True):
            odd |= impossible(plane.blocks, plane.quantization_table)[own].any(axis=1)
        odd = np.flatnonzero(odd & decoded)
        length = scan.restart_interval or count
        for interval, at in zip(*np.unique(odd // length, return_index=True), strict=True):
            decoded[max(interval * length, odd[at] - _DISTRUST) : (interval + 1) * length] = False
            yield f"values that no image has at MCU {odd[at]} of {count}"
    for plane, own in zip(chosen, blocks, strict=True):
        known = own[decoded].ravel()
        for k in _ZIGZAG[scan.spectral_start : scan.spectral_end + 1]:
            if scan.successive_high:
                known = known[plane.missing[known, k] == scan.successive_high]
            plane.missing[known, k] = scan.successive_low


def _blocks_of(mcus: tuple[int, int], stride: int, down: int, across: int) -> np.ndarray:
    """Positions of the blocks of one component in each MCU, `[MCUs, blocks]`, of which it has `down` x `across`."""
    y, x = np.ogrid[: down * mcus[0], : across * mcus[1]]
    return (y * stride + x).reshape(mcus[0], down, mcus[1], across).swapaxes(1, 2).reshape(-1, down * across)


def _intervals(scan: Scan, count: int) -> Iterator[tuple[int, bytes, bool]]:
    """(first MCU, data, whether it is the last) of each restart interval; the numbers of the markers tell lost ones."""
    first, start = 0, 0
    for marker in RESTART.finditer(scan.data) if scan.restart_interval else ():
        yield first, scan.data[start : marker.start()], False
        expected = first // scan.restart_interval % 8
        first += (1 + (marker[1][0] - 0xD0 - expected) % 8) * scan.restart_interval
        start = marker.end()
        if first >= count:
            return
    yield first, scan.data[start:], True


def impossible(values: np.ndarray, quantization_table: np.ndarray) -> np.ndarray:
    """Which blocks `[blocks, 64]` decode to pixels further from 0..255 than quantization can have put them."""
    synthesis = (np.kron(DCT, DCT) * quantization_table.reshape(64, 1)).astype(np.float32)
    # All that rounding can do, and 32 that encoders which fight ringing add to white and black.
    reach = 128 + 32 + np.abs(synthesis).sum(axis=0) / 2
    odd = np.zeros(len(values), dtype=bool)
    for start in range(0, len(values), 4096):  # for a bounded use of memory
        part = slice(start, start + 4096)
        odd[part] = (np.abs(values[part] @ synthesis) > reach).any(axis=1)
    return odd


@lru_cache(maxsize=16)
def _lookup(table: bytes) -> list[int]:
    """`256 * length + symbol` of the code that each 16 bits start with, 0 where none does (T.81, annex C)."""
    lookup, symbols = [], iter(table[16:])
    for length, count in enumerate(table[:16], 1):
        for _ in range(count):
            lookup += [length << 8 | next(symbols)] * (1 << (16 - length))
    return lookup + [0] * ((1 << 16) - len(lookup))


class _Decoder:
    """Reads the blocks of a scan: `start` each restart interval, then `block` after `block`."""

    def __init__(self, scan: Scan, planes: list[_Plane], progressive: bool) -> None:
        self.first, self.last = scan.spectral_start, scan.spectral_end
        self.high, self.low = scan.successive_high, scan.successive_low
        need_dc = self.first == 0 and not self.high
        need_ac = self.last > 0
        tables = []
        for dc, ac in scan.table_numbers:
            for needed, key in ((need_dc, (0, dc)), (need_ac, (1, ac))):
                if needed and key not in scan.tables:
                    raise _Stop(f"Huffman table {key[1]} is missing")
                tables.append(_lookup(scan.tables[key]) if needed else None)
        self.tables = list(zip(tables[::2], tables[1::2], strict=True))
        self.ready = None  # where an AC refinement finds what it refines
        if self.high and self.first:
            band = _ZIGZAG[self.first : self.last + 1]
            self.ready = (planes[0].missing[:, band] == self.high).all(axis=1)
            self.occupied = planes[0].blocks[:, band].any(axis=1) | ~self.ready
        self.progressive = progressive
        if self.high:
            self._read = self._ac_refine if self.first else self._dc_refine
        elif self.first:
            self._read = self._ac_first
        else:
            self._read = self._dc_first if progressive else self._sequential

    def start(self, data: bytes) -> None:
        """Begin a restart interval; `data` without stuffed zeros."""
        self.size = 8 * len(data)
        self.data = data + bytes(_LONGEST_BLOCK)
        self.position = 0  # in bits
        self.predictions = [0] * len(self.tables)
        self.run = 0  # blocks that an end-of-band run still covers

    @property
    def left(self) -> int:
        """Bits that follow; negative where more were needed."""
        return self.size - self.position

    def block(self, values: array, index: int, component: int) -> None:
        """Decode one block; raises `_Stop`, and leaves it as it was, where that cannot be done."""
        base = 64 * index
        if self.ready is not None and not self.ready[index]:
            raise _Stop("what it refines is lost", doubtful=False)
        before = values[base : base + 64]
        try:
            self._read(values, base, component)
            if self.position > self.size:
                raise _Stop("the data end")
        except (_Stop, OverflowError) as error:
            values[base : base + 64] = before
            raise (error if isinstance(error, _Stop) else _Stop("an impossible value")) from None

    def _bits(self, count: int) -> int:
        """The next 0 to 16 bits."""
        position, data = self.position, self.data
        self.position = position + count
        at = position >> 3
        window = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
        return window >> (24 - count - (position & 7)) & ((1 << count) - 1)

    def _symbol(self, lookup: list[int]) -> int:
        position, data = self.position, self.data
        at = position >> 3
        entry = lookup[(data[at] << 16 | data[at + 1] << 8 | data[at + 2]) >> (8 - (position & 7)) & 0xFFFF]
        if not entry:
            raise _Stop("an impossible code")
        self.position = position + (entry >> 8)
        return entry & 0xFF

    def _value(self, size: int) -> int:
        """A number of `size` bits, of which the smaller half stands for negative ones (F.2.2.1)."""
        bits = self._bits(size)
        return bits if bits >> (size - 1) else bits - (1 << size) + 1

    def _sequential(self, values: array, base: int, component: int) -> None:
        self._dc_first(values, base, component)
        self._ac_first(values, base, component)

    def _dc_first(self, values: array, base: int, component: int) -> None:
        size = self._symbol(self.tables[component][0])
        if size > 11:
            raise _Stop("an impossible code")
        if size:
            self.predictions[component] += self._value(size)
        values[base] = self.predictions[component] << self.low

    def _dc_refine(self, values: array, base: int, component: int) -> None:
        values[base] |= self._bits(1) << self.low

    def _ac_first(self, values: array, base: int, component: int) -> None:
        lookup, symbol, k = self.tables[component][1], self._symbol, self.first or 1
        while k <= self.last:
            code = symbol(lookup)
            run, size = code >> 4, code & 15
            if size:
                k += run
                if k > self.last:
                    raise _Stop("an impossible code")
                values[base + _ZIGZAG[k]] = self._value(size) << self.low
                k += 1
            elif run == 15:
                k += 16
            else:
                self.run = (1 << run) - 1 + self._bits(run) if self.progressive else 0
                return

    def _ac_refine(self, values: array, base: int, component: int) -> None:
        lookup, k, one = self.tables[component][1], self.first, 1 << self.low
        while not self.run and k <= self.last:
            zeros, size = divmod(self._symbol(lookup), 16)
            new = 0
            if size == 1:
                new = one if self._bits(1) else -one
            elif size:
                raise _Stop("an impossible code")
            elif zeros < 15:
                self.run = (1 << zeros) + self._bits(zeros)
                break
            while k <= self.last:
                if values[base + _ZIGZAG[k]]:
                    self._refine(values, base + _ZIGZAG[k], one)
                elif zeros:
                    zeros -= 1
                else:
                    break
                k += 1
            if new:
                if k > self.last:
                    raise _Stop("an impossible code")
                values[base + _ZIGZAG[k]] = new
            k += 1
        if self.run:
            for at in _ZIGZAG[k : self.last + 1]:
                if values[base + at]:
                    self._refine(values, base + at, one)
            self.run -= 1

    def _refine(self, values: array, at: int, one: int) -> None:
        if self._bits(1):
            values[at] += one if values[at] > 0 else -one
