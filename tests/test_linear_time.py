"""Twice the bytes take at most two and a half times the processor time, in every parser and in the shape worst for it.

What it takes in all depends on the machine; that a megabyte takes sixteen times as much as 64 kB does not.
"""

from __future__ import annotations

import contextlib
import gc
import math
import struct
import tarfile
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from jpeg_corpus import encode as written
from jpeg_corpus import segment, segments
from PIL import Image

from pipeline_ddrm_jpeg import JPEGFile, JPEGFileError
from pipeline_ddrm_jpeg.decoded.opening import open_image
from pipeline_ddrm_jpeg.files import archives
from pipeline_ddrm_jpeg.files.formats import FORMATS, encode

MOST = 2.5  # times; a quadratic parser takes four
LEAST = 0.01  # seconds that whatever is faster counts as: what is refused at once takes no time that could be doubled
ROUNDS = (2, 30)  # of which the fastest counts: so many, and more where that is not enough

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
JPEG = written(PICTURE, quality=50)
RESTARTS = written(PICTURE, quality=50, restart_marker_blocks=1)
PROGRESSIVE = written(PICTURE, quality=50, progressive=True)
TURNED = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHH", 274, 3, 1, 6, 0) + bytes(4)


def seconds(use: Callable, data: bytes) -> float:
    start = time.process_time()
    use(data)
    return time.process_time() - start


def assert_linear(make: Callable[[int], bytes], use: Callable[[bytes], None], size: int) -> None:
    """`use` of `make(2 * size)` takes at most `MOST` times what it takes of `make(size)`."""
    data = make(size), make(2 * size)
    assert len(data[1]) > 1.7 * len(data[0]), "the shape grows with its size"
    best = [math.inf, math.inf]
    gc.disable()
    try:
        for number in range(1, ROUNDS[1] + 1):
            best = [min(before, seconds(use, one)) for before, one in zip(best, data, strict=True)]
            if number >= ROUNDS[0] and best[1] <= MOST * max(best[0], LEAST):
                return
    finally:
        gc.enable()
    pytest.fail(f"{best[0] * 1000:.1f} ms became {best[1] * 1000:.1f} ms")


