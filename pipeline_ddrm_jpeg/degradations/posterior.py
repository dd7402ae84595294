"""Statistics of what a bin and a denoiser say together: truncated Gaussians, and spectra of averaged planes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..jpeg.colour import JFIF_INVERSE

# Gauss-Legendre nodes of a bin, or of the part of it where the density is above exp(-_LOG_RANGE) of its largest value.
# The mean then is right to 1e-4 of half the bin or of the Gaussian's std, whichever is less; the variance to 1e-3.
_NODES, _WEIGHTS = ((values / 2).tolist() for values in np.polynomial.legendre.leggauss(12))
_LOG_RANGE = 12.0
_SMALLEST_STD, LARGEST_STD = 1e-6, 1e6
# Exponential of minus half a step by the scale, where all levels are zero: then a scale is a twentieth of a step.
_RAREST = 1e-4


def truncated_normal(mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a Gaussian that is truncated to `[low, high]`, elementwise, in the shape of `mean`.

    By quadrature over the part of the interval where the density is not negligible. Its terms are positive, so nothing
    cancels: not far out in a tail, where the mass is near the closer end, nor in an interval much narrower than the
    Gaussian, where the density is nearly uniform. All broadcast to `mean`, which is finite; ends may be infinite. `std`
    is taken for 1e-6 below that and for 1e6 above.
    """
    std = std.clamp(_SMALLEST_STD, LARGEST_STD)
    mode = torch.minimum(torch.maximum(mean, low), high)
    gap = mode - mean  # 0 inside the interval
    # The density falls by exp(-_LOG_RANGE) within `reach`: the root of reach^2 / 2 + |gap| reach = _LOG_RANGE std^2.
    reach = (gap.abs() / std).square_().add_(2 * _LOG_RANGE).sqrt_().mul_(std).add_(gap.abs())
    reach = reach.reciprocal_().mul_(2 * _LOG_RANGE * std.square())
    # From here on all positions are relative to the mode.
    first = torch.maximum(low - mode, -reach)
    extent = torch.minimum(high - mode, reach).sub_(first)
    centre = first.add_(extent, alpha=0.5)
    # At `node` extents from the centre the density's logarithm is constant + node linear + node^2 quadratic.
    precision, gap = -0.5 / std.square(), gap.mul_(2.0)
    constant = (centre + gap).mul_(centre).mul_(precision)
    linear = gap.add_(centre, alpha=2.0).mul_(extent).mul_(precision)
    quadratic = extent.square().mul_(precision)

    total, first_moment, second_moment = torch.zeros_like(mode), torch.zeros_like(mode), torch.zeros_like(mode)
    density = torch.empty_like(mode)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        torch.add(constant, quadratic, alpha=node * node, out=density)
        density.add_(linear, alpha=node).exp_()
        total.add_(density, alpha=weight)
        first_moment.add_(density, alpha=weight * node)
        second_moment.add_(density, alpha=weight * node * node)
    first_moment.div_(total)
    spread = second_moment.div_(total).addcmul_(first_moment, first_moment, value=-1.0).clamp_(min=0.0)
    variance = spread.mul_(extent).mul_(extent)
    first_moment.mul_(extent).add_(centre)
    # A sum in float32 may exceed the interval by its last digit.
    return torch.minimum(torch.maximum(mode.add_(first_moment), low), high), variance


def zero_bin_variance(levels: Tensor, steps: Tensor) -> Tensor:
    """Variance of Laplacian coefficients in the bin around zero, `[B, 1, 1, 8, 8]`, for each frequency of an image.

    Their scales are those by which the levels `[B, down, across, 8, 8]`, of steps `[8, 8]`, are likeliest (Price and
    Rabbani, 1999, "Biased reconstruction for JPEG decoding", IEEE Signal Processing Letters 6(12)): with `s` the
    exponential of minus half a step by the scale, the derivative of the likelihood is a quadratic in `s`.
    """
    sizes = levels.double().abs()
    count = sizes.shape[1] * sizes.shape[2]
    total = sizes.sum(dim=(1, 2), keepdim=True)
    present = (sizes > 0).sum(dim=(1, 2), keepdim=True)
    zeros, leading = count - present, count + 2 * total
    root = (zeros.square() + 4 * leading * (2 * total - present)).sqrt()
    s = ((root - zeros) / (2 * leading)).clamp(_RAREST, 1 - 1e-6)
    half = -s.log()  # half a step, in units of the scale
    share = (2 - s * (half.square() + 2 * half + 2)) / ((1 - s) * half.square())
    return (share * (steps.double() / 2).square()).float()


def subsampled_variance(variance: Tensor, down: int, across: int) -> Tensor:
    """Variances of the DCT coefficients of a plane after averaging over `down` x `across` pixels.

    Those of the plane itself, `[8, 8]`, are taken for samples of a power spectrum at `u / 16` cycles a pixel. Averaging
    weighs it with the response of a box and folds what is above the new Nyquist frequency.
    """
    return _folding(down).to(variance) @ variance @ _folding(across).to(variance).T


@lru_cache(maxsize=8)
def _folding(factor: int) -> Tensor:
    """`[8, 8]`: what variances at the frequencies of a line become when every `factor` pixels of it are averaged."""
    with torch.inference_mode(False):  # the cache outlives whatever mode it is filled in
        matrix = torch.zeros(8, 8, dtype=torch.float64)
        for u in range(8):
            for alias in range(factor):
                frequency = (u / 16 + alias) / factor  # cycles a pixel of the full resolution
                response = 1.0
                if frequency:
                    response = np.sin(np.pi * frequency * factor) / (factor * np.sin(np.pi * frequency))
                index = min(16 * min(frequency, 1 - frequency), 7.0)  # spectra are even, and periodic
                below = min(int(index), 6)
                matrix[u, below] += response**2 * (below + 1 - index) / factor
                matrix[u, below + 1] += response**2 * (index - below) / factor
        return matrix.float()


def rgb_variance(variance: Tensor) -> Tensor:
    """`[2, ...]` variances of luma and of either chroma -> `[3, ...]` of R, G and B, errors being uncorrelated."""
    inverse = torch.tensor(JFIF_INVERSE, dtype=torch.float32).square().to(variance)
    weights = torch.stack([inverse[:, 0], inverse[:, 1] + inverse[:, 2]], dim=1)
    return torch.tensordot(weights, variance, dims=1)
