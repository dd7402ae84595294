"""What a file carries beside its image, in every format, by the eyes of other readers."""

import io
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import png
import pytest
import tifffile
from conftest import jpeg_bytes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from pipeline_ddrm_jpeg import JPEGFile
from pipeline_ddrm_jpeg.decoded.history import assume_history
from pipeline_ddrm_jpeg.decoded.image import DecodedJPEG
from pipeline_ddrm_jpeg.files.formats import FORMATS, Format, check_depth, encode, upright
from pipeline_ddrm_jpeg.jpeg.metadata import Metadata, png_chunk, text_of_png

XMP, EXTENSION = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
RDF, TIFF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://ns.adobe.com/tiff/1.0/"
GREY, COLOUR = np.arange(35, dtype=np.uint8).reshape(5, 7), np.arange(105, dtype=np.uint8).reshape(5, 7, 3)
FORMS = {1: "B", 3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}


def value(order: str, kind: int, *numbers) -> bytes:
    return struct.pack(order + FORMS[kind] * (len(numbers) // len(FORMS[kind])), *numbers)


def directory(order: str, entries: list, at: int, following: int = 0) -> bytes:
    """A directory of (tag, type, count, value), with long values right behind it."""
    made, values = struct.pack(order + "H", len(entries)), b""
    for tag, kind, count, data in sorted(entries):
        if len(data) > 4:
            place = at + 6 + 12 * len(entries) + len(values)
            values += data + bytes(len(data) % 2)
            data = struct.pack(order + "I", place)
        made += struct.pack(order + "HHI", tag, kind, count) + data.ljust(4, b"\0")
    return made + struct.pack(order + "I", following) + values


def exif_block(order: str, entries: list, more: list | None = None, maker_note: bytes = b"") -> bytes:
    """An EXIF block, of which the second directory and a maker note stand before the first, far from where it is."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + bytes(4) + maker_note
    head += bytes(len(head) % 2)
    if more is not None:
        entries = [*entries, (0x8769, 4, 1, struct.pack(order + "I", len(head)))]
        head += directory(order, more, len(head))
    head = head[:4] + struct.pack(order + "I", len(head)) + head[8:]
    return head + directory(order, entries, len(head))


def with_segments(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    made = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    jfif = 4 + int.from_bytes(data[4:6], "big")
    return data[:jfif] + made + data[jfif:]


@pytest.fixture(scope="module")
def plain(photo) -> bytes:
    return jpeg_bytes(photo.resize((24, 16)))


def opened(plain: bytes, *segments: tuple[int, bytes]) -> Metadata:
    return JPEGFile.open(with_segments(plain, *segments)).metadata


def written(metadata: Metadata, image_format: str, folder: Path, pixels: np.ndarray = COLOUR) -> Path:
    """An image with this metadata in a file, which every reader here can read without a warning."""
    path = folder / f"a{FORMATS[image_format].suffixes[0]}"
    path.write_bytes(encode(pixels, image_format, metadata)[0])
    with Image.open(path) as picture:
        picture.load()
        assert picture.size == pixels.shape[1::-1]
        if image_format != "jpeg":
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.broadcast_to(
                pixels if pixels.ndim == 3 else pixels[..., None], (*pixels.shape[:2], 3)
            ))  # fmt: skip
    if image_format == "tiff":
        np.testing.assert_array_equal(tifffile.imread(path), pixels)
        if shutil.which("tiffinfo"):
            done = subprocess.run(["tiffinfo", str(path)], capture_output=True, text=True)
            assert done.returncode == 0
            assert not [line for line in done.stderr.splitlines() if "Unknown field" not in line], done.stderr
    if image_format == "png":
        png.Reader(filename=str(path)).preamble()
    if shutil.which("exiftool"):
        done = subprocess.run(["exiftool", "-a", "-validate", "-warning", "-error", str(path)], capture_output=True)
        assert not [line for line in done.stdout.splitlines() if b"Improper" in line or b"Error" in line], done.stdout
    return path


def exif_of(path: Path) -> bytes:
    """The EXIF block of a file as other readers find it; of a TIFF the file itself, whose offsets are the block's."""
    if path.suffix == ".tif":
        return path.read_bytes()
    with Image.open(path) as picture:
        return picture.info["exif"].removeprefix(b"Exif\0\0")


# --- EXIF ---


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [*FORMS, 2])
def test_an_orientation_is_read_and_set_in_whatever_type_it_is_stored(plain, order, kind):
    six = b"6\0" if kind == 2 else value(order, kind, *([6, 1] if len(FORMS[kind]) == 2 else [6]))
    block = exif_block(order, [(0x0112, kind, 2 if kind == 2 else 1, six), (0x010F, 2, 8, b"K\xfcste \xc2\0")])
    metadata = opened(plain, (0xE1, b"Exif\0\0" + block))
    assert metadata.orientation == 6
    turned = metadata.upright()
    assert turned.orientation == 1
    assert turned.exif != metadata.exif
    changed = [i for i, (old, new) in enumerate(zip(metadata.exif, turned.exif, strict=True)) if old != new]
    assert changed[-1] - changed[0] < len(six)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_as_pillow_turns_them(orientation):
    picture = Image.fromarray(COLOUR)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.info["exif"] = exif.tobytes()
    np.testing.assert_array_equal(upright(COLOUR, orientation), np.asarray(ImageOps.exif_transpose(picture)))
    assert upright(GREY, orientation).shape == (GREY.shape if orientation < 5 else GREY.shape[::-1])


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("image_format", FORMATS)
def test_all_of_exif_but_the_orientation_stays_byte_for_byte(plain, order, image_format, tmp_path):
    """Maker notes with offsets from the start of the block, UTF-8 and Latin-1, and a value that is no number."""
    note, artist = b"\1\2 note with offsets \xff\xfe" * 3, "Küste © 2020\0".encode()
    more = [
        (0x9204, 10, 1, value(order, 10, -1, 0)),
        (0x927C, 7, len(note), struct.pack(order + "I", 8)),
        (0x9286, 7, 12, b"ASCII\0\0\0h\xe9llo"[:12]),
    ]
    block = exif_block(order, [(0x0112, 3, 1, value(order, 3, 6)), (0x013B, 2, len(artist), artist)], more, note)
    metadata = opened(plain, (0xE1, b"Exif\0\0" + block))
    assert metadata.orientation == 6
    path = written(metadata.upright(), image_format, tmp_path)
    expected = block.replace(struct.pack(order + "HHIH", 0x0112, 3, 1, 6), struct.pack(order + "HHIH", 0x0112, 3, 1, 1))
    found = exif_of(path)
    if image_format == "tiff":
        assert found[8 : len(block)] == expected[8:]
        with tifffile.TiffFile(path) as opened_again:
            tags = opened_again.pages[0].tags
            assert tags[0x013B].value in (artist[:-1], artist[:-1].decode())
            assert tags[0x0112].value == 1
            assert opened_again.byteorder == order
    else:
        assert found == expected


def test_a_tiff_takes_no_tag_from_the_camera_that_says_how_pixels_are_stored(plain, tmp_path):
    stale = {256: 4000, 257: 3000, 258: 12, 259: 6, 262: 6, 277: 4, 278: 7, 284: 2, 317: 2, 322: 64, 338: 1, 339: 3}
    entries = [(tag, 3, 1, value("<", 3, number)) for tag, number in stale.items()]
    entries += [(273, 4, 1, value("<", 4, 9)), (279, 4, 1, value("<", 4, 9)), (330, 4, 1, value("<", 4, 8))]
    metadata = opened(plain, (0xE1, b"Exif\0\0" + exif_block("<", [*entries, (0x010F, 2, 6, b"Maker\0")])))
    for pixels in (GREY, COLOUR, COLOUR.astype(np.uint16) * 257):
        path = tmp_path / "a.tif"
        path.write_bytes(encode(pixels, "tiff", metadata)[0])
        np.testing.assert_array_equal(tifffile.imread(path), pixels)
        with tifffile.TiffFile(path) as file:
            assert sorted(file.pages[0].tags.keys()) == [256, 257, 258, 259, 262, 271, 273, 277, 278, 279, 284]
    assert metadata.not_kept(FORMATS["tiff"].keeps) == ("EXIF tag 0x014a",)


@pytest.mark.parametrize("image_format", FORMATS)
def test_exif_over_several_segments_is_one_block(plain, image_format, tmp_path):
    comment = bytes(np.random.default_rng(0).integers(1, 255, 150_000, dtype=np.uint8))
    block = exif_block("<", [(0x0112, 3, 1, value("<", 3, 6))], [(0x9286, 7, len(comment), comment)])
    parts = [block[i : i + 60_000] for i in range(0, len(block), 60_000)]
    metadata = opened(plain, *((0xE1, b"Exif\0\0" + part) for part in parts))
    assert metadata.exif == b"Exif\0\0" + block
    assert metadata.not_kept(FORMATS["png"].keeps) == ()
    path = tmp_path / f"a{FORMATS[image_format].suffixes[0]}"
    path.write_bytes(encode(COLOUR, image_format, metadata.upright())[0])
    again = JPEGFile.open(path).metadata.exif if image_format == "jpeg" else exif_of(path)
    assert comment in again


def test_a_header_that_stands_there_twice_is_written_once(plain, tmp_path):
    block = exif_block("<", [(0x010F, 2, 6, b"Maker\0")])
    metadata = opened(plain, (0xE1, b"Exif\0\0Exif\0\0" + block))
    for image_format in ("png", "jpeg", "webp"):
        assert exif_of(written(metadata, image_format, tmp_path)) == block


def test_exif_that_cannot_be_read_is_told(plain, tmp_path):
    metadata = opened(plain, (0xE1, b"Exif\0\0garbage"))
    assert (metadata.exif, metadata.orientation) == (None, 1)
    assert metadata.not_kept(FORMATS["png"].keeps) == ("EXIF that cannot be read",)
    written(metadata, "png", tmp_path)


@given(st.binary(max_size=200), st.sampled_from([b"II*\0", b"MM\0*"]))
def test_no_exif_block_makes_anything_fail(block, start):
    metadata = Metadata(((0xE1, b"Exif\0\0" + start + block),)).upright()
    assert metadata.orientation in range(1, 9)
    for image_format in FORMATS:
        data, not_kept = encode(GREY, image_format, metadata)
        assert all(isinstance(words, str) for words in not_kept)
        if image_format == "tiff":
            np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), GREY)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("quality", [95, 5])
