"""How a number is computed from two pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def psnr(picture: npt.ArrayLike, reference: npt.ArrayLike, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB, from the mean squared error over all pixels and channels.

    Args:
        picture: any array or PIL image.
        reference: of the same shape.
        peak: the largest value there can be: 255 for 8-bit pictures, 1 for the paper's floats.

    Raises:
        ValueError: if the shapes differ.
    """
    ours, theirs = np.asarray(picture, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"the pictures have shapes {ours.shape} and {theirs.shape}")
    error = np.square(ours - theirs).mean()
    return float(10 * np.log10(peak**2 / error)) if error else float("inf")


def ssim(picture: npt.ArrayLike, reference: npt.ArrayLike, peak: float = 255.0) -> float:
    """Mean structural similarity (Wang et al., 2004): Gaussian window of 11 pixels and sigma 1.5, mean of the channels.

    Args:
        picture: `[H, W, C]`, any array or PIL image.
        reference: of the same shape.
        peak: the largest value there can be: 255 for 8-bit pictures, 1 for the paper's floats.

    Raises:
        ValueError: if the shapes differ, or the pictures are smaller than the window.
    """
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            np.asarray(picture),
            np.asarray(reference),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=-1,
            data_range=peak,
        )
    )
