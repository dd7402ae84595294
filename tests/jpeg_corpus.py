"""Hostile input: a file of every structural kind, ways to break one, and the judgement of what becomes of it."""

from __future__ import annotations

import io
import itertools
import os
import random
import re
import resource
import signal
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import jpeglib  # noqa: F401  so that forks need not load it
import numpy as np
from PIL import Image

from pipeline_ddrm_jpeg import JPEGDamageError, JPEGFile, JPEGFileError
from pipeline_ddrm_jpeg.jpeg import reader as jpeg_reader
from pipeline_ddrm_jpeg.jpeg.entropy import decode_scans
from pipeline_ddrm_jpeg.jpeg.markers import components_of, parse, plane_shapes
from pipeline_ddrm_jpeg.jpeg.reader import _run_reader
from pipeline_ddrm_jpeg.jpeg.tables import ZIGZAG

SECONDS = 2.0  # of processor time that a file below 1 MiB may take
MEBIBYTES = 512  # that it may take
_PATIENCE = 60  # seconds on the clock, after which a file counts as hung
_PEAK = Path("/proc/self/clear_refs")
_PICTURE = Path(__file__).parent.parent / "examples" / "originals" / "cat.png"

Random = random.Random


# --- Files of every structural kind ---


def encode(picture: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, options.pop("format", "JPEG"), **options)
    return stream.getvalue()


