"""What a file carries beside its image, and how each format carries it: segments, blocks, chunks; no pixels.

Everything stays in the bytes it came in. Maker notes count their offsets from the start of the EXIF block, text may be
in any character set, and libraries drop or change what they do not know; so an upright image costs one value, changed
where it stands. The one image in it, a thumbnail, is turned with the other.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import md5
from itertools import accumulate
from typing import Any, BinaryIO
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from PIL import Image

_COM, _APP0, _APP1, _APP2, _APP8, _APP11, _APP13, _APP14 = 0xFE, 0xE0, 0xE1, 0xE2, 0xE8, 0xEB, 0xED, 0xEE
_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_EXTENDED_XMP, _PHOTOSHOP = b"http://ns.adobe.com/xmp/extension/\0", b"Photoshop 3.0\0"
_IPTC = 0x0404  # number of a resource of Photoshop
_PNG = b"\x89PNG\r\n\x1a\n"
_LONGEST_SEGMENT = 65533  # bytes, without marker and length
_MOST_NAMED = 50  # kinds of what is not kept; a directory of EXIF may have 65,535 tags

# As exiftool takes it: some writers put another segment's header before it, or no second zero behind it.
_EXIF_HEADER = re.compile(rb".{0,4}?Exif\0.", re.IGNORECASE | re.DOTALL)
_SIGNATURES = (
    (_APP0, b"JFIF\0", "JFIF"),
    (_APP0, b"JFXX\0", "JFIF thumbnail"),
    (_APP1, _XMP, "XMP"),
    (_APP1, _EXTENDED_XMP, "extended XMP"),
    (_APP2, _ICC, "ICC profile"),
    (_APP2, b"MPF\0", "index of further images (MPF)"),
    (_APP8, b"SPIFF\0", "SPIFF header"),
    (_APP11, b"JP", "content credentials (JUMBF)"),
    (_APP13, _PHOTOSHOP, "IPTC and other Photoshop data"),
    (_APP14, b"Adobe", "Adobe"),
    (_COM, b"", "comment"),
)
# What a JPEG cannot take over: it describes other bytes than those that are written.
_BOUND_TO_THE_FILE = ("index of further images (MPF)", "SPIFF header", "content credentials (JUMBF)")

# TIFF 6.0, section 2: bytes of a value of each type.
_TIFF_STARTS = (b"II*\0", b"MM\0*")
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
_NUMBERS = {1: "B", 3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I"}
_LONGEST_NUMBER = 16  # bytes of a text that is one; entries by the thousand may share a text of a megabyte
_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 274, 282, 283, 296
_TIFF_XMP, _TIFF_IPTC, _TIFF_PHOTOSHOP, _TIFF_ICC = 700, 33723, 34377, 34675
# Tags of the first directory that describe the image and not how it is stored: TIFF 6.0, section 8, and Exif 2.32,
# table 4; those of Windows (rating, title ...) and PrintIM, which cameras add.
_DESCRIPTIVE = {
    *(269, 270, 271, 272, _ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, 285, _RESOLUTION_UNIT, 305, 306, 315, 316),
    *(318, 319, 33432, 34665, 34853),
    *(0x4746, 0x4749, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F, 0xC4A5),
}
# Tags that say how the camera stored its pixels, of which nothing is lost: TIFF 6.0 and Exif 2.32, table 4.
_STRUCTURAL = {*range(254, 260), *range(262, 267), 273, *range(277, 282), 284, 301, 317, *range(320, 326), 338, 339}
_STRUCTURAL |= {513, 514, *range(529, 533), _TIFF_XMP, _TIFF_IPTC, _TIFF_PHOTOSHOP, _TIFF_ICC, 0xEA1C}

_THUMBNAIL = (513, 514)  # where a JPEG of the second directory stands, and its bytes
_LARGEST_THUMBNAIL = 2**18  # pixels; those of cameras have 160 x 120
_TURNS = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))  # orientation -> Image.Transpose that undoes it
_DIRECTORIES, _SUB_IMAGES, _LAYERS, _MAKER_NOTE = (34665, 34853, 0xA005), 330, 37724, 0x927C

# Pairs of tags that say the same of width and height, in the first directory and in that of EXIF.
_ACROSS_AND_DOWN = ((256, 257), (_X_RESOLUTION, _Y_RESOLUTION), (0xA002, 0xA003), (0xA20E, 0xA20F))

# What a PNG says in chunks of its own (PNG specification, third edition, 11.3): words, and where it stands elsewhere,
# as a tag of EXIF and TIFF or a kind of segment. They are carried to another PNG as they are, as are those that editors
# may copy although they do not know them (5.4: their fourth letter is small).
_CHUNKS = {
    (b"gAMA", ""): ("gamma", None),
    (b"cHRM", ""): ("chromaticities", None),
    (b"sRGB", ""): ("rendering intent of sRGB", None),
    (b"cICP", ""): ("colour space (cICP)", None),
    (b"mDCV", ""): ("colour volume of a display (mDCV)", None),
    (b"cLLI", ""): ("light level (cLLI)", None),
    (b"pHYs", ""): ("resolution", "JFIF"),
    (b"text", "Comment"): ("comment", "comment"),
    (b"text", "Description"): ("text Description", 270),
    (b"text", "Software"): ("text Software", 305),
    (b"text", "Author"): ("text Author", 315),
    (b"text", "Copyright"): ("text Copyright", 33432),
}
# By the pixels, or as what JPEG files have too, or how the file was stored.
_HELD_ELSEWHERE = (b"tRNS", b"iCCP", b"eXIf", b"iDOT")
_LONGEST_KEYWORD, _LONGEST_TEXT = 79, 2**20  # bytes of a text's name, and of what it may unpack to

Edit = tuple[int, int, bytes]
"""First byte, byte after the last, and what comes in their place."""


@dataclass(frozen=True)
class Metadata:
    """The application and comment segments of a JPEG file (ITU-T T.81, B.2.4), and what they say together."""

    segments: tuple[tuple[int, bytes], ...] = field(default=(), repr=False)
    """(marker, content without length) in the order of the file."""
    trailer: str = ""
    """What follows the end of the image, in words; empty where nothing does."""
    left_out: tuple[str, ...] = ()
    """What the segments do not hold although the image's file did, in words."""
    chunks: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    """(name, content) of what the image's file, a PNG, says in a form of its own."""

    @classmethod
    def from_info(cls, info: Mapping[Any, Any], data: bytes = b"") -> Metadata:
        """From what Pillow calls `info`, of a PNG or TIFF with the file's bytes: what an upright image carries.

        Of `info` are taken `"exif"`, `"xmp"`, `"icc_profile"` and `"comment"`, each as bytes, and `"dpi"`.
        """
        of_tiff = data.startswith(_TIFF_STARTS)
        big = ("tags of a BigTIFF",) * data.startswith((b"II+\0", b"MM\0+"))
        block, left_out = _block_of_tiff(data) if of_tiff else (info.get("exif") or b"", big)
        segments = [*_jfif_segments(info.get("dpi")), *_split(_APP1, _EXIF, block.removeprefix(_EXIF))]
        segments += _photoshop_segments(data) if of_tiff else []
        segments += _xmp_segments(info["xmp"]) if info.get("xmp") else []
        profile = [*_split(_APP2, _ICC + bytes(2), info.get("icc_profile") or b"")]
        if len(profile) > 255:  # which are counted in a byte
            profile, left_out = [], (*left_out, f"ICC profile of {len(info['icc_profile'])} bytes")
        for number, (marker, payload) in enumerate(profile, 1):
            segments.append((marker, _ICC + bytes((number, len(profile))) + payload[14:]))
        segments += _split(_COM, b"", info.get("comment") or b"")
        if of_tiff:  # Pillow turns its pixels
            return cls(tuple(segments), left_out=left_out).upright()
        copied, others = [], {}
        for chunk in _own_chunks(data) if data.startswith(_PNG) else ():
            if _key_of(chunk) in _CHUNKS or chunk[0][3:].islower():
                copied.append(chunk)
            else:
                others[_name_of(chunk)] = None
        return cls(tuple(segments), left_out=(*left_out, *others), chunks=tuple(copied))

    @cached_property
    def exif(self) -> bytes | None:
        """The EXIF block, with the `Exif` header of its first segment; `None` also where no directory can be read."""
        return _EXIF + self._block if self._block else None

    @cached_property
    def _block(self) -> bytes:
        """The same without the header; empty for none."""
        block = b"".join(self.segments[i][1][start:] for i, start in self._exif_parts)
        return block if next(_entries(block), None) else b""

    @cached_property
    def _exif_parts(self) -> list[tuple[int, int]]:
        """(segment, first byte in it) of each part of the first block; it goes on in segments that begin none."""
        parts: list[tuple[int, int]] = []
        for i, (marker, payload) in enumerate(self.segments):
            if _kind(marker, payload) != "EXIF" or (parts and i != parts[-1][0] + 1):
                continue
            start = 0
            while header := _EXIF_HEADER.match(payload, start):  # some writers put it twice
                start = header.end()
            if payload.startswith(_TIFF_STARTS, start) != bool(parts):
                parts.append((i, start))
            elif parts:
                break
        return parts

    @cached_property
    def orientation(self) -> int:
        """EXIF orientation, 1 (upright) to 8, in whatever type it is stored; 1 where the file does not say."""
        entries = [entry for tag, *entry in _entries(self._block) if tag == _ORIENTATION]
        value = _number(self._block, *entries[-1]) if entries else None
        return int(value) if value in range(1, 9) else 1

    @property
    def _thumbnail(self) -> bool:
        """Whether the EXIF block has a second directory, which is that of a thumbnail."""
        return next(_entries(self._block, _second(self._block)), None) is not None

    @property
    def xmp(self) -> bytes | None:
        """The XMP packet, with its extension put back into it (XMP specification, part 3, 1.1.3.1)."""
        return self._xmp_whole[0]

    @cached_property
    def _xmp_whole(self) -> tuple[bytes | None, str]:
        """The packet, and what of an extension that there is could not be put back into it, in words."""
        main, extension = self._xmp_main, self._xmp_extension
        if main is None or not extension:
            there = any(_kind(*one) == "extended XMP" for one in self.segments)
            return main, "extended XMP that is not whole" if there else ""
        try:
            return _merged(_Packet(main), _Packet(extension)), ""
        except _OutOfProportionError:
            return main, "extended XMP whose namespaces would take more than the file"
        except ValueError:
            return main, "extended XMP that is not understood"

    @cached_property
    def _xmp_main(self) -> bytes | None:
        packet = next((p[len(_XMP) :] for m, p in self.segments if _kind(m, p) == "XMP"), None)
        if packet is not None and packet[:2] in (b"\xff\xfe", b"\xfe\xff"):  # every format wants UTF-8
            packet = packet.decode("utf-16", "replace").encode()
        return packet

    @cached_property
    def _xmp_extension(self) -> bytes:
        """What the segments say that the main packet names; empty where some of it is missing."""
        found = [p[len(_EXTENDED_XMP) :] for m, p in self.segments if _kind(m, p) == "extended XMP"]
        named = re.search(rb"HasExtendedXMP[^0-9A-Fa-f]{1,20}([0-9A-Fa-f]{32})", self._xmp_main or b"")
        parts = {p[36:40]: p for p in found if named and p[:32].upper() == named[1].upper() and len(p) > 40}
        extension = b"".join(part[40:] for _, part in sorted(parts.items()))
        return extension if parts and len(extension) == int.from_bytes(min(parts.values())[32:36], "big") else b""

    @cached_property
    def icc_profile(self) -> bytes | None:
        """The profile put together from its numbered chunks, counted from one or, by some, from zero."""
        parts = [p for m, p in self.segments if _kind(m, p) == "ICC profile" and len(p) > 14]
        whole = parts and len({p[12] for p in parts}) == len(parts) >= parts[-1][13]
        return b"".join(p[14:] for p in sorted(parts, key=lambda p: p[12])) if whole else None

    @property
    def profile_mode(self) -> str | None:
        """`"L"`, `"RGB"` or, for any other colour space, `""`: what the profile is for (ICC.1, 7.2.6)."""
        spaces = {b"GRAY": "L", b"RGB ": "RGB"}
        return None if self.icc_profile is None else spaces.get(self.icc_profile[16:20], "")

    @cached_property
    def photoshop(self) -> list[tuple[int, bytes, bytes]]:
        """(number, header and content, content) of each image resource of Photoshop, of which 0x0404 is IPTC."""
        data = b"".join(p[len(_PHOTOSHOP) :] for m, p in self.segments if m == _APP13 and p.startswith(_PHOTOSHOP))
        resources, at = [], 0
        while data[at : at + 4] == b"8BIM" and at + 12 <= len(data):
            name = at + 6 + (data[at + 6] + 2) // 2 * 2  # of even length, with the byte that gives it
            size = int.from_bytes(data[name : name + 4], "big")
            end = name + 4 + (size + 1) // 2 * 2
            number = int.from_bytes(data[at + 4 : at + 6], "big")
            resources.append((number, data[at:end], data[name + 4 : name + 4 + size]))
            at = end
        return resources

    @property
    def iptc(self) -> bytes | None:
        """The IPTC record."""
        return next((content for number, _, content in self.photoshop if number == _IPTC), None)

    @property
    def comments(self) -> tuple[bytes, ...]:
        """All comments, in whatever character set."""
        return tuple(payload for marker, payload in self.segments if marker == _COM)

    @cached_property
    def density(self) -> tuple[int, int, int] | None:
        """(unit, across, down) of JFIF: dots an inch (1) or a centimetre (2), or only the shape of a pixel (0)."""
        found = (p for m, p in self.segments if _kind(m, p) == "JFIF" and len(p) >= 12)
        unit, across, down = struct.unpack_from(">BHH", next(found, bytes(12)), 7)
        says = across and down and unit <= 2 and (unit or across != down)
        return (unit, across, down) if says else None

    @property
    def _density_in_exif(self) -> bool:
        found = {tag: _number(self._block, *entry) for tag, *entry in _entries(self._block)}
        unit = found.get(_RESOLUTION_UNIT) or 2
        return self.density == (unit - 1, found.get(_X_RESOLUTION), found.get(_Y_RESOLUTION))

    def sizes(self) -> dict[str, int]:
        """Bytes of each kind that there is."""
        found = {"exif": self.exif, "icc_profile": self.icc_profile, "xmp": self.xmp, "iptc": self.iptc}
        found["comment"] = b"".join(self.comments)
        return {name: len(data) for name, data in found.items() if data}

    def upright(self) -> Metadata:
        """The same for an image that was turned upright: orientation 1 in EXIF and XMP, all else as it was.

        Where width and height change places, what is said of them does so too. The thumbnail of EXIF is turned, if it
        is a JPEG that has the room; others are left out.
        """
        if self.orientation == 1:
            return self
        segments, left_out = list(self.segments), []
        block = bytearray(self._block)
        for tag, *entry in _entries(self._block):
            if tag == _ORIENTATION:
                _set_to_one(block, *entry)
        if self.orientation >= 5:
            _exchange_sides(block)
        if self._thumbnail and not _turn_thumbnail(block, self.orientation):
            struct.pack_into("I", block, _end_of_first(block), 0)
            left_out.append("EXIF thumbnail")
        at = 0
        for i, start in self._exif_parts:
            marker, payload = segments[i]
            segments[i] = (marker, payload[:start] + block[at : at + len(payload) - start])
            at += len(payload) - start
        if self._xmp_main is not None:
            first = next(i for i, one in enumerate(segments) if _kind(*one) == "XMP")
            if b"Orientation" in self._xmp_extension:
                packet = _upright(self.xmp)
                left_out += [self._xmp_whole[1]] if self._xmp_whole[1] else []
                rest = [one for one in segments[first + 1 :] if _kind(*one) != "extended XMP"]
                segments[first:] = [*(_xmp_segments(packet) if packet else ()), *rest]
            else:
                packet = _upright(self._xmp_main)
                segments[first : first + 1] = [(_APP1, _XMP + packet)] if packet else []
            left_out += [] if packet else ["XMP that may say an orientation, and is not understood"]
        if any(_kind(*one) == "JFIF thumbnail" for one in segments):
            segments = [one for one in segments if _kind(*one) != "JFIF thumbnail"]
            left_out.append("JFIF thumbnail")
        for i, (marker, payload) in enumerate(segments):
            if _kind(marker, payload) == "JFIF" and len(payload) >= 14:
                sides = payload[10:12] + payload[8:10] if self.orientation >= 5 else payload[8:12]
                segments[i] = (marker, payload[:8] + sides + b"\0\0")  # and no thumbnail
                left_out += ["JFIF thumbnail"] * (payload[12:14] != b"\0\0")
        turned = [
            (name, data[4:8] + data[:4] + data[8:] if name == b"pHYs" and self.orientation >= 5 else data)
            for name, data in self.chunks
        ]
        more = {"segments": tuple(segments), "chunks": tuple(turned)}
        return replace(self, left_out=(*self.left_out, *left_out), **more)

    def with_text(self, keyword: str, text: str) -> Metadata:
        """The same with a text in ASCII for a PNG to carry, in place of those under its keyword."""
        others = [chunk for chunk in self.chunks if _key_of(chunk) != (b"text", keyword)]
        return replace(self, chunks=(*others, (b"tEXt", f"{keyword}\0{text}".encode("ascii"))))

    def without_chunks(self) -> Metadata:
        """The same for another format than PNG: chunks become what it may have a place for; others are left out."""
        first, tags, comments, left_out = [], {}, [], []
        for chunk in self.chunks:
            words, place = _CHUNKS.get(_key_of(chunk), (None, None))
            text = _text_of(chunk) if _key_of(chunk)[0] == b"text" else b""
            if text and place == "comment":
                comments += _split(_COM, b"", text)
            elif text and isinstance(place, int) and place not in tags and self.exif is None:
                tags[place] = text + b"\0"
            elif place != "JFIF" or self.density is None:
                left_out.append(words or _name_of(chunk))
        rest = [*self.segments]
        while rest and _kind(*rest[0]) == "JFIF":
            first.append(rest.pop(0))
        if tags:
            first += _split(_APP1, _EXIF, _new_block([(tag, 2, len(text), text) for tag, text in tags.items()]))
        segments = (*first, *rest, *comments)
        return replace(self, segments=segments, chunks=(), left_out=(*self.left_out, *left_out))

    def without_profile(self) -> Metadata:
        """The same without a profile."""
        return replace(self, segments=tuple(one for one in self.segments if _kind(*one) != "ICC profile"))

    def not_kept(self, keeps: Collection[str] | None) -> tuple[str, ...]:
        """What a format has no place for, in words; each kind once.

        It has one for the kinds of segments that `keeps` names in the words of `_kind`, or for `"XMP in UTF-8"`,
        `"descriptive EXIF"` and `"resolution"` (that of JFIF); where that is `None`, for all, as another JPEG has.
        """
        kinds = [_kind(*one) for one in self.segments]
        if keeps is None:
            lost = [kind for kind in kinds if kind in _BOUND_TO_THE_FILE]
        else:
            parts = {"XMP in UTF-8": "XMP", "descriptive EXIF": "EXIF"}
            kept = ("JFIF", "Adobe", "extended XMP", *(parts.get(kind, kind) for kind in keeps))
            lost = [kind for kind in kinds if kind not in kept]
            odd = {
                "EXIF that cannot be read": "EXIF" in kinds and self.exif is None,
                "a second EXIF block": self.exif is not None and kinds.count("EXIF") > len(self._exif_parts),
                self._xmp_whole[1]: self._xmp_whole[1],
                "a second XMP packet": kinds.count("XMP") > 1,
                "ICC profile that is not whole": "ICC profile" in kinds and self.icc_profile is None,
                "XMP that is not UTF-8": "XMP in UTF-8" in keeps and self.xmp is not None and not _is_utf8(self.xmp),
                "resolution": "resolution" not in keeps and self.density is not None and not self._density_in_exif,
            }
            lost += [words for words, holds in odd.items() if holds]
            if "descriptive EXIF" in keeps and self.exif is not None:
                others = (tag for tag, *_ in _entries(self._block) if tag not in _DESCRIPTIVE | _STRUCTURAL)
                lost += [f"EXIF tag {tag:#06x}" for tag in others]
                lost += ["EXIF thumbnail"] * self._thumbnail
        if self.trailer:
            announced = self.xmp is not None and b"ns.google.com/photos/1.0/" in self.xmp
            lost.append(self.trailer + (", which the XMP still announces" if announced else ""))
        lost = [*dict.fromkeys((*self.left_out, *lost))]
        more = len(lost) - _MOST_NAMED
        return (*lost[:_MOST_NAMED], *([f"{more} more"] if more > 0 else []))


