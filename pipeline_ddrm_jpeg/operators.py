"""Measurement operators: what a degradation keeps of a picture, and the way back (section 3 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, wraps
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F

from .entropy_decoding import UNMEASURED
from .quantization import SUBSAMPLING_FACTORS, quality_tables

# Luma and chroma of BT.601 as JFIF 1.02 uses them, full range, chroma centred on 0, and the inverse.
_JFIF_FORWARD = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
_JFIF_INVERSE = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))
# The four-digit rows of the program released with the paper, and its inverse.
_PAPER_FORWARD = ((0.299, 0.587, 0.114), (-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813))
_PAPER_INVERSE = (
    (1.0, -3.68199903e-05, 1.40198758),
    (1.0, -0.344113281, -0.714103821),
    (1.0, 1.77197812, -1.34583413e-04),
)
_IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

# Distance, in quantization bins, that `nearest` keeps from the edge of a bin, so that the float32 round-off of
# decoding and encoding again cannot leave it.
_BIN_MARGIN = 1e-3

_PIXELS_IN_A_BAND = 2**17

Measurement = tuple[torch.Tensor, ...]


class Operator:
    """A degradation `y = encode(x)` with a generalised pseudo-inverse `decode`.

    `x` is `[B, 3, H, W]` float32 RGB, nominally in [-1, 1], with `H` and `W` multiples of `alignment`. `y` is
    whatever the operator likes, as long as its tensors have a batch axis first. Both functions are pure, and
    `encode(decode(y)) == y` must hold for every `y` that a measurement can be.

    A new degradation implements `encode` and `decode`; the rest follows.
    """

    alignment: tuple[int, int] = (1, 1)
    """Height and width of `x` must be multiples of these."""

    def encode(self, x: torch.Tensor) -> Any:
        """Measurement of a picture `[B, 3, H, W]` in [-1, 1]."""
        raise NotImplementedError(f"{type(self).__name__} does not implement encode")

    def decode(self, y: Any) -> torch.Tensor:
        """Picture `[B, 3, H, W]` with measurement `y`; neither clipped nor rounded."""
        raise NotImplementedError(f"{type(self).__name__} does not implement decode")

    def project(self, x: torch.Tensor, y: Any) -> torch.Tensor:
        """The paper's correction of a denoised picture (section 3): `x - decode(encode(x)) + decode(y)`."""
        return x - self.decode(self.encode(x)) + self.decode(y)

    def nearest(self, x: torch.Tensor, y: Any, margin: float = 0.0) -> torch.Tensor:
        """The nearest picture whose measurement is `y`, where an operator knows it; else `project`.

        Args:
            x: picture `[B, 3, H, W]` in [-1, 1].
            y: measurement, with a batch of 1 or B.
            margin: how far, in 8-bit grey levels, to stay from the borders of what `y` allows.
        """
        return self.project(x, y)

    def uncertainty(self) -> float | None:
        """How far, about, pictures of one measurement lie apart: a standard deviation on the scale of [-1, 1].

        `None` where an operator cannot tell.
        """
        return None

    def consistency(self, x: torch.Tensor, y: Any) -> float:
        """Share of the measured values (0 to 1) that `x` reproduces: `encode(x) == y`."""
        pairs = zip(_tensors(self.encode(x)), _tensors(y), strict=True)
        agree = [(ours == theirs).flatten() for ours, theirs in pairs]
        return torch.cat(agree).float().mean(dtype=torch.float64).item()


def _tensors(y: Any) -> Sequence[torch.Tensor]:
    return (y,) if isinstance(y, torch.Tensor) else y