def test_width_height_and_thumbnail_follow_a_turn(photo, order, orientation, quality, tmp_path):
    small = jpeg_bytes(photo.resize((32, 24)), quality=quality)
    has_room = quality == 95
    sides = {256: (3, 400), 257: (4, 70_000), 0xA002: (4, 400), 0xA003: (4, 300)}
    (w, h, x, y) = ((tag, kind, 1, value(order, kind, number)) for tag, (kind, number) in sides.items())
    first = [(0x0112, 3, 1, value(order, 3, orientation)), w, h]
    entries = [(513, 4, 1, value(order, 4, 400)), (514, 4, 1, value(order, 4, len(small)))]
    block = exif_block(order, first, [x, y])
    (at,) = struct.unpack_from(order + "I", block, 4)
    link = at + 2 + 12 * 4
    block = block[:link] + struct.pack(order + "I", 300) + block[link + 4 :].ljust(300 - link - 4, b"\0")
    block += directory(order, entries, 300).ljust(100, b"\0") + small
    data = jpeg_bytes(photo.resize((40, 24)), exif=b"Exif\0\0" + block, dpi=(300, 150))
    jfxx, before = (0xE0, b"JFXX\0\x10" + small), Image.open(io.BytesIO(data))
    assert before.getexif().get_ifd(-1)[514] == len(small)
    metadata = JPEGFile.open(with_segments(data, jfxx)).metadata.upright()
    for image_format in FORMATS:
        _, not_kept = encode(COLOUR, image_format, metadata)
        kept = has_room and image_format != "tiff"
        assert ("JFIF thumbnail" in not_kept, "EXIF thumbnail" in not_kept) == (True, not kept)
        with Image.open(written(metadata, image_format, tmp_path)) as again:
            exif = again.getexif()
            told = (exif.get_ifd(34665)[0xA002], exif.get_ifd(34665)[0xA003])
            assert told == ((300, 400) if orientation == 6 else (400, 300))
            assert exif[0x0112] == 1
            if image_format != "tiff":
                assert (exif[256], exif[257]) == ((70_000, 400) if orientation == 6 else (400, 70_000))
            thumbnail = exif.get_ifd(-1)
            assert bool(thumbnail) == kept
            if kept:
                block = again.info["exif"].removeprefix(b"Exif\0\0")
                turned = Image.open(io.BytesIO(block[thumbnail[513] :][: thumbnail[514]]))
                turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}
                upright = Image.open(io.BytesIO(small)).transpose(turns[orientation])
                assert np.abs(np.subtract(turned, upright, dtype=float)).mean() < 4


