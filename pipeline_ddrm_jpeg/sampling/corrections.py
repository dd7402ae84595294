"""How a step makes a denoised image agree with its measurement, and how much noise is still due after it."""

from __future__ import annotations

from typing import Any

import torch

from .denoiser_error import DenoiserError, WienerError
from .observation import Observation
from .samples import Noise
from .settings import Settings


def final_error(observation: Observation, error: DenoiserError | WienerError) -> torch.Tensor:
    """The error `[2, 8, 8]`, on the scale of [-1, 1], of which the measurement leaves what is off in the end.

    That at a noise level which depends on the measurement alone, so that all presets are told the same; the level was
    found with `JPEGOperator.expected_error`'s constants.
    """
    uncertainty = observation.operator.uncertainty()
    return error.at(2.0 * uncertainty**0.75) if uncertainty else torch.zeros(2, 8, 8)


class Correction:
    """One rule at work on the states of one pass; called with a denoised image, it gives the corrected one.

    Args:
        observation: what the image must agree with.
        settings: `correction`, `error_scale` and `noise_accounting` are read.
        error: for the correction `"posterior"`, how far the denoiser is off.
    """

    def __init__(
        self, observation: Observation, settings: Settings, error: DenoiserError | WienerError | None = None
    ) -> None:
        self.operator, self.y, self.rule = observation.operator, observation.y, settings.correction
        self.error, self.error_scale = error, settings.error_scale
        self.accounting = settings.noise_accounting and self.rule == "posterior"
        self.variance = self.operator.decoded_variance(self.y) if self.accounting else None
        self.noise_to_signal = 0.0

    def __call__(self, x0: torch.Tensor) -> torch.Tensor:
        """`x0'` of an image denoised at the level `noise_to_signal`."""
        if self.rule == "ddrm":
            return self.operator.project(x0, self.y)
        if self.rule == "nearest":
            return self.operator.nearest(x0, self.y)
        self.variance = None  # two of them need not be there at once
        std = self.error_scale * self.error.at(self.noise_to_signal)
        corrected, variance = self.operator.posterior(x0, self.y, std)
        self.variance = variance if self.accounting else None
        return corrected

    def remaining_noise(self, noise: torch.Tensor, noise_to_signal: float) -> torch.Tensor:
        """What is left to add, of white noise for this level, to the image corrected last, or decoded at first."""
        if self.variance is None or not noise_to_signal:
            return noise
        return self.operator.remaining_noise(noise, noise_to_signal, self.variance)

    def options(self, scheduler: Any, timestep: int | torch.Tensor) -> dict[str, Any]:
        """The arguments of the scheduler's step by which it corrects and accounts at this timestep."""
        if self.rule != "posterior":
            return {"project": self}
        self.noise_to_signal = scheduler.noise_to_signal(timestep)
        accounting = {"remaining_noise": self.remaining_noise} if self.accounting else {}
        return {"project": self, "eta_b": 1.0} | accounting  # a mean needs no mixing with what it is the mean of


def first_state(scheduler: Any, correct: Correction, noise: Noise) -> torch.Tensor:
    """`decode(y)`, noised to the first timestep: where the samples of one pass start."""
    fresh = noise.start()
    if correct.accounting:
        fresh = correct.remaining_noise(fresh, scheduler.noise_to_signal(scheduler.timesteps[0]))
    start = correct.operator.decode(correct.y).expand(noise.shape)
    return scheduler.add_noise(start, fresh, scheduler.timesteps[0])
