"""Image files: formats and their limits, pixels and metadata encoded, and writing that is whole or absent."""

from __future__ import annotations

import io
import math
import os
import re
import sys
import time
import uuid
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..jpeg.metadata import Metadata, add_to_jpeg, add_to_png, byte_order, png_chunk, text_of_png, tiff

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
STREAM = Path("-")
"""Standard input or output in place of a file."""
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
"""Names of what `write_atomically` is writing, or was when it was killed."""

RECORD = "ddrm-jpeg"
"""Keyword of the text in a PNG that says how it was made."""
_PNG_LEVEL = 3  # a third of the time of the highest, for a hundredth more bytes
_STRIP = 2**18  # bytes of pixels in a strip of a TIFF


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels `[H, W]` or `[H, W, C]` turned as an EXIF orientation (1 to 8; Exif 2.32, 4.6.4 A) says."""
    turned = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    return turned[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]


def check_depth(depth: int, image_format: str) -> None:
    """Raise `ValueError` if a format does not hold so many bits a channel."""
    if depth not in FORMATS[image_format].depths:
        others = " or ".join(name for name, own in FORMATS.items() if depth in own.depths)
        raise ValueError(f"{image_format} has 8 bits a channel; {depth} are written as {others}")


def check_alpha(channels: int, image_format: str) -> None:
    """Raise `ValueError` if a format cannot hold the alpha channel of an image, the last of 2 or 4."""
    if channels in (2, 4) and not FORMATS[image_format].alpha:
        others = " or ".join(name for name, own in FORMATS.items() if own.alpha)
        raise ValueError(f"{image_format} has no transparency, and the image has; choose {others}")


def check_size(image_format: str, width: int, height: int) -> None:
    """Raise `ValueError` if a format does not take images of this size."""
    longest = FORMATS[image_format].longest_side
    if max(width, height) > longest:
        raise ValueError(
            f"{image_format} takes at most {longest} pixels a side, and the image has {width} x {height};"
            " choose another format, such as png"
        )


def save_image(image: Image.Image, target: str | os.PathLike, metadata: Metadata | None = None) -> tuple[str, ...]:
    """Write an image, in the format its name ends in, with its metadata: by default what its `info` has of it.

    The file appears whole or not at all. Returns what was not kept, in words.

    Raises:
        OSError: if it cannot be written.
        ValueError: if the name ends in no format's suffix, or the format does not take an image of this size.
    """
    carried = Metadata.from_info(image.info) if metadata is None else metadata
    data, not_kept = encode(np.asarray(image), format_of(Path(target)), carried)
    write(data, Path(target))
    return not_kept


def record_of(path: Path) -> str | None:
    """What a PNG says of how it was made, under `RECORD`; `None` of others."""
    if not path.is_file():  # a pipe would be waited for
        return None
    with suppress(OSError), open(path, "rb") as image:
        return text_of_png(image, RECORD)
    return None


def format_of(path: Path) -> str:
    """The one of `FORMATS` that a name ends in; raises `ValueError` if it ends in none of them."""
    if image_format := FORMAT_OF_SUFFIX.get(path.suffix.lower()):
        return image_format
    raise ValueError(f"{path}: its name must end in one of {', '.join(FORMAT_OF_SUFFIX)}")


def write(data: bytes, target: Path, modified: int | None = None) -> None:
    """Write what `encode` gives to a file or to standard output; `modified` as for `write_atomically`."""
    if target == STREAM:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        write_atomically(target, lambda stream: stream.write(data), modified)


def encode(pixels: np.ndarray, image_format: str, metadata: Metadata) -> tuple[bytes, tuple[str, ...]]:
    """The bytes of an image file, and in words what of the metadata is not in it.

    Pixels are `[H, W]` or `[H, W, 3]`, with alpha `[H, W, 2 or 4]`, uint8, or uint16 where the format has 16 bits. A
    profile stays only with pixels that it is for: a grey image with one for RGB becomes RGB, and any other that does
    not fit is left out.
    """
    own, pixels = FORMATS[image_format], np.atleast_3d(pixels)
    check_size(image_format, pixels.shape[1], pixels.shape[0])
    check_alpha(pixels.shape[2], image_format)
    metadata = metadata if "chunks" in (own.keeps or ()) else metadata.without_chunks()
    not_kept = metadata.not_kept(own.keeps)
    if pixels.shape[2] < 3 and (not own.grey or metadata.profile_mode == "RGB"):
        pixels = np.concatenate([pixels[..., :1]] * 3 + [pixels[..., 1:]], axis=2)
    mode = "L" if pixels.shape[2] < 3 else "RGB"
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    if metadata.profile_mode not in (None, mode):
        not_kept += (f"ICC profile, which is not for {mode}",)
        metadata = metadata.without_profile()
    return own.encode(np.ascontiguousarray(pixels), metadata), not_kept


def _png(pixels: np.ndarray, metadata: Metadata) -> bytes:
    deep = pixels.dtype == np.uint16
    image = _png_of_16_bits(pixels) if deep else _by_pillow(pixels, "png", compress_level=_PNG_LEVEL)
    return add_to_png(image, metadata)


def _jpeg(pixels: np.ndarray, metadata: Metadata) -> bytes:
    return add_to_jpeg(_by_pillow(pixels, "jpeg", quality=97, subsampling="4:4:4"), metadata)


def _webp(pixels: np.ndarray, metadata: Metadata) -> bytes:
    carried = {name: data for name in ("exif", "icc_profile", "xmp") if (data := getattr(metadata, name)) is not None}
    # More effort takes many times as long, for files that are hardly smaller.
    return _by_pillow(pixels, "webp", lossless=True, exact=True, quality=0, method=1, **carried)


def _by_pillow(pixels: np.ndarray, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, image_format, **options)
    return stream.getvalue()


def _png_of_16_bits(pixels: np.ndarray) -> bytes:
    """A PNG of uint16 pixels, of which Pillow writes grey ones only; each row as its difference from the one above."""
    height, width, channels = (*pixels.shape, 1)[:3]
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.full((height, 1 + rows.shape[1]), 2, dtype=np.uint8)  # each row begins with its filter: 2 is "up"
    filtered[0, 1:], filtered[1:, 1:] = rows[0], rows[1:] - rows[:-1]
    colour = (0, 4, 2, 6)[channels - 1]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((16, colour, 0, 0, 0))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered, 6)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def _tiff(pixels: np.ndarray, metadata: Metadata) -> bytes:
    """A baseline TIFF (TIFF 6.0, sections 4 and 6), not compressed."""
    height, width, channels = (*pixels.shape, 1)[:3]
    row = width * channels * pixels.itemsize
    rows = min(max(_STRIP // row, 1), height)
    ordered = pixels.astype(pixels.dtype.newbyteorder(byte_order(metadata)))
    structure = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8 * pixels.itemsize] * channels),
        259: (3, [1]),
        262: (3, [1 if channels < 3 else 2]),
        277: (3, [channels]),
        278: (4, [rows]),
        284: (3, [1]),
    } | ({338: (3, [2])} if channels in (2, 4) else {})  # alpha by which colours are not multiplied
    return tiff(structure, [ordered[top : top + rows].tobytes() for top in range(0, height, rows)], metadata)


@dataclass(frozen=True)
class Format:
    """A format that images are written in."""

    suffixes: tuple[str, ...]
    """Of its files; the first is the one that they are given."""
    encode: Callable[[np.ndarray, Metadata], bytes]
    keeps: tuple[str, ...] | None
    """What of the metadata it has a place for, as `Metadata.not_kept` takes it."""
    depths: tuple[int, ...] = (8,)  # bits a channel
    longest_side: float = math.inf  # pixels
    grey: bool = True  # whether there are grey images; otherwise they are stored as colour
    alpha: bool = True  # whether there is transparency


FORMATS = {
    "png": Format((".png",), _png, ("EXIF", "XMP in UTF-8", "ICC profile", "comment", "resolution", "chunks"), (8, 16)),
    "webp": Format((".webp",), _webp, ("EXIF", "XMP", "ICC profile"), longest_side=16383, grey=False),
    # The longest side is libjpeg's; the standard's is 65535.
    "jpeg": Format(JPEG_SUFFIXES, _jpeg, None, longest_side=65500, alpha=False),
    "tiff": Format(
        (".tif", ".tiff"),
        _tiff,
        ("descriptive EXIF", "XMP", "ICC profile", "IPTC and other Photoshop data", "resolution"),
        (8, 16),
    ),
}
"""The output formats, each a row. JPEG is the one that loses anything, as little as it can."""
FORMAT_OF_SUFFIX = {suffix: name for name, own in FORMATS.items() for suffix in own.suffixes}


def write_atomically(target: Path, write: Callable[[Any], None], modified: int | None = None) -> None:
    """Call `write` with a binary stream; what it writes becomes `target` when it returns, or nothing does.

    Where `target` is a link, that is the file that it leads to. `modified` is the time that the file is given as that
    of its last change, in nanoseconds since 1970; by default it is now.
    """
    target = Path(os.path.realpath(target))
    for folder in reversed([target.parent, *takewhile(lambda folder: not folder.exists(), target.parent.parents)]):
        folder.mkdir(exist_ok=True)  # mkdir(parents=True) calls itself, and ends 1000 folders down
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if modified is not None:
            with suppress(OSError, OverflowError):  # a time that the system of files does not hold
                os.utime(temporary, ns=(time.time_ns(), modified))
        temporary.replace(target)
    except BaseException:  # Ctrl-C too must leave nothing behind
        temporary.unlink(missing_ok=True)
        raise