@pytest.mark.parametrize("kind", ["as cameras write it", "progressive", "65,500 pixels a side", "cut short"])
def test_a_thumbnail_that_no_camera_writes_is_left_out(photo, kind):
    small = bytearray(jpeg_bytes(photo.resize((32, 24)), quality=95, progressive=kind == "progressive"))
    if kind.startswith("65"):
        at = small.index(b"\xff\xc0")
        small[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    length = len(small) + 9 * (kind == "cut short")
    entries = [(513, 4, 1, value("<", 4, 100)), (514, 4, 1, value("<", 4, length))]
    block = exif_block("<", [(0x0112, 3, 1, value("<", 3, 6))], [])
    (at,) = struct.unpack_from("<I", block, 4)
    (count,) = struct.unpack_from("<H", block, at)
    link = at + 2 + 12 * count
    block = block[:link] + struct.pack("<I", 60) + block[link + 4 :].ljust(60 - link - 4, b"\0")
    block += directory("<", entries, 60).ljust(40, b"\0") + bytes(small)
    metadata = JPEGFile.open(jpeg_bytes(photo.resize((40, 24)), exif=b"Exif\0\0" + block)).metadata
    assert metadata.upright().left_out == (() if kind == "as cameras write it" else ("EXIF thumbnail",))


@given(st.binary(max_size=60), st.integers(0, 200))
def test_a_text_is_found_in_a_png_and_in_nothing_else(other, cut):
    metadata = Metadata(chunks=((b"tEXt", b"Title\0x"),)).with_text("k", "old").with_text("k", "new")
    data, _ = encode(GREY, "png", metadata)
    assert text_of_png(io.BytesIO(data), "k") == "new"
    assert text_of_png(io.BytesIO(data), "Title") == "x"
    for broken in (other, data[:8] + other, data[:cut]):
        assert text_of_png(io.BytesIO(broken), "k") in (None, "new", "ne", "n", "")


# --- XMP ---

PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about="" xmlns:%s="{TIFF}"'
    ' xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="6"%s</rdf:Description></rdf:RDF></x:xmpmeta>   '
    '<?xpacket end="w"?>'
)
SIX = {
    "attribute": ("tiff", ' tiff:Orientation="6">'),
    "single quotes": ("tiff", " tiff:Orientation='6'>"),
    "spaces": ("tiff", '\n  tiff:Orientation = "6" >'),
    "a sign of greater before it": ("tiff", ' dc:source="a>b" tiff:Orientation="6">'),
    "another prefix": ("t", ' t:Orientation="6">'),
    "element": ("tiff", "><tiff:Orientation>6</tiff:Orientation>"),
    "element, with white space": ("a-b", "><a-b:Orientation\n> 6\n</a-b:Orientation >"),
    "section": ("tiff", "><tiff:Orientation><![CDATA[6]]></tiff:Orientation>"),
    "reference": ("tiff", "><tiff:Orientation>&#x36;</tiff:Orientation>"),
    "reference in an attribute": ("tiff", ' tiff:Orientation="&#54;">'),
    "value attribute": ("tiff", '><tiff:Orientation rdf:value="6"/>'),
    "value element": ("tiff", "><tiff:Orientation><rdf:Description><rdf:value>6</rdf:value></rdf:Description>"
                      "</tiff:Orientation>"),
    "resource": ("tiff", '><tiff:Orientation rdf:parseType="Resource"><rdf:value>6</rdf:value></tiff:Orientation>'),
    "its own namespace": ("x", f'><Orientation xmlns="{TIFF}">6</Orientation>'),
}  # fmt: skip
ORIENTED = exif_block("<", [(0x0112, 3, 1, value("<", 3, 6))])


