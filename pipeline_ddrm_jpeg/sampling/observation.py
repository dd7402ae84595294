"""What a caller hands in, turned into what sampling needs: operator, measurement, true size and metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..decoded.history import JPEGHistory
from ..decoded.image import DecodedJPEG, read_image
from ..decoded.opening import Assumed, open_image
from ..degradations.jpeg import Coefficients, JPEGOperator, block_dct
from ..degradations.operator import Operator
from ..jpeg.colour import CMYK_SPACES, JFIF_INVERSE
from ..jpeg.entropy import UNMEASURED
from ..jpeg.file import JPEGFile
from ..jpeg.markers import JPEGFileError
from ..jpeg.metadata import Metadata

_LARGEST_VALUE = 2.0  # of a tensor: decoded images overshoot [-1, 1] a little, 8-bit values far


@dataclass(frozen=True)
class Surroundings:
    """An image of which only a region is restored."""

    pixels: torch.Tensor
    """`[C, H, W]`, uint8, with as many channels as what is presented."""
    top: int
    """Its row at which the region begins."""
    left: int
    """And its column."""

    def around(self, values: torch.Tensor) -> torch.Tensor:
        """The image on [0, 1] with values `[C, height, width]` in the region."""
        return self._with(self.pixels.to(values.dtype) / 255, values)

    def nothing_around(self, values: torch.Tensor) -> torch.Tensor:
        """Zeros, and in the region values `[C, height, width]`."""
        return self._with(torch.zeros_like(self.pixels, dtype=values.dtype), values)

    def _with(self, whole: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        height, width = values.shape[-2:]
        whole[:, self.top : self.top + height, self.left : self.left + width] = values
        return whole


@dataclass(frozen=True)
class Observation:
    """What is known of an image, or of a batch of one size."""

    operator: Operator
    y: Any = field(repr=False)
    """The measurement, with a batch axis first."""
    size: tuple[int, int]
    """True height and width, without what the operator pads them to."""
    info: dict[str, bytes] = field(default_factory=dict, repr=False)
    """Metadata under Pillow's names: `"exif"`, `"icc_profile"`, `"xmp"`, `"comment"`."""
    origin: tuple[int, int] = (0, 0)
    """Row and column of what the operator sees at which the true image begins."""
    tint: tuple[float, float, float] | None = None
    """What is added to a grey image of [0, 1] to present it in RGB; `None`: the operator's channels are presented."""
    surroundings: Surroundings | None = field(default=None, repr=False)
    """Where it is a part of a larger image, such as a screenshot: that image."""

    def shown(self, x: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1], `[B, 3, H, W]`, cropped and tinted as they are presented, on [0, 1]."""
        (top, left), (height, width) = self.origin, self.size
        x = x[..., top : top + height, left : left + width] / 2 + 0.5
        return x if self.tint is None else x.mean(dim=1, keepdim=True) + x.new_tensor(self.tint).reshape(3, 1, 1)

    def decoded(self) -> np.ndarray:
        """What the measurement decodes to, in RGB: bytes `[B, H, W, 3]`."""
        return to_bytes(self.shown(self.operator.decode(self.y)))


def to_bytes(x: torch.Tensor) -> np.ndarray:
    """Images `[..., C, H, W]` on [0, 1], which are changed, as bytes `[..., H, W, C]`; values beyond are clamped."""
    return x.clamp_(0, 1).mul_(255).round_().byte().movedim(-3, -1).cpu().numpy()


def observe(
    image: Any = None,
    operator: Operator | None = None,
    measurement: Any = None,
    size: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
    history: str | JPEGHistory | None = None,
) -> Observation:
    """What is known of one image, from whichever of three the caller has.

    Args:
        image: a JPEG file (path, bytes, binary file object or `JPEGFile`); or, with `operator`, an image to measure: a
            path, bytes or file object of any format Pillow reads, a PIL image, or a tensor `[B, 3, H, W]` or
            `[3, H, W]` in [-1, 1].
        operator: the degradation, where it is not a JPEG file that says so itself.
        measurement: with `operator` and instead of `image`, what it measured, with a batch axis first.
        size: with `measurement`, true height and width; by default all of what it decodes to.
        device: where the measurement goes.
        history: for a decoded image (path, bytes, file object or PIL image) that was a JPEG: `"estimate"`, or what it
            went through, as a `JPEGHistory`.

    Raises:
        JPEGFileError: if a file is not a JPEG that can be restored, or an image shows none.
        ValueError, TypeError: for inputs that do not fit.
        OSError: if a path cannot be read.
    """
    image = opened(image, operator, measurement, size, history)
    if measurement is not None:
        return _of_measurement(image, operator, measurement, size, device)
    if operator is not None:
        return _of_picture(image, operator, device)
    return _of_decoded(image, device) if isinstance(image, DecodedJPEG) else _of_file(image, device)


def opened(
    image: Any,
    operator: Operator | None = None,
    measurement: Any = None,
    size: tuple[int, int] | None = None,
    history: str | JPEGHistory | None = None,
) -> Any:
    """What arguments of `observe` name, opened by `open_image`; what is open, or measured, stays as it is.

    Raises:
        JPEGFileError, ValueError, TypeError, OSError: as `observe` does.
    """
    if size is not None and measurement is None:
        raise ValueError("size goes with measurement; a file or an image has its own")
    if history is not None:
        if operator is not None or measurement is not None:
            raise ValueError("history says what an image went through; operator and measurement do not go with it")
        if not isinstance(history, JPEGHistory) and history != "estimate":
            raise ValueError(f'history is {history!r}; it must be "estimate" or a JPEGHistory')
        return open_image(image, assume=Assumed(double_compression=True) if history == "estimate" else history)
    if operator is not None or measurement is not None or isinstance(image, JPEGFile | DecodedJPEG):
        return image
    if image is None:
        raise TypeError("there is nothing to restore: give a JPEG file, or operator= with an image or a measurement")
    if isinstance(image, (Image.Image, torch.Tensor, np.ndarray)):
        raise TypeError(
            f"a decoded image ({type(image).__name__}) no longer carries the coefficients of its file: give"
            " the path or the bytes of the JPEG, say with operator= what the image went through, or, of a PIL"
            ' image, have it estimated with history="estimate"'
        )
    return JPEGFile.open(image)


def _of_measurement(image: Any, operator: Operator | None, y: Any, size: Any, device: Any) -> Observation:
    if image is not None:
        raise ValueError("give either image or measurement, not both")
    if operator is None:
        raise ValueError("a measurement needs the operator that made it: give operator=")
    y = operator.to(y, device)
    height, width = operator.decode(y).shape[-2:]
    size = (height, width) if size is None else tuple(size)
    if len(size) != 2 or not (1 <= size[0] <= height and 1 <= size[1] <= width):
        raise ValueError(f"size is {size}; it must be (height, width), at most the measurement's ({height}, {width})")
    return Observation(operator, y, size)


def _of_file(file: JPEGFile, device: torch.device | str) -> Observation:
    if file.color_space in CMYK_SPACES:
        raise JPEGFileError(
            f"{file.name}: {file.color_space}, which is measured as two images, its colours and its black; the command"
            " restores it, and the call of DDRMJPEGPipeline"
        )
    factors = [(c.horizontal_factor, c.vertical_factor) for c in file.components]
    tables = [c.quantization_table for c in file.components]
    planes, missing_bits, color_space, tint = file.coefficients, file.missing_bits, file.color_space, None
    if file.tint is not None:  # chroma says nothing but one colour: the image is its luma, whatever the bins allow
        tables, planes, missing_bits = tables[:1], planes[:1], missing_bits and missing_bits[:1]
        factors, color_space, tint = [(1, 1)], "L", _rgb(file.tint)
    operator = JPEGOperator.from_tables(tables, factors, color_space)
    y = Coefficients(tuple(torch.from_numpy(plane).float()[None] for plane in planes))
    if missing_bits is not None:
        y = _with_gaps(y, [torch.from_numpy(missing)[None] for missing in missing_bits], tables)
    return Observation(operator, operator.to(y, device), (file.height, file.width), info_of(file.metadata), tint=tint)


def info_of(metadata: Metadata) -> dict[str, bytes]:
    """Metadata of a file under Pillow's names."""
    info = {"exif": metadata.exif, "icc_profile": metadata.icc_profile, "xmp": metadata.xmp}
    info["comment"] = b"\n".join(metadata.comments) or None
    return {name: value for name, value in info.items() if value is not None}


