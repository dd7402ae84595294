"""Opening what is to be restored: a JPEG file, or a picture that was one."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from .decoded_jpeg import DecodedJPEG, read_picture
from .jpeg_file import MOST_BYTES, JPEGFile
from .jpeg_history import assume_history
from .jpeg_markers import JPEGFileError, bare, picture_kind
from .metadata import shares_values

# Pillow copies what it has of a GIF's comments for each block of at most 255 bytes, and a value for each tag of a TIFF.
_MOST_BLOCKS = 4096
_GIF_BLOCK = re.compile(rb"[!,;]")
REPAIR_HINT = " (--repair restores what is left)"


@dataclass(frozen=True)
class Assumed:
    """What somebody says of the JPEG that a picture was."""

    quality_factor: int | None = None
    """libjpeg's, 1..100; `None`: it is estimated."""
    chroma_subsampling: str = "4:2:0"
    grid: tuple[int, int] = (0, 0)
    """Column and row, from 0, at which its first whole block begins, or any other one."""
    saved_again: bool = False
    """Whether JPEG files are restored from an earlier, coarser JPEG that their pixels show."""


class NoJPEGError(JPEGFileError):
    """A picture of another format that shows no JPEG, or that cannot be read."""


def open_source(
    source: Path | bytes | IO[bytes], repair: bool = False, assumed: Assumed = Assumed()
) -> JPEGFile | DecodedJPEG:
    """A JPEG file, or a picture of another format that was one.

    Raises:
        NoJPEGError: for pictures that show no JPEG.
        JPEGFileError: for files that are no pictures.
        OSError: if a path cannot be read.
    """
    stream = read_once(source)
    if picture_kind(stream.getbuffer()[:16].tobytes()) is None:
        file = JPEGFile.open(stream, repair=repair)
        if not assumed.saved_again:
            return file
        with Image.open(io.BytesIO(bare(stream.getvalue()))) as picture:
            picture.filename = stream.name
            return DecodedJPEG.open(picture, metadata=file.metadata)
    data = stream.getvalue()
    if (data.startswith(b"GIF8") and _has_long_comments(data)) or shares_values(data):
        raise NoJPEGError(f"{stream.name}: its comments, or the values of its tags, are out of all proportion")
    try:
        with Image.open(stream) as picture:
            picture.filename = stream.name
            if assumed.quality_factor is None:
                return DecodedJPEG.open(picture)
            pixels = np.array(read_picture(picture))
            offset = -assumed.grid[1], -assumed.grid[0]
            history = assume_history(pixels, assumed.quality_factor, assumed.chroma_subsampling, offset)
            return DecodedJPEG.open(picture, history)
    except (UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        reason = "not a picture that Pillow can read" if isinstance(error, UnidentifiedImageError) else error
        raise NoJPEGError(f"{stream.name}: {str(reason).removeprefix(f'{stream.name}: ')}") from None


def _has_long_comments(data: bytes) -> bool:
    """Whether so much stands before the first picture of a GIF that no reader would need it."""
    flags = data[10] if len(data) > 10 else 0
    at, blocks = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), 0
    while (found := _GIF_BLOCK.search(data, at)) and found[0] == b"!" and blocks <= _MOST_BLOCKS:
        at, blocks = found.end() + 1, blocks + 1
        while at < len(data) and data[at] and blocks <= _MOST_BLOCKS:
            at, blocks = at + 1 + data[at], blocks + 1
        at += 1
    return blocks > _MOST_BLOCKS


def earlier_jpeg(source: Path | IO[bytes]) -> str | None:
    """The earlier, coarser JPEG that the pixels of a JPEG file show, in words."""
    try:
        if not isinstance(source, Path):
            source.seek(0)
        data = source.read_bytes() if isinstance(source, Path) else source.read()
        history = DecodedJPEG.open(bare(data)).history
    except (JPEGFileError, OSError, ValueError, Image.DecompressionBombError):
        return None
    top, left = (lost % 8 for lost in history.offset)
    shifted = f", grid shifted by {left}, {top}" if top or left else ""
    return f"first at about quality {history.quality_factor}{shifted}"


def read_once(source: Path | bytes | IO[bytes]) -> io.BytesIO:
    """What a source holds, with its name: a pipe can be read but once."""
    if isinstance(source, Path):
        with open(source, "rb") as file:
            return read_once(file)
    stream = io.BytesIO(source if isinstance(source, bytes) else source.read(MOST_BYTES + 1))
    stream.name = "<bytes>" if isinstance(source, bytes) else source.name
    return stream
