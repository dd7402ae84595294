"""Measurement operators: what a degradation keeps of an image, the way back, and their composition (paper, section 3).

Image degradations and quantization are here; JPEG has a room of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .posterior import rgb_variance, truncated_normal

Std = Tensor | float
"""An error on the scale of [-1, 1]: one standard deviation, or `[2, 8, 8]`, those of the DCT coefficients of luma and
chroma (blocks of 8 x 8 pixels)."""
# Share of a bin that is left out at both of its ends, so that float32 round-off cannot leave it.
BIN_MARGIN = 1e-3


class Operator:
    """A degradation `y = encode(x)` with a generalised pseudo-inverse `decode`.

    `x` is `[B, 3, H, W]` float32 RGB, nominally in [-1, 1]. `y` is whatever the operator likes: a tensor with a batch
    axis first, of 1 or B, or a tuple of such (`None` among them). Both functions are pure, run on the device of what
    they are given, and `encode(decode(y)) == y` must hold for every `y` that an image can have.

    A new degradation implements `encode` and `decode`; the rest follows. `a @ b` is the degradation `b`, then `a`.
    """

    alignment: tuple[int, int] = (1, 1)
    """Height and width of `x` must be multiples of these."""
    channels: int = 3
    """1 where a measurement says that red, green and blue are equal."""

    def encode(self, x: Tensor) -> Any:
        """Measurement of an image `[B, 3, H, W]` in [-1, 1]."""
        raise NotImplementedError(f"{type(self).__name__} does not implement encode")

    def decode(self, y: Any) -> Tensor:
        """Image `[B, 3, H, W]` with measurement `y`; neither clipped nor rounded."""
        raise NotImplementedError(f"{type(self).__name__} does not implement decode")

    def project(self, x: Tensor, y: Any) -> Tensor:
        """The paper's correction of a denoised image (section 3): `x - decode(encode(x)) + decode(y)`."""
        return x - self.decode(self.encode(x)) + self.decode(y)

    def nearest(self, x: Tensor, y: Any, margin: float = 0.0) -> Tensor:
        """The nearest image whose measurement is `y`, where an operator knows it; else `project`.

        `margin` is how far, in 8-bit grey levels, to stay from the borders of what `y` allows.
        """
        return self.project(x, y)

    def posterior(self, x: Tensor, y: Any, std: Std) -> tuple[Tensor, Any]:
        """Mean of the images that have measurement `y` and are near `x`, and the variance that is left.

        `std` is the error of `x`. The variance has a form that only `remaining_noise` knows. An operator that has no
        better answer gives `nearest`, and `None`.
        """
        return self.nearest(x, y), None

    def decoded_variance(self, y: Any) -> Any:
        """The variance of `decode(y)` when nothing but `y` is known, in the form of `posterior`'s."""
        return None

    def remaining_noise(self, noise: Tensor, noise_to_signal: float, variance: Any) -> Tensor:
        """The share of white noise that an image still lacks at a noise level, since its own errors are noise as well.

        What an operator measures of the white noise `[B, 3, H, W]`, which may be changed in place, is scaled so that
        its variance and that of the image, as `posterior` gives it, add up to that of the noise at the next level,
        which has the standard deviation `noise_to_signal` on an image in [-1, 1]; or to zero where the image's is more.
        """
        return noise

    def textured(self, x: Tensor, y: Any, std: Std, noise: Tensor, scale: float) -> Tensor:
        """A mean, as `posterior` gives it, made more like a sample: it is given the texture that means lack.

        `noise` is white, of variance 1, in the shape of `x`; with a `scale` of 1 there is about as much texture as the
        posterior leaves open. `nearest` may still have to bring the image back to the measurement. An operator that
        knows of no texture gives `x`.
        """
        return x

    def expected_error(self, x: Tensor, y: Any, std: Std) -> Tensor | None:
        """How far a restored image is likely to be off, pixel by pixel: standard deviations on the scale of [-1, 1].

        `std` is the error of the prior that restored it, as for `posterior`. `None` from an operator that cannot tell.
        """
        return None

    def uncertainty(self) -> float | None:
        """How far, about, images of one measurement lie apart, on the scale of [-1, 1]; `None`: it cannot tell."""
        return None

    def consistency(self, x: Tensor, y: Any) -> float:
        """Share of the measured values (0 to 1) that `x` reproduces: `encode(x) == y`."""
        pairs = zip(_tensors(self.encode(x)), _tensors(y), strict=True)
        agree = [(ours == theirs).flatten() for ours, theirs in pairs]
        return torch.cat(agree).float().mean(dtype=torch.float64).item()

    def select(self, y: Any, index: int) -> Any:
        """Measurement of one image of a batch, itself a batch of 1."""
        return _mapped(y, lambda part: part[index : index + 1])

    def batch_size(self, y: Any) -> int:
        """How many images a measurement is of."""
        return len(_tensors(y)[0])

    def to(self, y: Any, device: torch.device | str) -> Any:
        """A measurement on another device."""
        return _mapped(y, lambda part: part.to(device))

    def aligned(self, height: int, width: int) -> tuple[int, int]:
        """The smallest size the operator takes that holds an image of this one."""
        return height + -height % self.alignment[0], width + -width % self.alignment[1]

    # What a degradation is to one that comes after it: for most, its round trip, an image of the same size.

    def forward(self, x: Tensor) -> Tensor:
        """The image that the degradation leaves of `x`."""
        return self.decode(self.encode(x))

    def adjust(self, x: Tensor, image: Tensor) -> Tensor:
        """`x`, changed little, so that `forward` leaves `image` of it."""
        return self.nearest(x, self.encode(image))

    def extend(self, image: Tensor) -> Tensor:
        """A likely image of which `forward` leaves this one."""
        return image

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        """Size of what `forward` leaves of an image."""
        return height, width

    def size_before(self, height: int, width: int) -> tuple[int, int]:
        """Size of an image of which `forward` leaves one of this size."""
        return height, width

    def __matmul__(self, first: Operator) -> Operator:
        """`self` after `first`: `(self @ first).encode(x)` is `self.encode(first.forward(x))`."""
        if isinstance(first, _Composition):
            return self @ first.last @ first.first
        return _Composition(self, first)


