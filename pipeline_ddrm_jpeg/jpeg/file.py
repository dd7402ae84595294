"""The JPEG bitstream: what a file says about itself, and the quantized DCT coefficients it carries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import IO, Any

import numpy as np

from .colour import CMYK_SPACES, ColourSpace
from .entropy import UNMEASURED, OutOfTime, decode_scans, impossible
from .markers import (
    Component,
    JPEGDamageError,
    JPEGFileError,
    Stream,
    check_proportion,
    check_scans,
    colour_space_of,
    components_of,
    drop_surplus_restarts,
    mcu_size,
    parse,
    plane_shapes,
)
from .metadata import Metadata, trailer
from .reader import read_coefficients
from .tables import ZIGZAG, chroma_subsampling_name, estimate_quality_factor

MOST_BYTES = 2**30  # of a file; whatever is larger is no JPEG that could be restored
_REPAIR_SECONDS = 10  # of processor time; on top come so many for each megabyte, of which most files need two
_REPAIR_SECONDS_PER_MEGABYTE = 5


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
    colour: ColourSpace
    """What the components stand for, and what says so."""
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
    metadata: Metadata = field(default=Metadata(), repr=False)
    """EXIF, XMP, ICC profile, IPTC, comments, resolution."""
    remarks: tuple[str, ...] = ()
    """What is odd about the file, although it puts no coefficient in doubt."""
    damage: tuple[str, ...] = ()
    """What is wrong with a file opened with `repair=True`, in a sentence or several; empty for a whole file."""
    missing_bits: tuple[np.ndarray, ...] | None = field(default=None, repr=False)
    """Of a damaged file, and of one with fewer scans than it announces, how many of the lowest bits of each coefficient
    are not in it: int8, in the shape of `coefficients`; `UNMEASURED` (16) where nothing of it is. `None` for others."""
    bare: bytes = field(default=b"", repr=False)
    """Of a whole file what any decoder needs of it, and no metadata."""

    @classmethod
    def open(
        cls, source: str | os.PathLike | bytes | bytearray | memoryview | IO[bytes], repair: bool = False
    ) -> JPEGFile:
        """Read a JPEG from a path, from bytes or from a binary file object.

        Baseline, extended sequential and progressive Huffman-coded files of 8 bits are read, with one
        component, three or four, any integer sampling ratios, 8- and 16-bit tables, restart and DNL markers. A
        progressive file may end before its last scans: `missing_bits` say what it lacks. `repair=True`
        takes what is left of a file that is cut short or damaged after its headers, and marks in `missing_bits` what
        is not. Damage that decodes to a possible image goes unnoticed.

        Raises:
            JPEGDamageError: for a file that is cut short or damaged; `repair=True` takes what is left of it, if
                anything is.
            JPEGFileError: for anything else that is not read, for a claimed size above Pillow's limit (twice
                `PIL.Image.MAX_IMAGE_PIXELS`), and for one out of all proportion to the size of the file.
            OSError: if a path cannot be read.
        """
        data, name = read_bytes(source)
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
        return mcu_size(self.components)

    @property
    def color_space(self) -> str:
        """`"L"` (one component), `"YCbCr"`, `"RGB"` (coded as it is), or one of `CMYK_SPACES`: `"CMYK"` or `"YCCK"`."""
        return self.colour.name

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
        """Bits of the file, metadata included, for each pixel of the image."""
        return 8 * self.file_size / (self.width * self.height)

    @cached_property
    def orientation(self) -> int:
        """EXIF orientation, 1 (upright) to 8; 1 where the file does not say."""
        return self.metadata.orientation

    @cached_property
    def tint(self) -> tuple[float, float] | None:
        """(Cb, Cr) in grey levels, from -128 to 127, where both are the same all over the image; `None` elsewhere.

        (0, 0) is that of a black-and-white image stored as colour. Of a damaged file what is left decides, if that
        is most of it.
        """
        tables = [component.quantization_table for component in self.components]
        if self.color_space == "RGB":
            same = all(np.array_equal(one, each[0]) for each in (self.coefficients, tables) for one in each)
            return (0.0, 0.0) if same and self.missing_bits is None else None
        if len(self.components) != 3 or self.mcu_size != mcu_size(self.components[:1]):
            return None
        means = []
        for number in (1, 2):
            values = self.coefficients[number].reshape(-1, 64)
            if self.missing_bits is not None:
                known = (self.missing_bits[number].reshape(-1, 64) == 0).all(axis=1)
                if known.mean() < 0.5:
                    return None
                values = values[known]
            if values[:, 1:].any() or np.ptp(values[:, 0]):
                return None
            means.append(float(values[0, 0] * tables[number][0, 0]) / 8)
        return means[0], means[1]


def read_bytes(source: str | os.PathLike | bytes | bytearray | memoryview | IO[bytes]) -> tuple[bytes, str]:
    """What a source holds, and what messages call it.

    Raises `JPEGFileError` where that is more than `MOST_BYTES`, `TypeError` or `OSError` where it cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), "<bytes>"
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as stream:
            return read_bytes(stream)
    if not hasattr(source, "read"):
        raise TypeError(f"expected a path, bytes or a binary file object, not {type(source).__name__}")
    data, name = source.read(MOST_BYTES + 1), str(getattr(source, "name", "<file object>"))
    if not isinstance(data, bytes):
        raise TypeError("the file object gives text; open it in binary mode ('rb')")
    if len(data) > MOST_BYTES:
        raise JPEGFileError(f"{name}: it has more than {MOST_BYTES} bytes")
    return data, name