def filled(one: bytes, size: int) -> bytes:
    return one * (size // len(one))


def inserted(made: bytes, data: bytes = JPEG, at: int = 2) -> bytes:
    return data[:at] + made + data[at:]


def in_segments(marker: int, head: bytes, data: bytes) -> bytes:
    step = 65_000
    return b"".join(segment(marker, head + data[at : at + step]) for at in range(0, len(data), step))


def first_scan(data: bytes) -> int:
    return next(start for marker, start, _ in segments(data) if marker == 0xDA)


def read(data: bytes) -> None:
    """As the command does it, whole or what is left."""
    for repair in (False, True):
        try:
            JPEGFile.open(data, repair=repair)
        except JPEGFileError:
            continue


def carry(data: bytes) -> None:
    """All that is done with the metadata of a file: into an image of every format, turned upright."""
    metadata = JPEGFile.open(data).metadata
    metadata.sizes()
    for image_format in FORMATS:
        encode(np.zeros((8, 8, 3), np.uint8), image_format, metadata.upright())


# --- Markers, scans, restarts, repair ---

BEFORE_END = -2
MARKERS = {
    "fill bytes before a marker": lambda n: inserted(b"\xff" * n),
    "fill bytes before the end": lambda n: inserted(b"\xff" * n, RESTARTS, BEFORE_END),
    "fill bytes in runs that end in no marker": lambda n: inserted(
        filled(b"\xff" * 4000 + b"\0", n), RESTARTS, BEFORE_END
    ),
    "erased flash after half a file": lambda n: RESTARTS[: len(RESTARTS) // 2] + b"\xff" * n,
    "stuffed zeros without data": lambda n: inserted(filled(b"\xff\0", n), RESTARTS, BEFORE_END),
    "stray restart markers": lambda n: inserted(filled(b"\xff\xd0", n)),
    "restart markers in a scan": lambda n: inserted(filled(bytes.fromhex("ffd0ffd1ffd2"), n), RESTARTS, BEFORE_END),
    "markers that are none in a scan": lambda n: PROGRESSIVE[:-2] + filled(b"\xff\x02", n),
    "markers cut short in a scan": lambda n: PROGRESSIVE[:-2] + filled(b"\xff\xc4\xff\xff", n),
    "comments of no bytes": lambda n: inserted(filled(segment(0xFE), n)),
    "quantization tables": lambda n: inserted(filled(segment(0xDB, b"\0" + b"\1" * 64), n)),
    "Huffman tables": lambda n: inserted(filled(segment(0xC4, bytes(17)), n), PROGRESSIVE, first_scan(PROGRESSIVE)),
    "zeros behind the image": lambda n: JPEG + bytes(n),
    "images behind the image": lambda n: JPEG + filled(b"\xff\xd8", n),
}


@pytest.mark.parametrize("shape", MARKERS)
def test_reading_a_file_takes_time_in_proportion_to_its_bytes(shape):
    assert_linear(MARKERS[shape], read, 2**16)


# --- EXIF, XMP, Photoshop, ICC ---


def exif(entry: Callable[[int], tuple[int, int]], text: bytes, size: int) -> bytes:
    """A directory whose entries, each (tag, type), all have the same text for a value, which is as long as all else."""
    count = min(65_535, size // 24)
    place = 8 + 2 + 12 * count + 4
    entries = b"".join(struct.pack("<HHII", *entry(i), size - place, place) for i in range(count))
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + bytes(4) + text * (size - place)
    return inserted(in_segments(0xE1, b"Exif\0\0", block))


def xmp(content: bytes, declared: bytes = b"") -> bytes:
    """A file that is not upright, with such a content of rdf:RDF in extended XMP."""
    name = b"A" * 32
    rdf = b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"%s>%s</rdf:RDF>'
    note = b'<rdf:Description xmlns:n="http://ns.adobe.com/xmp/note/" n:HasExtendedXMP="%s"/>' % name
    extension = rdf % (b' xmlns:tiff="http://ns.adobe.com/tiff/1.0/"' + declared, content) + b"<!--Orientation-->"
    made = segment(0xE1, b"Exif\0\0" + TURNED) + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + rdf % (b"", note))
    for at in range(0, len(extension), 65_000):
        place = struct.pack(">II", len(extension), at)
        part = extension[at : at + 65_000]
        made += segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + name + place + part)
    return inserted(made)


def names(size: int) -> bytes:
    return b"".join(b' xmlns:p%d="u:%d"' % (i, i) for i in range(size // 24))


def profile(data: bytes) -> bytes:
    parts = [data[at : at + 65_000] for at in range(0, len(data), 65_000)]
    numbered = (b"ICC_PROFILE\0" + bytes((i, len(parts))) + part for i, part in enumerate(parts, 1))
    return inserted(b"".join(segment(0xE2, part) for part in numbered))


def resources(number: Callable[[int], int], size: int) -> bytes:
    data = b"".join(struct.pack(">4sHHI", b"8BIM", number(i), 0, 0) for i in range(size // 12))
    return inserted(in_segments(0xED, b"Photoshop 3.0\0", data))


BITS = np.random.default_rng(0).integers(0, 2, 2**21, dtype=np.uint8).tobytes()
ORIENTED = b"<rdf:Description><tiff:Orientation>6</tiff:Orientation></rdf:Description>"
METADATA = {
    "EXIF: one text for all entries": (lambda n: exif(lambda i: (274, 2), b"6", n), 2**16),
    "EXIF: one text of spaces": (lambda n: exif(lambda i: (274, 2), b" ", n), 2**16),
    "EXIF: one text for all tags": (lambda n: exif(lambda i: (i, 2), b"x", n), 2**16),
    "EXIF: parts of a byte": (
        lambda n: inserted(segment(0xE1, b"Exif\0\0" + TURNED) + filled(segment(0xE1, b"Exif\0\0x"), n)),
        2**14,
    ),
    "EXIF: headers": (lambda n: inserted(filled(segment(0xE1, b"Exif\0\0" * 9000), n)), 2**17),
    "XMP: namespaces, and nodes that use none": (lambda n: xmp(b"<a/>" * (n // 8), names(n // 2)), 2**14),
    "XMP: namespaces, and nodes that use them": (
        lambda n: xmp(b"".join(b"<p%d:a/>" % (i % (n // 48)) for i in range(n // 20)), names(n // 2)),
        2**14,
    ),
    "XMP: a long namespace that all nodes use": (
        lambda n: xmp(b"<p:a/>" * (n // 12), b' xmlns:p="%s"' % (b"u" * (n // 2))),
        2**15,
    ),
    "XMP: namespaces, and nodes with one more": (
        lambda n: xmp(b'<a xmlns:q="r"/>' * (n // 32), names(n // 2)),
        2**14,
    ),
    "XMP: deep": (lambda n: xmp((b'<a b="c">' * 90 + b"</a>" * 90) * (n // 1170)), 2**14),
    "XMP: too deep": (lambda n: xmp(b"<a>" * (n // 3)), 2**18),
    "XMP: attributes": (lambda n: xmp(b"<a%s/>" % b"".join(b' b%d="c"' % i for i in range(n // 10))), 2**15),
    "XMP: spaces": (lambda n: xmp(b"<a%sb='c'/>" % (b" " * n)), 2**17),
    "XMP: orientations": (lambda n: xmp(ORIENTED * (n // len(ORIENTED))), 2**15),
    "XMP: defaults of a document type": (
        lambda n: xmp(b"<a/>" * (n // 8), b"/><!DOCTYPE a [<!ATTLIST a b CDATA '%s'>]><a" % (b"c" * (n // 2))),
        2**18,
    ),
    "extended XMP: parts of a byte": (
        lambda n: inserted(filled(segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(41)), n)),
        2**16,
    ),
    "Photoshop: resources of one number": (lambda n: resources(lambda i: 0x0404, n), 2**16),
    "Photoshop: resources of all numbers": (lambda n: resources(lambda i: i % 65_536, n), 2**16),
    "ICC: a profile that is hard to compress": (lambda n: profile(bytes(16) + b"RGB " + BITS[:n]), 2**16),
    "ICC: parts of a byte": (lambda n: inserted(filled(segment(0xE2, b"ICC_PROFILE\0\1\1x"), n)), 2**15),
    "comments": (lambda n: inserted(filled(segment(0xFE, b"x"), n)), 2**13),
    "segments that nobody knows": (
        lambda n: inserted(b"".join(segment(0xE5, b"%016x" % i) for i in range(n // 20))),
        2**15,
    ),
}


@pytest.mark.parametrize("shape", METADATA)
def test_carrying_metadata_takes_time_in_proportion_to_its_bytes(shape):
    make, size = METADATA[shape]
    assert_linear(make, carry, size)


@pytest.mark.parametrize("shape", METADATA)
def test_what_is_written_is_bounded_by_what_was_read(shape):
    make, size = METADATA[shape]
    data = make(size)
    metadata = JPEGFile.open(data).metadata.upright()
    for image_format in FORMATS:
        made, not_kept = encode(np.zeros((8, 8, 3), np.uint8), image_format, metadata)
        assert len(made) + sum(map(len, not_kept)) < 6 * len(data) + 1000, image_format


# --- Images of other formats ---


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(made: bytes) -> bytes:
    return inserted(made, written(PICTURE, format="PNG"), 33)


def gif(made: bytes) -> bytes:
    data = written(PICTURE, format="GIF")
    return inserted(made, data, 13 + (3 << (data[10] & 7) + 1))


def tiff(tag: Callable[[int], int], size: int) -> bytes:
    """Entries that share a text, as many as there is room for, behind those of an image."""
    data = written(PICTURE.convert("L"), format="TIFF")
    (at,) = struct.unpack_from("<I", data, 4)
    (own,) = struct.unpack_from("<H", data, at)
    count = min(60_000, size // 24)
    place = len(data) + 2 + 12 * (own + count) + 4
    entries = b"".join(struct.pack("<HHII", tag(i), 2, size // 2, place) for i in range(count))
    directory = struct.pack("<H", own + count) + data[at + 2 : at + 2 + 12 * own] + entries + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory + bytes(size // 2)


PICTURES = {
    "PNG: empty chunks": (lambda n: png(filled(chunk(b"abCd", b""), n)), 2**17),
    "PNG: texts of one name": (lambda n: png(filled(chunk(b"tEXt", b"a\0b"), n)), 2**17),
    "PNG: texts of many names": (
        lambda n: png(b"".join(chunk(b"tEXt", b"%d\0" % i) for i in range(n // 20))),
        2**18,
    ),
    "GIF: comments of a byte": (lambda n: gif(filled(b"!\xfe\1x\0", n)), 2**21),
    "GIF: a comment": (lambda n: gif(b"!\xfe" + filled(b"\xff" + b"x" * 255, n) + b"\0"), 2**21),
    "TIFF: one tag": (lambda n: tiff(lambda i: 40_000, n), 2**18),
    "TIFF: many tags": (lambda n: tiff(lambda i: 1000 + i % 60_000, n), 2**18),
    "text": (lambda n: filled(b"text ", n), 2**23),
    "zeros": (bytes, 2**23),
}


def estimate(data: bytes) -> None:
    with pytest.raises(JPEGFileError):
        open_image(data)


@pytest.mark.parametrize("shape", PICTURES)
def test_pictures_of_other_formats_take_time_in_proportion_to_their_bytes(shape):
    make, size = PICTURES[shape]
    assert_linear(make, estimate, size)


@pytest.mark.parametrize("shape", ["comments of no bytes", "fill bytes before a marker"])
def test_looking_for_an_earlier_jpeg_takes_time_in_proportion_to_the_bytes(shape):
    assert_linear(MARKERS[shape], lambda data: open_image(data).earlier, 2**16)


# --- Tars ---


def header(name: str, size: int = 0, kind: bytes = b"0", **fields) -> bytes:
    made = tarfile.TarInfo(name)
    made.size, made.type = size, kind
    for field, value in fields.items():
        setattr(made, field, value)
    return made.tobuf(tarfile.GNU_FORMAT)


def extended(data: bytes, kind: bytes = b"x") -> bytes:
    return header("x", len(data), kind) + data + bytes(-len(data) % 512)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


TARS = {
    "members": (lambda n: filled(header("a"), n), 2**18),
    "names": (lambda n: b"".join(header(f"{i}.jpg", 4) + padded(b"\xff\xd8\xff\xe0") for i in range(n // 1024)), 2**18),
    "links to one": (lambda n: header("a") + filled(header("b", kind=b"1", linkname="a"), n), 2**18),
    "links before what they lead to": (
        lambda n: (
            b"".join(header(f"{i}", kind=b"2", linkname=f"{i + 1}") for i in range(n // 512)) + header(f"{n // 512}")
        ),
        2**18,
    ),
    "links in a circle": (
        lambda n: b"".join(header(f"{i}", kind=b"2", linkname=f"{(i + 1) % (n // 512)}") for i in range(n // 512)),
        2**18,
    ),
    "global headers": (lambda n: (extended(b"10 k%03d=1\n" % 1, b"g") + header("a")) * (n // 1536), 2**18),
    "global keys for all": (
        lambda n: extended(b"".join(b"10 k%03d=\n" % i for i in range(n // 20)), b"g") + filled(header("a"), n // 2),
        2**21,
    ),
    "numbers": (lambda n: extended(b"9" * n) + header("a"), 2**19),
    "short numbers": (lambda n: extended(b"70 comment=" + b"9" * 58 + b"\n" + (b"9" * 63 + b" ") * (n // 64)), 2**19),
    "records": (lambda n: extended(b"5 aa\n" * (n // 5) + b"=") + header("a"), 2**19),
    "keys": (lambda n: extended(filled(b"10 abcd=1\n", n)) + header("a"), 2**16),
    "chains of headers": (lambda n: filled(extended(b"x\0", b"L"), n) + header("a"), 2**21),
    "a sparse map": (
        lambda n: (
            extended(b"%d GNU.sparse.map=" % (n + 30) + b",".join(b"%d,0" % i for i in range(n // 8))[: n - 1] + b"\n")
            + header("a")
        ),
        2**19,
    ),
}


@pytest.mark.parametrize("shape", TARS)
def test_tars_take_time_in_proportion_to_their_bytes(shape, tmp_path):
    make, size = TARS[shape]

    def convert(members):
        for member in members:
            yield member, [(".png", b"x")] if member.data is not None else ()

    def rewrite(data: bytes) -> None:
        (tmp_path / "a.tar").write_bytes(data)
        with contextlib.suppress(*archives.BROKEN):
            archives.rewrite(
                tmp_path / "a.tar", tmp_path / "b.tar", lambda start: start.startswith(b"\xff\xd8"), convert
            )

    assert_linear(lambda n: make(n) + bytes(1024), rewrite, size)
