"""`DecodedJPEG`: an image whose JPEG file is gone, with what its pixels say of that file; reading images."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..jpeg.file import read_bytes
from ..jpeg.markers import JPEGFileError, most_coefficients
from ..jpeg.metadata import Metadata, shares_values
from .coefficients import DecodedCoefficients, read_coefficients
from .history import JPEGHistory
from .regions import estimate_earlier, estimate_history

# Modes whose profile holds for the L or RGB that they become; that of CMYK would not.
_PROFILED_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I", "I;16", "I;16B", "I;16L", "I;16N")

_KEPT_MODES = {*_PROFILED_MODES} - {"P", "PA"}

# Pillow copies what it has of a GIF's comments for each block of at most 255 bytes, and a value for each tag of a TIFF.
_MOST_BLOCKS = 4096
_GIF_BLOCK = re.compile(rb"[!,;]")

# Pillow unpacks the upper byte of 16 bits; where it takes the bytes for those of the other order, the lower one.
_DEEP = re.compile(r"(RGBA?);16([BLN])|LA;16B")
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

_VALUES_PER_PIXEL = 1.5  # of 4:2:0, as what an image costs is counted for JPEG files

_NOT_IN_FULL = "it has more than 8 bits a channel in a form that is not read in full; save it as a PNG of 16 bits"

Picture = str | os.PathLike | bytes | IO[bytes] | Image.Image

NOTHING_FOUND = (
    "its pixels show no JPEG that it went through; give the JPEG file, or, where it was one and has been resized or"
    " edited since, say with --assume-quality (history=assume_history(...)) how coarse it was"
)


@dataclass(frozen=True, eq=False)
class DecodedJPEG:
    """An image of any format that once was a JPEG.

    Use `DecodedJPEG.open`. It answers what a `JPEGFile` does about the image; what it says of coefficients is
    estimated, or assumed by somebody.
    """

    pixels: np.ndarray = field(repr=False)
    """`[H, W]` or `[H, W, 3]` (RGB), uint8, as stored; what is transparent has the colour below."""
    history: JPEGHistory
    """The JPEG that it was."""
    metadata: Metadata = field(default=Metadata(), repr=False)
    """EXIF, ICC profile and the like of the image's own file."""
    double_compression: bool = False
    """Whether it is a JPEG, and `history` that of an earlier, coarser one."""
    stored: np.ndarray | None = field(default=None, repr=False)
    """Of an image with more than `pixels`: `[H, W, C]`, uint8 or uint16; of 2 or 4 channels the last is alpha."""
    remarks: tuple[str, ...] = ()
    """What was odd about it, though harmless."""

    damage = ()

    @classmethod
    def open(
        cls, source: Picture, history: JPEGHistory | Callable[[np.ndarray], JPEGHistory] | None = None
    ) -> DecodedJPEG:
        """Read an image and estimate what JPEG it was, unless a history is given, or what makes one of its pixels.

        The source is a path, bytes, a binary file object or a PIL image. A JPEG is asked for an earlier, coarser one.

        Raises:
            JPEGFileError: where its pixels show no JPEG.
            ValueError: for images whose values have no known range, or cannot be read in full.
            OSError: if the source cannot be read as an image.
        """
        image = with_pillow(source)
        data = _bytes_of(image)
        tables, mode = getattr(image, "quantization", None), image.mode
        stored, read = _stored(image, data), read_image(image)
        pixels = np.array(read)
        if stored is not None and stored.shape[2] in (2, 4):  # not as it looks on white
            colours = stored[..., 0] if stored.shape[2] == 2 else stored[..., :3]
            pixels = (colours if colours.dtype == np.uint8 else colours >> 8).astype(np.uint8)
        if callable(history):
            history = history(pixels)
        if history is None:
            in_rows = [np.array(tables[number]).reshape(8, 8) for number in sorted(tables or ())]  # without zigzag
            history = estimate_earlier(pixels, in_rows) if tables else estimate_history(pixels)
        if history is None:
            name = f"{getattr(image, 'filename', '') or 'the image'}: "
            if tables:
                raise JPEGFileError(f"{name}it shows no JPEG coarser than itself; restore it as the file it is")
            raise JPEGFileError(name + NOTHING_FOUND)
        kind = "a palette" if mode.startswith("P") else f"the colour space {mode}"
        remarks = () if mode in _KEPT_MODES else (f"{kind}, which is written as RGB",)
        return cls(pixels, history, Metadata.from_info(read.info, data), bool(tables), stored, remarks)

    def put_back(self, restored: np.ndarray) -> np.ndarray:
        """What is to be written: restored pixels, and all that was not restored as it is stored.

        Args:
            restored: `[H, W]` or `[H, W, 3]`, uint8 or uint16, of the whole image.

        Returns:
            `[H, W]` or `[H, W, 2 to 4]`, with alpha where the image has it, in 16 bits where either has them.
        """
        if self.stored is None:
            return restored
        deep = np.uint16 in (self.stored.dtype, restored.dtype)
        whole, restored = (
            part.astype(np.uint16) * 257 if deep and part.dtype == np.uint8 else part.copy()
            for part in (self.stored, np.atleast_3d(restored))
        )
        part, seen = self.history.part(whole), True
        if whole.shape[2] in (2, 4):
            seen = part[..., -1:] > 0
        colours = part[..., : restored.shape[2]]
        np.copyto(colours, self.history.part(restored), where=seen)
        return whole[..., 0] if whole.shape[2] == 1 else whole

    @property
    def height(self) -> int:
        """Pixels down, as stored."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Pixels across, as stored."""
        return self.pixels.shape[1]

    @property
    def part(self) -> np.ndarray:
        """The pixels that were the JPEG: all, or those of its region."""
        return self.history.part(self.pixels)

    @cached_property
    def orientation(self) -> int:
        """EXIF orientation, 1 (upright) to 8; 1 where the image's file does not say."""
        return self.metadata.orientation

    @cached_property
    def coefficients(self) -> DecodedCoefficients:
        """Those of the JPEG that it was."""
        return read_coefficients(self.pixels, self.history)

    @property
    def description(self) -> str:
        """What it was, and how sure that is, in words."""
        known = self.history
        words = f"a JPEG of about quality {known.quality_factor}, {known.chroma_subsampling or 'grey'}"
        if known.region:
            top, left, height, width = known.region
            words += f", on {width} x {height} pixels from column {left} and row {top} on"
        if any(known.offset):
            words += f", cropped by {known.offset[0]} rows and {known.offset[1]} columns of its blocks"
        if known.assumed:
            return f"assumed: {words}"
        sure = (
            f"{known.share_determined:.0%} of the quantization steps shown, {known.explained:.0%} of the blocks exact"
        )
        return f"estimated: {'double compression, first as ' if self.double_compression else ''}{words} ({sure})"