class _Composition(Operator):
    """One degradation after another; corrections are those of the last one, carried back to the image."""

    def __init__(self, last: Operator, first: Operator) -> None:
        """Of `last`, which is measured and may be a composition itself, after a single one."""
        self.last, self.first = last, first
        self.channels = last.channels
        self.uncertainty, self.select, self.to = last.uncertainty, last.select, last.to
        self.batch_size = last.batch_size

    def encode(self, x: Tensor) -> Any:
        return self.last.encode(self.first.forward(x))

    def decode(self, y: Any) -> Tensor:
        return self.first.extend(self.last.decode(y))

    def project(self, x: Tensor, y: Any) -> Tensor:
        return self._corrected(x, lambda left: self.last.project(left, y))

    def nearest(self, x: Tensor, y: Any, margin: float = 0.0) -> Tensor:
        return self._corrected(x, lambda left: self.last.nearest(left, y, margin))

    def posterior(self, x: Tensor, y: Any, std: Std) -> tuple[Tensor, Any]:
        return self._corrected(x, lambda left: self.last.posterior(left, y, std)[0]), None

    def textured(self, x: Tensor, y: Any, std: Std, noise: Tensor, scale: float) -> Tensor:
        return self._corrected(x, lambda left: self.last.textured(left, y, std, self.first.forward(noise), scale))

    def _corrected(self, x: Tensor, correct: Callable[[Tensor], Tensor]) -> Tensor:
        return self.first.adjust(x, correct(self.first.forward(x)))

    def consistency(self, x: Tensor, y: Any) -> float:
        return self.last.consistency(self.first.forward(x), y)

    def aligned(self, height: int, width: int) -> tuple[int, int]:
        size = self.first.size_after(*self.first.aligned(height, width))
        return self.first.size_before(*self.last.aligned(*size))


class ImageOperator(Operator):
    """A linear degradation whose measurement is an image: `encode` is what it leaves of one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)

    def adjust(self, x: Tensor, image: Tensor) -> Tensor:
        return x + self.decode(image - self.encode(x))

    def extend(self, image: Tensor) -> Tensor:
        return self.decode(image)


class Downsampling(ImageOperator):
    """Every pixel the mean of `factor` x `factor`; raises `ValueError` unless that is a whole number of at least 1."""

    def __init__(self, factor: int) -> None:
        if not isinstance(factor, Integral) or factor < 1:
            raise ValueError(f"factor is {factor}; it must be a whole number of at least 1")
        self.factor = factor
        self.alignment = (factor, factor)

    def encode(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.factor)

    def decode(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, dim=-2).repeat_interleave(self.factor, dim=-1)

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        return height // self.factor, width // self.factor

    def size_before(self, height: int, width: int) -> tuple[int, int]:
        return height * self.factor, width * self.factor


class Crop(ImageOperator):
    """An image without its first `top` rows and `left` columns, and its last `bottom` and `right`.

    Raises `ValueError` for negative numbers.
    """

    def __init__(self, top: int = 0, left: int = 0, bottom: int = 0, right: int = 0) -> None:
        if min(top, left, bottom, right) < 0:
            raise ValueError(f"top, left, bottom, right are {top}, {left}, {bottom}, {right}; none may be negative")
        self._margins = (left, right, top, bottom)

    def encode(self, x: Tensor) -> Tensor:
        return F.pad(x, [-pixels for pixels in self._margins])

    def decode(self, y: Tensor) -> Tensor:
        return F.pad(y, self._margins, mode="replicate")

    def adjust(self, x: Tensor, image: Tensor) -> Tensor:
        return x + F.pad(image - self.encode(x), self._margins)

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        return height - sum(self._margins[2:]), width - sum(self._margins[:2])

    def size_before(self, height: int, width: int) -> tuple[int, int]:
        return height + sum(self._margins[2:]), width + sum(self._margins[:2])


def _tensors(y: Any) -> list[Tensor]:
    if y is None or isinstance(y, Tensor):
        return [] if y is None else [y]
    return [tensor for part in y for tensor in _tensors(part)]


def _mapped(y: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A measurement of the same structure, of the function of each of its tensors."""
    if y is None or isinstance(y, Tensor):
        return y if y is None else function(y)
    parts = [_mapped(part, function) for part in y]
    return type(y)(*parts) if hasattr(y, "_fields") else type(y)(parts)  # a named tuple takes its fields one by one


