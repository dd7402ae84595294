"""Opening what is to be restored: a JPEG file, or an image of another format that was one."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import IO

from PIL import Image, UnidentifiedImageError

from ..jpeg.file import JPEGFile, read_bytes
from ..jpeg.markers import JPEGFileError, image_kind
from .history import JPEGHistory, assume_history
from .image import DecodedJPEG, with_pillow

Source = str | os.PathLike | bytes | IO[bytes] | JPEGFile | DecodedJPEG
REPAIR_HINT = " (--repair restores what is left)"


@dataclass(frozen=True)
class Assumed:
    """What somebody says of the JPEG that an image was."""

    quality_factor: int | None = None
    """libjpeg's, 1..100; `None`: it is estimated."""
    chroma_subsampling: str = "4:2:0"
    grid: tuple[int, int] = (0, 0)
    """Column and row, from 0, at which its first whole block begins, or any other one."""
    double_compression: bool = False
    """Whether JPEG files are restored from an earlier, coarser JPEG that their pixels show."""


class NoJPEGError(JPEGFileError):
    """An image of another format that shows no JPEG, or that cannot be read."""


@dataclass(frozen=True, eq=False)
class OpenedJPEG(JPEGFile):
    """A JPEG file, which can be asked for the one that it was before."""

    @cached_property
    def earlier(self) -> DecodedJPEG | None:
        """The earlier, coarser JPEG that its pixels show (double compression); looked for when it is first asked for.

        `None` where they show none, and of a damaged file.
        """
        try:
            return _earlier(self)
        except (JPEGFileError, OSError, ValueError, Image.DecompressionBombError):
            return None


def open_image(
    source: Source | Image.Image, repair: bool = False, assume: Assumed | JPEGHistory = Assumed()
) -> OpenedJPEG | JPEGFile | DecodedJPEG:
    """A JPEG file, or an image that was one, with all that is known of it. The source is read once: it may be a pipe.

    What is opened already is taken as it is. `repair=True` takes what is left of a damaged JPEG file; `assume` says
    what an image was, where that is known or guessed.

    Raises:
        NoJPEGError: for images that show no JPEG.
        JPEGFileError: for files that are no images, and JPEG files that cannot be read.
        OSError: if a path cannot be read, or the image is broken.
    """
    if not isinstance(source, JPEGFile | DecodedJPEG | Image.Image):
        data, name = read_bytes(source)
        source = io.BytesIO(data)
        source.name = name
        if image_kind(data[:16]) in ("JPEG", None):  # which says best what is wrong with other bytes
            source = OpenedJPEG(**vars(JPEGFile.open(source, repair=repair)))
    if isinstance(source, DecodedJPEG | Image.Image):
        return source if isinstance(source, DecodedJPEG) else _decoded(source, assume)
    if isinstance(source, JPEGFile):
        known = isinstance(assume, JPEGHistory)
        return _earlier(source, assume if known else None) if known or assume.double_compression else source
    try:
        return _decoded(with_pillow(source), assume)
    except (UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise NoJPEGError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from None


def _decoded(image: Image.Image, assume: Assumed | JPEGHistory) -> DecodedJPEG:
    if isinstance(assume, JPEGHistory) or assume.quality_factor is None:
        return DecodedJPEG.open(image, assume if isinstance(assume, JPEGHistory) else None)
    known = {"quality_factor": assume.quality_factor, "chroma_subsampling": assume.chroma_subsampling}
    return DecodedJPEG.open(image, partial(assume_history, **known, offset=(-assume.grid[1], -assume.grid[0])))


def _earlier(file: JPEGFile, history: JPEGHistory | None = None) -> DecodedJPEG:
    """The JPEG that a file was before it was saved as what it is."""
    if file.damage:
        raise JPEGFileError(f"{file.name}: it is damaged, and what is left of it shows no earlier JPEG")
    with Image.open(io.BytesIO(file.bare)) as image:
        image.filename = file.name
        return replace(DecodedJPEG.open(image, history), metadata=file.metadata)