@pytest.mark.parametrize("form", SIX)
def test_the_orientation_in_xmp_follows_in_every_form_and_nothing_else_changes(plain, form):
    packet = (PACKET % SIX[form]).encode()
    metadata = opened(plain, (0xE1, b"Exif\0\0" + ORIENTED), (0xE1, XMP + packet)).upright()
    six = re.compile(rb"<!\[CDATA\[6\]\]>|&#x36;|&#54;|(?<!format=\")6(?=\D)(?!.*\?><x:)")
    assert metadata.xmp == six.sub(b"1", packet)
    assert b'format="6"' in metadata.xmp
    ElementTree.fromstring(metadata.xmp.decode())


def test_orientations_of_other_things_in_xmp_stay(plain):
    nested = '<dc:relation><rdf:Bag><rdf:li tiff:Orientation="6"/></rdf:Bag></dc:relation>'
    other = f' xmlns:o="urn:other" o:Orientation="6">{nested}'
    packet = (PACKET % ("tiff", other)).encode()
    metadata = opened(plain, (0xE1, b"Exif\0\0" + ORIENTED), (0xE1, XMP + packet))
    assert metadata.upright().xmp == packet


def test_xmp_that_expands_is_not_expanded_and_not_left_with_a_wrong_orientation(plain):
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><x>Orientation &b;</x>'
    metadata = opened(plain, (0xE1, b"Exif\0\0" + ORIENTED), (0xE1, XMP + bomb))
    assert metadata.xmp == bomb
    assert metadata.upright().xmp is None
    deep = b"<a>" * 20_000 + b"Orientation" + b"</a>" * 20_000
    assert Metadata(((0xE1, b"Exif\0\0" + ORIENTED), (0xE1, XMP + deep))).upright().xmp is None


def test_digits_beyond_counting_are_no_orientation(plain):
    entry = directory("<", [(274, 2, 5000, struct.pack("<I", 26))], 8)
    assert opened(plain, (0xE1, b"Exif\0\0II*\0\x08\0\0\0" + entry + b"6" * 5000)).orientation == 1


def test_a_document_type_is_not_parsed(plain):
    packet = b'<!DOCTYPE x [<!ATTLIST x a CDATA "b">]><x>Orientation</x>'
    turned = opened(plain, (0xE1, b"Exif\0\0" + ORIENTED), (0xE1, XMP + packet)).upright()
    assert turned.xmp is None
    assert turned.not_kept(FORMATS["jpeg"].keeps) == ("XMP that may say an orientation, and is not understood",)