class QuantizationOperator(Operator):
    """Uniform quantization of every channel to 1..7 `bits`: the paper's dequantization problem (section 4).

    Its "9 bits per colour" are 3 bits a channel. A measurement is one tensor `[B, 3, H, W]` of levels
    `floor(x255 / 2**(8 - bits))`. A level decodes to the left edge of its bin, as in the released program, or, with
    `reconstruction="center"`, to the mean of the 8-bit values that fall into it. Raises `ValueError` for other values.
    """

    # Left edges sit exactly on a border of the bins; this much of a grey level absorbs their float32 round-off.
    _EDGE = 1e-2

    def __init__(self, bits: int = 3, reconstruction: str = "left") -> None:
        if not isinstance(bits, Integral) or not 1 <= bits <= 7:
            raise ValueError(f"bits is {bits}; it must be a whole number between 1 and 7")
        if reconstruction not in ("left", "center"):
            raise ValueError(f'reconstruction is {reconstruction!r}; it must be "left" or "center"')
        self.bits, self.reconstruction, self.step = bits, reconstruction, 2 ** (8 - bits)

    def encode(self, x: Tensor) -> Tensor:
        """Levels of images `[B, 3, H, W]` in [-1, 1]; values beyond that range give levels beyond theirs."""
        return (((x.float() + 1.0) * 127.5 + self._EDGE) / self.step).floor()

    def decode(self, y: Tensor) -> Tensor:
        """Levels back to [-1, 1]."""
        offset = (self.step - 1) / 2 if self.reconstruction == "center" else 0.0
        return (y * self.step + offset) / 127.5 - 1.0

    def nearest(self, x: Tensor, y: Tensor, margin: float = 0.0) -> Tensor:
        """Clamp every channel to the 8-bit values its level stands for, `[step y, step y + step - 1]`."""
        low = y * self.step
        x255 = (x.float() + 1.0) * 127.5
        return torch.minimum(torch.maximum(x255, low), low + (self.step - 1)) / 127.5 - 1.0

    def posterior(self, x: Tensor, y: Tensor, std: Std) -> tuple[Tensor, Tensor]:
        """As of the base class; the variances are `[B, 3, H, W]`. Of a table `[2, 8, 8]` pixels get the mean."""
        if isinstance(std, Tensor) and std.ndim:
            std = rgb_variance(std.square().mean(dim=(-2, -1))).sqrt().reshape(3, 1, 1)
        low = (y * self.step).float()
        margin = BIN_MARGIN * self.step
        std = torch.as_tensor(std, device=x.device, dtype=torch.float32) * 127.5
        bounds = low + margin, low + (self.step - 1 - margin)
        mean, variance = truncated_normal((x.float() + 1.0).mul_(127.5), std, *bounds)
        return mean.div_(127.5).sub_(1.0), variance.div_(127.5**2)

    def decoded_variance(self, y: Tensor) -> Tensor:
        """That of a uniform distribution over a bin."""
        return torch.full_like(y, (self.step / 127.5) ** 2 / 12)

    def remaining_noise(self, noise: Tensor, noise_to_signal: float, variance: Tensor) -> Tensor:
        """As of the base class, pixel by pixel."""
        return noise.mul_((variance * (-1 / noise_to_signal**2)).add_(1.0).clamp_(min=0.0).sqrt_())

    def uncertainty(self) -> float:
        """That of a uniform distribution over a bin."""
        return self.step / 12**0.5 / 127.5
