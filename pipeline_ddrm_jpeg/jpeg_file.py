"""The JPEG bitstream: what a file says about itself, and the quantized DCT coefficients it carries."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from math import ceil
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

if __package__:  # not when this file is run as the reader process, see _read_coefficients
    from .entropy_decoding import RESTART, UNMEASURED, OutOfTime, Scan, decode_scans, impossible
    from .quantization import ZIGZAG, chroma_subsampling_name, estimate_quality_factor

# Frame types of ITU-T T.81, table B.1, that are not decoded here.
_REFUSED_FRAMES = {
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical lossless",
    0xC9: "arithmetic-coded",
    0xCA: "arithmetic-coded progressive",
    0xCB: "arithmetic-coded lossless",
    0xCD: "arithmetic-coded hierarchical",
    0xCE: "arithmetic-coded hierarchical",
    0xCF: "arithmetic-coded hierarchical lossless",
    0xDE: "hierarchical",
}
_DHT, _SOI, _EOI, _SOS, _DQT, _DRI, _COM = 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE
_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"

# The first marker after entropy-coded data: FF not followed by a stuffed zero, a restart or a fill byte.
_MARKER_AFTER_SCAN = re.compile(rb"\xff(?![\x00\xff\xd0-\xd7])", re.DOTALL)

# Decoder warnings that do not put a coefficient in doubt; bytes too many anywhere but at the end do.
_SURPLUS_WARNING = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")
_HARMLESS_WARNING = re.compile(rf"{_SURPLUS_WARNING.pattern}|Invalid SOS parameters")
_SURPLUS = "more data than its blocks need"

# Few bytes can claim many coefficients (a blank picture needs two bits a block), and read them a thousand times in as
# many scans. A file may claim so many (45 megapixels of 4:2:0) whatever its size, and above that so many a byte.
_FREE_COEFFICIENTS = 2**26
_COEFFICIENTS_PER_BYTE = 64
_PASSES = 16  # of so many coefficients
_MOST_SCANS = 1000  # progressive files have ten or so
_MOST_BYTES = 2**30  # of a file; whatever is larger is no JPEG that could be restored
_READER_MEMORY = 96 * 2**20  # bytes of the reader process, beyond what grows with the file
_READER_SECONDS = 30  # of processor time, likewise; a second for each megabyte comes on top
_READ_TIMEOUT = 120  # seconds; a whole 180-megapixel file takes a few
_REPAIR_SECONDS = 10  # of processor time; on top come so many for each megabyte, of which most files need two
_REPAIR_SECONDS_PER_MEGABYTE = 5


class JPEGFileError(ValueError):
    """The bytes are not a JPEG that can be restored; the message says what is wrong and where."""


class _DamageError(JPEGFileError):
    """The bytes are what is left of a JPEG; `JPEGFile.open(..., repair=True)` makes do with that."""


class _OutOfProportionError(JPEGFileError):
    """The bytes would take time out of all proportion to their number."""


@dataclass(frozen=True)
class Component:
    """One colour component of a frame (ITU-T T.81, B.2.2)."""

    identifier: int
    """As written in the file: usually 1, 2, 3, or the letters R, G, B."""
    horizontal_factor: int
    vertical_factor: int
    """Sampling factors, 1..4, relative to the largest of the frame."""
    quantization_table: np.ndarray = field(repr=False)
    """Integer steps `[8, 8]`, 1..65535, rows are vertical frequencies."""


@dataclass(frozen=True, eq=False)
class JPEGFile:
    """A JPEG file as it was stored: coefficients, tables, geometry and metadata; nothing is decoded to pixels.

    Use `JPEGFile.open`. Sizes are in pixels as stored, before any EXIF orientation is applied.

    Example:
        >>> file = JPEGFile.open("photo.jpg")
        >>> file.width, file.height, file.chroma_subsampling, file.quality_factor
        (640, 480, '4:2:0', 30)
        >>> file.coefficients[0].shape  # blocks down, blocks across, 8, 8
        (60, 80, 8, 8)
    """

    width: int
    height: int
    color_space: str
    """`"L"` (one component), `"YCbCr"` or `"RGB"` (the three components are coded as they are)."""
    components: tuple[Component, ...]
    coefficients: tuple[np.ndarray, ...] = field(repr=False)
    """Quantized DCT coefficients, one int16 array `[blocks down, blocks across, 8, 8]` a component, rows are
    vertical frequencies. Planes cover whole MCUs; blocks beyond the component's own last block
    repeat its DC value, as libjpeg's encoder fills them."""
    progressive: bool
    restart_interval: int
    """MCUs between restart markers, 0 for none."""
    file_size: int
    """Bytes from SOI to EOI."""
    name: str = "<bytes>"
    """Where the bytes came from, for messages."""
    exif: bytes | None = field(default=None, repr=False)
    """As Pillow's `exif`; `None` also where the block cannot be read."""
    icc_profile: bytes | None = field(default=None, repr=False)
    xmp: bytes | None = field(default=None, repr=False)
    comment: bytes | None = field(default=None, repr=False)
    remarks: tuple[str, ...] = ()
    """What is odd about the file, although it puts no coefficient in doubt."""
    damage: tuple[str, ...] = ()
    """What is wrong with a file opened with `repair=True`, in a sentence or several; empty for a whole file."""
    missing_bits: tuple[np.ndarray, ...] | None = field(default=None, repr=False)
    """Of a damaged file, how many of the lowest bits of each coefficient are not in it: int8, in the shape of
    `coefficients`; `UNMEASURED` (16) where nothing of it is. `None` for a whole file."""

    @classmethod
    def open(
        cls, source: str | os.PathLike | bytes | bytearray | memoryview | IO[bytes], repair: bool = False
    ) -> JPEGFile:
        """Read a JPEG from a path, from bytes or from a binary file object.

        Baseline, extended sequential and progressive Huffman-coded files of 8 bits are read, with one
        component or three, any integer sampling ratios, 8- and 16-bit tables and restart markers.

        Args:
            source: path, bytes or file object.
            repair: whether to take what is left of a file that is cut short or damaged after its headers; what is
                not left is marked in `missing_bits`. Damage that decodes to a possible picture goes unnoticed.

        Raises:
            JPEGFileError: for anything else, for a file that is cut short or damaged, for a claimed
                size above Pillow's limit (twice `PIL.Image.MAX_IMAGE_PIXELS`), and for one out of all proportion to
                the size of the file.
            OSError: if a path cannot be read.
        """
        data, name = _read_bytes(source)
        try:
            try:
                return _open(data, name)
            except _DamageError as error:
                if not repair:
                    raise JPEGFileError(f"{error} (--repair, or repair=True, restores what is left)") from None
                return _salvage(data, name, str(error))
        except JPEGFileError as error:
            raise JPEGFileError(f"{name}: {error}") from None

    @cached_property
    def invented(self) -> np.ndarray:
        """Share of the coefficients behind each pixel that are not in the file: float32 `[height, width]`, 0 to 1.

        0 everywhere for a whole file. Coefficients of which only the lowest bits are missing count as there.
        """
        share = np.zeros((self.height, self.width), dtype=np.float32)
        for component, missing in zip(self.components, self.missing_bits or (), strict=False):
            blocks = (missing == UNMEASURED).mean(axis=(2, 3), dtype=np.float32)
            blocks = blocks.repeat(self.mcu_size[0] // component.vertical_factor, axis=0)
            blocks = blocks.repeat(self.mcu_size[1] // component.horizontal_factor, axis=1)
            share += blocks[: self.height, : self.width] / len(self.components)
        return share

    @cached_property
    def mcu_size(self) -> tuple[int, int]:
        """(height, width) in pixels of a minimum coded unit."""
        return (
            8 * max(c.vertical_factor for c in self.components),
            8 * max(c.horizontal_factor for c in self.components),
        )

    @property
    def chroma_subsampling(self) -> str | None:
        """`"4:2:0"` and the like; `None` with one component or where no such name exists."""
        return chroma_subsampling_name([(c.horizontal_factor, c.vertical_factor) for c in self.components])

    @cached_property
    def _estimated_quality(self) -> tuple[int, bool]:
        return estimate_quality_factor([c.quantization_table for c in self.components])

    @property
    def quality_factor(self) -> int:
        """The libjpeg quality factor (1..100) whose tables are nearest to the file's."""
        return self._estimated_quality[0]

    @property
    def quality_factor_is_exact(self) -> bool:
        """Whether the file's tables are exactly libjpeg's for `quality_factor`."""
        return self._estimated_quality[1]

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the file, metadata included, for each pixel of the picture."""
        return 8 * self.file_size / (self.width * self.height)

    @cached_property
    def orientation(self) -> int:
        """EXIF orientation, 1 (upright) to 8; 1 where the file does not say."""
        orientation = 1 if self.exif is None else _parse_exif(self.exif).get(0x0112, 1)
        return orientation if orientation in range(1, 9) else 1


def _parse_exif(data: bytes) -> Image.Exif:
    exif = Image.Exif()
    with warnings.catch_warnings():  # about entries that are cut short, which are then left out
        warnings.simplefilter("ignore")
        exif.load(data)
    return exif


def _readable_exif(data: bytes | None) -> bytes | None:
    """The EXIF block, unless it is one that would make whoever reads the picture's metadata stumble."""
    try:
        if data is not None:
            exif = _parse_exif(data)
            dict(exif)
            exif.tobytes()  # who turns the picture upright writes it anew
        return data
    except Exception:  # Pillow raises whatever the garbage leads it into
        return None


def _read_bytes(source) -> tuple[bytes, str]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), "<bytes>"
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as stream:
            return _read_stream(stream), os.fspath(source)
    if hasattr(source, "read"):
        data = _read_stream(source)
        if not isinstance(data, bytes):
            raise TypeError("the file object gives text; open it in binary mode ('rb')")
        return data, str(getattr(source, "name", "<file object>"))
    raise TypeError(f"expected a path, bytes or a binary file object, not {type(source).__name__}")


def _read_stream(stream: IO[bytes]) -> bytes:
    data = stream.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise JPEGFileError(f"{getattr(stream, 'name', 'the stream')}: it has more than {_MOST_BYTES} bytes")
    return data


def _open(data: bytes, name: str) -> JPEGFile:
    stream = _parse(data)
    color_space = _color_space(stream)
    components = _components(stream)
    _check_scans(stream, components)
    _check_proportion(stream, components)
    surplus = _drop_surplus_restarts(stream, components)
    planes, messages = _read_coefficients(stream, components)
    remarks = (_SURPLUS,) if surplus or _SURPLUS_WARNING.search(messages) else ()
    for number, (plane, component) in enumerate(zip(planes, components, strict=True), 1):
        odd = impossible(plane.reshape(-1, 64), component.quantization_table)
        if odd.any():
            raise _DamageError(f"damaged: component {number} has values that no picture has in {odd.sum()} blocks")
    return _file(stream, name, color_space, components, _whole_mcus(planes, stream, components), remarks=remarks)


def _salvage(data: bytes, name: str, reason: str) -> JPEGFile:
    """What is left of a file that cannot be read as a whole, for the reason given."""
    stream = _parse(data, repair=True)
    color_space = _color_space(stream)
    components = _components(stream, repair=True)
    _check_proportion(stream, components)
    seconds = _REPAIR_SECONDS + _REPAIR_SECONDS_PER_MEGABYTE * stream.size / 2**20
    try:
        coefficients, missing, damage = decode_scans(
            stream.scans,
            [(c.horizontal_factor, c.vertical_factor) for c in components],
            _plane_shapes(stream, components),
            [c.quantization_table for c in components],
            stream.frame_type == 0xC2,
            seconds,
        )
    except OutOfTime:
        raise JPEGFileError(f"{reason}; what is left takes more than {seconds:.0f} s of processor time") from None
    if all((lost == UNMEASURED).all() for lost in missing):
        raise JPEGFileError(f"{reason}; nothing of the picture is left")
    planes = _whole_mcus(coefficients, stream, components)
    missing = _whole_mcus(missing, stream, components, mode="edge")
    return _file(stream, name, color_space, components, planes, (reason, *damage), missing)


def _file(
    stream: _Stream,
    name: str,
    color_space: str,
    components: tuple[Component, ...],
    coefficients: tuple[np.ndarray, ...],
    damage: tuple[str, ...] = (),
    missing_bits: tuple[np.ndarray, ...] | None = None,
    remarks: tuple[str, ...] = (),
) -> JPEGFile:
    return JPEGFile(
        width=stream.width,
        height=stream.height,
        color_space=color_space,
        components=components,
        coefficients=coefficients,
        progressive=stream.frame_type == 0xC2,
        restart_interval=stream.restart_interval,
        file_size=stream.size,
        name=name,
        exif=_readable_exif(stream.exif),
        icc_profile=stream.icc_profile(),
        xmp=stream.xmp,
        comment=stream.comment,
        remarks=remarks,
        damage=damage,
        missing_bits=missing_bits,
    )


class _FrameComponent(NamedTuple):
    identifier: int
    horizontal_factor: int
    vertical_factor: int
    table_number: int


@dataclass
class _Stream:
    """What the marker segments of ITU-T T.81, annex B, say."""

    frame_type: int | None = None
    width: int = 0
    height: int = 0
    frame: list[_FrameComponent] = field(default_factory=list)
    tables: dict[int, np.ndarray] = field(default_factory=dict)
    component_tables: dict[int, np.ndarray] = field(default_factory=dict)
    huffman: dict[tuple[int, int], bytes] = field(default_factory=dict)  # replaced, not changed: scans share it
    scans: list[Scan] = field(default_factory=list)
    restart_interval: int = 0
    size: int = 0
    decodable: list[bytes | Scan] = field(default_factory=list)  # the stream without APPn and COM
    jfif: bool = False
    adobe_transform: int | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    comment: bytes | None = None
    icc_chunks: dict[int, bytes] = field(default_factory=dict)
    icc_count: int = 0

    def icc_profile(self) -> bytes | None:
        """The profile put together from its numbered chunks, or `None` if one is missing."""
        if not self.icc_count or sorted(self.icc_chunks) != list(range(1, self.icc_count + 1)):
            return None
        return b"".join(chunk for _, chunk in sorted(self.icc_chunks.items()))


def _parse(data: bytes, repair: bool = False) -> _Stream:
    """Walk the marker segments from SOI to EOI; to repair, as far as they go."""
    if not data:
        raise JPEGFileError("the file is empty")
    if data[:2] != b"\xff\xd8":
        raise JPEGFileError(f"not a JPEG: it starts with {data[:4].hex(' ')}, a JPEG with ff d8 ff")
    stream = _Stream(decodable=[data[:2]], size=len(data))
    try:
        _walk(stream, data, repair)
    except _OutOfProportionError:
        raise
    except JPEGFileError as error:
        if not stream.scans:
            raise JPEGFileError(str(error)) from None  # nothing that could be repaired
        if not repair:
            raise
    return stream


def _walk(stream: _Stream, data: bytes, repair: bool) -> None:
    position = 2
    while True:
        start = data.find(b"\xff", position)
        while start >= 0 and data[start + 1 : start + 2] in (b"\xff", b"\0"):
            start = data.find(b"\xff", start + 1)  # fill bytes, and padding that is no marker
        if start < 0 or start + 1 >= len(data):
            raise _DamageError(f"truncated: the file ends at byte {len(data)} without an end-of-image marker")
        marker = data[start + 1]
        position = start + 2
        if marker == _EOI:
            stream.decodable.append(data[start:position])
            stream.size = position
            return
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue  # TEM and stray restart markers carry nothing
        if marker == _SOI:
            raise _DamageError(f"a second start-of-image marker at byte {start}, before the first image ended")

        header = data[position : position + 2]
        if len(header) < 2:
            raise _DamageError(f"truncated inside the marker segment at byte {start}")
        length = int.from_bytes(header, "big")
        if length < 2:
            raise _DamageError(f"the marker segment ff {marker:02x} at byte {start} claims {length} bytes")
        if position + length > len(data):
            raise _DamageError(f"truncated inside the marker segment ff {marker:02x} at byte {start}")
        payload = data[position + 2 : position + length]
        position += length
        try:
            _read_segment(stream, marker, payload)
        except (IndexError, struct.error):
            raise _DamageError(
                f"the marker segment ff {marker:02x} at byte {start} is too short for what it must hold"
            ) from None
        if not (0xE0 <= marker <= 0xEF or marker == _COM):
            stream.decodable.append(data[start:position])
        if marker == _SOS:
            after = _end_of_scan(stream, data, position, repair)
            stream.scans[-1].data = data[position:after]
            stream.decodable.append(stream.scans[-1])
            position = after


def _end_of_scan(stream: _Stream, data: bytes, position: int, repair: bool) -> int:
    """Where the entropy-coded data from `position` end; to repair, markers that make no sense there are damage."""
    if not repair:
        end = _MARKER_AFTER_SCAN.search(data, position)
        return end.start() if end else len(data)
    # A component gets its table with its first scan, so those that have one have had a scan.
    more = stream.frame_type == 0xC2 or len(stream.component_tables) < len(stream.frame)
    for end in _MARKER_AFTER_SCAN.finditer(data, position):
        marker, length = data[end.end() : end.end() + 1], int.from_bytes(data[end.end() + 1 : end.end() + 3], "big")
        fits = length >= 2 and end.end() + 1 + length <= len(data)
        if marker == b"\xd9" or (more and marker in (b"\xc4", b"\xda", b"\xdb", b"\xdd", b"\xfe") and fits):
            return end.start()
    return len(data)


def _read_segment(stream: _Stream, marker: int, payload: bytes) -> None:
    if marker in _REFUSED_FRAMES:
        raise JPEGFileError(f"{_REFUSED_FRAMES[marker]} JPEG is not supported; re-save it as baseline or progressive")
    if marker in (0xC0, 0xC1, 0xC2):
        _read_frame(stream, marker, payload)
    elif marker == _DQT:
        _read_tables(stream, payload)
    elif marker == _DHT:
        _read_huffman_tables(stream, payload)
    elif marker == _DRI:
        (stream.restart_interval,) = struct.unpack_from(">H", payload)
    elif marker == _SOS:
        _read_scan(stream, payload)
    elif marker == _COM:
        stream.comment = stream.comment or payload
    elif marker == 0xE0 and payload.startswith(b"JFIF\0") and len(payload) >= 14 and not stream.scans:
        stream.jfif = True
    elif marker == 0xE1 and payload.startswith(_EXIF):
        stream.exif = stream.exif or payload
    elif marker == 0xE1 and payload.startswith(_XMP):
        stream.xmp = stream.xmp or payload[len(_XMP) :]
    elif marker == 0xE2 and payload.startswith(_ICC) and len(payload) > 14:
        number, stream.icc_count = payload[12], payload[13]
        stream.icc_chunks[number] = payload[14:]
    elif marker == 0xEE and payload.startswith(b"Adobe") and len(payload) >= 12 and not stream.scans:
        stream.adobe_transform = payload[11]


def _read_frame(stream: _Stream, marker: int, payload: bytes) -> None:
    if stream.frame_type is not None:
        raise JPEGFileError("it holds a second frame header")
    precision, height, width, count = struct.unpack_from(">BHHB", payload)
    if precision != 8:
        raise JPEGFileError(f"{precision}-bit JPEG is not supported, only 8-bit")
    if height == 0:
        raise JPEGFileError("its frame header gives a height of 0 (a DNL marker is not supported)")
    if width == 0:
        raise JPEGFileError("its frame header gives a width of 0")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise JPEGFileError(
            f"it claims {width} x {height} pixels, above the limit of {2 * limit}"
            " (raise PIL.Image.MAX_IMAGE_PIXELS if you trust it)"
        )
    stream.frame_type, stream.width, stream.height = marker, width, height
    for i in range(count):
        identifier, factors, table_number = struct.unpack_from(">BBB", payload, 6 + 3 * i)
        horizontal, vertical = factors >> 4, factors & 15
        if not (1 <= horizontal <= 4 and 1 <= vertical <= 4):
            raise JPEGFileError(f"component {i + 1} has impossible sampling factors {horizontal}x{vertical}")
        stream.frame.append(_FrameComponent(identifier, horizontal, vertical, table_number))


def _read_tables(stream: _Stream, payload: bytes) -> None:
    offset = 0
    while offset < len(payload):
        precision, number = payload[offset] >> 4, payload[offset] & 15
        if precision > 1 or number > 3:
            raise JPEGFileError(f"a quantization table has an impossible header {payload[offset]:02x}")
        steps = struct.unpack_from(">64H" if precision else ">64B", payload, offset + 1)
        offset += 129 if precision else 65
        if 0 in steps:
            raise JPEGFileError(f"quantization table {number} contains a step of 0")
        table = np.empty(64, dtype=np.int64)
        table[ZIGZAG] = steps
        stream.tables[number] = table.reshape(8, 8)


def _read_huffman_tables(stream: _Stream, payload: bytes) -> None:
    offset = 0
    while offset < len(payload):
        kind, number = payload[offset] >> 4, payload[offset] & 15
        counts = struct.unpack_from(">16B", payload, offset + 1)
        end = offset + 17 + sum(counts)
        codes = sum(count << (16 - length) for length, count in enumerate(counts, 1))
        if kind > 1 or number > 3 or sum(counts) > 256 or codes > 1 << 16:
            raise _DamageError(f"Huffman table {payload[offset]:02x} is impossible")
        if end > len(payload):
            raise IndexError
        stream.huffman = stream.huffman | {(kind, number): payload[offset + 1 : end]}
        offset = end


def _read_scan(stream: _Stream, payload: bytes) -> None:
    if stream.frame_type is None:
        raise JPEGFileError("a scan starts before any frame header")
    count = payload[0]
    identifiers = [payload[1 + 2 * i] for i in range(count)]
    numbers = tuple((payload[2 + 2 * i] >> 4, payload[2 + 2 * i] & 15) for i in range(count))
    spectral_start, spectral_end, successive = struct.unpack_from(">BBB", payload, 1 + 2 * count)
    known = [component.identifier for component in stream.frame]
    if not identifiers or any(identifier not in known for identifier in identifiers):
        raise _DamageError("a scan names a component that the frame header does not have")
    positions = tuple(known.index(identifier) for identifier in identifiers)
    for position in positions:  # the table in force at a component's first scan holds for all of its scans
        number = stream.frame[position].table_number
        if position not in stream.component_tables:
            if number not in stream.tables:
                raise _DamageError(f"quantization table {number} is used but never defined")
            stream.component_tables[position] = stream.tables[number]
    if len(stream.scans) == _MOST_SCANS:
        raise _OutOfProportionError(f"it has more than {_MOST_SCANS} scans, which is out of all proportion")
    high, low = successive >> 4, successive & 15
    if len(set(positions)) < len(positions):
        raise _DamageError("a scan names a component twice")
    if stream.frame_type != 0xC2:  # what a sequential scan says here has no effect
        spectral_start, spectral_end, high, low = 0, 63, 0, 0
    elif (
        not spectral_start <= spectral_end < 64
        or (spectral_start == 0) != (spectral_end == 0)
        or (spectral_start and count > 1)
        or (high and low != high - 1)
        or low > 13
    ):
        raise _DamageError(f"a progressive scan has an impossible header {payload[1 + 2 * count :].hex(' ')}")
    stream.scans.append(
        Scan(positions, numbers, spectral_start, spectral_end, high, low, stream.restart_interval, stream.huffman)
    )


def _color_space(stream: _Stream) -> str:
    """Colour space by the rules of libjpeg: JFIF, then Adobe marker, each before the first scan; then identifiers."""
    if stream.frame_type is None:
        raise JPEGFileError("it ends without a frame header")
    identifiers = [component.identifier for component in stream.frame]
    if len(identifiers) == 1:
        return "L"
    if len(identifiers) == 4:
        name = "YCCK" if stream.adobe_transform == 2 else "CMYK"
        raise JPEGFileError(f"{name} JPEG (four components) is not supported; convert it to RGB first")
    if len(identifiers) != 3:
        raise JPEGFileError(f"a JPEG with {len(identifiers)} components is not supported, only 1 or 3")
    if len(set(identifiers)) < 3:
        raise JPEGFileError("two components have the same identifier")
    if stream.jfif:
        return "YCbCr"
    rgb = bytes(identifiers) == b"RGB" if stream.adobe_transform is None else stream.adobe_transform == 0
    return "RGB" if rgb else "YCbCr"


def _components(stream: _Stream, repair: bool = False) -> tuple[Component, ...]:
    if repair:  # components whose scans are lost have tables all the same
        for i, component in enumerate(stream.frame):
            if component.table_number in stream.tables:
                stream.component_tables.setdefault(i, stream.tables[component.table_number])
    missing = [i + 1 for i in range(len(stream.frame)) if i not in stream.component_tables]
    if missing:
        raise _DamageError(f"truncated: it has no scan for component {missing[0]} of {len(stream.frame)}")
    if len(stream.frame) == 1:  # the factors of a single component have no effect (T.81, A.2.2)
        return (Component(stream.frame[0].identifier, 1, 1, stream.component_tables[0]),)
    most = (max(c.horizontal_factor for c in stream.frame), max(c.vertical_factor for c in stream.frame))
    for c in stream.frame:
        if most[0] % c.horizontal_factor or most[1] % c.vertical_factor:
            raise JPEGFileError(
                f"sampling factors {c.horizontal_factor}x{c.vertical_factor} beside {most[0]}x{most[1]} are not"
                " supported: the ratio is not a whole number"
            )
    return tuple(
        Component(c.identifier, c.horizontal_factor, c.vertical_factor, stream.component_tables[i])
        for i, c in enumerate(stream.frame)
    )


def _check_proportion(stream: _Stream, components: tuple[Component, ...]) -> None:
    """Refuse a file that would take memory and time out of all proportion to its bytes."""
    blocks = [rows * columns for rows, columns in _plane_shapes(stream, components)]
    limit = max(_FREE_COEFFICIENTS, _COEFFICIENTS_PER_BYTE * stream.size) // 64
    if sum(blocks) > limit:
        raise JPEGFileError(
            f"it claims {stream.width} x {stream.height} pixels in {stream.size} bytes, which is out of all proportion"
        )
    passes = sum(blocks[position] for scan in stream.scans for position in scan.components)
    if passes > _PASSES * limit:
        raise JPEGFileError(f"its {len(stream.scans)} scans are out of all proportion")


def _check_scans(stream: _Stream, components: tuple[Component, ...]) -> None:
    """Refuse what cannot be whole: too little data for the claimed size, or unfinished progressive scans."""
    shapes = _plane_shapes(stream, components)
    for scan in stream.scans:
        if scan.spectral_start == 0 and scan.successive_high == 0:
            blocks = sum(shapes[position][0] * shapes[position][1] for position in scan.components)
            if 8 * len(scan.data) < blocks:  # every block has a DC code of one bit at least
                raise _DamageError(
                    f"truncated: it claims {stream.width} x {stream.height} pixels,"
                    f" but a scan has only {len(scan.data)} bytes"
                )
    if stream.frame_type != 0xC2:
        return
    remaining_bits = np.full((len(stream.frame), 64), 255)
    for scan in stream.scans:
        for position in scan.components:
            remaining_bits[position, scan.spectral_start : scan.spectral_end + 1] = scan.successive_low
    if remaining_bits.any():
        component = int(remaining_bits.any(axis=1).argmax()) + 1
        raise _DamageError(f"truncated: its progressive scans leave component {component} unfinished")


def _plane_shapes(stream: _Stream, components: tuple[Component, ...]) -> list[tuple[int, int]]:
    """Blocks down and across of each component, as libjpeg keeps them (T.81, A.1.1 and A.2.4)."""
    most_h = max(c.horizontal_factor for c in components)
    most_v = max(c.vertical_factor for c in components)
    return [
        (
            ceil(stream.height * c.vertical_factor / (8 * most_v)),
            ceil(stream.width * c.horizontal_factor / (8 * most_h)),
        )
        for c in components
    ]


def _whole_mcus(
    planes: Sequence[np.ndarray], stream: _Stream, components: tuple[Component, ...], mode: str = "dc"
) -> tuple[np.ndarray, ...]:
    """Planes `[down, across, 8, 8]` padded to whole MCUs with the last block's DC, or, mode "edge", the last block."""
    most_h = max(c.horizontal_factor for c in components)
    most_v = max(c.vertical_factor for c in components)
    mcus_down, mcus_across = ceil(stream.height / (8 * most_v)), ceil(stream.width / (8 * most_h))
    padded = []
    for component, plane in zip(components, planes, strict=True):
        rows, columns = plane.shape[:2]
        extra = (
            (0, mcus_down * component.vertical_factor - rows),
            (0, mcus_across * component.horizontal_factor - columns),
        )
        if any(after for _, after in extra):
            plane = np.pad(plane, (*extra, (0, 0), (0, 0)), mode="edge")
            if mode == "dc":
                for filling in (plane[rows:], plane[:, columns:]):
                    filling.reshape(*filling.shape[:2], 64)[..., 1:] = 0
        padded.append(plane)
    return tuple(padded)


def _drop_surplus_restarts(stream: _Stream, components: tuple[Component, ...]) -> bool:
    """Cut each scan before the first restart marker that comes after its last MCU; whether there was any.

    The decoder would pass over them, but its warning of other bytes there would read like one of damage.
    """
    shapes, surplus = _plane_shapes(stream, components), False
    for scan in stream.scans:
        rows, columns = shapes[scan.components[0]]
        if len(scan.components) > 1:
            first = components[scan.components[0]]
            rows, columns = ceil(rows / first.vertical_factor), ceil(columns / first.horizontal_factor)
        needed = (rows * columns - 1) // scan.restart_interval if scan.restart_interval else 0
        for marker in islice(RESTART.finditer(scan.data), needed, needed + 1):
            scan.data, surplus = scan.data[: marker.start()], True
    return surplus


def _read_coefficients(stream: _Stream, components: tuple[Component, ...]) -> tuple[list[np.ndarray], str]:
    """Coefficient planes, read by libjpeg-turbo in a process of its own, and its harmless warnings.

    A separate process, because the C library may print, warn or crash on a damaged file: its warnings
    are how damage is found, and a crash must not take a server down. Its processor time and memory are limited.
    """
    shapes = _plane_shapes(stream, components)
    if importlib.util.find_spec("jpeglib") is None:
        raise ImportError("reading JPEG coefficients needs the package jpeglib: pip install jpeglib")

    geometry = ",".join(f"{rows}x{columns}" for rows, columns in shapes)
    with _unnamed_file() as stripped, _unnamed_file() as planes:
        stripped.writelines(part.data if isinstance(part, Scan) else part for part in stream.decodable)
        stripped.seek(0)
        try:
            status, messages = _run_reader(stripped, planes, geometry)
        except subprocess.TimeoutExpired:
            raise JPEGFileError(f"reading its coefficients took more than {_READ_TIMEOUT} seconds") from None
        damage = [line for line in messages.strip().splitlines() if not _HARMLESS_WARNING.search(line)]
        if status or damage:
            reason = damage[0] if damage else f"the reader stopped with status {status}"
            raise _DamageError(f"damaged or truncated: {reason}")
        planes.seek(0)
        values = np.fromfile(planes, dtype=np.int16)

    ends = np.cumsum([64 * rows * columns for rows, columns in shapes])
    parts = zip(np.split(values, ends[:-1]), shapes, strict=True)
    return [part.reshape(rows, columns, 8, 8) for part, (rows, columns) in parts], messages


def _unnamed_file() -> IO[bytes]:
    """A file without a name, in memory where the system can: whoever is killed leaves nothing of it behind."""
    try:
        return open(os.memfd_create("ddrm-jpeg"), "w+b")
    except (AttributeError, OSError):  # not Linux, or not allowed
        return tempfile.TemporaryFile()


def _run_reader(stream: IO[bytes], planes: IO[bytes], geometry: str) -> tuple[int, str]:
    """Run `_reader_process` in a new interpreter; returns its exit status and what it wrote to stderr."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OPENBLAS_NUM_THREADS": "1",  # each thread would take memory, and none has anything to do
    }
    reader = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, geometry],
        env=environment,
        stdin=stream,
        stdout=planes,
        stderr=subprocess.PIPE,
        timeout=_READ_TIMEOUT,
    )
    return reader.returncode, reader.stderr.decode(errors="replace")


def _reader_process(geometry: str) -> None:
    """Entry point of the separate process: a stripped stream at its standard input, raw int16 planes to its output."""
    shapes = [tuple(int(n) for n in shape.split("x")) for shape in geometry.split(",")]
    _limit_resources(os.fstat(0).st_size, sum(64 * rows * columns for rows, columns in shapes))
    import jpeglib
    from jpeglib._bind import CJpegLib  # what jpeglib.read_dct calls for a copy of the file that it makes on disk

    jpeglib.version.set("turbo210")
    planes = [np.zeros((rows, columns, 64), dtype=np.int16) for rows, columns in shapes]
    pointers = [plane.ctypes.data_as(ctypes.c_void_p) for plane in planes]
    output = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # the library prints to it when it fails
    with _stdin_path() as path:
        CJpegLib.read_jpeg_dct(
            path, *pointers, *[None] * (4 - len(planes)), (ctypes.c_ushort * 256)(), (ctypes.c_short * 4)()
        )
    with open(output, "wb") as file:
        for plane in planes:
            plane.tofile(file)


@contextmanager
def _stdin_path() -> Iterator[str]:
    """A path under which the standard input can be opened."""
    if Path("/dev/fd/0").exists():
        yield "/dev/fd/0"
        return
    with tempfile.TemporaryDirectory() as folder:  # Windows
        path = Path(folder, "stream.jpg")
        path.write_bytes(sys.stdin.buffer.read())
        yield str(path)


def _limit_resources(size: int, coefficients: int) -> None:
    """Bound what this process may use to some times what an honest file of that size takes, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    memory = _READER_MEMORY + 4 * size + 5 * coefficients  # two int16 planes, the library's and numpy's
    processor = _READER_SECONDS + size // 2**20
    for kind, limit in (("RLIMIT_DATA", memory), ("RLIMIT_CPU", processor), ("RLIMIT_CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, kind), (limit, limit))
        except (AttributeError, ValueError, OSError):  # not every system has, or grants, each of them
            continue


def _reader_main(geometry: str) -> None:
    try:
        _reader_process(geometry)
    except OSError:
        sys.exit("the decoder gave up")  # its own words, where it has any, stand before this line
    except MemoryError:
        sys.exit("not enough memory")


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose module names must not shadow anyone's
    _reader_main(*sys.argv[1:])