def extended(main: str, extension: str, name: bytes = b"0123456789ABCDEF" * 2, step: int = 900) -> list:
    data = extension.encode()
    chunks = [name + struct.pack(">II", len(data), at) + data[at : at + step] for at in range(0, len(data), step)]
    return [(0xE1, XMP + main.encode()), *((0xE1, EXTENSION + chunk) for chunk in reversed(chunks))]


MAIN = PACKET % (
    "xmpNote",
    ' xmlns:n="http://ns.adobe.com/xmp/note/" n:HasExtendedXMP="0123456789ABCDEF0123456789ABCDEF">',
)
HISTORY = (
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:ps="urn:ps"><r:RDF xmlns:r="{RDF}" xmlns:t="{TIFF}">'
    f'<r:Description r:about="" ps:History="{"edited; " * 300}"/>'
    '<r:Description t:Orientation="6"/></r:RDF></x:xmpmeta>'
)


def test_extended_xmp_is_put_back_into_the_packet(plain, tmp_path):
    segments = extended(MAIN, HISTORY)
    metadata = opened(plain, *segments)
    nodes = list(ElementTree.fromstring(metadata.xmp.decode())[0])
    assert nodes[1].get("{urn:ps}History") == "edited; " * 300
    assert nodes[0].get("{http://purl.org/dc/elements/1.1/}format") == "6"
    assert b"HasExtendedXMP" not in metadata.xmp
    with Image.open(written(metadata, "png", tmp_path)) as picture:
        assert picture.info["xmp"] == metadata.xmp
    again = JPEGFile.open(written(metadata, "jpeg", tmp_path)).metadata
    assert again.segments[-len(segments) :] == tuple(segments), "a JPEG keeps the segments themselves"
    turned = opened(plain, (0xE1, b"Exif\0\0" + ORIENTED), *segments).upright()
    assert list(ElementTree.fromstring(turned.xmp.decode())[0])[2].get(f"{{{TIFF}}}Orientation") == "1"
    lacking = opened(plain, *segments[:-1])
    assert lacking.not_kept(FORMATS["png"].keeps) == ("extended XMP that is not whole",)


def test_nodes_of_an_extension_declare_what_is_declared_around_them_and_they_do_not_declare_themselves(plain):
    names = "".join(f' xmlns:p{i}="urn:{i}"' for i in range(10))
    nodes = "".join(
        f'<r:Description p{i}:a="b" xmlns:p4="urn:&quot;4&amp;"><p7:c><p8:d xmlns:p8="urn:own"/></p7:c></r:Description>'
        for i in (3, 4)
    )
    metadata = opened(plain, *extended(MAIN, f'<r:RDF xmlns:r="{RDF}"{names}>{nodes}</r:RDF>'))
    first, second = list(ElementTree.fromstring(metadata.xmp.decode())[0])[-2:]
    assert (first.get("{urn:3}a"), second.get('{urn:"4&}a')) == ("b", "b")
    assert (first[0].tag, first[0][0].tag) == ("{urn:7}c", "{urn:own}d")


def test_an_extension_that_would_multiply_is_left_out_and_named(plain, tmp_path):
    long = f'<r:RDF xmlns:r="{RDF}" xmlns:p="{"u" * 10_000}">{"<p:a/>" * 1000}</r:RDF><!--Orientation-->'
    metadata = opened(plain, (0xE1, b"Exif\0\0" + ORIENTED), *extended(MAIN, long))
    told = "extended XMP whose namespaces would take more than the file"
    assert metadata.xmp == MAIN.encode()
    assert told in metadata.not_kept(FORMATS["png"].keeps)
    assert metadata.upright().not_kept(FORMATS["jpeg"].keeps) == (told,), (
        "its segments do not stay, since they may say an orientation"
    )


def test_a_packet_too_long_for_a_segment_is_written_as_an_extension(tmp_path):
    packet = (PACKET % ("tiff", f' tiff:Make="{"x" * 150_000}">')).encode()
    path = written(Metadata.from_info({"xmp": packet}), "jpeg", tmp_path)
    metadata = JPEGFile.open(path).metadata
    node = list(ElementTree.fromstring(metadata.xmp.decode())[0])[-1]
    assert node.get(f"{{{TIFF}}}Make") == "x" * 150_000


# --- IPTC, resolution, comments, profiles, and what has no place ---


def resource(number: int, data: bytes) -> bytes:
    return b"8BIM" + struct.pack(">H", number) + b"\0\0" + struct.pack(">I", len(data)) + data + bytes(len(data) % 2)