def trailer(data: bytes, end: int) -> str:
    """What stands behind the end of the image, in words."""
    rest = data[end : end + 2**20].lstrip(b"\0")
    if not rest:
        return ""
    if rest.startswith(b"\xff\xd8\xff"):
        return "the images that follow in the file, such as a gain map"
    return f"{len(data) - end} bytes that follow the image"


# --- JPEG ---


def _kind(marker: int, payload: bytes) -> str:
    """What a segment is, in words."""
    if marker == _APP1 and _EXIF_HEADER.match(payload):
        return "EXIF"
    for own, signature, name in _SIGNATURES:
        if marker == own and payload.startswith(signature):
            return name
    label = re.match(rb"[\x20-\x7e]*", payload[:16])[0].decode("ascii").strip()
    return f"APP{marker - _APP0} segment {label}".strip()


def _split(marker: int, head: bytes, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Segments that hold so much data, each behind a head."""
    step = _LONGEST_SEGMENT - len(head)
    return ((marker, head + data[at : at + step]) for at in range(0, len(data), step))


def _xmp_segments(packet: bytes) -> list[tuple[int, bytes]]:
    """A packet in one segment, or what does not fit into one in extension segments that a small one names."""
    if len(_XMP) + len(packet) <= _LONGEST_SEGMENT:
        return [(_APP1, _XMP + packet)]
    name = md5(packet, usedforsecurity=False).hexdigest().upper().encode()
    main = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="%s"><rdf:Description rdf:about="" xmlns:xmpNote="%s"'
        b' xmpNote:HasExtendedXMP="%s"/></rdf:RDF></x:xmpmeta>' % (_RDF.encode(), _NOTE.encode(), name)
    )
    segments, step = [(_APP1, _XMP + main)], _LONGEST_SEGMENT - len(_EXTENDED_XMP) - 40
    for at in range(0, len(packet), step):
        place = struct.pack(">II", len(packet), at)
        segments.append((_APP1, _EXTENDED_XMP + name + place + packet[at : at + step]))
    return segments


def _jfif_segments(dpi: Sequence[float] | None) -> Iterator[tuple[int, bytes]]:
    """A segment that says so many dots an inch, or where that is nearer to the truth, a centimetre."""
    try:
        sides = [[side / unit for side in map(float, dpi or ())] for unit in (1, 2.54)]
        _, unit, across, down = min((sum(abs(a - round(a)) for a in two), i, *two) for i, two in enumerate(sides, 1))
        yield _APP0, b"JFIF\0\1\1" + struct.pack(">BHHBB", unit, round(across), round(down), 0, 0)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError, struct.error):  # none, or what nobody can mean
        return


def add_to_jpeg(encoded: bytes, metadata: Metadata) -> bytes:
    """A JPEG that was written without metadata, with the segments of another."""
    segments = list(metadata.segments)
    for i, start in metadata._exif_parts:
        segments[i] = (_APP1, _EXIF + segments[i][1][start:])  # the header once, whoever wrote it twice
    segments = [one for one in segments if _kind(*one) not in _BOUND_TO_THE_FILE]
    kinds = [_kind(*one) for one in segments]
    start = 2
    if "JFIF" in kinds or "EXIF" in kinds:  # one of the two says what kind of file it is
        while encoded[start : start + 2] == b"\xff\xe0":
            start += 2 + int.from_bytes(encoded[start + 2 : start + 4], "big")
    head = []
    for kind, (marker, payload) in zip(kinds, segments, strict=True):
        if kind == "Adobe" and len(payload) > 11:
            payload = payload[:11] + b"\1" + payload[12:]  # the image is written as YCbCr
        head += [struct.pack(">BBH", 0xFF, marker, len(payload) + 2), payload]
    return b"".join([encoded[:2], *head, encoded[start:]])


# --- PNG ---


def add_to_png(encoded: bytes, metadata: Metadata) -> bytes:
    """A PNG that was written without metadata, with chunks for it behind its header (PNG specification, 11.3)."""
    chunks = [*metadata.chunks]
    if metadata.icc_profile is not None:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc_profile)))
    if metadata.density is not None and all(name != b"pHYs" for name, _ in chunks):
        unit, across, down = metadata.density
        metres = {0: 1, 1: 1 / 0.0254, 2: 100}[unit]
        chunks.append((b"pHYs", struct.pack(">IIB", round(across * metres), round(down * metres), unit > 0)))
    if metadata.exif is not None:
        chunks.append((b"eXIf", metadata._block))
    if metadata.xmp is not None and _is_utf8(metadata.xmp):
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp.replace(b"\0", b"")))
    for comment in metadata.comments:
        text = comment.rstrip(b"\0").replace(b"\0", b"\n")  # which no text of a PNG may have
        if text.isascii() or not _is_utf8(text):  # tEXt is Latin-1
            chunks.append((b"tEXt", b"Comment\0" + text))
        else:
            chunks.append((b"iTXt", b"Comment\0\0\0\0\0" + text))
    start = 8 + 12 + 13  # signature and header
    return encoded[:start] + b"".join(png_chunk(*chunk) for chunk in chunks) + encoded[start:]


def text_of_png(stream: BinaryIO, keyword: str) -> str | None:
    """What `Metadata.with_text` had a PNG carry under a keyword; `None` where nothing, or where it is no PNG."""
    start = stream.read(len(_PNG))
    while start == _PNG and len(head := stream.read(8)) == 8 and head[4:] != b"IDAT":
        size = int.from_bytes(head[:4], "big")
        if head[4:] == b"tEXt" and size < _LONGEST_TEXT:
            name, _, text = stream.read(size).partition(b"\0")
            if name == keyword.encode("ascii"):
                return text.decode("latin-1")
            size = 0
        stream.seek(size + 4, 1)  # and its checksum
    return None


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _own_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of the chunks that a decoder could do without, and that hold what no other format has."""
    at = len(_PNG)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        name, content = data[at + 4 : at + 8], data[at + 8 : end]
        if name[:1].islower() and name not in _HELD_ELSEWHERE and not content.startswith(b"XML:com.adobe.xmp\0"):
            yield name, content
        at = end + 4


def _key_of(chunk: tuple[bytes, bytes]) -> tuple[bytes, str]:
    """What `_CHUNKS` has it under."""
    name, data = chunk
    if name in (b"tEXt", b"zTXt", b"iTXt"):
        return b"text", data[:_LONGEST_KEYWORD].partition(b"\0")[0].decode("latin-1")
    return name, ""


def _name_of(chunk: tuple[bytes, bytes]) -> str:
    name, keyword = _key_of(chunk)
    return f"text {keyword}" if keyword else f"chunk {name.decode('latin-1')}"


def _text_of(chunk: tuple[bytes, bytes]) -> bytes:
    """The text of a chunk, in UTF-8; empty where it cannot be read."""
    name, (_, _, data) = chunk[0], chunk[1].partition(b"\0")
    packed = name == b"zTXt" or (name == b"iTXt" and data[:1] == b"\1")
    if name == b"iTXt":
        data = data[2:].split(b"\0", 2)[-1]
    elif packed:
        data = data[1:]
    try:
        data = zlib.decompressobj().decompress(data, _LONGEST_TEXT) if packed else data
    except zlib.error:
        return b""
    return data if name == b"iTXt" else data.decode("latin-1").encode()


def _is_utf8(data: bytes) -> bool:
    return data.decode(errors="ignore").encode() == data


# --- EXIF, which is TIFF ---


def byte_order(metadata: Metadata) -> str:
    """`"<"` or `">"`: that of the EXIF block, and so that of a TIFF file which holds it."""
    return _order(metadata._block)


def _order(block: bytes) -> str:
    return ">" if block.startswith(b"MM") else "<"


def _entries(block: bytes, offset: int | None = None) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, count, where its value stands) of a directory, the first unless told, as far as it can be read."""
    for at, tag, kind, number in _fields(block, offset):
        size = _TYPE_SIZES.get(kind, 0) * number
        place = at + 8 if size <= 4 else struct.unpack_from(_order(block) + "I", block, at + 8)[0]
        if size and place + size <= len(block):
            yield tag, kind, number, place


def _fields(block: bytes, offset: int | None = None) -> Iterator[tuple[int, int, int, int]]:
    """(where it stands, tag, type, count) of the entries of a directory, the first unless told."""
    order = _order(block)
    if not block.startswith(_TIFF_STARTS) or len(block) < 8:
        return
    offset = struct.unpack_from(order + "I", block, 4)[0] if offset is None else offset
    if not 8 <= offset <= len(block) - 2:
        return
    (count,) = struct.unpack_from(order + "H", block, offset)
    for at in range(offset + 2, min(offset + 2 + 12 * count, len(block) - 11), 12):
        yield at, *struct.unpack_from(order + "HHI", block, at)


def _new_block(entries: Sequence[tuple[int, int, int, Any]], order: str = "<") -> bytes:
    """An EXIF block of (tag, type, count, value); the value of an entry that is a directory is a list of its own."""
    block = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))

    def put(entries: Sequence[tuple[int, int, int, Any]]) -> int:
        fields = []
        for tag, kind, count, value in sorted(entries, key=lambda entry: entry[0]):
            if isinstance(value, list):
                value = struct.pack(order + "I", put(value))
            if len(value) > 4:
                block.extend(bytes(len(block) % 2))
                place = struct.pack(order + "I", len(block))
                block.extend(value)
                value = place
            fields.append(struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0"))
        block.extend(bytes(len(block) % 2))
        place = len(block)
        block.extend(struct.pack(order + "H", len(fields)) + b"".join(fields) + bytes(4))
        return place

    block[4:8] = struct.pack(order + "I", put(entries))
    return bytes(block)


def _block_of_tiff(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """An EXIF block of what the first directory of a TIFF file says of its image, and in words what is not in it."""
    order, left_out = _order(data), []
    odd = {_SUB_IMAGES: "images below the TIFF's own", _MAKER_NOTE: "maker note, which counts from the TIFF's start"}
    odd[_LAYERS] = "layers of Photoshop"

    def read(offset: int | None, depth: int) -> list[tuple[int, int, int, Any]]:
        if shares_values(data, offset):
            left_out.append("a directory whose values are out of all proportion")
            return []
        found: dict[int, tuple[int, int, int, Any]] = {}
        for tag, kind, count, place in _entries(data, offset):
            value = data[place : place + _TYPE_SIZES[kind] * count]
            if tag in odd:
                left_out.append(odd[tag])
            elif tag in _DIRECTORIES and tag not in found and len(value) == 4 and depth < 2:
                found[tag] = tag, 4, 1, read(struct.unpack(order + "I", value)[0], depth + 1)
            elif tag not in _DIRECTORIES and (depth or tag not in _STRUCTURAL):
                found[tag] = tag, kind, count, value
        return [*found.values()]

    entries = read(None, 0)
    return _new_block(entries, order) if entries else b"", tuple(left_out)


def _photoshop_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """IPTC and other resources of Photoshop, from their tags in a TIFF."""
    found = {
        tag: data[at : at + _TYPE_SIZES[kind] * count]
        for tag, kind, count, at in _entries(data)
        if tag in (_TIFF_IPTC, _TIFF_PHOTOSHOP)
    }
    iptc, resources = found.get(_TIFF_IPTC, b""), found.get(_TIFF_PHOTOSHOP, b"")
    if iptc and b"8BIM\x04\x04" not in resources:
        resources += b"8BIM" + struct.pack(">HHI", _IPTC, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)
    return _split(_APP13, _PHOTOSHOP, resources)


def _end_of_first(block: bytes) -> int:
    """Where, behind the first directory, it stands where the second is; 0 where it does not."""
    order = _order(block)
    if len(block) < 10:
        return 0
    (first,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, first)
    at = first + 2 + 12 * count
    return at if at + 4 <= len(block) else 0


def _second(block: bytes) -> int:
    """Where the second directory is; 0 for none."""
    at = _end_of_first(block)
    return struct.unpack_from(_order(block) + "I", block, at)[0] if at else 0


def _turn_thumbnail(block: bytearray, orientation: int) -> bool:
    """Turn the JPEG of the second directory upright, in the bytes that it takes now; whether that went well."""
    entries = {tag: entry for tag, *entry in _entries(block, _second(block))}
    if any(entries.get(tag, (0,))[0] not in (3, 4) for tag in _THUMBNAIL):  # SHORT or LONG
        return False
    first, size = (_number(block, *entries[tag]) for tag in _THUMBNAIL)
    old = bytes(block[first : first + size])
    try:
        with Image.open(io.BytesIO(old), formats=["JPEG"]) as image:
            # It is baseline (Exif 2.32, 4.5.5); a progressive one may have scans by the thousand.
            if image.width * image.height > _LARGEST_THUMBNAIL or "progressive" in image.info or len(old) < size:
                return False
            turned = image.transpose(_TURNS[orientation])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    for quality in (90, 75, 50):
        turned.save(stream := io.BytesIO(), "JPEG", quality=quality)
        if len(data := stream.getvalue()) <= size:
            block[first : first + size] = data.ljust(size, b"\0")
            if _ORIENTATION in entries:
                _set_to_one(block, *entries[_ORIENTATION])
            return True
    return False


def _exchange_sides(block: bytearray) -> None:
    """Let what a block says of width and height change places: type, count and value, or where it stands."""
    places = {tag: at for at, tag, _, _ in _fields(block)}
    exif = places.get(_DIRECTORIES[0])
    if exif is not None:
        (offset,) = struct.unpack_from(_order(block) + "I", block, exif + 8)
        places = {tag: at for at, tag, _, _ in _fields(block, offset)} | places
    for across, down in _ACROSS_AND_DOWN:
        if across in places and down in places:
            one, other = (slice(places[tag] + 2, places[tag] + 12) for tag in (across, down))
            block[one], block[other] = block[other], block[one]


def _number(block: bytes, kind: int, count: int, place: int) -> float | None:
    """The first value of an entry as a number, if it is one."""
    if kind in (2, 129):
        text = block[place : place + min(count, _LONGEST_NUMBER)].partition(b"\0")[0].strip()
        return int(text) if text.isdigit() else None
    if kind not in _NUMBERS:
        return None
    value, *divisor = struct.unpack_from(_order(block) + _NUMBERS[kind], block, place)
    return value / divisor[0] if divisor and divisor[0] else None if divisor else value


def _set_to_one(block: bytearray, kind: int, count: int, place: int) -> None:
    """Give the first value of an entry the number 1, in the type that it has."""
    if kind in (2, 129):
        count = min(count, _LONGEST_NUMBER)
        block[place : place + count] = b"1".ljust(count, b"\0")
    elif kind in _NUMBERS:
        letters = _NUMBERS[kind]
        struct.pack_into(_order(block) + letters, block, place, *[1] * len(letters))


def tiff(structure: dict[int, tuple[int, Sequence[int]]], strips: Sequence[bytes], metadata: Metadata) -> bytes:
    """A TIFF file (TIFF 6.0) around pixels and the EXIF block, of which every byte stays in its place.

    The file begins with the block itself, so that all offsets in it hold, those of maker notes too; only the first
    directory is a new one, behind the pixels, with the entries of the old one that describe the image. `structure`
    (tag -> type, values) says how the pixels are stored, but not where the strips are, which are in `byte_order`.
    """
    order, old = byte_order(metadata), metadata._block
    start = old or (b"II*\0" if order == "<" else b"MM\0*") + bytes(4)
    start += bytes(-len(start) % 4)
    offsets = [*accumulate(map(len, strips), initial=len(start))]

    entries: dict[int, tuple[int, int, bytes]] = {}  # type, count, value or where it stands
    values = bytearray()
    end = offsets.pop()
    end += end % 2

    def put(tag: int, kind: int, count: int, value: bytes) -> None:
        if len(value) > 4:
            place = struct.pack(order + "I", end + len(values))
            values.extend(value + bytes(len(value) % 2))
            value = place
        entries[tag] = (kind, count, value.ljust(4, b"\0"))

    if metadata.density is not None and all(tag != _X_RESOLUTION for tag, *_ in _entries(old)):
        unit, across, down = metadata.density
        for tag, number in ((_X_RESOLUTION, across), (_Y_RESOLUTION, down)):
            put(tag, 5, 1, struct.pack(order + "II", number, 1))
        put(_RESOLUTION_UNIT, 3, 1, struct.pack(order + "H", unit + 1))
    for tag, kind, count, place in _entries(old):
        if tag in _DESCRIPTIVE and kind != 129:
            size = _TYPE_SIZES[kind] * count
            inline = old[place : place + size] if size <= 4 else struct.pack(order + "I", place)
            entries[tag] = (kind, count, inline.ljust(4, b"\0"))
    structure = structure | {273: (4, offsets), 279: (4, [len(strip) for strip in strips])}
    for tag, (kind, numbers) in structure.items():
        put(tag, kind, len(numbers), struct.pack(f"{order}{len(numbers)}{_NUMBERS[kind]}", *numbers))
    others = b"".join(whole for number, whole, _ in metadata.photoshop if number != _IPTC)
    for tag, kind, data in (
        (_TIFF_XMP, 1, metadata.xmp),
        (_TIFF_IPTC, 7, metadata.iptc),
        (_TIFF_PHOTOSHOP, 1, others),
        (_TIFF_ICC, 7, metadata.icc_profile),
    ):
        if data:
            put(tag, kind, len(data), data)
    directory = struct.pack(order + "H", len(entries))
    for tag, (kind, count, value) in sorted(entries.items()):
        directory += struct.pack(order + "HHI", tag, kind, count) + value
    parts = [start[:4], struct.pack(order + "I", end + len(values)), start[8:], *strips]
    parts += [bytes(end - sum(map(len, parts))), values, directory, bytes(4)]
    return b"".join(parts)


def shares_values(block: bytes, offset: int | None = None) -> bool:
    """Whether the entries of a directory (the first unless told) have more bytes together than all, sharing them."""
    return sum(_TYPE_SIZES[kind] * count for _, kind, count, _ in _entries(block, offset)) > len(block)


# --- XMP ---

_RDF, _NOTE = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://ns.adobe.com/xmp/note/"
_RDF_RDF, _RDF_VALUE, _HAS_EXTENDED = f"{_RDF} RDF", f"{_RDF} value", f"{_NOTE} HasExtendedXMP"
_TIFF_ORIENTATION = "http://ns.adobe.com/tiff/1.0/ Orientation"
_ATTRIBUTE = re.compile(rb"""\s([^\s=/>]+)\s*=\s*("[^"]*"|'[^']*')""")
_TAG = re.compile(rb"""<([^\s/>]+)(?:\s+[^\s=/>]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*/?>""")
_XMLNS = re.compile(rb"xmlns(:.*)?")
_DEEPEST = 100  # elements within elements; packets have ten
_MOST_ELEMENTS = 2**17  # some microseconds each
_LONGEST_PACKET = 2**24  # bytes; expat reads a tag again for each megabyte of it
_LONGEST_NAMESPACE = 1000  # characters; expat puts it before every name
_MOST_DECLARED = 4  # times the bytes of a packet, what its nodes may have to declare
_PIECE = 2**20  # bytes of a packet that are parsed although it was refused


