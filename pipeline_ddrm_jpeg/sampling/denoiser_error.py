"""How far a denoiser is off, by noise level, component and frequency: measured for a prior, or Wiener's formula."""

from __future__ import annotations

from typing import Any

import torch

# Variances of the DCT coefficients of photographs in [-1, 1] are about `scale / (u^2 + v^2)^exponent`, for luma and for
# chroma: a least-squares fit of logarithms to 128 of the images the embedded prior was trained on, residual 0.45.
_SPECTRUM = ((1.1, 1.5), (0.075, 1.7))
# Squared norms of the rows that make luma and chroma (both alike) from RGB: the share of white noise they have.
_NOISE_SHARE = (0.447, 0.410)
_BETTER = 2 / 3


class DenoiserError:
    """Standard deviation of a denoiser's error in the DCT coefficients of the planes Y, Cb, Cr at full resolution.

    Args:
        noise_to_signal: `[T]` noise levels, increasing: standard deviations of the noise on an image in [-1, 1].
        std: `[T, 2, 8, 8]`, on the same scale, luma and chroma, rows are vertical frequencies.

    Raises:
        ValueError: for tables that are not of this form.
    """

    def __init__(self, noise_to_signal: torch.Tensor, std: torch.Tensor) -> None:
        levels = torch.as_tensor(noise_to_signal, dtype=torch.float32)
        std = torch.as_tensor(std, dtype=torch.float32)
        if levels.ndim != 1 or len(levels) < 2 or not (levels[0] > 0 and (levels.diff() > 0).all()):
            raise ValueError("noise levels must be positive and increase")
        if std.shape != (len(levels), 2, 8, 8) or not ((std > 0) & std.isfinite()).all():
            raise ValueError(f"errors must be positive numbers [{len(levels)}, 2, 8, 8], got {list(std.shape)}")
        self.noise_to_signal, self.std = levels, std

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DenoiserError:
        """From what `to_config` makes.

        Raises:
            ValueError: for anything else.
        """
        try:
            parts = [[[float(value) for value in row.split()] for row in config[name]] for name in ("luma", "chroma")]
            levels = torch.tensor([float(value) for value in config["noise_to_signal"].split()], dtype=torch.float32)
            return cls(levels, torch.tensor(parts, dtype=torch.float32).transpose(0, 1).reshape(-1, 2, 8, 8))
        except (TypeError, KeyError, AttributeError, RuntimeError, ValueError) as error:
            raise ValueError(f"the prior's denoiser_error is no table of errors ({error})") from None

    def to_config(self) -> dict[str, Any]:
        """As JSON that a person can read: a line of 64 numbers, row by row, for each level and component."""

        def line(values: torch.Tensor) -> str:
            return " ".join(f"{value:.3g}" for value in values.flatten().tolist())

        return {
            "noise_to_signal": " ".join(f"{level:.5g}" for level in self.noise_to_signal.tolist()),
            "luma": [line(table) for table in self.std[:, 0]],
            "chroma": [line(table) for table in self.std[:, 1]],
        }

    def at(self, noise_to_signal: float) -> torch.Tensor:
        """`[2, 8, 8]`, interpolated between levels; logarithms of both. Beyond the ends, those of the ends."""
        levels = self.noise_to_signal.log()
        level = torch.tensor(noise_to_signal, dtype=torch.float32).log().clamp(levels[0], levels[-1])
        above = int(torch.searchsorted(levels, level).clamp(1, len(levels) - 1))
        weight = (level - levels[above - 1]) / (levels[above] - levels[above - 1])
        return torch.lerp(self.std[above - 1].log(), self.std[above].log(), weight).exp()


class WienerError:
    """What Wiener's filter would leave of images with the spectrum of photographs, for priors that bring no table.

    A network leaves less: about `_BETTER` of it, as the embedded prior's table has it.
    """

    def at(self, noise_to_signal: float) -> torch.Tensor:
        """`[2, 8, 8]`: a share of the root of `S N / (S + N)`, `S` and `N` being the variances of image and noise."""
        noise = noise_to_signal**2 * torch.tensor(_NOISE_SHARE, dtype=torch.float32).reshape(2, 1, 1)
        spectrum = photographic_variance()
        return _BETTER * (spectrum * noise / (spectrum + noise)).sqrt()


def error_from_config(config: dict[str, Any] | None) -> DenoiserError | WienerError:
    """The error of a prior whose config has a table of it, or of one whose config has none."""
    return WienerError() if config is None else DenoiserError.from_config(config)


def photographic_variance() -> torch.Tensor:
    """`[2, 8, 8]` variances of the DCT coefficients of photographs in [-1, 1], luma and chroma; large for the mean."""
    frequency = torch.arange(8, dtype=torch.float32)
    squared = (frequency[:, None] ** 2 + frequency**2).clamp(min=0.1)
    return torch.stack([scale / squared**exponent for scale, exponent in _SPECTRUM])