def segment(marker: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def segments(data: bytes) -> list[tuple[int, int, int]]:
    """(marker, first byte, byte after the last) of each marker segment, entropy-coded data with its scan's header."""
    found, position = [], 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xD9:
        start, marker = position, data[position + 1]
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:
            after = re.compile(rb"\xff(?![\x00\xff\xd0-\xd7])", re.DOTALL).search(data, position)
            position = after.start() if after else len(data)
        position = min(position, len(data))
        found.append((marker, start, position))
    return found


@cache
def _standard_tables() -> tuple[bytes, dict[tuple[int, int], dict[int, tuple[int, int]]]]:
    """The DHT segments of Annex K, from a file that Pillow wrote, and symbol -> (code, length) of each table."""
    data = encode(Image.new("RGB", (8, 8)))
    made, codes = b"", {}
    for marker, start, end in segments(data):
        if marker == 0xC4:
            made += data[start:end]
            table, code, symbols = {}, 0, iter(data[start + 21 : end])
            for length, count in enumerate(data[start + 5 : start + 21], 1):
                for _ in range(count):
                    table[next(symbols)] = (code, length)
                    code += 1
                code <<= 1
            codes[data[start + 4] >> 4, data[start + 4] & 15] = table
    return made, codes


def write_jpeg(
    factors: list[tuple[int, int]], size: tuple[int, int], seed: int = 0, interleaved: bool = True, interval: int = 0
) -> tuple[bytes, list[np.ndarray]]:
    """A baseline file with coefficients of our own choice, coded here; and those, `[down, across, 8, 8]` of each."""
    rng = np.random.default_rng(seed)
    headers, codes = _standard_tables()
    width, height = size
    most_h, most_v = max(h for h, _ in factors), max(v for _, v in factors)
    mcus = (-(-height // (8 * most_v)), -(-width // (8 * most_h)))
    planes = []
    for h, v in factors:
        zigzag = np.zeros((mcus[0] * v, mcus[1] * h, 64), dtype=np.int16)
        zigzag[..., 0] = rng.integers(-30, 31, zigzag.shape[:2])
        at = rng.integers(1, 64, (*zigzag.shape[:2], 3))
        np.put_along_axis(zigzag, at, rng.integers(-3, 4, at.shape).astype(np.int16), axis=2)
        planes.append(zigzag)
    own = [(-(-height * v // (8 * most_v)), -(-width * h // (8 * most_h))) for h, v in factors]

    def scan(chosen: list[int]) -> bytes:
        bits, previous, made, number = [], dict.fromkeys(chosen, 0), b"", 0

        def flush() -> bytes:
            text = "".join(bits)
            text += "1" * (-len(text) % 8)
            bits.clear()
            return int(text or "0", 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")

        def put(table: dict[int, tuple[int, int]], run: int, value: int) -> None:
            size = abs(value).bit_length()
            code, length = table[run << 4 | size]
            bits.append(f"{code:0{length}b}")
            if size:
                bits.append(f"{value if value > 0 else value + (1 << size) - 1:0{size}b}")

        if len(chosen) == 1:
            rows, columns = own[chosen[0]]
            units = [[(chosen[0], y, x)] for y in range(rows) for x in range(columns)]
        else:
            units = [
                [
                    (i, y * factors[i][1] + dy, x * factors[i][0] + dx)
                    for i in chosen
                    for dy in range(factors[i][1])
                    for dx in range(factors[i][0])
                ]
                for y in range(mcus[0])
                for x in range(mcus[1])
            ]
        for n, unit in enumerate(units):
            if interval and n and n % interval == 0:
                made += flush() + bytes((0xFF, 0xD0 + number % 8))
                number, previous = number + 1, dict.fromkeys(chosen, 0)
            for i, y, x in unit:
                block, kind, run = planes[i][y, x].tolist(), min(i, 1), 0
                put(codes[0, kind], 0, block[0] - previous[i])
                previous[i] = block[0]
                for value in block[1:]:
                    if not value:
                        run += 1
                        continue
                    for _ in range(run // 16):
                        put(codes[1, kind], 15, 0)
                    put(codes[1, kind], run % 16, value)
                    run = 0
                if run:
                    put(codes[1, kind], 0, 0)
        selectors = b"".join(bytes((i + 1, 17 * min(i, 1))) for i in chosen)
        return segment(0xDA, bytes((len(chosen),)) + selectors + b"\0\x3f\0") + made + flush()

    table = segment(0xDB, b"\0" + bytes(range(3, 67)))
    frame = struct.pack(">BHHB", 8, height, width, len(factors))
    frame += b"".join(bytes((i + 1, h << 4 | v, 0)) for i, (h, v) in enumerate(factors))
    restart = segment(0xDD, struct.pack(">H", interval)) if interval else b""
    everything = list(range(len(factors)))
    scans = scan(everything) if interleaved else b"".join(scan([i]) for i in everything)
    data = b"\xff\xd8" + table + segment(0xC0, frame) + headers + restart + scans + b"\xff\xd9"
    truth = []
    for zigzag, (rows, columns) in zip(planes, own, strict=True):
        natural = np.empty((rows, columns, 64), dtype=np.int16)
        natural[..., ZIGZAG] = zigzag[:rows, :columns]
        truth.append(natural.reshape(rows, columns, 8, 8))
    return data, truth


@cache
def corpus() -> dict[str, bytes]:
    """A small file of every structural kind; names with `!` are kinds that are refused."""
    photo = Image.open(_PICTURE).convert("RGB").resize((53, 38))
    grey = photo.convert("L")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a cat"
    thumbnail = encode(photo.resize((16, 12)))
    files = {
        **{f"baseline {s}": encode(photo, quality=60, subsampling=s) for s in ("4:4:4", "4:2:2", "4:2:0")},
        **{f"progressive {s}": encode(photo, progressive=True, subsampling=s) for s in ("4:4:4", "4:2:2", "4:2:0")},
        "optimized": encode(photo, optimize=True),
        "quality factor 5": encode(photo, quality=5),
        "quality factor 100": encode(photo, quality=100),
        "grey": encode(grey),
        "grey progressive": encode(grey, progressive=True),
        "one pixel": encode(photo.resize((1, 1))),
        "one row": encode(photo.resize((200, 1))),
        "one column": encode(photo.resize((1, 200)), progressive=True),
        "restart markers": encode(photo, restart_marker_blocks=1),
        "restart markers, progressive": encode(photo, restart_marker_rows=1, progressive=True),
        "16-bit tables": encode(photo, qtables=[[300] * 64, [900] * 64]),
        "rgb": encode(photo, subsampling="4:4:4", keep_rgb=True),
        "described": encode(photo, exif=exif, xmp=b"<x/>", comment=b"hello", icc_profile=bytes(70000)),
        "thumbnail": _insert(encode(photo), segment(0xE1, b"Exif\0\0" + thumbnail)),
        "concatenated": encode(photo) + encode(grey),
        "trailing data": encode(photo) + bytes(range(256)) * 8,
        "mpo": encode(photo, format="MPO", save_all=True, append_images=[photo.rotate(3)]),
        "motion jpeg": _without(encode(photo), 0xC4),
        "flat": encode(Image.new("RGB", (300, 300), "teal"), optimize=True),
        "flat progressive": encode(Image.new("RGB", (300, 300), "teal"), progressive=True),
        "not interleaved": write_jpeg([(2, 2), (1, 1), (1, 1)], (53, 38), interleaved=False)[0],
        "not interleaved, restarts": write_jpeg([(2, 1), (1, 1), (1, 1)], (53, 38), interleaved=False, interval=3)[0],
        "cmyk": encode(photo.convert("CMYK")),
        "! two components": write_jpeg([(1, 1), (1, 1)], (40, 24))[0],
        "four components": write_jpeg([(1, 1)] * 4, (40, 24))[0],
        "! empty": b"",
        "! text": b"no image at all\n" * 9,
        "! html": b"<!doctype html><title>404</title>",
        "! png": encode(photo, format="PNG"),
        "! gif": encode(photo, format="GIF"),
        "! bmp": encode(photo, format="BMP"),
        "! webp": encode(photo, format="WEBP"),
        "! tiff": encode(photo, format="TIFF", compression="jpeg"),
        "! tiff with a jpeg's start": b"\xff\xd8\xff" + encode(photo, format="TIFF"),
        "! zeros": bytes(5000),
        "! only ff": b"\xff" * 5000,
        "! start and end": b"\xff\xd8\xff\xd9",
        "! start, then zeros": b"\xff\xd8\xff" + bytes(5000),
        "! tables only": b"\xff\xd8" + _standard_tables()[0] + b"\xff\xd9",
    }
    ratios = list(itertools.product((1, 2, 3, 4), repeat=2))
    for h, v in ratios:  # an interleaved MCU has ten blocks at most
        files[f"sampling {h}x{v}"] = write_jpeg([(h, v), (1, 1), (1, 1)], (53, 38), interleaved=h * v < 9)[0]
    for (h, v), third in itertools.product(((2, 2), (4, 2), (4, 4)), ((2, 1), (1, 2), (2, 2))):
        data, _ = write_jpeg([(h, v), (1, 1), third], (53, 38), interleaved=h * v < 8)
        files[f"sampling {h}x{v} 1x1 {third[0]}x{third[1]}"] = data
    for bomb in (_many_scans, _many_markers, _long_chain):
        files |= bomb()
    files |= {f"! {name}": data for name, data in repair_bombs().items()}
    return files


def _insert(data: bytes, made: bytes, at: int = 2) -> bytes:
    return data[:at] + made + data[at:]


def _without(data: bytes, marker: int) -> bytes:
    for found, start, end in reversed(segments(data)):
        if found == marker:
            data = data[:start] + data[end:]
    return data


def _many_scans() -> dict[str, bytes]:
    """Progressive files with thousands of scans over a large claimed size, or over a small one."""
    files = {}
    for name, side in (("! scan bomb", 6000), ("! scan bomb, small", 64)):
        whole = encode(Image.new("L", (side, side)), progressive=True)
        scans = [(start, end) for marker, start, end in segments(whole) if marker == 0xDA]
        start, end = scans[-1]
        files[name] = whole[:end] + (whole[start:end] * 20000)[: 900_000 // (end - start) * (end - start)] + b"\xff\xd9"
    return files


def repair_bombs() -> dict[str, bytes]:
    """Files without an end whose scans, read by a careless repair, would cost hours."""

    def bits(text: str) -> bytes:
        text += "1" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")

    def start(side: int, interval: int = 0) -> bytes:
        # Of the codes 0, 10, 110 the last begins, in an AC table, a run of at least 2^14 ends of blocks.
        tables = b"".join(b"%c\1\1\1" % kind + bytes(13) + b"\0\1\xe0" for kind in b"\x00\x10")
        frame = struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"
        headers = segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, frame) + segment(0xC4, tables)
        return b"\xff\xd8" + headers + segment(0xDD, struct.pack(">H", interval))

    def scan(first: int, last: int, high: int, low: int, data: bytes) -> bytes:
        return segment(0xDA, bytes((1, 1, 0, first, last, high << 4 | low))) + data

    def refined(band: int, first: bytes, refinement: bytes) -> bytes:
        low = range(12, -1, -1)
        return scan(band, band, 0, 13, first) + b"".join(scan(band, band, n + 1, n, refinement) for n in low)

    blocks = (1024 // 8) ** 2
    dc, run = bytes(blocks // 8), bits("110" + f"{blocks - 2**14:014b}")
    marked = b"".join(b"\x7f\xff%c" % (0xD0 + n % 8) for n in range(blocks))
    return {
        "empty scans": start(64) + scan(0, 0, 0, 0, b"") * 60_000,
        "refinement scans": start(1024) + scan(0, 0, 0, 0, dc) + b"".join(refined(k, run, run) for k in range(1, 64)),
        "refinement scans of ones": start(1024) + refined(1, bits("101" * blocks), bits("00" * blocks)),
        "refinements of nothing": start(1024) + scan(0, 0, 0, 0, dc) + scan(1, 63, 1, 0, b"\0") * 300,
        "dc scans": start(1024) + scan(0, 0, 0, 0, dc) * 50,
        "dc refinement scans": start(1024) + refined(0, dc, dc),
        "restart markers": start(1024, 1) + scan(0, 0, 0, 0, marked) * 10,
        "restart markers alone": start(1024, 1) + scan(0, 0, 0, 0, b"\xff\xd0\xff\xd2" * 100_000),
    }


def _many_markers() -> dict[str, bytes]:
    """Chains of markers as long as a megabyte allows."""
    data = encode(Image.open(_PICTURE).convert("RGB").resize((24, 16)))
    quantization = next(data[start:end] for marker, start, end in segments(data) if marker == 0xDB)
    huffman = next(data[start:end] for marker, start, end in segments(data) if marker == 0xC4)
    chains = {
        "comments": segment(0xFE),
        "application markers": segment(0xE5, b"x"),
        "exif": segment(0xE1, b"Exif\0\0MM\0\x2a\0\0\0\x08"),
        "icc": segment(0xE2, b"ICC_PROFILE\0\1\1x"),
        "fill bytes": b"\xff",
        "restart markers": b"\xff\xd3",
        "empty tables": segment(0xDB),
        "tables": quantization,
        "huffman tables": huffman,
        "restart intervals": segment(0xDD, b"\0\0"),
    }
    return {f"chain of {name}": _insert(data, one * (300_000 // len(one))) for name, one in chains.items()}


def _long_chain() -> dict[str, bytes]:
    """Blank images that are large for their bytes, within the limit and beyond it."""
    return {
        "blank": encode(Image.new("L", (5000, 5000)), optimize=True),
        "! blank, too large": encode(Image.new("L", (9000, 9000)), optimize=True),
        "! claims 65500 x 65500": _resized(encode(Image.new("L", (16, 16))), 65500, 65500),
    }


# --- Ways to break a file ---


def _frame(data: bytes) -> int:
    """First byte of the frame header, or 0."""
    return next((start for marker, start, _ in segments(data) if marker in (0xC0, 0xC1, 0xC2)), 0)


def _resized(data: bytes, width: int, height: int) -> bytes:
    at = _frame(data)
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :] if at else data


def _one(rng: Random, data: bytes, *markers: int) -> tuple[int, int]:
    """(first byte, byte after the last) of a random segment with one of the markers, or of any."""
    found = segments(data)
    chosen = [s for s in found if s[0] in markers] or found or [(0, 0, len(data))]
    return rng.choice(chosen)[1:]


def _flip(rng: Random, data: bytes, start: int, end: int, most: int = 4) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, most)):
        if start < min(end, len(data)):
            changed[rng.randrange(start, min(end, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _scan(rng: Random, data: bytes) -> tuple[int, int]:
    start, end = _one(rng, data, 0xDA)
    return min(start + 10, end), end


def _cut_at_marker(rng: Random, data: bytes) -> bytes:
    places = [place for _, start, end in segments(data) for place in (start, start + 1, start + 2, start + 4, end)]
    return data[: rng.choice(places or [0])]


def _cut_anywhere(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + rng.choice((b"", b"", b"\xff", b"\xff\xd9", bytes(64)))


def _claimed_size(rng: Random, data: bytes) -> bytes:
    sides = (0, 1, 8, 9, 54, 60, 500, 8000, 16384, 30000, 65500, 65535)
    return _resized(data, rng.choice((53, *sides)), rng.choice((38, *sides)))


def _zero_step(rng: Random, data: bytes) -> bytes:
    start, end = _one(rng, data, 0xDB)
    return _set(data, rng.randrange(start, end) if end > start else 0, rng.choice((0, 0, 1, 255)))


def _set(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes((value,)) + data[at + 1 :]


def _sampling(rng: Random, data: bytes) -> bytes:
    at = _frame(data)
    for i in range(data[at + 9] if at and at + 9 < len(data) else 0):
        if rng.random() < 0.6:
            factors = rng.randint(1, 4) << 4 | rng.randint(1, 4) if rng.random() < 0.9 else rng.randrange(256)
            data = _set(data, at + 11 + 3 * i, factors)
    return data


def _components_of(rng: Random, data: bytes) -> bytes:
    at = _frame(data)
    return _set(data, at + 9, rng.choice((0, 1, 2, 3, 4, 5, 255))) if at else data


def _rewrite(change: Callable[[Random, list[bytes]], None]) -> Callable[[Random, bytes], bytes]:
    """A mutation of the list of segments, the first two bytes and what follows the last one being left alone."""

    def mutate(rng: Random, data: bytes) -> bytes:
        found = segments(data)
        parts = [data[start:end] for _, start, end in found]
        if parts:
            change(rng, parts)
        return data[:2] + b"".join(parts) + data[found[-1][2] if found else 2 :]

    return mutate


def _insert_garbage(rng: Random, data: bytes) -> bytes:
    made = rng.choice(
        (
            rng.randbytes(rng.randint(1, 40)),
            bytes((0xFF, rng.randrange(256))),
            segment(rng.randrange(0xC0, 0xFF), rng.randbytes(rng.randint(0, 40))),
            b"\xff" * rng.randint(1, 2000),
            segment(0xE1, b"Exif\0\0" + rng.choice((b"II*\0", b"MM\0*")) + rng.randbytes(rng.randint(0, 300))),
            segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes((rng.randrange(4),))),
            bytes(rng.randint(1, 600)),
        )
    )
    places = [start for _, start, _ in segments(data)] if rng.random() < 0.5 else []
    return _insert(data, made, rng.choice(places or [rng.randrange(len(data) + 1)]))


def _lose(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.randint(1, 60) :]


def _overwrite(rng: Random, data: bytes) -> bytes:
    start, end = _scan(rng, data)
    at = rng.randrange(start, end + 1)
    length = min(rng.randint(1, 600), len(data) - at)
    return data[:at] + rng.choice((bytes(length), rng.randbytes(length), b"\xff" * length)) + data[at + length :]


def _splice(rng: Random, data: bytes) -> bytes:
    other = rng.choice(list(corpus().values()))[:200_000]
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _scan_header(rng: Random, data: bytes) -> bytes:
    start, _ = _one(rng, data, 0xDA)
    return _set(data, min(start + rng.randrange(4, 14), len(data) - 1), rng.randrange(256)) if data else data


MUTATIONS: dict[str, Callable[[Random, bytes], bytes]] = {
    "as it is": lambda rng, data: data,
    "cut at a marker": _cut_at_marker,
    "cut anywhere": _cut_anywhere,
    "bits of headers": lambda rng, data: _flip(rng, data, *_one(rng, data, 0xC0, 0xC2, 0xE0, 0xE1, 0xEE, 0xDD)),
    "bits of tables": lambda rng, data: _flip(rng, data, *_one(rng, data, 0xDB, 0xC4)),
    "bits of scans": lambda rng, data: _flip(rng, data, *_scan(rng, data)),
    "bits of the header of a scan": _scan_header,
    "claimed size": _claimed_size,
    "quantization steps": _zero_step,
    "sampling factors": _sampling,
    "number of components": _components_of,
    "a segment lost": _rewrite(lambda rng, parts: parts.pop(rng.randrange(len(parts)))),
    "a segment twice": _rewrite(lambda rng, parts: parts.insert(rng.randrange(len(parts)), rng.choice(parts))),
    "segments in disorder": _rewrite(lambda rng, parts: rng.shuffle(parts)),
    "inserted": _insert_garbage,
    "lost bytes": _lose,
    "overwritten": _overwrite,
    "spliced": _splice,
}


@dataclass(frozen=True)
class Case:
    """A file of the corpus, broken in one way, or in a few; the same for the same seed and number."""

    seed: int
    number: int

    def make(self) -> tuple[str, bytes, bool | None]:
        """(what was done to what, the bytes, whether they can be read, where that is known)."""
        rng = Random(f"{self.seed} {self.number}")
        names = list(corpus())
        if self.number < len(names):  # every file once as it is
            name = names[self.number]
            return name, corpus()[name], not name.startswith("!")
        hopeless, bomb = rng.random() < 0.15, rng.random() < 0.03  # both cost more than they teach
        some = [n for n in names if n.startswith("!") == hopeless and (len(corpus()[n]) > 100_000) == bomb]
        name = rng.choice(some)
        data, done = corpus()[name], []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            mutation = rng.choice(list(MUTATIONS)[1:])
            data = MUTATIONS[mutation](rng, data)
            done.append(mutation)
        return f"{name}, {' and '.join(done)}", data, None


# --- Judgement ---


@dataclass(frozen=True)
class Verdict:
    outcome: str
    """`read`, `repaired`, `damaged: WHY`, `refused: WHY`, `a crash contained: WHY` or `BAD: WHY`."""
    what: str
    seconds: float
    """Of processor time, the reader process included."""
    mebibytes: float
    """The most that this process took for it, or the reader process held, if it is the largest one so far."""


class _HungError(BaseException):
    pass


def _alarm(*_) -> None:
    raise _HungError


def judge(what: str, data: bytes, good: bool | None = None, repair: bool = False) -> Verdict:
    """Read a file, and say what came of it; `good` says whether it can be read, where that is known."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if _PEAK.exists():
        _PEAK.write_text("5")  # Linux: the peak starts anew
    before = _memory("VmRSS")  # what malloc has kept of other files
    previous = signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(_PATIENCE)
    start = _processor_seconds()
    try:
        file = JPEGFile.open(data, repair=repair)
        outcome = "repaired" if file.damage else "read"
    except JPEGFileError as error:
        file, outcome = None, ("damaged: " if isinstance(error, JPEGDamageError) else "refused: ") + _kind(str(error))
        if "stopped with status" in str(error):
            outcome = f"a crash contained: {error}"
    except _HungError:
        file, outcome = None, f"BAD: still reading after {_PATIENCE} s"
    except BaseException as error:
        file, outcome = None, f"BAD: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    seconds = _processor_seconds() - start
    own = _memory("VmHWM")
    mebibytes = own - before
    if (largest := resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) > children:
        # What a child holds at most is said together with what it had of ours: shared, or before it became another.
        reader = largest / 1024 - (before if jpeg_reader._run_reader is _run_reader_forked else 0)
        mebibytes = max(mebibytes, reader if largest / 1024 > own else 0)
    if seconds > SECONDS and len(data) < 2**20 and not repair:
        outcome = f"BAD: took {seconds:.1f} s"
    elif mebibytes > MEBIBYTES and len(data) < 2**20:
        outcome = f"BAD: took {mebibytes:.0f} MiB"
    elif file is not None:
        wrong = _wrong(file, data)
        outcome = f"BAD: {wrong}" if wrong else outcome
    if good is not None and good != (file is not None):
        outcome = f"BAD: {outcome}, although it is {'whole' if good else 'not'}"
    return Verdict(outcome, what, seconds, mebibytes)


def _run_reader_forked(stream: IO[bytes], planes: IO[bytes], geometry: str) -> tuple[int, str]:
    """What `jpeg_reader._run_reader` does, in a fork of this process instead of a new one: ten times as many a second.

    The reader is as much apart from us, and under the same limits; a process with threads could not be forked so.
    """
    errors = jpeg_reader._unnamed_file()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            jpeg_reader._READER_MEMORY += 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # ours, shared
            for number, file in enumerate((stream, planes, errors)):
                os.dup2(file.fileno(), number)
            jpeg_reader._reader_main(geometry)
            status = 0
        except BaseException as error:
            os.write(2, str(error).encode())
        finally:
            os._exit(status)
    try:
        _, status = os.waitpid(pid, 0)
    except _HungError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    with errors:
        errors.seek(0)
        return os.waitstatus_to_exitcode(status), errors.read().decode(errors="replace")


def judge_cases(seed: int, first: int, last: int) -> list[tuple[int, Verdict]]:
    """The verdicts on some cases, numbered; of every fourth that is damaged, on its repair as well."""
    verdicts = []
    for number in range(first, last):
        what, data, good = Case(seed, number).make()
        jpeg_reader._run_reader = _run_reader_forked if number % 10 else _run_reader
        verdict = judge(what, data, good)
        verdicts.append((number, verdict))
        if verdict.outcome.startswith("damaged") and number % 4 == 0:
            verdicts.append((number, judge(f"{what} (repaired)", data, repair=True)))
    return verdicts


def _memory(kind: str) -> float:
    """MiB that this process holds (`"VmRSS"`), or has held at most (`"VmHWM"`), where the system tells."""
    status = Path("/proc/self/status")
    found = re.search(rf"{kind}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else 0.0


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _kind(message: str) -> str:
    """A message without its numbers and names, so that like ones can be counted."""
    message = message.removeprefix("<bytes>: ")
    return re.sub(r"\b(?:[0-9a-f]{2} )*[0-9a-f]{2}\b(?= |,|$)|0x[0-9a-f]+|\d+", "N", message)[:90]


def _wrong(file: JPEGFile, data: bytes) -> str:
    """What is wrong with the result of a file that was accepted, if anything is."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as picture:
            if picture.size != (file.width, file.height):
                return f"its size is {picture.size}, and {(file.width, file.height)} was read"
    except Exception:  # Pillow need not like what is left of it
        pass
    if any(plane.dtype != np.int16 or plane.shape[2:] != (8, 8) for plane in file.coefficients):
        return "its planes have another form"
    if file.damage:
        missing = file.missing_bits
        same = [m.shape == c.shape for m, c in zip(missing, file.coefficients, strict=True)]
        return "" if all(same) and 0 <= file.invented.min() <= file.invented.max() <= 1 else "its masks are wrong"
    if file.width * file.height > 2**18:
        return ""
    # Another decoder, which shares nothing with libjpeg, must find the same coefficients, unless it finds damage.
    stream = parse(data)
    components = components_of(stream)
    theirs, _, damage = decode_scans(
        stream.scans,
        [(c.horizontal_factor, c.vertical_factor) for c in components],
        plane_shapes(stream, components),
        [c.quantization_table for c in components],
        file.progressive,
    )
    if damage:
        return ""
    for ours, plane in zip(file.coefficients, theirs, strict=True):
        if (ours[: plane.shape[0], : plane.shape[1]] != plane).any():
            return "two decoders read different coefficients"
    return ""