class _OutOfProportionError(ValueError):
    """What would be written is out of all proportion to what was read."""


class _Packet:
    """An XMP packet, parsed: where in its bytes those things stand that are looked for.

    Raises `ValueError` if it is no well-formed XML, or declares a document type, which may have entities and defaults.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.orientations: list[Edit] = []  # what makes its orientation 1, in whatever form RDF/XML allows
        self.note: Edit | None = None  # what takes out the announcement of an extension
        self.body: tuple[int, int] | None = None  # the content of the first rdf:RDF
        self.declarations: list[Edit] = []  # what makes each node in it declare the namespaces declared around it
        self.size = 0  # bytes of these, of which some are not in the list where they are too many
        self._open = [("outside", 0, 0)]  # (role, first byte, byte after the start tag); most elements play no role
        self._innermost = self._count = 0
        self._namespaces: dict[str, list[str]] = {}  # prefix -> name of each declaration in force, the last one last
        self._own: set[str] = set()  # prefixes that the next element declares itself
        self._around: dict[str, bytes] | None = None  # prefix -> declaration around the nodes
        if len(data) > _LONGEST_PACKET or b"<!DOCTYPE" in data.replace(b"\0", b""):
            raise ValueError("this is not understood")
        self._parser = parser = expat.ParserCreate(namespace_separator=" ")
        parser.ordered_attributes = True
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.StartNamespaceDeclHandler = self._declare
        parser.EndNamespaceDeclHandler = lambda prefix: self._namespaces[prefix or ""].pop()
        data = data.rstrip(b"\0")
        try:
            for at in range(0, len(data), _PIECE):
                parser.Parse(data[at : at + _PIECE], False)
            parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise ValueError(str(error)) from None

    def _declare(self, prefix: str | None, name: str | None) -> None:
        if len(name or "") > _LONGEST_NAMESPACE:
            raise _OutOfProportionError
        self._namespaces.setdefault(prefix or "", []).append(name or "")
        self._own.add(prefix or "")

    def _start(self, name: str, attributes: list[str]) -> None:
        self._count += 1
        if len(self._open) > _DEEPEST or self._count > _MOST_ELEMENTS:
            raise ValueError("this is not understood")
        own, self._own = self._own, set()
        role = self._role(name)
        if not role:
            self._open.append(("", 0, 0))
            return
        start = self._parser.CurrentByteIndex
        tag = _TAG.match(self.data, start)
        if tag is None:
            raise ValueError("this is not understood")
        self._open.append((role, start, tag.end()))
        places = (one for one in _ATTRIBUTE.finditer(self.data, start, tag.end()) if _XMLNS.fullmatch(one[1]) is None)
        found = dict(zip(attributes[::2], places, strict=True))
        if role == "rdf":
            self._around = {
                prefix: _declaration(prefix, names[-1]) for prefix, names in self._namespaces.items() if names
            }
            self._length = sum(map(len, self._around.values()))
        elif role == "node":
            self._set_to_one(found.get(_TIFF_ORIENTATION))
            if match := found.get(_HAS_EXTENDED):
                self.note = (match.start(), match.end(), b"")
            self.size += self._length
            if self.size <= _MOST_DECLARED * len(self.data):
                new = b"".join(words for prefix, words in self._around.items() if prefix not in own)
                self.declarations.append((tag.end(1), tag.end(1), new))
        elif role == "orientation":
            self._innermost = start
            self._set_to_one(found.get(_RDF_VALUE))

    def _role(self, name: str) -> str:
        parent = self._open[-1][0]
        if parent == "outside":
            return "rdf" if name == _RDF_RDF and self._around is None else "outside"
        if parent == "rdf":
            return "node"
        if parent == "node" and name == _HAS_EXTENDED:
            return "note"
        return "orientation" if parent == "orientation" or (parent == "node" and name == _TIFF_ORIENTATION) else ""

    def _set_to_one(self, attribute: re.Match[bytes] | None) -> None:
        if attribute is not None:
            self.orientations.append((attribute.start(2) + 1, attribute.end(2) - 1, b"1"))

    def _end(self, _: str) -> None:
        role, start, content = self._open.pop()
        if role not in ("rdf", "note", "orientation"):
            return
        end, empty = self._parser.CurrentByteIndex, self.data[content - 2 : content] == b"/>"
        if role == "note":
            self.note = (start, content if empty else self.data.index(b">", end) + 1, b"")
        elif role == "rdf" and not empty:
            self.body = (content, end)
        elif role == "orientation" and start == self._innermost and not empty:
            text = self.data[content:end]
            spaces = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
            self.orientations.append((content + spaces[0], end - spaces[1], b"1"))


def _declaration(prefix: str, name: str) -> bytes:
    return f" {f'xmlns:{prefix}' if prefix else 'xmlns'}={quoteattr(name)}".encode()


def _edited(data: bytes, edits: Sequence[Edit], start: int = 0, end: int | None = None) -> bytes:
    """A range of the data with some pieces replaced."""
    parts = []
    for first, last, new in sorted(edits):
        parts += [data[start:first], new]
        start = last
    return b"".join([*parts, data[start:end]])


def _upright(packet: bytes) -> bytes:
    """The packet with orientation 1 where it says any; empty where it may say one and cannot be understood."""
    try:
        parsed = _Packet(packet)
    except ValueError:
        return b"" if b"Orientation" in packet else packet
    return _edited(packet, parsed.orientations)


def _merged(main: _Packet, extension: _Packet) -> bytes:
    """One packet of two: the nodes of the extension behind those of the main packet, which announces it no more."""
    if main.body is None or extension.body is None:
        raise ValueError("there is no rdf:RDF")
    if extension.size > _MOST_DECLARED * len(extension.data):
        raise _OutOfProportionError
    nodes = _edited(extension.data, extension.declarations, *extension.body)
    edits = [(main.body[1], main.body[1], nodes)] + ([main.note] if main.note else [])
    return _edited(main.data, edits)