def _check_proportion(image: Image.Image) -> None:
    """Refuse, before there are pixels, a file that claims more of them than a JPEG file of its size may."""
    stream = getattr(image, "fp", None)
    if stream is None:  # no file, or its pixels are there already
        return
    place = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(place)
    if _VALUES_PER_PIXEL * image.width * image.height > most_coefficients(size):
        raise ValueError(
            f"it claims {image.width} x {image.height} pixels in {size} bytes, which is out of all proportion"
        )


def _bytes_of(image: Image.Image) -> bytes:
    """The file of an image, of which no pixels have been read yet."""
    stream = getattr(image, "fp", None)
    if stream is None:
        return b""
    place = stream.tell()
    stream.seek(0)
    data = stream.read()
    stream.seek(place)
    return data


def _stored(image: Image.Image, data: bytes) -> np.ndarray | None:
    """What `DecodedJPEG.stored` is of an image, whose file has these bytes."""
    _check_proportion(image)
    stored = np.asarray(image)[..., None] if image.mode.startswith("I") else _deep(image, data)
    if stored is None and image.has_transparency_data:
        return np.asarray(image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA"))
    if stored is not None and "transparency" in image.info and stored.shape[2] in (1, 3):  # one colour is
        alpha = 65535 * (stored != image.info["transparency"]).any(axis=2, keepdims=True)
        stored = np.concatenate([stored, alpha], axis=2)
    return stored if stored is None else stored.astype(np.uint16)


def _deep(image: Image.Image, data: bytes) -> np.ndarray | None:
    """`[H, W, C]`, uint16, of an image of which Pillow reads the upper half of 16 bits; `None` of any other."""
    tiles = getattr(image, "tile", [])
    modes = [tile.args if isinstance(tile.args, str) else str(tile.args[0]) for tile in tiles if tile.args]
    bits = max(getattr(image, "tag_v2", {}).get(258, (8,)))
    if data and _is_rounded(image, data):
        raise ValueError(_NOT_IN_FULL)
    if not data or image.mode == "F" or (bits <= 8 and not any(";16" in mode for mode in modes)):
        return None
    if not all(map(_DEEP.fullmatch, modes)):
        raise ValueError(_NOT_IN_FULL)
    other = Image.open(io.BytesIO(data))
    other.seek(image.tell())
    mixed = modes[0] == "LA;16B"  # which is read as if it were the four bytes of a pixel
    other.tile = [
        tile._replace(args=named if isinstance(tile.args, str) else (named, *tile.args[1:]))
        for tile, mode in zip(other.tile, modes, strict=True)
        for named in ["RGBA" if mixed else f"{_DEEP.fullmatch(mode)[1]};16{_OTHER_ORDER[_DEEP.fullmatch(mode)[2]]}"]
    ]
    if mixed:
        return np.asarray(other).view(">u2")
    return np.asarray(image).astype(np.uint16) << 8 | np.asarray(other)


def _is_rounded(image: Image.Image, data: bytes) -> bool:
    """Whether Pillow rounds more than 8 bits a channel to 8, of formats of which it does not read the rest."""
    arguments = image.tile[0].args if image.tile else ()
    if image.format == "PPM":
        return isinstance(arguments, tuple) and len(arguments) > 1 and arguments[1] > 255
    if image.format == "SGI":
        return data[3] > 1
    if image.format == "JPEG2000":  # ISO/IEC 15444-1, A.5.1: three bytes a component, of which the first is its depth
        at = data.find(b"\xff\x51\0")
        return (
            max((bits & 127 for bits in data[at + 40 : at + 2 + int.from_bytes(data[at + 2 : at + 4]) : 3]), default=0)
            > 7
        )
    if image.format == "AVIF":  # AV1 in ISOBMFF, 2.3.3: high_bitdepth
        at = data.find(b"av1C")
        return at >= 0 and data[at + 6] & 0x40 > 0
    return False


def with_pillow(source: Picture) -> Image.Image:
    """An image of any format as Pillow opens it, which decodes no pixels yet.

    Raises `ValueError` for several pages or frames, and for comments and tags on which Pillow would spend time out of
    all proportion, `OSError` if the source cannot be read as an image.
    """
    if isinstance(source, Image.Image):
        return source
    data, name = read_bytes(source)
    if (data.startswith(b"GIF8") and _has_long_comments(data)) or shares_values(data):
        raise ValueError("its comments, or the values of its tags, are out of all proportion to its image")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"{name}: not an image that Pillow can read") from None
    if image.format != "MPO" and getattr(image, "is_animated", False):  # an MPO is a photograph with its previews
        raise ValueError("it holds several pages or frames, of which one would be left; save each as a file")
    image.filename = name
    return image