def test_iptc_is_kept_in_jpeg_and_tiff_and_told_elsewhere(plain, tmp_path):
    record = b"\x1c\1\x5a\0\3\x1b%G" + b"\x1c\2\x78\0\x0bA caption. "[:16]
    segment = (0xED, b"Photoshop 3.0\0" + resource(0x0404, record) + resource(0x03ED, b"resolution"))
    metadata = opened(plain, segment)
    assert metadata.iptc == record
    assert segment in JPEGFile.open(written(metadata, "jpeg", tmp_path)).metadata.segments
    path = tmp_path / "a.tif"
    path.write_bytes(encode(COLOUR, "tiff", metadata)[0])
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].tags[33723].value == record
        assert file.pages[0].tags[34377].value == resource(0x03ED, b"resolution")
    for image_format in ("png", "webp"):
        assert metadata.not_kept(FORMATS[image_format].keeps) == ("IPTC and other Photoshop data",)
    assert metadata.not_kept(FORMATS["jpeg"].keeps) == metadata.not_kept(FORMATS["tiff"].keeps) == ()


@pytest.mark.parametrize(("unit", "metres"), [(1, 1 / 0.0254), (2, 100)])
def test_the_resolution_is_kept_and_turned(photo, unit, metres, tmp_path):
    data = jpeg_bytes(photo.resize((24, 16)), dpi=(300, 150)).replace(b"JFIF\0\1\1\1", b"JFIF\0\1\1" + bytes((unit,)))
    metadata = JPEGFile.open(with_segments(data, (0xE1, b"Exif\0\0" + ORIENTED))).metadata.upright()
    assert metadata.density == (unit, 150, 300)
    with open(written(metadata, "png", tmp_path), "rb") as stream:
        reader = png.Reader(file=stream)
        reader.preamble()
        assert (reader.x_pixels_per_unit, reader.y_pixels_per_unit) == (round(150 * metres), round(300 * metres))
        assert reader.unit_is_meter
    with Image.open(written(metadata, "tiff", tmp_path)) as picture:
        assert [float(picture.tag_v2[tag]) for tag in (282, 283, 296)] == [150, 300, unit + 1]
    assert JPEGFile.open(written(metadata, "jpeg", tmp_path)).metadata.density == (unit, 150, 300)
    assert metadata.not_kept(FORMATS["webp"].keeps) == ("resolution",)


def test_all_comments_are_kept_in_their_character_set_and_without_nul(plain, tmp_path):
    comments = (b"first", "Küste".encode(), b"Photoshop\xa8 5.0", b"ends\0", b"in\0side")
    metadata = opened(plain, *((0xFE, comment) for comment in comments))
    assert JPEGFile.open(written(metadata, "jpeg", tmp_path)).metadata.comments == comments
    path = written(metadata, "png", tmp_path)
    chunks = [(kind, data) for kind, data in png.Reader(filename=str(path)).chunks() if kind in (b"tEXt", b"iTXt")]
    assert chunks == [
        (b"tEXt", b"Comment\0first"),
        (b"iTXt", b"Comment\0\0\0\0\0" + comments[1]),
        (b"tEXt", b"Comment\0" + comments[2]),
        (b"tEXt", b"Comment\0ends"),
        (b"tEXt", b"Comment\0in\nside"),
    ]
    assert metadata.not_kept(FORMATS["tiff"].keeps) == metadata.not_kept(FORMATS["webp"].keeps) == ("comment",)


def profile(space: bytes) -> bytes:
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return made[:16] + space + made[20:]


@pytest.mark.parametrize(("first", "count"), [(1, 3), (0, 3)])
def test_a_profile_in_numbered_segments_is_read_as_others_read_it(plain, first, count, tmp_path):
    whole = profile(b"RGB ")
    parts = [whole[:100], whole[100:300], whole[300:]]
    segments = [(0xE2, b"ICC_PROFILE\0" + bytes((first + i, count)) + part) for i, part in enumerate(parts)]
    metadata = opened(plain, *reversed(segments))
    assert metadata.icc_profile == whole
    for image_format in FORMATS:
        with Image.open(written(metadata, image_format, tmp_path)) as picture:
            assert picture.info["icc_profile"] == whole
    assert opened(plain, *segments[:2]).not_kept(FORMATS["png"].keeps) == ("ICC profile that is not whole",)