class JPEGOperator(Operator):
    """JPEG encoding and decoding as the paper's `H` and its pseudo-inverse (section 3).

    A measurement is a tuple with one tensor a component, the quantized DCT coefficients
    `[B, blocks down, blocks across, 8, 8]` (float32 with integer values, rows are vertical frequencies).
    `encode(decode(y)) == y` holds exactly while dequantized coefficients stay below 2**15 in size; 8-bit
    samples give at most 2**10.

    Args:
        quality_factor: 1..100, for the tables of Annex K scaled as `convention` does.
        chroma_subsampling: `"4:4:4"`, `"4:2:2"`, `"4:4:0"`, `"4:2:0"`, `"4:1:1"` or `"4:1:0"`.
        convention: `"libjpeg"`: JFIF colour, chroma averaged over its pixels, integer table scaling.
            `"paper"`: the program released with the paper: four-digit colour matrix, chroma from the top-left
            pixel, real-valued table scaling; it encodes in float64, so that near-ties round as in the reference
            on every machine. Both decode chroma by repetition, the pseudo-inverse of either.

    Raises:
        ValueError: for values outside these.

    Example:
        >>> operator = JPEGOperator(quality_factor=10)
        >>> y = operator.encode(x)
        >>> corrected = operator.project(denoised, y)
    """

    def __init__(self, quality_factor: int, chroma_subsampling: str = "4:2:0", convention: str = "libjpeg") -> None:
        if chroma_subsampling not in SUBSAMPLING_FACTORS:
            raise ValueError(
                f"chroma_subsampling is {chroma_subsampling!r}; it must be one of {', '.join(SUBSAMPLING_FACTORS)}"
            )
        luma, chroma = quality_tables(quality_factor, convention)
        factors = (SUBSAMPLING_FACTORS[chroma_subsampling], (1, 1), (1, 1))
        self._set_up("YCbCr", (luma, chroma, chroma), factors, convention)

    @classmethod
    def from_file(cls, file: Any) -> JPEGOperator:
        """The operator of a `JPEGFile`: its own tables, sampling factors and colour space.

        What is missing of a damaged file is left free: a coefficient of which the lowest bits are missing agrees with
        any value that has its other bits, and one that is not there at all agrees with anything.
        """
        operator = cls.__new__(cls)
        operator._set_up(
            file.color_space,
            [c.quantization_table for c in file.components],
            [(c.horizontal_factor, c.vertical_factor) for c in file.components],
            "libjpeg",
        )
        if file.missing_bits is not None:
            operator._freedom = [_freedom(*pair) for pair in zip(file.coefficients, file.missing_bits, strict=True)]
        return operator

    def _set_up(self, color_space, tables, factors, convention) -> None:
        self._freedom = None
        self.color_space = color_space
        self.convention = convention
        self._encoding_dtype = torch.float64 if convention == "paper" else torch.float32
        self.quantization_tables = tuple(torch.as_tensor(table, dtype=torch.float32) for table in tables)
        most_h, most_v = max(h for h, _ in factors), max(v for _, v in factors)
        self.subsampling = tuple((most_v // v, most_h // h) for h, v in factors)
        """Pixels (down, across) that one sample of each component stands for."""
        self.alignment = (8 * most_v, 8 * most_h)
        if color_space == "RGB":
            self._forward, self._inverse = _IDENTITY, _IDENTITY
        elif convention == "paper":
            self._forward, self._inverse = _PAPER_FORWARD, _PAPER_INVERSE
        else:
            self._forward, self._inverse = _JFIF_FORWARD, _JFIF_INVERSE
        if color_space == "L":  # one component: luma alone, its picture has three equal channels
            self._forward, self._inverse = self._forward[:1], ((1.0,), (1.0,), (1.0,))

    def measurement(self, file: Any, device: torch.device | str = "cpu") -> Measurement:
        """The coefficients of a `JPEGFile` as a measurement of batch 1.

        What a damaged file lacks is made up, smoothly and not in integers, from the means of the blocks around it: a
        picture to start from, to which `project` and `nearest` do not hold.
        """
        y = [torch.from_numpy(plane).to(dtype=torch.float32).unsqueeze(0) for plane in file.coefficients]
        for i, missing in enumerate(file.missing_bits or ()):
            unmeasured, table = torch.from_numpy(missing == UNMEASURED), self.quantization_tables[i].cpu()
            means = _filled(y[i][0, :, :, 0, 0], ~unmeasured[:, :, 0, 0]) * table[0, 0] / 8
            smooth = F.interpolate(means[None, None], scale_factor=8, mode="bilinear")
            y[i] = torch.where(unmeasured, _block_dct(smooth[0]) / table, y[i])
        return tuple(part.to(device) for part in y)

    def encode(self, x: torch.Tensor) -> Measurement:
        """Quantized coefficients of pictures `[B, 3, H, W]` in [-1, 1]; halves round to even."""
        tables = self._tables(x.device)
        bands = [
            [(c / q).round().float() for c, q in zip(self._coefficients(x[..., rows, :]), tables, strict=True)]
            for rows, _ in self._bands(*x.shape[-2:])
        ]
        return tuple(torch.cat(component, dim=1) for component in zip(*bands, strict=True))

    def decode(self, y: Measurement) -> torch.Tensor:
        """Dequantize, inverse DCT, repeat chroma, RGB in [-1, 1]; neither clipped nor rounded."""
        down, across = self.subsampling[0]
        height, width = 8 * down * y[0].shape[1], 8 * across * y[0].shape[2]
        x = y[0].new_empty(len(y[0]), 3, height, width)
        for rows, blocks in self._bands(height, width):
            x[..., rows, :] = self._decoded([part[:, own] for part, own in zip(y, blocks, strict=True)])
        return x

    def _decoded(self, y: Sequence[torch.Tensor]) -> torch.Tensor:
        tables = self._tables(y[0].device)
        planes = self._planes([c * q for c, q in zip(y, tables, strict=True)])
        if self.color_space != "RGB":  # only luma is level-shifted: chroma is centred on 0 here
            planes[:, 0] += 128.0
        else:
            planes += 128.0
        return _mix(planes, self._inverse) / 127.5 - 1.0

    def project(self, x: torch.Tensor, y: Measurement) -> torch.Tensor:
        """The paper's correction: each coefficient moves by whole bins, from its own into the measured one.

        Equal to the base class's `x - decode(encode(x)) + decode(y)`, with one transform each way, because
        decoding is affine. With one component, chroma is measured to be zero.
        """

        def move(c: torch.Tensor, q: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
            levels = (c / q).round().float()
            return (torch.minimum(torch.maximum(levels, low), high) - levels) * q

        return self._moved(x, y, move)

    def nearest(self, x: torch.Tensor, y: Measurement, margin: float = 0.0) -> torch.Tensor:
        """Clamp each coefficient to the measured bin `[(y - 1/2) q, (y + 1/2) q]`.

        The nearest consistent picture in the (subsampled) colour space of the file. `margin` narrows every
        bin by as many grey levels at both ends, by at most half of the way to its centre.
        """

        def move(c: torch.Tensor, q: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
            reach = 0.5 * q - (margin * torch.ones_like(q)).minimum(0.25 * q) - _BIN_MARGIN * q
            return (torch.minimum(torch.maximum(c, low * q - reach), high * q + reach) - c).float()

        return self._moved(x, y, move)

    def uncertainty(self) -> float:
        """That of a uniform distribution over the bin of the ten lowest frequencies of the first component."""
        frequency = torch.arange(8)[:, None] + torch.arange(8)
        return self.quantization_tables[0].cpu()[frequency < 4].mean().item() / 12**0.5 / 127.5

    def consistency(self, x: torch.Tensor, y: Measurement) -> float:
        """Share of the coefficients of the file (0 to 1) that `x` reproduces; those it lacks do not count."""
        low, high = self._bounds(y)
        agree = measured = torch.zeros((), dtype=torch.float64, device=x.device)
        for rows, blocks in self._bands(*x.shape[-2:]):
            for ours, lowest, highest, own in zip(self.encode(x[..., rows, :]), low, high, blocks, strict=True):
                known = (highest[:, own] - lowest[:, own]).isfinite()
                agree = agree + (known & (lowest[:, own] <= ours) & (ours <= highest[:, own])).sum()
                measured = measured + known.expand_as(ours).sum()
        return (agree / measured).item()

    def _bounds(self, y: Measurement) -> tuple[Measurement, Measurement]:
        """The lowest and the highest levels that agree with `y`; the same, but for damaged files."""
        if self._freedom is None:
            return y, y
        self._freedom = [(below.to(y[0].device), above.to(y[0].device)) for below, above in self._freedom]
        low = tuple(part - below for part, (below, _) in zip(y, self._freedom, strict=True))
        return low, tuple(part + above for part, (_, above) in zip(y, self._freedom, strict=True))

    def _moved(self, x: torch.Tensor, y: Measurement, move: Callable[..., torch.Tensor]) -> torch.Tensor:
        """`x` with its coefficients moved, and without the chroma that a greyscale file says is not there.

        Args:
            x: picture.
            y: measurement.
            move: coefficients, quantization table, lowest and highest level that agree with `y` -> move.
        """
        tables, (low, high) = self._tables(x.device), self._bounds(y)
        result = torch.empty_like(x)
        for rows, blocks in self._bands(*x.shape[-2:]):
            band = x[..., rows, :]
            parts = zip(self._coefficients(band), tables, low, high, blocks, strict=True)
            planes = self._planes([move(c, q, lowest[:, own], highest[:, own]) for c, q, lowest, highest, own in parts])
            if self.color_space == "L":
                band = _mix(_mix(band, self._forward), self._inverse)
            result[..., rows, :] = band + _mix(planes, self._inverse) / 127.5
        return result

    def _bands(self, height: int, width: int) -> Iterator[tuple[slice, tuple[slice, ...]]]:
        """Bands of whole MCUs: their rows of pixels, and their rows of blocks of each component.

        No block needs another, so a picture is worked on band by band, which takes little memory besides its own.
        """
        if height % self.alignment[0] or width % self.alignment[1]:
            raise ValueError(
                f"the picture is {height} x {width}; height must be a multiple of {self.alignment[0]}"
                f" and width of {self.alignment[1]}"
            )
        step = max(_PIXELS_IN_A_BAND // width // self.alignment[0], 1) * self.alignment[0]
        for top in range(0, height, step):
            bottom = min(top + step, height)
            yield (
                slice(top, bottom),
                tuple(slice(top // (8 * down), bottom // (8 * down)) for down, _ in self.subsampling),
            )

    def _tables(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        if self.quantization_tables[0].device != device:
            self.quantization_tables = tuple(table.to(device) for table in self.quantization_tables)
        return self.quantization_tables

    def _coefficients(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Unquantized DCT coefficients of each component, `[B, blocks down, blocks across, 8, 8]`."""
        planes = _mix((x.to(self._encoding_dtype) + 1.0) * 127.5, self._forward)
        coefficients = []
        for i, (down, across) in enumerate(self.subsampling):
            plane = planes[:, i : i + 1]
            if i == 0 or self.color_space == "RGB":
                plane = plane - 128.0
            if self.convention == "paper":
                plane = plane[..., ::down, ::across]
            elif (down, across) != (1, 1):
                plane = F.avg_pool2d(plane, (down, across))
            coefficients.append(_block_dct(plane[:, 0]))
        return coefficients

    def _planes(self, coefficients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Inverse DCT and upsampling by repetition: `[B, components, H, W]`, not level-shifted."""
        planes = []
        for c, (down, across) in zip(coefficients, self.subsampling, strict=True):
            plane = _inverse_block_dct(c)
            if down > 1:
                plane = plane.repeat_interleave(down, dim=-2)
            if across > 1:
                plane = plane.repeat_interleave(across, dim=-1)
            planes.append(plane)
        return torch.stack(planes, dim=1)


def _freedom(values: Any, missing: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """How far below and above each of `values` the true ones can be, by the number of bits they lack.

    AC coefficients lack low bits of their magnitude, DC coefficients those of two's complement (T.81, G.1.2).
    """
    values, missing = torch.from_numpy(values), torch.from_numpy(missing)
    reach = torch.where(missing == UNMEASURED, torch.inf, 2.0**missing - 1)
    below, above = reach.where(values <= 0, 0.0), reach.where(values >= 0, 0.0)
    dc = (..., 0, 0)
    below[dc] = reach[dc].where(missing[dc] == UNMEASURED, 0.0)
    above[dc] = reach[dc]
    return below, above


def _filled(plane: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """`[H, W]` with what is not known interpolated from what is, coarsely where that is far; zero where nothing is."""
    if known.all() or not known.any():
        return plane.where(known, 0.0)
    weight = known.float()[None, None]
    weight, total = (F.avg_pool2d(p, 2, ceil_mode=True) for p in (weight, plane.where(known, 0.0)[None, None] * weight))
    coarse = _filled((total / weight)[0, 0], weight[0, 0] > 0)
    smooth = F.interpolate(coarse[None, None], size=plane.shape, mode="bilinear")[0, 0]
    return plane.where(known, smooth)


def _exactly(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Outside autocast, under which a product of matrices has the eight bits of bfloat16, too few for coefficients."""

    @wraps(function)
    def exact(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *arguments)

    return exact


@_exactly
def _mix(planes: torch.Tensor, matrix: Sequence[Sequence[float]]) -> torch.Tensor:
    """Apply a colour matrix to the channel axis of `[B, C, H, W]`."""
    weights = torch.tensor(matrix, dtype=planes.dtype, device=planes.device)
    return F.conv2d(planes, weights[:, :, None, None])


@lru_cache(maxsize=8)
def _dct_matrix(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Orthonormal DCT-II of eight points (T.81, A.3.3): row u, column x."""
    with torch.inference_mode(False):  # the cache outlives whatever mode it is filled in
        u = torch.arange(8, dtype=torch.float64)[:, None]
        x = torch.arange(8, dtype=torch.float64)[None, :]
        matrix = 0.5 * torch.cos((2 * x + 1) * u * torch.pi / 16)
        matrix[0] /= 2**0.5
        return matrix.to(device=device, dtype=dtype)


@_exactly
def _block_dct(plane: torch.Tensor) -> torch.Tensor:
    """`[B, H, W]` -> `[B, H/8, W/8, 8, 8]`."""
    blocks = plane.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)
    matrix = _dct_matrix(plane.device, plane.dtype)
    return matrix @ blocks @ matrix.T


@_exactly
def _inverse_block_dct(coefficients: torch.Tensor) -> torch.Tensor:
    """`[B, H/8, W/8, 8, 8]` -> `[B, H, W]`."""
    matrix = _dct_matrix(coefficients.device, coefficients.dtype)
    blocks = matrix.T @ coefficients @ matrix
    return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)


class QuantizationOperator(Operator):
    """Uniform quantization of every channel to `bits` bits: the paper's dequantization problem (section 4).

    Its "9 bits per colour" are 3 bits a channel. A measurement is one tensor `[B, 3, H, W]` of levels
    `floor(x255 / 2**(8 - bits))`.

    Args:
        bits: bits a channel, 1..7.
        reconstruction: what a level decodes to: `"left"`, the left edge of its bin, as in the released
            program; `"center"`, the mean of the 8-bit values that fall into it.

    Raises:
        ValueError: for values outside these.
    """

    # Left edges sit exactly on a border of the bins; this much of a grey level absorbs their float32 round-off.
    _EDGE = 1e-2

    def __init__(self, bits: int = 3, reconstruction: str = "left") -> None:
        if not isinstance(bits, Integral) or not 1 <= bits <= 7:
            raise ValueError(f"bits is {bits}; it must be a whole number between 1 and 7")
        if reconstruction not in ("left", "center"):
            raise ValueError(f'reconstruction is {reconstruction!r}; it must be "left" or "center"')
        self.bits = bits
        self.reconstruction = reconstruction
        self.step = 2 ** (8 - bits)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Levels of pictures `[B, 3, H, W]` in [-1, 1]; values beyond that range give levels beyond theirs."""
        return (((x.float() + 1.0) * 127.5 + self._EDGE) / self.step).floor()

    def decode(self, y: torch.Tensor) -> torch.Tensor:
        """Levels back to [-1, 1]."""
        offset = (self.step - 1) / 2 if self.reconstruction == "center" else 0.0
        return (y * self.step + offset) / 127.5 - 1.0

    def nearest(self, x: torch.Tensor, y: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
        """Clamp every channel to the 8-bit values its level stands for, `[step y, step y + step - 1]`."""
        low = y * self.step
        x255 = (x.float() + 1.0) * 127.5
        return torch.minimum(torch.maximum(x255, low), low + (self.step - 1)) / 127.5 - 1.0

    def uncertainty(self) -> float:
        """That of a uniform distribution over a bin."""
        return self.step / 12**0.5 / 127.5