def _has_long_comments(data: bytes) -> bool:
    """Whether so much stands before the second image of a GIF, without the first, that no reader would need it."""

    def palette(flags: bytes) -> int:
        return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0

    at, blocks, images = 13 + palette(data[10:11]), 0, 0
    while (found := _GIF_BLOCK.search(data, at)) and found[0] != b";" and images < 2 and blocks <= _MOST_BLOCKS:
        is_image, at = found[0] == b",", found.end() + 1
        if is_image:
            images, at = images + 1, at + 9 + palette(data[at + 7 : at + 8])
        blocks += not is_image
        while at < len(data) and data[at] and blocks <= _MOST_BLOCKS:
            at, blocks = at + 1 + data[at], blocks + (not is_image)
        at += 1
    return blocks > _MOST_BLOCKS


def read_image(source: Picture) -> Image.Image:
    """An image of any format Pillow reads, with 8 bits a channel: mode `L` or `RGB`.

    It stays as it is stored, and `info` keeps EXIF (and in it the orientation) and a profile that still holds. Greys of
    16 bits are scaled to 8; transparent images are laid on white.

    Raises `ValueError` for images whose values have no known range, and for those whose size, comments or tags are out
    of all proportion to their file, `OSError` if the source cannot be read as an image.
    """
    image = with_pillow(source)
    _check_proportion(image)
    mode, info = image.mode, dict(image.info)
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise ValueError("an image of 32-bit integers has no known range; convert it to 8 or 16 bits first")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    elif mode == "F":
        raise ValueError("an image of floating-point numbers has no known range; convert it to 8 or 16 bits first")
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("L" if mode == "LA" else "RGB")
    else:
        image = image.convert("L" if mode in ("1", "L", "LA") else "RGB")
    if mode not in _PROFILED_MODES:
        info.pop("icc_profile", None)
    info.pop("transparency", None)
    image.info = info
    return image
