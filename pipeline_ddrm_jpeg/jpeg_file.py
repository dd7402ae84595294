"""The JPEG bitstream: what a file says about itself, and the quantized DCT coefficients it carries."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import IO

import numpy as np
from PIL import Image

from .jpeg_entropy import UNMEASURED, OutOfTime, decode_scans, impossible
from .jpeg_markers import (
    Component,
    JPEGDamageError,
    JPEGFileError,
    Stream,
    check_proportion,
    check_scans,
    color_space_of,
    components_of,
    drop_surplus_restarts,
    parse,
    plane_shapes,
)
from .jpeg_reader import read_coefficients
from .jpeg_tables import chroma_subsampling_name, estimate_quality_factor

_MOST_BYTES = 2**30  # of a file; whatever is larger is no JPEG that could be restored
_REPAIR_SECONDS = 10  # of processor time; on top come so many for each megabyte, of which most files need two
_REPAIR_SECONDS_PER_MEGABYTE = 5
_SURPLUS = "more data than its blocks need"


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
            JPEGDamageError: for a file that is cut short or damaged; `repair=True` takes what is left of it, if
                anything is.
            JPEGFileError: for anything else that is not read, for a claimed size above Pillow's limit (twice
                `PIL.Image.MAX_IMAGE_PIXELS`), and for one out of all proportion to the size of the file.
            OSError: if a path cannot be read.
        """
        data, name = _read_bytes(source)
        try:
            try:
                return _open(data, name)
            except JPEGDamageError as error:
                if not repair:
                    raise
                return _salvage(data, name, str(error))
        except JPEGFileError as error:
            raise type(error)(f"{name}: {error}") from None

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
    stream = parse(data)
    color_space = color_space_of(stream)
    components = components_of(stream)
    check_scans(stream, components)
    check_proportion(stream, components)
    drop_surplus_restarts(stream, components)
    planes, surplus = read_coefficients(stream.decodable_parts(), plane_shapes(stream, components))
    remarks = (_SURPLUS,) if surplus or stream.surplus else ()
    for number, (plane, component) in enumerate(zip(planes, components, strict=True), 1):
        odd = impossible(plane.reshape(-1, 64), component.quantization_table)
        if odd.any():
            raise JPEGDamageError(f"damaged: component {number} has values that no picture has in {odd.sum()} blocks")
    return _file(stream, name, color_space, components, _whole_mcus(planes, stream, components), remarks=remarks)


def _salvage(data: bytes, name: str, reason: str) -> JPEGFile:
    """What is left of a file that cannot be read as a whole, for the reason given."""
    stream = parse(data, repair=True)
    color_space = color_space_of(stream)
    components = components_of(stream, repair=True)
    check_proportion(stream, components)
    seconds = _REPAIR_SECONDS + _REPAIR_SECONDS_PER_MEGABYTE * stream.size / 2**20
    try:
        coefficients, missing, damage = decode_scans(
            stream.scans,
            [(c.horizontal_factor, c.vertical_factor) for c in components],
            plane_shapes(stream, components),
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
    stream: Stream,
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


def _whole_mcus(
    planes: Sequence[np.ndarray], stream: Stream, components: tuple[Component, ...], mode: str = "dc"
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
