"""The samples of an image: the noise they are made of, how they share passes, and their mean and spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from ..degradations.operator import Operator
from .observation import Observation, to_bytes
from .settings import Settings

OUTPUT_TYPES = ("pil", "np", "pt")
Generator = torch.Generator | list[torch.Generator] | None

PIXELS_IN_A_PASS = 2**22
"""Samples of one image share a pass through the loop while their states have at most this many pixels together."""
# Grey levels that the last projections stay inside the measured bins, so that rounding to 8 bits rarely leaves them;
# less and less where that cannot be had together with values in [0, 1].
_ROUNDING_MARGINS = (0.5,) * 8 + (0.25,) * 8 + (0.1,) * 8 + (0.02,) * 16
_OVER_RELAXATION = 1.9
_PATIENCE = 12  # projections without progress
_MOST_TEXTURE = 2.5  # more raises LPIPS at quality factor 5, and still lowers it, and PSNR, for finer files


@dataclass
class DDRMJPEGPipelineOutput(BaseOutput):
    """Output of `DDRMJPEGPipeline`. Lists have one entry an image.

    Args:
        images: the restored images, the mean of the samples of each: PIL images (mode L for a greyscale file),
            or, for `output_type` `"np"` and `"pt"`, float32 values in [0, 1], `[B, H, W, C]` or `[B, C, H, W]`;
            a list of arrays where sizes differ.
        samples: for each image the list of its samples, in the same form.
        std: for each image the standard deviation of its samples, `[H, W, C]` or `[C, H, W]` on the scale
            of [0, 1]; zero for a single sample. It says where an image is a guess, not how far off it is: with the
            preset `best` about seven times as much (docs/uncertainty.md).
        expected_error: for each image how far it is likely to be off, in the form of `std`: the standard deviation
            of what the measurement leaves open, more of it where the image is busy. One sample is enough for it. It
            is calibrated with photographs (docs/uncertainty.md); `None` for operators other than JPEG.
        consistency: share of the measured values (the coefficients of the file) that the float32 image keeps,
            with the padding to whole MCUs that a file has at the right and bottom and that is then cropped away.
        consistency_8bit: the same after rounding to 8 bits.
        timesteps: for each image those of a sample, the largest first.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor | list[np.ndarray] | list[torch.Tensor]
    samples: list | None = None
    std: list | None = None
    expected_error: list | None = None
    consistency: list[float] | None = None
    consistency_8bit: list[float] | None = None
    timesteps: list[list[int]] | None = None


class Noise:
    """All noise of one pass through the sampler: float32, one draw for the start and then one a step.

    Args:
        generator: one for the whole batch, a list with one for each state, or `None` for torch's own.
        shape: of the states, `[B, C, H, W]`.
        scale: factor of every draw, a number or `[B, 1, 1, 1]`: temperature, with a sign for antithetic samples.
        device: where the noise is wanted; it is drawn where its generator lives.
        numbers: which sample each state is of.
    """

    def __init__(
        self,
        generator: Generator,
        shape: tuple[int, ...],
        scale: float | torch.Tensor,
        device: torch.device,
        numbers: Sequence[int] = (),
    ) -> None:
        self.generator, self.shape, self.device, self.numbers = generator, torch.Size(shape), device, numbers
        self.scale = scale.to(device) if isinstance(scale, torch.Tensor) else scale

    def start(self) -> torch.Tensor:
        """Noise for the first state."""
        noise = randn_tensor(self.shape, generator=self.generator, device=self.device, dtype=torch.float32)
        return noise.mul_(self.scale)

    def step(self) -> torch.Tensor:
        """Fresh noise for a step; the unused one of the last step is drawn as well.

        The numbers are laid out pixel by pixel (channels last), because the released sampler draws them so: its state
        inherits that layout from its JPEG decoder, and torch fills a tensor of another layout with another stream.
        """
        if isinstance(self.generator, list):
            one = (1, *self.shape[1:])
            return torch.cat([_channels_last(one, g, self.device) for g in self.generator]).mul_(self.scale)
        return _channels_last(self.shape, self.generator, self.device).mul_(self.scale)