def _of_decoded(image: DecodedJPEG, device: torch.device | str) -> Observation:
    history, known = image.history, image.coefficients
    operator = JPEGOperator.from_tables(history.component_tables, history.sampling_factors, history.color_space)
    parts = [
        tuple(torch.from_numpy(plane)[None] for plane in planes) for planes in (known.levels, known.low, known.high)
    ]
    y = Coefficients(parts[0])
    if not all(map(torch.equal, parts[1], parts[2])):
        y = Coefficients(*parts)
    tint = (0.0, 0.0, 0.0) if history.color_space == "L" and image.pixels.ndim == 3 else None
    size, surroundings = image.part.shape[:2], None
    if history.region:
        pixels = torch.from_numpy(np.atleast_3d(image.pixels)).permute(2, 0, 1)
        surroundings = Surroundings(pixels, history.region.top, history.region.left)
    return Observation(
        operator, operator.to(y, device), size, info_of(image.metadata), history.offset, tint, surroundings
    )


def _rgb(tint: tuple[float, float]) -> tuple[float, float, float]:
    """Chroma in grey levels as the share of the range that it adds to R, G and B (JFIF 1.02)."""
    return tuple((blue * tint[0] + red * tint[1]) / 255 for _, blue, red in JFIF_INVERSE)


