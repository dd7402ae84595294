"""Opening what is to be restored: a JPEG file, or a picture that was one."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from .decoded_jpeg import DecodedJPEG, read_picture
from .jpeg_file import MOST_BYTES, JPEGFile
from .jpeg_history import assume_history
from .jpeg_markers import JPEGFileError, picture_kind

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
        with Image.open(stream) as picture:
            picture.filename = stream.name
            return DecodedJPEG.open(picture, metadata=file.metadata)
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


def earlier_jpeg(source: Path | IO[bytes]) -> str | None:
    """The earlier, coarser JPEG that the pixels of a JPEG file show, in words."""
    try:
        history = DecodedJPEG.open(source).history
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
