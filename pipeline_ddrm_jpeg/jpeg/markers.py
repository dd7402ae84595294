"""The marker segments of a JPEG file (ITU-T T.81, annex B): what they say, and whether that can be read at all."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from typing import NamedTuple

import numpy as np
from PIL import Image

from .colour import ColourSpace, colour_space_by
from .entropy import RESTART, Scan
from .tables import ZIGZAG

# Frame types of ITU-T T.81, table B.1, that are not decoded here.
_REFUSED_FRAMES = {0xC3: "lossless", 0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "hierarchical lossless"}
_REFUSED_FRAMES |= {marker + 8: f"arithmetic-coded {kind}" for marker, kind in _REFUSED_FRAMES.items()}
_REFUSED_FRAMES |= {0xC9: "arithmetic-coded", 0xCA: "arithmetic-coded progressive", 0xDE: "hierarchical"}
_DHT, _SOI, _EOI, _SOS, _DQT, _DNL, _DRI, _COM = 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE
_OF_COLOUR = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
_DESCRIPTION = {*range(0xE0, 0xF0), _COM}  # no decoder needs them
_RESERVED = {*range(0x02, 0xC0), *range(0xF0, 0xFE), 0xC8}  # decoders refuse them

# How images start.
_KINDS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
    "BMP": re.compile(rb"BM....\0\0\0\0", re.DOTALL),
    "AVIF": re.compile(rb"....ftypavi[fs]", re.DOTALL),
    "HEIC": re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    "JPEG XL": re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"),
}

# A marker that says something: no fill byte, padding, TEM or stray restart marker.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
# The first marker after entropy-coded data: FF not followed by a stuffed zero, a restart or a fill byte.
_MARKER_AFTER_SCAN = re.compile(rb"\xff(?![\x00\xff\xd0-\xd7])", re.DOTALL)

# Few bytes can claim many coefficients (a blank image needs two bits a block), and read them a thousand times in as
# many scans. A file may claim so many (45 megapixels of 4:2:0) whatever its size, and above that so many a byte.
_FREE_COEFFICIENTS = 2**26
_COEFFICIENTS_PER_BYTE = 64
_PASSES = 16  # of so many coefficients
_MOST_SCANS = 1000  # progressive files have ten or so


class JPEGFileError(ValueError):
    """The bytes are not a JPEG that can be restored; the message says what is wrong and where."""


class JPEGDamageError(JPEGFileError):
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


class _FrameComponent(NamedTuple):
    identifier: int
    horizontal_factor: int
    vertical_factor: int
    table_number: int


@dataclass
class Stream:
    """What the marker segments of ITU-T T.81, annex B, say."""

    frame_type: int | None = None
    width: int = 0
    height: int = 0
    frame: list[_FrameComponent] = field(default_factory=list)
    tables: dict[int, np.ndarray] = field(default_factory=dict)
    component_tables: dict[int, np.ndarray] = field(default_factory=dict)
    huffman: dict[tuple[int, int], bytes] = field(default_factory=dict)  # replaced, not changed: scans share it
    scans: list[Scan] = field(default_factory=list)
    scans_end: int = 0  # byte after the data of the last scan so far
    remaining_bits: np.ndarray | None = None  # [components, 64]: low bits of coefficients that no scan so far gives
    complete: bool = False  # whether they give them all
    restart_interval: int = 0
    size: int = 0
    first_height: int = 0  # that of the frame header, which a DNL segment may define anew
    surplus: bool = False  # whether what stands between the last block and the end was passed over
    decodable: list[bytes | Scan] = field(default_factory=list)  # the stream without APPn and COM
    jfif: bool = False
    adobe_transform: int | None = None
    description: list[tuple[int, bytes]] = field(default_factory=list)  # (marker, content) of APPn and COM segments

    def decodable_parts(self) -> Iterator[bytes]:
        """What a decoder needs of the stream, in pieces."""
        return (part.data if isinstance(part, Scan) else part for part in self.decodable)

    def bare(self) -> bytes:
        """What a decoder needs, colour included: other readers take quadratic time over many small segments."""
        colour = dict(one for one in self.description if one[1].startswith(_OF_COLOUR.get(one[0], b"-")))
        head = [struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload for marker, payload in colour.items()]
        first, *rest = self.decodable_parts()
        return b"".join([first, *head, *rest])


def image_kind(start: bytes) -> str | None:
    """`"JPEG"`, `"PNG"` and the like, by the first 16 bytes of an image; `None` where none begins so."""
    return next((kind for kind, begins in _KINDS.items() if begins.match(start)), None)


def _not_a_jpeg(data: bytes) -> str:
    kind = image_kind(data)
    if kind is not None:
        return f"not a JPEG but a {kind} image, which has no coefficients to go by; give the JPEG it was made from"
    text = not any(byte < 0x20 and byte not in b"\t\n\f\r" for byte in data[:1000])
    return f"not a JPEG{' but text' if text else ', nor an image of a known kind'}; give a JPEG file"


def parse(data: bytes, repair: bool = False) -> Stream:
    """Walk the marker segments from SOI to EOI; to repair, as far as they go."""
    if not data:
        raise JPEGFileError("the file is empty")
    if data[:2] != b"\xff\xd8":
        raise JPEGFileError(_not_a_jpeg(data))
    stream = Stream(decodable=[data[:2]], size=len(data))
    _parse(stream, data, repair)
    if stream.frame_type is not None and not stream.height:
        raise JPEGFileError("its frame header gives a height of 0, and no DNL marker gives another")
    return stream


def _parse(stream: Stream, data: bytes, repair: bool) -> None:
    try:
        _walk_segments(stream, data, repair)
    except _OutOfProportionError:
        raise
    except JPEGFileError as error:
        end = data.find(b"\xff\xd9", stream.scans_end)
        if stream.complete and end >= 0:  # behind the last block of all, whatever is no segment is in nobody's way
            stream.decodable.append(data[end : end + 2])
            stream.size, stream.surplus = end + 2, True
        elif not stream.scans:
            raise JPEGFileError(str(error)) from None  # nothing that could be repaired
        elif not repair:
            raise _without_end(data) if stream.complete else error from None


def _without_end(data: bytes) -> JPEGDamageError:
    return JPEGDamageError(f"truncated: the file ends at byte {len(data)} without an end-of-image marker")


def _walk_segments(stream: Stream, data: bytes, repair: bool) -> None:
    position = 2
    while True:
        found = _MARKER.search(data, position)
        if found is None:
            raise _without_end(data)
        start, position = found.span()
        marker = data[start + 1]
        if marker == _EOI:
            stream.decodable.append(data[start:position])
            stream.size = position
            return
        if marker in _RESERVED and stream.complete:
            raise JPEGDamageError(f"the marker ff {marker:02x} at byte {start} has no meaning")
        if marker == _SOI:
            raise JPEGDamageError(f"a second start-of-image marker at byte {start}, before the first image ended")

        if position + 2 > len(data):
            raise JPEGDamageError(f"truncated inside the marker segment at byte {start}")
        length = int.from_bytes(data[position : position + 2], "big")
        if length < 2:
            raise JPEGDamageError(f"the marker segment ff {marker:02x} at byte {start} claims {length} bytes")
        if position + length > len(data):
            raise JPEGDamageError(f"truncated inside the marker segment ff {marker:02x} at byte {start}")
        payload = data[position + 2 : position + length]
        position += length
        try:
            _read_segment(stream, marker, payload)
        except (IndexError, struct.error):
            raise JPEGDamageError(
                f"the marker segment ff {marker:02x} at byte {start} is too short for what it must hold"
            ) from None
        if marker in _DESCRIPTION:
            stream.description.append((marker, payload))
        elif marker != _DNL:
            stream.decodable.append(data[start:position])
        if marker == _SOS:
            after = _end_of_scan(stream, data, position, repair)
            stream.scans[-1].data = data[position:after]
            stream.decodable.append(stream.scans[-1])
            position = stream.scans_end = after


def _end_of_scan(stream: Stream, data: bytes, position: int, repair: bool) -> int:
    """Where the entropy-coded data from `position` end; to repair, markers that make no sense there are damage."""
    if not repair:
        end = _MARKER_AFTER_SCAN.search(data, position)
        return end.start() if end else len(data)
    # A component gets its table with its first scan, so those that have one have had a scan.
    first = len(stream.scans) == 1
    more = stream.frame_type == 0xC2 or len(stream.component_tables) < len(stream.frame)
    for found in _MARKER_AFTER_SCAN.finditer(data, position):
        at = found.end()
        marker, length = data[at : at + 1], int.from_bytes(data[at + 1 : at + 3], "big")
        fits = length >= 2 and at + 1 + length <= len(data)
        follows = (more and marker in (b"\xc4", b"\xda", b"\xdb", b"\xdd", b"\xfe")) or (first and marker == b"\xdc")
        if marker == b"\xd9" or (follows and fits):
            return found.start()
    return len(data)


def _read_segment(stream: Stream, marker: int, payload: bytes) -> None:
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
    elif marker == _DNL and len(stream.scans) == 1:
        _read_height(stream, payload)
    elif marker == 0xE0 and payload.startswith(b"JFIF\0") and len(payload) >= 14 and not stream.scans:
        stream.jfif = True
    elif marker == 0xEE and payload.startswith(b"Adobe") and len(payload) >= 12 and not stream.scans:
        stream.adobe_transform = payload[11]


def _read_frame(stream: Stream, marker: int, payload: bytes) -> None:
    if stream.frame_type is not None:
        raise JPEGFileError("it holds a second frame header")
    precision, height, width, count = struct.unpack_from(">BHHB", payload)
    if precision != 8:
        raise JPEGFileError(f"{precision}-bit JPEG is not supported, only 8-bit")
    if width == 0:
        raise JPEGFileError("its frame header gives a width of 0")
    _check_pixels(width, height)
    stream.frame_type, stream.width, stream.height, stream.first_height = marker, width, height, height
    for i in range(count):
        identifier, factors, table_number = struct.unpack_from(">BBB", payload, 6 + 3 * i)
        horizontal, vertical = factors >> 4, factors & 15
        if not (1 <= horizontal <= 4 and 1 <= vertical <= 4):
            raise JPEGFileError(f"component {i + 1} has impossible sampling factors {horizontal}x{vertical}")
        stream.frame.append(_FrameComponent(identifier, horizontal, vertical, table_number))
    stream.remaining_bits = np.full((count, 64), 16)


def _read_height(stream: Stream, payload: bytes) -> None:
    """Take the number of lines that stands behind the first scan (T.81, B.2.5), in what is decoded too."""
    (height,) = struct.unpack_from(">H", payload)
    if height == 0:
        raise JPEGDamageError("a DNL marker gives a height of 0")
    _check_pixels(stream.width, height)
    stream.height = height
    frame = next(i for i, part in enumerate(stream.decodable) if part[1] == stream.frame_type)
    header = stream.decodable[frame]
    stream.decodable[frame] = header[:5] + payload[:2] + header[7:]


def _check_pixels(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise JPEGFileError(
            f"it claims {width} x {height} pixels, above the limit of {2 * limit}"
            " (raise PIL.Image.MAX_IMAGE_PIXELS if you trust it)"
        )


def _read_tables(stream: Stream, payload: bytes) -> None:
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


def _read_huffman_tables(stream: Stream, payload: bytes) -> None:
    offset = 0
    while offset < len(payload):
        kind, number = payload[offset] >> 4, payload[offset] & 15
        counts = struct.unpack_from(">16B", payload, offset + 1)
        end = offset + 17 + sum(counts)
        codes = sum(count << (16 - length) for length, count in enumerate(counts, 1))
        if kind > 1 or number > 3 or sum(counts) > 256 or codes > 1 << 16:
            raise JPEGDamageError(f"Huffman table {payload[offset]:02x} is impossible")
        if end > len(payload):
            raise IndexError
        stream.huffman = stream.huffman | {(kind, number): payload[offset + 1 : end]}
        offset = end


def _read_scan(stream: Stream, payload: bytes) -> None:
    if stream.frame_type is None:
        raise JPEGFileError("a scan starts before any frame header")
    count = payload[0]
    identifiers = [payload[1 + 2 * i] for i in range(count)]
    numbers = tuple((payload[2 + 2 * i] >> 4, payload[2 + 2 * i] & 15) for i in range(count))
    spectral_start, spectral_end, successive = struct.unpack_from(">BBB", payload, 1 + 2 * count)
    known = [component.identifier for component in stream.frame]
    if not identifiers or any(identifier not in known for identifier in identifiers):
        raise JPEGDamageError("a scan names a component that the frame header does not have")
    positions = tuple(known.index(identifier) for identifier in identifiers)
    for position in positions:  # the table in force at a component's first scan holds for all of its scans
        number = stream.frame[position].table_number
        if position not in stream.component_tables:
            if number not in stream.tables:
                raise JPEGDamageError(f"quantization table {number} is used but never defined")
            stream.component_tables[position] = stream.tables[number]
    if len(stream.scans) == _MOST_SCANS:
        raise _OutOfProportionError(f"it has more than {_MOST_SCANS} scans, which is out of all proportion")
    high, low = successive >> 4, successive & 15
    if len(set(positions)) < len(positions):
        raise JPEGDamageError("a scan names a component twice")
    if stream.frame_type != 0xC2:  # what a sequential scan says here has no effect
        spectral_start, spectral_end, high, low = 0, 63, 0, 0
    elif (
        not spectral_start <= spectral_end < 64
        or (spectral_start == 0) != (spectral_end == 0)
        or (spectral_start and count > 1)
        or (high and low != high - 1)
        or low > 13
    ):
        raise JPEGDamageError(f"a progressive scan has an impossible header {payload[1 + 2 * count :].hex(' ')}")
    stream.scans.append(
        Scan(positions, numbers, spectral_start, spectral_end, high, low, stream.restart_interval, stream.huffman)
    )
    stream.remaining_bits[positions, spectral_start : spectral_end + 1] = low
    stream.complete = not stream.remaining_bits.any()


def colour_space_of(stream: Stream) -> ColourSpace:
    """The colour space by what precedes the first scan."""
    if stream.frame_type is None:
        raise JPEGFileError("it ends without a frame header")
    identifiers = bytes(component.identifier for component in stream.frame)
    if len(identifiers) not in (1, 3, 4):
        raise JPEGFileError(f"a JPEG with {len(identifiers)} components is not supported, only 1, 3 or 4")
    if len(set(identifiers)) < len(identifiers):
        raise JPEGFileError("two components have the same identifier")
    if len(identifiers) == 4:
        *colours, black = stream.frame
        if mcu_size([black]) != mcu_size(colours):
            raise JPEGFileError("a JPEG with four components whose black is coarser than the others is not supported")
    return colour_space_by(identifiers, stream.jfif, stream.adobe_transform)


def components_of(stream: Stream, repair: bool = False) -> tuple[Component, ...]:
    if repair:  # components whose scans are lost have tables all the same
        for i, component in enumerate(stream.frame):
            if component.table_number in stream.tables:
                stream.component_tables.setdefault(i, stream.tables[component.table_number])
    missing = [i + 1 for i in range(len(stream.frame)) if i not in stream.component_tables]
    if missing:
        raise JPEGDamageError(f"truncated: it has no scan for component {missing[0]} of {len(stream.frame)}")
    if len(stream.frame) == 1:  # the factors of a single component have no effect (T.81, A.2.2)
        return (Component(stream.frame[0].identifier, 1, 1, stream.component_tables[0]),)
    down, across = (side // 8 for side in mcu_size(stream.frame))
    for c in stream.frame:
        if across % c.horizontal_factor or down % c.vertical_factor:
            raise JPEGFileError(
                f"sampling factors {c.horizontal_factor}x{c.vertical_factor} beside {across}x{down} are not"
                " supported: the ratio is not a whole number"
            )
    return tuple(
        Component(c.identifier, c.horizontal_factor, c.vertical_factor, stream.component_tables[i])
        for i, c in enumerate(stream.frame)
    )


def most_coefficients(size: int) -> int:
    """How many a file of so many bytes may claim."""
    return max(_FREE_COEFFICIENTS, _COEFFICIENTS_PER_BYTE * size)


def check_proportion(stream: Stream, components: tuple[Component, ...]) -> None:
    """Refuse a file that would take memory and time out of all proportion to its bytes."""
    blocks = [rows * columns for rows, columns in plane_shapes(stream, components)]
    limit = most_coefficients(stream.size) // 64
    if sum(blocks) > limit:
        raise JPEGFileError(
            f"it claims {stream.width} x {stream.height} pixels in {stream.size} bytes, which is out of all proportion"
        )
    passes = sum(blocks[position] for scan in stream.scans for position in scan.components)
    if passes > _PASSES * limit:
        raise JPEGFileError(f"its {len(stream.scans)} scans are out of all proportion")


def check_scans(stream: Stream, components: tuple[Component, ...]) -> None:
    """Refuse what cannot be whole: too little data for the claimed size."""
    shapes = plane_shapes(stream, components)
    for scan in stream.scans:
        blocks = sum(shapes[position][0] * shapes[position][1] for position in scan.components)
        first = scan.spectral_start == scan.successive_high == 0
        if first and 8 * len(scan.data) < blocks:  # every block has a DC code of one bit at least
            raise JPEGDamageError(
                f"truncated: it claims {stream.width} x {stream.height} pixels,"
                f" but a scan has only {len(scan.data)} bytes"
            )


def plane_shapes(stream: Stream, components: tuple[Component, ...]) -> list[tuple[int, int]]:
    """Blocks down and across of each component, as libjpeg keeps them (T.81, A.1.1 and A.2.4)."""
    height, width = mcu_size(components)
    return [
        (ceil(stream.height * c.vertical_factor / height), ceil(stream.width * c.horizontal_factor / width))
        for c in components
    ]


def mcu_size(components: Sequence[Component | _FrameComponent]) -> tuple[int, int]:
    """(height, width) in pixels of a minimum coded unit."""
    return 8 * max(c.vertical_factor for c in components), 8 * max(c.horizontal_factor for c in components)


def drop_surplus_restarts(stream: Stream, components: tuple[Component, ...]) -> None:
    """Cut each scan before the first restart marker that comes after its last MCU.

    The decoder would pass over them, but its warning of other bytes there would read like one of damage.
    """
    shapes = plane_shapes(stream, components)
    for scan in stream.scans:
        rows, columns = shapes[scan.components[0]]
        if len(scan.components) > 1:
            first = components[scan.components[0]]
            rows, columns = ceil(rows / first.vertical_factor), ceil(columns / first.horizontal_factor)
        needed = (rows * columns - 1) // scan.restart_interval if scan.restart_interval else 0
        for marker in islice(RESTART.finditer(scan.data), needed, needed + 1):
            scan.data, stream.surplus = scan.data[: marker.start()], True