def test_a_new_format_is_a_row_and_its_encoder(plain, monkeypatch):
    def bmp(pixels, metadata):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "bmp")
        return stream.getvalue()

    monkeypatch.setitem(FORMATS, "bmp", Format((".bmp",), bmp, ("comment",), longest_side=100, grey=False))
    metadata = opened(plain, (0xE1, b"Exif\0\0" + ORIENTED), (0xFE, b"hello"))
    data, not_kept = encode(GREY, "bmp", metadata)
    assert not_kept == ("EXIF",)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), np.repeat(GREY[..., None], 3, axis=2))
    with pytest.raises(ValueError, match="bmp takes at most 100 pixels a side"):
        encode(np.zeros((101, 1), np.uint8), "bmp", metadata)
    with pytest.raises(ValueError, match="bmp has 8 bits a channel; 16 are written as png or tiff"):
        check_depth(16, "bmp")


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("space", [b"GRAY", b"RGB ", b"CMYK", b"Lab "])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_a_profile_is_only_with_pixels_that_it_is_for(image_format, space, pixels, tmp_path):
    metadata = Metadata.from_info({"icc_profile": profile(space)})
    data, not_kept = encode(pixels, image_format, metadata)
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        fits = space == b"RGB " or (space == b"GRAY" and pixels is GREY and image_format != "webp")
        assert ("icc_profile" in picture.info) == fits
        assert bool(not_kept) == (not fits)
        assert picture.mode == ("L" if pixels is GREY and image_format != "webp" and space != b"RGB " else "RGB")
    written(metadata, image_format, tmp_path, pixels if picture.mode == "L" else np.broadcast_to(
        pixels if pixels.ndim == 3 else pixels[..., None], (5, 7, 3)
    ))  # fmt: skip


def test_what_a_format_has_no_place_for_is_named_once(plain):
    segments = [
        (0xE0, b"JFXX\0\x10thumbnail"),
        (0xE2, b"MPF\0MM"),
        (0xEB, b"JP\0\1"),
        (0xEC, b"Ducky\0\1"),
        (0xEC, b"Ducky\0\1"),
        (0xEE, b"Adobe\0\x64\0\0\0\0\1"),
        (0xE1, XMP + (PACKET % ("GContainer", "> http://ns.google.com/photos/1.0/container/")).encode()),
    ]
    data = with_segments(plain, *segments) + bytes(9) + plain
    metadata = JPEGFile.open(data).metadata
    announced = "the images that follow in the file, such as a gain map, which the XMP still announces"
    bound = ("index of further images (MPF)", "content credentials (JUMBF)")
    assert metadata.not_kept(FORMATS["jpeg"].keeps) == (*bound, announced)
    assert metadata.not_kept(FORMATS["png"].keeps) == ("JFIF thumbnail", *bound, "APP12 segment Ducky", announced)
    again = JPEGFile.open(encode(COLOUR, "jpeg", metadata)[0]).metadata.segments
    assert [one for one in again if one in segments] == [one for one in segments if one[1][:2] not in (b"MP", b"JP")]
    assert JPEGFile.open(plain + bytes(99)).metadata.not_kept(FORMATS["png"].keeps) == ()
    assert JPEGFile.open(plain + b"SEFT").metadata.not_kept(FORMATS["png"].keeps) == ("4 bytes that follow the image",)


# --- Depth ---


@pytest.mark.parametrize("image_format", ["png", "tiff"])
@pytest.mark.parametrize("shape", [(9, 13), (9, 13, 3), (700, 300, 3)])
def test_sixteen_bits_are_written_as_others_read_them(image_format, shape, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2**16, shape, dtype=np.uint16)
    for order in "<>":
        metadata = Metadata(((0xE1, b"Exif\0\0" + exif_block(order, [(0x010F, 2, 6, b"Maker\0")])),))
        path = tmp_path / f"a{FORMATS[image_format].suffixes[0]}"
        path.write_bytes(encode(pixels, image_format, metadata)[0])
        if image_format == "tiff":
            np.testing.assert_array_equal(tifffile.imread(path), pixels)
        else:
            _, _, rows, info = png.Reader(filename=str(path)).read()
            assert info["bitdepth"] == 16
            np.testing.assert_array_equal(np.array(list(rows)).reshape(shape), pixels)
        with Image.open(path) as picture:
            assert picture.getexif()[0x010F] == "Maker"


# --- Files that are no JPEG ---


def chunks_of(data: bytes) -> dict[bytes, list[bytes]]:
    found = {}
    for name, content in png.Reader(bytes=data).chunks():
        found.setdefault(bytes(name), []).append(bytes(content))
    return found


