"""JPEG as a measurement operator: colour, chroma subsampling, block DCT and quantization, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..jpeg.colour import COLOUR_SPACES, RELEASED, ColourSpace
from ..jpeg.tables import DCT, SUBSAMPLING_FACTORS, quality_tables
from .operator import BIN_MARGIN, Operator, Std
from .posterior import LARGEST_STD, rgb_variance, subsampled_variance, truncated_normal, zero_bin_variance

_PIXELS_IN_A_BAND = 2**16
# Texture's own were fitted to photographs (docs/corrections.md, "Sharpness").
# How far it moves large coefficients of luma (or of R, G and B) and of chroma away from zero, in standard deviations of
# the posterior, in busy blocks and at this frequency u + v.
_EXPANSION, _USUAL_FREQUENCY = (4 / 3, 2.0), 5.0
_UNSEEN = 0.8  # grey levels of these standard deviations that need no texture in luma
_CAUTION = 2.5  # a block whose AC coefficients have this many times the energy that is uncertain gets half of it all
# What averaging chroma loses, in the sense of `uncertainty`: the largest error of fine files; fitted with its start.
_LOST_CHROMA = 0.0085
# A block of this activity is off by as much as the posterior says, and the variance of others grows by this power of
# their activity: a fit to crops of mcmaster18 and live1 at quality factors 5 to 92, with 4:2:0 and 4:4:4.
_USUAL_ACTIVITY, _ACTIVITY_POWER, _LEAST_ACTIVITY = 7.0, 0.77, 0.5


class Coefficients(NamedTuple):
    """Measurement of a `JPEGOperator`: a tensor a component, `[B, down, across, 8, 8]`, rows vertical frequencies."""

    levels: tuple[Tensor, ...]
    """Quantized DCT coefficients, in units of their quantization steps: integers where they are measured."""
    low: tuple[Tensor, ...] | None = None
    """The lowest that agree with what is measured, where that is not `levels` alone; -inf: nothing is."""
    high: tuple[Tensor, ...] | None = None
    """The highest, likewise."""

    @property
    def bounds(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(low, high), both `levels` where a measurement is exact."""
        return (self.levels, self.levels) if self.low is None else (self.low, self.high)


