"""How a number is computed from an image and its reference.

All take arrays or PIL images of equal shape `[H, W, 3]`, and raise `ValueError` if the shapes differ or the images are
too small. `psnr` takes any range; the others are defined on 8-bit RGB. Their libraries come with the extra `eval` and
are imported on first use.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..extras import missing
from ..jpeg.colour import JFIF_FORWARD


def psnr(image: npt.ArrayLike, reference: npt.ArrayLike, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB, from the mean squared error over all pixels and channels.

    `peak` is the largest value there can be: 255 for 8-bit images, 1 for the paper's floats.
    """
    ours, theirs = _pair(image, reference)
    error = np.square(ours - theirs).mean()
    return float(10 * np.log10(peak**2 / error)) if error else float("inf")


def ssim(image: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Structural similarity (Wang, Bovik, Sheikh, Simoncelli, 2004), at most 1.

    As in its paper: Gaussian window of 11 x 11 with sigma 1.5, K1 0.01, K2 0.03, population statistics, data range
    255; the mean of the three RGB channels. Pixels whose window leaves the image are left out.
    """
    from skimage.metrics import structural_similarity

    ours, theirs = _pair(image, reference, "SSIM", 11)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(ours, theirs, data_range=255, channel_axis=-1, **window))


def psnr_b(image: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """PSNR less the blocking effect at the borders of 8 x 8 blocks, in dB (Yim and Bovik, 2011), on luma of BT.601."""
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio_with_blocked_effect

    ours, theirs = (pixels @ JFIF_FORWARD[0] for pixels in _pair(image, reference, "PSNR-B", 16))
    if np.array_equal(ours, theirs):
        return float("inf")
    planes = (torch.from_numpy(luma / 255)[None, None] for luma in (ours, theirs))
    return float(peak_signal_noise_ratio_with_blocked_effect(*planes, data_range=1.0))


def ssimulacra2(image: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """SSIMULACRA2 (Sneyers, 2022): 90 is visually lossless, 70 high, 50 medium, 30 low quality, and 100 the most.

    The library mirrors an image at its upper and lower border, where the program of libjxl blurs into zeros. Images
    of 256 pixels therefore score lower than there, by some 8 points at quality factor 5 and 0.3 at 90.
    """
    from ssimulacra2 import compute_ssimulacra2

    ours, theirs = _pair(image, reference, "SSIMULACRA2", 8)
    streams = []
    for pixels in (theirs, ours):  # it reads files only
        streams.append(io.BytesIO())
        Image.fromarray(pixels.astype(np.uint8)).save(streams[-1], "BMP")
    return float(compute_ssimulacra2(*streams))


def lpips(image: npt.ArrayLike, reference: npt.ArrayLike, weights: Path | None = None) -> float:
    """Learned perceptual distance (Zhang et al., 2018; AlexNet, version 0.1), 0 for equal images.

    `weights`, and errors about them, are as of `evaluation.lpips.load`.
    """
    import torch

    from .lpips import load

    pixels = _pair(image, reference, "LPIPS", 31)
    pair = (torch.from_numpy(p / 127.5 - 1).permute(2, 0, 1)[None].float() for p in pixels)
    with torch.inference_mode():
        return float(load(weights)(*pair))


@dataclass(frozen=True)
class Metric:
    """A metric of an image `[H, W, 3]` and its reference, and how it is shown."""

    label: str
    compute: Callable[..., float]
    decimals: int
    better: Callable[..., float]
    """`max` or `min`."""
    modules: tuple[str, ...] = ()
    unit: str = ""

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


METRICS: dict[str, Metric] = {
    "psnr_8bit": Metric("PSNR (8 bit)", psnr, 2, max),
    "ssim": Metric("SSIM", ssim, 3, max, ("skimage",)),
    "psnr_b": Metric("PSNR-B", psnr_b, 2, max, ("torchmetrics",), "dB"),
    "ssimulacra2": Metric("SSIMULACRA2", ssimulacra2, 1, max, ("ssimulacra2",)),
    "lpips": Metric("LPIPS", lpips, 3, min, ("torchmetrics",)),
}
"""What can be computed from 8-bit images, by the name of its column."""

COLUMNS = {"psnr": Metric("PSNR", psnr, 2, max, unit="dB")} | METRICS
"""The same, and PSNR before rounding to 8 bits, which every evaluation has."""


def unavailable(name: str, lpips_weights: Path | None = None) -> str | None:
    """Why one of `METRICS` cannot be computed here, in a few words, or None if it can."""
    for module in METRICS[name].modules:
        if find_spec(module) is None:
            return missing(module, "eval")
    if name != "lpips":
        return None
    from .lpips import obstacle

    return obstacle(lpips_weights)


def _pair(
    image: npt.ArrayLike, reference: npt.ArrayLike, metric: str = "", least: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = np.asarray(image, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"the images have shapes {ours.shape} and {theirs.shape}")
    if least and min(ours.shape[:2]) < least:
        size = f"{ours.shape[1]} x {ours.shape[0]}"
        raise ValueError(f"{metric} needs images of {least} x {least} pixels or more, got {size}")
    return ours, theirs