CHUNKS = [
    (b"gAMA", struct.pack(">I", 45455)),
    (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
    (b"sRGB", b"\0"),
    (b"cICP", b"\1\15\0\1"),
    (b"pHYs", struct.pack(">IIB", 5669, 2835, 1)),
    (b"tEXt", b"parameters\0a cat, steps: 20"),
    (b"tEXt", "Author\0Zoë".encode("latin-1")),
    (b"tEXt", b"Author\0and another"),
    (b"zTXt", b"Copyright\0\0no zlib"),
    (b"zTXt", b"Comment\0\0" + zlib.compress(b"packed")),
    (b"iTXt", b"Description\0\0\0de\0\0" + "Kätzchen".encode()),
    (b"prVt", b"may be copied"),
    (b"prVT", b"may not"),
    (b"tIME", struct.pack(">H5B", 2020, 1, 1, 1, 1, 1)),
]


def test_what_a_png_says_stays_in_a_png_and_goes_elsewhere_or_is_named(photo, tmp_path):
    plain = encode(np.asarray(photo.resize((24, 16))), "png", Metadata())[0]
    made = plain[:33] + b"".join(png_chunk(*one) for one in CHUNKS) + plain[33:]
    metadata = DecodedJPEG.open(made, assume_history(np.zeros((16, 24, 3), np.uint8), 50)).metadata
    for image_format, own in FORMATS.items():
        _, not_kept = encode(COLOUR, image_format, metadata)
        path = written(metadata, image_format, tmp_path)
        if image_format == "png":
            found = chunks_of(path.read_bytes())
            assert [(name, data) for name, data in CHUNKS[:-2] if data not in found[name]] == []
            assert not_kept == ("chunk prVT", "chunk tIME")
            continue
        lost = {"gamma", "chromaticities", "rendering intent of sRGB", "colour space (cICP)", "text parameters"}
        lost |= {"chunk prVt", "chunk prVT", "chunk tIME", "text Author", "text Copyright"}
        assert set(not_kept) - {"comment", "resolution"} == lost
        assert ("comment" in not_kept, "resolution" in not_kept) == (own.keeps is not None, image_format == "webp")
        with Image.open(path) as image:
            exif = image.getexif()
            assert exif[270].encode("latin-1") == "Kätzchen".encode() or exif[270] == "Kätzchen"
            assert image_format == "webp" or tuple(map(round, image.info["dpi"])) == (144, 72)
    turned = replace(metadata, segments=((0xE1, b"Exif\0\0" + ORIENTED), *metadata.segments)).upright()
    assert chunks_of(encode(COLOUR, "png", turned)[0])[b"pHYs"] == [struct.pack(">IIB", 2835, 5669, 1)]


@pytest.mark.parametrize("order", "<>")
def test_what_a_tiff_says_goes_to_every_format_or_is_named(photo, order, tmp_path):
    pixels = np.asarray(photo.resize((24, 16)))
    more = [
        (0x9003, 2, 20, b"2020:01:01 00:00:00\0"),
        (0xA002, 4, 1, value(order, 4, 24)),
        (0x927C, 7, 9, b"with note"),
    ]
    more += [(0xA003, 4, 1, value(order, 4, 16))]
    entries = [(0x0112, 3, 1, value(order, 3, 6)), (315, 2, 7, b"Artist\0"), (50000, 7, 7, b"private")]
    entries += [
        (282, 5, 1, value(order, 5, 300, 1)),
        (283, 5, 1, value(order, 5, 150, 1)),
        (296, 3, 1, value(order, 3, 2)),
    ]
    block = exif_block(order, entries, more)
    packet, iptc = (PACKET % SIX["attribute"]).encode(), b"Photoshop 3.0\0" + resource(0x0404, b"a record")
    whole = Metadata(((0xE1, b"Exif\0\0" + block), (0xE1, XMP + packet), (0xED, iptc)))
    made = encode(pixels, "tiff", whole)[0]
    image = Image.open(io.BytesIO(made))
    metadata = DecodedJPEG.open(made, assume_history(np.asarray(image), 50)).metadata
    assert (metadata.orientation, image.size, b'tiff:Orientation="1"' in metadata.xmp) == (1, (16, 24), True)
    assert metadata.iptc == b"a record"
    for image_format in FORMATS:
        _, not_kept = encode(COLOUR, image_format, metadata)
        lost = () if image_format in ("jpeg", "tiff") else ("IPTC and other Photoshop data",)
        assert not_kept == ("maker note, which counts from the TIFF's start", *lost)
        with Image.open(written(metadata, image_format, tmp_path)) as again:
            exif = again.getexif()
            assert (exif[315], exif[282], exif[283], exif.get_ifd(34665)[0x9003]) == (
                "Artist",
                150,
                300,
                more[0][3][:-1].decode(),
            )
            assert again.info.get("dpi", (150, 300)) == pytest.approx((150, 300), abs=0.02)


def test_directories_of_a_tiff_that_share_their_values_are_not_unfolded(plain):
    shared = struct.pack("<I", 8) + struct.pack("<HHII", 34665, 4, 1, 8)
    hostile = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 500) + struct.pack("<HHII", 34665, 4, 1, 8) * 500
    hostile += shared + b"".join(struct.pack("<HHII", tag, 7, 6000, 8) for tag in range(400))
    metadata = Metadata.from_info({}, hostile)
    assert sum(len(data) for _, data in metadata.segments) < 2 * len(hostile)


@given(st.binary(max_size=200), st.sampled_from([b"II*\0", b"MM\0*", b"\x89PNG\r\n\x1a\n"]))
def test_nothing_that_a_tiff_or_png_says_makes_anything_fail(data, start):
    metadata = Metadata.from_info({"dpi": (0, float("nan"))}, start + data)
    for image_format in FORMATS:
        encode(GREY, image_format, metadata)