class JPEGOperator(Operator):
    """JPEG encoding and decoding as the paper's `H` and its pseudo-inverse (section 3).

    A measurement is `Coefficients`. `encode(decode(y)) == y` holds exactly while dequantized coefficients stay below
    2**15 in size; 8-bit samples give at most 2**10.

    For a quality factor of 1..100 and one of `SUBSAMPLING_FACTORS`, else `ValueError`. The convention `"libjpeg"` has
    JFIF colour, chroma averaged over its pixels, integer table scaling; `"released"`, the program released with the
    paper, has a four-digit colour matrix, chroma from the top-left pixel, real-valued table scaling, and encodes in
    float64, so that near-ties round as in the reference on every machine. Both decode chroma by repetition, the
    pseudo-inverse of either.

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
        colour = RELEASED if convention == "released" else COLOUR_SPACES["YCbCr"]
        self._set_up(colour, (luma, chroma, chroma), factors, convention)

    @classmethod
    def from_tables(
        cls,
        quantization_tables: Sequence[Any],
        sampling_factors: Sequence[tuple[int, int]],
        color_space: str = "YCbCr",
    ) -> JPEGOperator:
        """The operator of a file, convention `"libjpeg"`.

        Of each component are given integer steps `[8, 8]`, rows vertical frequencies, and (horizontal, vertical)
        sampling factors. Raises `ValueError` for a colour space other than YCbCr, RGB, or L with one component.
        """
        if color_space not in ("YCbCr", "RGB", "L"):
            raise ValueError(f"color_space is {color_space!r}; it must be YCbCr, RGB or L")
        operator = cls.__new__(cls)
        operator._set_up(COLOUR_SPACES[color_space], quantization_tables, sampling_factors, "libjpeg")
        return operator

    def _set_up(self, colour: ColourSpace, tables, factors, convention) -> None:
        self.colour, self.convention, self.channels = colour, convention, len(colour.components)
        self._forward, self._inverse = colour.forward, colour.inverse
        self._encoding_dtype = torch.float64 if convention == "released" else torch.float32
        self.quantization_tables = tuple(torch.as_tensor(table, dtype=torch.float32) for table in tables)
        most_h, most_v = max(h for h, _ in factors), max(v for _, v in factors)
        self.subsampling = tuple((most_v // v, most_h // h) for h, v in factors)
        """Pixels (down, across) that one sample of each component stands for."""
        self.alignment = (8 * most_v, 8 * most_h)

    def encode(self, x: Tensor) -> Coefficients:
        """Quantized coefficients of images `[B, 3, H, W]` in [-1, 1]; halves round to even."""
        tables = self._tables_on(x.device)
        bands = [
            [(c / q).round().float() for c, q in zip(self.coefficients(x[..., rows, :]), tables, strict=True)]
            for rows, _ in self._bands(*x.shape[-2:])
        ]
        return Coefficients(tuple(torch.cat(component, dim=1) for component in zip(*bands, strict=True)))

    def decode(self, y: Coefficients) -> Tensor:
        """Dequantize, inverse DCT, repeat chroma, RGB in [-1, 1]; neither clipped nor rounded."""
        (down, across), luma = self.subsampling[0], y.levels[0]
        height, width = 8 * down * luma.shape[1], 8 * across * luma.shape[2]
        x = luma.new_empty(len(luma), 3, height, width)
        for rows, blocks in self._bands(height, width):
            x[..., rows, :] = self._decoded([part[:, own] for part, own in zip(y.levels, blocks, strict=True)])
        return x

    def _decoded(self, levels: Sequence[Tensor]) -> Tensor:
        tables = self._tables_on(levels[0].device)
        planes = self._planes([c * q for c, q in zip(levels, tables, strict=True)])
        planes += planes.new_tensor(self.colour.shifts)[:, None, None]
        return _mix(planes, self._inverse) / 127.5 - 1.0

    def project(self, x: Tensor, y: Coefficients) -> Tensor:
        """The paper's correction: each coefficient moves by whole bins, from its own into the measured one.

        Equal to the base class's, with one transform each way, because decoding is affine.
        """

        def move(c: Tensor, q: Tensor, low: Tensor, high: Tensor) -> Tensor:
            levels = (c / q).round().float()
            return (torch.minimum(torch.maximum(levels, low), high) - levels) * q

        return self._moved(x, y, move)

    def nearest(self, x: Tensor, y: Coefficients, margin: float = 0.0) -> Tensor:
        """Clamp each coefficient to the measured bin `[(y - 1/2) q, (y + 1/2) q]`.

        The nearest consistent image in the (subsampled) colour space of the file. `margin` narrows every
        bin by as many grey levels at both ends, by at most half of the way to its centre.
        """

        def move(c: Tensor, q: Tensor, low: Tensor, high: Tensor) -> Tensor:
            reach = 0.5 * q - (margin * torch.ones_like(q)).minimum(0.25 * q) - BIN_MARGIN * q
            return (torch.minimum(torch.maximum(c, low * q - reach), high * q + reach) - c).float()

        return self._moved(x, y, move)

    def posterior(self, x: Tensor, y: Coefficients, std: Std) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mean and variance, coefficient by coefficient, of the images that have measurement `y` and are near `x`.

        A coefficient lies in its bin; where there, `x` says with an error that is taken for Gaussian. So it is a
        Gaussian truncated to the bin (Kamilov, Goyal, Rangan, 2012, arXiv:1112.5070, use such a step in message
        passing; Meng and Kabashima, 2022, arXiv:2211.13006, in a score model).

        `std` is the error of `x` in the planes Y, Cb, Cr **at full resolution**; what averaging leaves of it in
        subsampled chroma, and what it is in R, G and B, is derived from it. Variances are `[B, blocks down, blocks
        across, 8, 8]` of each component, in units of what white noise of variance 1 on an image in [-1, 1] has there.
        """
        stds, image, bands = self._component_std(std, x.device), torch.empty_like(x), []
        for rows, blocks in self._bands(*x.shape[-2:]):
            band = x[..., rows, :]
            coefficients, means, variances = self._moments(band, y, stds, blocks)
            moves = [mean.sub_(c) for mean, c in zip(means, coefficients, strict=True)]
            if self.channels == 1:
                band = _mix(_mix(band, self._forward), self._inverse)
            image[..., rows, :] = _mix(self._planes(moves), self._inverse).div_(127.5).add_(band)
            bands.append([v.div_(unit) for v, unit in zip(variances, self.noise_units, strict=True)])
        return image, tuple(torch.cat(component, dim=1) for component in zip(*bands, strict=True))

    def _moments(
        self, band: Tensor, y: Coefficients, stds: Sequence[Tensor], blocks: Sequence[slice]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """A band's coefficients, and mean and variance of each within its bin, in 8-bit grey levels."""
        coefficients, moments = [c.float() for c in self.coefficients(band)], []
        parts = zip(coefficients, stds, self._tables_on(band.device), *y.bounds, blocks, strict=True)
        for c, std, table, lowest, highest, own in parts:
            reach = (0.5 - BIN_MARGIN) * table
            moments.append(truncated_normal(c, std, lowest[:, own] * table - reach, highest[:, own] * table + reach))
        means, variances = zip(*moments, strict=True)
        return coefficients, list(means), list(variances)

    def textured(self, x: Tensor, y: Coefficients, std: Std, noise: Tensor, scale: float) -> Tensor:
        """As of the base class; by expanding what the mean has of texture, and by noise in luma.

        A mean is smaller than what it is the mean of: coefficients move away from zero, small ones in proportion and
        large ones by `_EXPANSION` standard deviations of the posterior. Luma gets noise of that standard deviation too;
        of both it gets none for the first `_UNSEEN` grey levels. All is scaled by the root of the frequency, so that
        the mean of a block stays, and as a Wiener filter would by the share of a block's AC energy in that and what is
        uncertain, so that smooth blocks stay smooth.
        """
        stds, result = self._component_std(std, x.device), torch.empty_like(x)
        frequency = torch.arange(8, device=x.device)
        weight = ((frequency[:, None] + frequency) / _USUAL_FREQUENCY).sqrt()
        for rows, blocks in self._bands(*x.shape[-2:]):
            coefficients, _, variances = self._moments(x[..., rows, :], y, stds, blocks)
            planes, changes = _mix(noise[..., rows, :], self._forward), []
            for i, (c, variance) in enumerate(zip(coefficients, variances, strict=True)):
                is_chroma = not self.colour.shifts[i]
                energy, uncertain = _activity(c).square_(), variance.mean(dim=(-2, -1), keepdim=True)
                share = energy / (energy + _CAUTION * uncertain).clamp_(min=1e-6)
                std_left = variance.sqrt()
                change = c * (_EXPANSION[is_chroma] / 127.5) / (c.abs() + std_left).clamp_(min=1e-6)
                if not is_chroma:
                    pooled = F.avg_pool2d(planes[:, i], self.subsampling[i])
                    change.add_(block_dct(pooled), alpha=self.noise_units[i] ** -0.5)
                    std_left.sub_(_UNSEEN).clamp_(min=0)
                changes.append(change.mul_(std_left).mul_(weight).mul_(share))
            result[..., rows, :] = x[..., rows, :] + scale * _mix(self._planes(changes), self._inverse)
        return result

    def expected_error(self, x: Tensor, y: Coefficients, std: Std) -> Tensor:
        """As of the base class: the posterior's variance, more of it where luma is busy and less where it is smooth.

        Chroma detail within the pixels that the file averages has what the denoiser's error has there.
        """
        stds, result = self._component_std(std, x.device), torch.empty_like(x)
        squared_basis = _dct_matrix(x.device, torch.float32).square()
        squared_inverse = [[weight * weight for weight in row] for row in self._inverse]
        for rows, blocks in self._bands(*x.shape[-2:]):
            coefficients, _, variances = self._moments(x[..., rows, :], y, stds, blocks)
            planes = []
            for variance, factors in zip(variances, self.subsampling, strict=True):
                of_pixels = squared_basis.T @ variance @ squared_basis + _unmeasured_variance(std, factors)
                planes.append(_repeated(_joined(of_pixels), factors))
            activity = (_activity(coefficients[0]) + _LEAST_ACTIVITY) / _USUAL_ACTIVITY
            share = _repeated(_joined(activity.expand_as(coefficients[0])), self.subsampling[0]) ** _ACTIVITY_POWER
            variance = _mix(torch.stack(planes, dim=1), squared_inverse) * share[:, None]
            result[..., rows, :] = variance.sqrt_().div_(127.5)
        return result

    def decoded_variance(self, y: Coefficients) -> tuple[Tensor, ...]:
        """That of a uniform distribution over each bin, as `posterior` gives variances.

        Most bins of chroma at full resolution are much wider than what chroma has in them; there it is the variance of
        a Laplacian. Coefficients that a damaged file lacks have none: their value in `y` is as good as any.
        """
        tables, (low, high) = self._tables_on(y.levels[0].device), y.bounds
        variances = []
        for i, (lowest, highest, table, unit) in enumerate(zip(low, high, tables, self.noise_units, strict=True)):
            width = (highest - lowest + 1) * table
            variance = torch.where(width.isfinite(), width.square() / 12, 0.0)
            if not self.colour.shifts[i] and self.subsampling[i] == (1, 1):
                inside = zero_bin_variance(y.levels[i], table)
                inside[..., 0, 0] = torch.inf  # a mean is not a Laplacian around zero
                variance = torch.where((lowest == 0) & (highest == 0), torch.minimum(variance, inside), variance)
            variances.append(variance / unit)
        return tuple(variances)

    def remaining_noise(self, noise: Tensor, noise_to_signal: float, variance: tuple[Tensor, ...]) -> Tensor:
        """As of the base class; chroma detail within the pixels that the file averages keeps all of its noise."""
        for rows, blocks in self._bands(*noise.shape[-2:]):
            band = noise[..., rows, :]
            planes, changes = _mix(band, self._forward), []
            for i, (own_variance, own) in enumerate(zip(variance, blocks, strict=True)):
                share = (own_variance[:, own] * (-1 / noise_to_signal**2)).add_(1.0).clamp_(min=0.0)
                coefficients = block_dct(F.avg_pool2d(planes[:, i], self.subsampling[i]))
                changes.append(coefficients.mul_(share.sqrt_().sub_(1.0)))
            band += _mix(self._planes(changes), self._inverse)
        return noise

    @property
    def noise_units(self) -> list[float]:
        """Variance in each component's coefficients (8-bit grey levels) of white noise of variance 1 on [-1, 1]."""
        return [
            127.5**2 * sum(weight * weight for weight in row) / (down * across)
            for row, (down, across) in zip(self._forward, self.subsampling, strict=True)
        ]

    def _component_std(self, std: Std, device: torch.device) -> list[Tensor]:
        """The denoiser's error in the coefficients of each component, `[8, 8]`, in 8-bit grey levels."""
        std = torch.as_tensor(std, dtype=torch.float32).cpu().clamp(max=LARGEST_STD)  # infinity would not mix
        luma, chroma = (std if std.ndim else std.expand(2, 8, 8)).square()
        variances = [luma, chroma, chroma]
        if self.colour.name == "RGB":
            variances = list(rgb_variance(torch.stack([luma, chroma])))
        return [
            127.5 * subsampled_variance(variance, *factors).sqrt().to(device)
            for variance, factors in zip(variances, self.subsampling, strict=False)  # of grey files luma alone
        ]

    def uncertainty(self) -> float:
        """That of a uniform distribution over bins of the ten lowest frequencies, and what averaging chroma loses."""
        frequency = torch.arange(8)[:, None] + torch.arange(8)
        bins = self.quantization_tables[0].cpu()[frequency < 4].mean().item() / 12**0.5 / 127.5
        return bins + (_LOST_CHROMA if any(factors != (1, 1) for factors in self.subsampling) else 0.0)

    def consistency(self, x: Tensor, y: Coefficients) -> float:
        """Share of the coefficients of the file (0 to 1) that `x` reproduces; those it lacks do not count."""
        low, high = y.bounds
        agree = measured = torch.zeros((), dtype=torch.float64, device=x.device)
        for rows, blocks in self._bands(*x.shape[-2:]):
            for ours, lowest, highest, own in zip(self.encode(x[..., rows, :]).levels, low, high, blocks, strict=True):
                known = (highest[:, own] - lowest[:, own]).isfinite()
                agree = agree + (known & (lowest[:, own] - 1 < ours) & (ours < highest[:, own] + 1)).sum()
                measured = measured + known.expand_as(ours).sum()
        return (agree / measured).item()

    def _moved(self, x: Tensor, y: Coefficients, move: Callable[..., Tensor]) -> Tensor:
        """`x` with its coefficients moved, and without the chroma that a greyscale file says is not there.

        `move` is a function of coefficients, quantization table, lowest and highest level that agree with `y`.
        """
        tables, (low, high) = self._tables_on(x.device), y.bounds
        result = torch.empty_like(x)
        for rows, blocks in self._bands(*x.shape[-2:]):
            band = x[..., rows, :]
            parts = zip(self.coefficients(band), tables, low, high, blocks, strict=True)
            planes = self._planes([move(c, q, lowest[:, own], highest[:, own]) for c, q, lowest, highest, own in parts])
            if self.channels == 1:
                band = _mix(_mix(band, self._forward), self._inverse)
            result[..., rows, :] = band + _mix(planes, self._inverse) / 127.5
        return result

    def _bands(self, height: int, width: int) -> Iterator[tuple[slice, tuple[slice, ...]]]:
        """Bands of whole MCUs: their rows of pixels, and their rows of blocks of each component.

        No block needs another, so an image is worked on band by band, which takes little memory besides its own.
        """
        if height % self.alignment[0] or width % self.alignment[1]:
            raise ValueError(
                f"the image is {height} x {width}; height must be a multiple of {self.alignment[0]}"
                f" and width of {self.alignment[1]}"
            )
        step = max(_PIXELS_IN_A_BAND // width // self.alignment[0], 1) * self.alignment[0]
        for top in range(0, height, step):
            bottom = min(top + step, height)
            yield (
                slice(top, bottom),
                tuple(slice(top // (8 * down), bottom // (8 * down)) for down, _ in self.subsampling),
            )

    def _tables_on(self, device: torch.device) -> list[Tensor]:
        return [table.to(device) for table in self.quantization_tables]

    def coefficients(self, x: Tensor) -> list[Tensor]:
        """Unquantized DCT coefficients of each component, `[B, blocks down, blocks across, 8, 8]`."""
        planes = _mix((x.to(self._encoding_dtype) + 1.0) * 127.5, self._forward)
        coefficients = []
        for i, (shift, (down, across)) in enumerate(zip(self.colour.shifts, self.subsampling, strict=True)):
            plane = planes[:, i : i + 1] - shift
            if self.convention == "released":
                plane = plane[..., ::down, ::across]
            elif (down, across) != (1, 1):
                plane = F.avg_pool2d(plane, (down, across))
            coefficients.append(block_dct(plane[:, 0]))
        return coefficients

    def _planes(self, coefficients: Sequence[Tensor]) -> Tensor:
        """Inverse DCT and upsampling by repetition: `[B, components, H, W]`, not level-shifted."""
        parts = zip(coefficients, self.subsampling, strict=True)
        return torch.stack([_repeated(inverse_block_dct(c), factors) for c, factors in parts], dim=1)


def _activity(coefficients: Tensor) -> Tensor:
    """`[B, blocks down, blocks across, 1, 1]`: root mean square of a block's AC coefficients, over all 64."""
    squares = coefficients.square()
    return (squares.sum(dim=(-2, -1), keepdim=True) - squares[..., :1, :1]).clamp_(min=0).div_(64).sqrt_()


def _unmeasured_variance(std: Std, factors: tuple[int, int]) -> float:
    """Of a pixel of chroma, in 8-bit grey levels: what averaging over `factors` hides of the denoiser's error."""
    std = torch.as_tensor(std, dtype=torch.float32).cpu().clamp(max=LARGEST_STD)
    variance = (std[1] if std.ndim else std.expand(8, 8)).square()
    hidden = variance.mean() - subsampled_variance(variance, *factors).mean()
    return 127.5**2 * max(hidden.item(), 0.0)


def _repeated(plane: Tensor, factors: tuple[int, int]) -> Tensor:
    """`[B, H, W]`, each sample repeated for the pixels (down, across) that it stands for."""
    for factor, axis in zip(factors, (-2, -1), strict=True):
        plane = plane.repeat_interleave(factor, dim=axis) if factor > 1 else plane
    return plane


def _exactly(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Outside autocast, under which a product of matrices has the eight bits of bfloat16, too few for coefficients."""

    @wraps(function)
    def exact(x: Tensor, *arguments: Any) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *arguments)

    return exact


@_exactly
def _mix(planes: Tensor, matrix: Sequence[Sequence[float]]) -> Tensor:
    """Apply a colour matrix to the channel axis of `[B, C, H, W]`."""
    weights = torch.tensor(matrix, dtype=planes.dtype, device=planes.device)
    return F.conv2d(planes, weights[:, :, None, None])


@lru_cache(maxsize=8)
def _dct_matrix(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Orthonormal DCT-II of eight points (T.81, A.3.3): row u, column x."""
    with torch.inference_mode(False):  # the cache outlives whatever mode it is filled in
        return torch.tensor(DCT, dtype=dtype, device=device)


@_exactly
def block_dct(plane: Tensor) -> Tensor:
    """`[B, H, W]` -> `[B, H/8, W/8, 8, 8]`."""
    matrix = _dct_matrix(plane.device, plane.dtype)
    columns = matrix @ plane.unflatten(-2, (-1, 8))  # of whole rows of blocks: fewer, larger products
    return (columns.unflatten(-1, (-1, 8)) @ matrix.T).transpose(-3, -2).contiguous()


@_exactly
def inverse_block_dct(coefficients: Tensor) -> Tensor:
    """`[B, H/8, W/8, 8, 8]` -> `[B, H, W]`."""
    matrix = _dct_matrix(coefficients.device, coefficients.dtype)
    rows = (coefficients @ matrix).transpose(-3, -2).flatten(-2, -1)
    return (matrix.T @ rows).flatten(-3, -2)


def _joined(blocks: Tensor) -> Tensor:
    """`[B, H/8, W/8, 8, 8]` -> `[B, H, W]`."""
    return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)