def _channels_last(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
    source = device if generator is None else generator.device
    noise = torch.empty(shape, dtype=torch.float32, device=source, memory_format=torch.channels_last)
    return noise.normal_(generator=generator).to(device)


def passes(
    generator: Generator,
    settings: Settings,
    shape: tuple[int, ...],
    device: torch.device,
    most_pixels: int = PIXELS_IN_A_PASS,
) -> list[Noise]:
    """The samples of one observation in batches that go through the sampler together, each with its noise.

    Args:
        generator: of the first sample; a copy of it, which leaves it as it was, seeds the others. A list has one for
            each image of a batch.
        settings: `num_samples`, `antithetic` and the temperature are read.
        shape: of one sample, `[B, C, H, W]`.
        device: where the samples are made.
        most_pixels: of the samples that share a pass; a sample of more has one of its own.

    Raises:
        ValueError: for a list of another number of generators.
    """
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise ValueError(f"got {len(generator)} generators for {shape[0]} images")
    samples, antithetic, scale = settings.num_samples, settings.antithetic, settings.noise_scale
    generators = _generators(generator, samples, antithetic)
    scales = [-scale if antithetic and i % 2 else scale for i in range(samples)]
    together = most_pixels // (shape[-2] * shape[-1])
    if shape[0] > 1 or together <= 1 or isinstance(generators[0], list):
        return [
            Noise(own, shape, scale, device, [i] * shape[0])
            for i, (own, scale) in enumerate(zip(generators, scales, strict=True))
        ]
    groups = [range(i, min(i + together, samples)) for i in range(0, samples, together)]
    return [
        Noise(
            [generators[i] for i in group],
            (len(group), *shape[1:]),
            torch.tensor([scales[i] for i in group], dtype=torch.float32).reshape(-1, 1, 1, 1),
            device,
            group,
        )
        for group in groups
    ]


def _generators(generator: Generator, num_samples: int, antithetic: bool) -> list[Generator]:
    """One for each sample; antithetic samples go in pairs, of which the second has a copy of the first one's."""
    if isinstance(generator, list):
        each = (_generators(g, num_samples, antithetic) for g in generator)
        return [list(one) for one in zip(*each, strict=True)]
    generator = torch.default_generator if generator is None else generator
    different = (num_samples + 1) // 2 if antithetic else num_samples
    seeds = torch.randint(2**62, (different - 1,), generator=_copy(generator), device=generator.device).tolist()
    generators = [generator, *(torch.Generator(generator.device).manual_seed(seed) for seed in seeds)]
    if antithetic:
        generators = [one for each in generators for one in (each, _copy(each))]
    return generators[:num_samples]


def _copy(generator: torch.Generator) -> torch.Generator:
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise `ValueError` for an argument that is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def gather(finished: list[dict[str, Any]], output_type: str) -> DDRMJPEGPipelineOutput:
    """The output of the pipeline from the fields of each image; arrays of one size become one."""
    output = DDRMJPEGPipelineOutput(**{name: [one[name] for one in finished] for name in finished[0]})
    if output_type != "pil" and len({image.shape for image in output.images}) == 1:
        output.images = (np if output_type == "np" else torch).stack(output.images)
    return output


def presented(x: torch.Tensor, output_type: str, info: dict[str, bytes]) -> Any:
    """An image `[C, H, W]` of [0, 1], which its giver must not use again, as the caller wants it.

    Args:
        x: values beyond [0, 1] are clamped for `"pil"`, and kept otherwise.
        output_type: `"pil"`, `"np"` or `"pt"`.
        info: what a PIL image carries.
    """
    if output_type != "pil":
        return as_array(x, output_type)
    pixels = to_bytes(x)
    image = Image.fromarray(pixels[..., 0] if len(x) == 1 else pixels)
    image.info.update(info)
    return image


def as_array(values: torch.Tensor, output_type: str) -> torch.Tensor | np.ndarray:
    """`[C, H, W]`, or for any type of output but `"pt"` an array of `[H, W, C]`."""
    return values.cpu() if output_type == "pt" else values.cpu().permute(1, 2, 0).numpy()


def make_consistent(operator: Operator, x: torch.Tensor, y: Any) -> torch.Tensor:
    """An image near `x` that agrees with the measurement and lies in [-1, 1], by alternating projections.

    Now and then no such image exists, because the encoder rounded on its way; then the measurement comes first.
    """
    best, found, when = -1.0, x, 0
    for i, margin in enumerate(_ROUNDING_MARGINS):
        x = operator.nearest(x, y, margin).lerp_(x, 1 - _OVER_RELAXATION if i else 0.0).clamp_(-1, 1)
        consistency = operator.consistency(x, y)
        if consistency > best:
            best, found, when = consistency, x, i
        if best == 1.0:
            return found
        if i - when >= _PATIENCE:
            break
    return operator.nearest(found, y)


class Samples:
    """The samples of one observation: each is presented as it comes, and only their mean and spread are kept.

    Args:
        observation: what they are samples of.
        output_type: `"pil"`, `"np"` or `"pt"`.
        consistent: whether they are projected onto the measurement; otherwise they are clamped to [-1, 1].
    """

    def __init__(self, observation: Observation, output_type: str, consistent: bool = False) -> None:
        self.observation, self.output_type, self.consistent = observation, output_type, consistent
        self.grey = observation.operator.channels == 1
        self.presented: list[list] = []
        self.mean = self.squares = torch.zeros(())

    def add(self, x: torch.Tensor) -> None:
        """Take over a sample `[B, 3, H, W]` in [-1, 1], which its giver must not use again.

        Raises:
            FloatingPointError: for values that are no numbers, which would be shown as black.
        """
        if not math.isfinite(x.sum(dtype=torch.float32)):
            raise FloatingPointError(
                "the sample has values that are no numbers (NaN or infinite), which the last step made of what the"
                " prior said; look at the scheduler's config and at the operator"
            )
        x = make_consistent(self.observation.operator, x, self.observation.y) if self.consistent else x.clamp(-1, 1)
        if self.grey:
            x = x.mean(dim=1, keepdim=True)
        self.presented.append([self._present(image) for image in x])
        if len(self.presented) == 1:
            self.mean, self.squares = x, torch.zeros((), device=x.device).expand_as(x)
        else:  # Welford: mean, and sum of squared distances from it
            distance = x - self.mean
            self.mean.add_(distance, alpha=1 / len(self.presented))
            self.squares = distance.mul_(x.sub_(self.mean)).add_(self.squares)

    def sharpen(self, std: torch.Tensor, noise: torch.Tensor, sharpness: float) -> None:
        """Give the mean texture that it agrees with the measurement about.

        Args:
            std: the denoiser's error, `[2, 8, 8]`.
            noise: white, in the shape of a sample.
            sharpness: 0, the mean, to 1, where it looks most like a photograph.
        """
        operator, y = self.observation.operator, self.observation.y
        x = operator.textured(self.mean.expand(-1, 3, -1, -1), y, std, noise, _MOST_TEXTURE * sharpness)
        x = make_consistent(operator, x, y) if self.consistent else operator.nearest(x, y).clamp_(-1, 1)
        self.mean = x.mean(dim=1, keepdim=True) if self.grey else x

    def finish(self, error: torch.Tensor) -> list[dict[str, Any]]:
        """The fields of the pipeline's output, one dict an image; the samples are used up.

        Args:
            error: the prior's, `[2, 8, 8]`, for what the operator expects of the image.
        """
        operator, images = self.observation.operator, []
        for i in range(len(self.mean)):
            y, own = operator.select(self.observation.y, i), self.mean[i : i + 1]
            fields = {
                "images": self._present(own[0]),
                "samples": [sample[i] for sample in self.presented],
                "std": self._deviation(self.squares[i].div(len(self.presented)).sqrt_()),
                "expected_error": self._expected(own.expand(1, 3, -1, -1), y, error),
                "consistency": operator.consistency(own.expand(1, 3, -1, -1), y),
            }
            own.add_(1).mul_(127.5).clamp_(0, 255).round_().div_(127.5).sub_(1)
            images.append(fields | {"consistency_8bit": operator.consistency(own.expand(1, 3, -1, -1), y)})
        return images

    def _present(self, image: torch.Tensor) -> Any:
        """An image in [-1, 1] as the caller wants it, in memory of its own."""
        image = (image / 2).add_(0.5)
        if self.observation.tint is not None:
            image = image + image.new_tensor(self.observation.tint).reshape(3, 1, 1)
        image, surroundings = self._cropped(image), self.observation.surroundings
        if surroundings:
            image = surroundings.around(image)
        return presented(image, self.output_type, self.observation.info)

    def _expected(self, x: torch.Tensor, y: Any, error: torch.Tensor) -> torch.Tensor | np.ndarray | None:
        expected = self.observation.operator.expected_error(x, y, error)
        return None if expected is None else self._deviation(expected[0, : 1 if self.grey else 3])

    def _deviation(self, std: torch.Tensor) -> torch.Tensor | np.ndarray:
        """A standard deviation in [-1, 1], which is changed, in [0, 1] as the caller wants it; one channel thrice where
        a grey image is presented in RGB, and zero where nothing was restored."""
        surroundings = self.observation.surroundings
        std = self._cropped(std.div_(2))
        std = std if self.observation.tint is None else std.repeat(3, 1, 1)
        return as_array(surroundings.nothing_around(std) if surroundings else std, self.output_type)

    def _cropped(self, values: torch.Tensor) -> torch.Tensor:
        """`[C, H, W]` without padding, on the CPU where it is put back into a larger image."""
        (top, left), (height, width) = self.observation.origin, self.observation.size
        values = values[:, top : top + height, left : left + width]
        return values.cpu() if self.observation.surroundings else values