def _open(data: bytes, name: str) -> JPEGFile:
    stream = parse(data)
    colour, components = colour_space_of(stream), components_of(stream)
    check_scans(stream, components)
    check_proportion(stream, components)
    drop_surplus_restarts(stream, components)
    planes, surplus = read_coefficients(stream.decodable_parts(), plane_shapes(stream, components))
    for number, (plane, component) in enumerate(zip(planes, components, strict=True), 1):
        if not stream.complete:  # values of which bits are missing may be such as no image has
            break
        odd = impossible(plane.reshape(-1, 64), component.quantization_table)
        if odd.any():
            raise JPEGDamageError(f"damaged: component {number} has values that no image has in {odd.sum()} blocks")
    odd = {
        "more data than its blocks need": surplus or stream.surplus,
        f"a height of {stream.first_height} that its DNL marker corrects": stream.first_height != stream.height,
        "fewer scans than its frame announces; what they leave out is made up": not stream.complete,
    }
    remarks, more = tuple(words for words, holds in odd.items() if holds), {"bare": stream.bare()}
    if not stream.complete:
        missing = np.empty_like(stream.remaining_bits, dtype=np.int8)
        missing[:, ZIGZAG] = stream.remaining_bits
        more["missing_bits"] = tuple(
            _whole_mcus(np.tile(bits.reshape(8, 8), (*plane.shape[:2], 1, 1)), stream, components, i)
            for i, (bits, plane) in enumerate(zip(missing, planes, strict=True))
        )
    return _file(stream, data, name, colour, components, planes, remarks=remarks, **more)


def _salvage(data: bytes, name: str, reason: str) -> JPEGFile:
    """What is left of a file that cannot be read as a whole, for the reason given."""
    stream = parse(data, repair=True)
    colour, components = colour_space_of(stream), components_of(stream, repair=True)
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
        raise JPEGFileError(f"{reason}; nothing of the image is left")
    lost = tuple(_whole_mcus(plane, stream, components, i) for i, plane in enumerate(missing))
    return _file(stream, data, name, colour, components, coefficients, damage=(reason, *damage), missing_bits=lost)


def _file(
    stream: Stream,
    data: bytes,
    name: str,
    colour: ColourSpace,
    components: tuple[Component, ...],
    planes: Sequence[np.ndarray],
    remarks: tuple[str, ...] = (),
    **more: Any,
) -> JPEGFile:
    coefficients = []
    for i, plane in enumerate(planes):
        rows, columns = plane.shape[:2]
        coefficients.append(_whole_mcus(plane, stream, components, i))
        for filling in (coefficients[i][rows:], coefficients[i][:, columns:]):
            filling.reshape(*filling.shape[:2], 64)[..., 1:] = 0
    if colour.name in CMYK_SPACES:
        remarks = (*remarks, f"the colour space {colour.name}, which is written as RGB")
    return JPEGFile(
        width=stream.width,
        height=stream.height,
        colour=colour,
        components=components,
        coefficients=tuple(coefficients),
        progressive=stream.frame_type == 0xC2,
        restart_interval=stream.restart_interval,
        file_size=stream.size,
        name=name,
        metadata=Metadata(tuple(stream.description), trailer(data, stream.size)),
        remarks=remarks,
        **more,
    )


def _whole_mcus(plane: np.ndarray, stream: Stream, components: tuple[Component, ...], i: int) -> np.ndarray:
    """A plane `[down, across, 8, 8]` of a component, padded to whole MCUs with its last blocks."""
    height, width = mcu_size(components)
    down = ceil(stream.height / height) * components[i].vertical_factor - plane.shape[0]
    across = ceil(stream.width / width) * components[i].horizontal_factor - plane.shape[1]
    return np.pad(plane, ((0, down), (0, across), (0, 0), (0, 0)), mode="edge") if down or across else plane