def _of_picture(image: Any, operator: Operator, device: torch.device | str) -> Observation:
    info: dict[str, bytes] = {}
    if not isinstance(image, torch.Tensor):
        if isinstance(image, np.ndarray | JPEGFile | DecodedJPEG):
            raise TypeError(
                f"with operator=, give a path, bytes, a PIL image or a tensor in [-1, 1], not {type(image).__name__}"
            )
        picture = read_image(image)
        info = {name: picture.info[name] for name in ("exif", "icc_profile") if picture.info.get(name)}
        image = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1.0
    if not image.is_floating_point() or not image.isfinite().all():
        raise ValueError("an image given as a tensor must hold finite floating-point values in [-1, 1]")
    x = image if image.ndim == 4 else image.unsqueeze(0)
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
        raise ValueError(f"expected an image [B, 3, H, W] or [3, H, W], got {list(image.shape)}")
    if x.abs().max() > _LARGEST_VALUE:
        raise ValueError(f"the tensor's values lie between {x.min():g} and {x.max():g}; an image's must lie in [-1, 1]")
    size = tuple(x.shape[-2:])
    height, width = operator.aligned(*size)
    x = F.pad(x.to(device, torch.float32), (0, width - size[1], 0, height - size[0]), mode="replicate")
    return Observation(operator, operator.encode(x), size, info)


def _with_gaps(y: Coefficients, missing_bits: list[torch.Tensor], tables: list[np.ndarray]) -> Coefficients:
    """The coefficients of a damaged file, free where it does not say: of each, how many low bits are missing.

    What is not there at all is made up, smoothly and not in integers, from the means of the blocks around it: an image
    to start from, to which no correction holds.
    """
    bounds = [_bounds(*pair) for pair in zip(y.levels, missing_bits, strict=True)]
    levels = []
    for values, missing, table in zip(y.levels, missing_bits, map(torch.from_numpy, tables), strict=True):
        unmeasured = missing == UNMEASURED
        means = _filled(values[0, :, :, 0, 0], ~unmeasured[0, :, :, 0, 0]) * table[0, 0] / 8
        smooth = F.interpolate(means[None, None], scale_factor=8, mode="bilinear")[0]
        levels.append(torch.where(unmeasured, block_dct(smooth) / table, values))
    low, high = zip(*bounds, strict=True)
    return Coefficients(tuple(levels), low, high)


def _bounds(values: torch.Tensor, missing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and the highest integers that agree with values that lack some of their low bits.

    AC coefficients lack low bits of their magnitude, DC coefficients those of two's complement (T.81, G.1.2).
    """
    reach = torch.where(missing == UNMEASURED, torch.inf, 2.0**missing - 1)
    below, above = reach.where(values <= 0, 0.0), reach.where(values >= 0, 0.0)
    dc = (..., 0, 0)
    below[dc] = reach[dc].where(missing[dc] == UNMEASURED, 0.0)
    above[dc] = reach[dc]
    return values - below, values + above


def _filled(plane: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """`[H, W]` with what is not known interpolated from what is, coarsely where that is far; zero where nothing is."""
    if known.all() or not known.any():
        return plane.where(known, 0.0)
    weight = known.float()[None, None]
    weight, total = (F.avg_pool2d(p, 2, ceil_mode=True) for p in (weight, plane.where(known, 0.0)[None, None] * weight))
    coarse = _filled((total / weight)[0, 0], weight[0, 0] > 0)
    smooth = F.interpolate(coarse[None, None], size=plane.shape, mode="bilinear")[0, 0]
    return plane.where(known, smooth)
