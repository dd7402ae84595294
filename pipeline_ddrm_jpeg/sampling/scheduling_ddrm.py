"""The noise schedule and the DDRM update of "JPEG Artifact Correction using Denoising Diffusion Restoration Models".

Kawar, Song, Ermon, Elad, 2022, arXiv:2209.11888, section 3; called "the paper" below.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from .settings import TIMESTEP_SPACINGS, Settings

_MOST_TIMESTEPS = 100_000  # of a schedule; a thousand are common
# With log-spaced timesteps, noise of the last of n over that of the first: the one over n squared, at least the other.
# Found likewise as where sampling starts, see `scheduled`.
_LAST_NOISE = (1.75, 0.1)


def _spaced(spacing: str, start: int, count: int) -> list[int]:
    """`count` timesteps below `start`, the largest first, as diffusers spaces them on a schedule of that length."""
    if spacing == "leading":
        return [i * (start // count) for i in reversed(range(count))]
    if spacing == "trailing":
        return [round(start - i * start / count) - 1 for i in range(count)]
    return torch.linspace(start - 1, 0, count, dtype=torch.float64).round().int().tolist()


@dataclass
class DDRMSchedulerOutput(BaseOutput):
    """Output of `DDRMScheduler.step`.

    Args:
        prev_sample: `[B, C, H, W]`, `x_t`, the input of the next step; after the last step the restored image.
        pred_original_sample: `[B, C, H, W]`, the denoiser's `f_theta(x_{t+1})`, before any correction.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class DDRMScheduler(SchedulerMixin, ConfigMixin):
    """The DDRM update for noiseless measurements, started part of the way (paper, sections 3 and 4).

    It knows nothing of the degradation: the measurement enters through the callable `project` of `step`. Configs of
    schedulers for priors of the same kind (DDPM, DDIM, PNDM, DPM-Solver, ...) load with `DDRMScheduler.from_config`.

    Args:
        num_train_timesteps: length of the schedule the prior was trained with.
        beta_start: first beta.
        beta_end: last beta.
        beta_schedule: `"linear"`, or any other schedule of `DDPMScheduler` by its name there.
        trained_betas: betas given one by one; the four arguments before are then ignored.
        prediction_type: what the prior predicts: `"epsilon"`, `"v_prediction"` or `"sample"`.
        eta: weight of fresh noise against predicted noise, 0 to 1.
        eta_b: weight of the corrected image against the denoiser's own, 0 to 1.
        init_timestep: sampling starts below this timestep, from the noised measurement (1..num_train_timesteps); by
            default at 3/10 of the schedule, the paper's 300 of 1000.
        timestep_spacing: `"leading"`, `"trailing"` or `"linspace"`, as diffusers defines them, below `init_timestep`;
            or `"log"`, denser near the end. The paper's is `"leading"`.
        rescale_betas_zero_snr: whether the last training timestep is pure noise (Lin et al., 2023, algorithm 1).
    """

    name: ClassVar = "ddrm"
    """What people call the sampler."""
    settings: ClassVar = frozenset({"eta", "eta_b", "correction", "noise_accounting", "init_timestep", "sharpness"})
    """Which of the settings that not every sampler has it takes: see `settings_taken`."""
    evaluations_a_step: ClassVar = 1
    """What a step costs, in evaluations of the prior."""
    _compatibles: ClassVar = [kind.name for kind in KarrasDiffusionSchedulers if not kind.name.startswith("EDM")]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        eta: float = 1.0,
        eta_b: float = 0.4,
        init_timestep: int | None = None,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                f'prediction_type is {prediction_type!r}; it must be "epsilon", "v_prediction" or "sample"'
            )
        if not isinstance(num_train_timesteps, Integral) or not 1 <= num_train_timesteps <= _MOST_TIMESTEPS:
            raise ValueError(
                f"num_train_timesteps is {num_train_timesteps!r}; it must be a whole number in 1..{_MOST_TIMESTEPS}"
            )
        if trained_betas is not None:
            self.betas = torch.tensor(trained_betas, dtype=torch.float32)
        elif beta_schedule == "linear":  # in float64 first, as the released sampler has it
            self.betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64).float()
        else:
            self.betas = DDPMScheduler(num_train_timesteps, beta_start, beta_end, beta_schedule).betas
        if rescale_betas_zero_snr:
            self.betas = rescale_zero_terminal_snr(self.betas)
        if not ((self.betas >= 0) & (self.betas <= 1)).all():
            raise ValueError("the betas of a schedule must be numbers from 0 to 1")
        self.alphas_cumprod = torch.cumprod(1.0 - self.betas, dim=0)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(len(self.betas) - 1, -1, -1)

    @classmethod
    def from_config(cls, config: Any = None, **kwargs: Any) -> DDRMScheduler:
        """As of the base class, from the config of this scheduler or of one for priors of the same kind.

        Raises:
            ValueError: for the config of a scheduler of another kind: score SDE, EDM, flow matching, consistency.
        """
        kind = (config or {}).get("_class_name")
        ours = kind is None or "eta" in config
        if not ours and kind not in cls._compatibles:
            raise ValueError(
                f"the prior's scheduler is a {kind}; {cls.__name__} needs a prior of the DDPM kind, such as one with a"
                " DDPMScheduler or DDIMScheduler"
            )
        return super().from_config(config, **kwargs)

    def __len__(self) -> int:
        return len(self.betas)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        init_timestep: int | None = None,
        timesteps: list[int] | None = None,
        timestep_spacing: str | None = None,
    ) -> None:
        """Set the timesteps, the largest first.

        Spacing `"leading"` with 20 steps below 300 gives 285, 270, ..., 15, 0, the paper's "20 uniformly-spaced steps".
        With `"log"` the noise of each is the same fraction of that of the one before, from `init_timestep` down to the
        less the more steps there are, but not below a tenth.

        Args:
            num_inference_steps: network evaluations in a sample, 1..init_timestep.
            device: where `timesteps` is put.
            init_timestep: overrides the one of the config.
            timesteps: strictly decreasing timesteps of one's own, instead of the two numbers.
            timestep_spacing: overrides the one of the config.

        Raises:
            ValueError: if the numbers are out of range, or if both kinds of arguments are given.
        """
        last = len(self)
        if timesteps is not None:
            if num_inference_steps is not None or init_timestep is not None:
                raise ValueError("give either timesteps, or num_inference_steps and init_timestep, not both")
            timesteps = [int(t) for t in timesteps]
            if (
                not timesteps
                or any(a <= b for a, b in pairwise(timesteps))
                or not 0 <= timesteps[-1] <= timesteps[0] < last
            ):
                raise ValueError(f"timesteps must decrease strictly and lie in 0..{last - 1}, got {timesteps}")
        else:
            start = self.config.init_timestep if init_timestep is None else init_timestep
            start = max(3 * last // 10, 1) if start is None else start
            if not isinstance(start, Integral) or not 1 <= start <= last:
                raise ValueError(f"init_timestep is {start}; it must be a whole number between 1 and {last}")
            if not isinstance(num_inference_steps, Integral) or not 1 <= num_inference_steps <= start:
                raise ValueError(
                    f"num_inference_steps is {num_inference_steps}; it must be a whole number between 1 and"
                    f" init_timestep ({start})"
                )
            spacing = timestep_spacing or self.config.timestep_spacing
            if spacing not in TIMESTEP_SPACINGS:
                raise ValueError(f"timestep_spacing is {spacing!r}; it must be one of {', '.join(TIMESTEP_SPACINGS)}")
            if spacing == "log":
                timesteps = self._log_spaced(min(int(start), last - 1), int(num_inference_steps))
            else:
                timesteps = _spaced(spacing, int(start), int(num_inference_steps))
        self.num_inference_steps = len(timesteps)
        self.timesteps = torch.tensor(timesteps, device=device)

    def _log_spaced(self, start: int, count: int) -> list[int]:
        """`count` timesteps from `start` (at least `count - 1`) on, their noise log-spaced, no two alike."""
        least = max(_LAST_NOISE[0] / count**2, _LAST_NOISE[1])
        timesteps: list[int] = []
        for i in range(count):
            share = least ** (i / (count - 1)) if i else 1.0
            t = self.nearest_timestep(share * self.noise_to_signal(start)) if i else start
            timesteps.append(max(min([t, *(one - 1 for one in timesteps[-1:])]), count - 1 - i))
        return timesteps

    def noise_to_signal(self, timestep: int | torch.Tensor) -> float:
        """`sqrt((1 - alpha_t) / alpha_t)`, the noise on an image in [-1, 1] that the state is when scaled to it."""
        return float((1 / self.alphas_cumprod[int(timestep)] - 1).sqrt())

    def nearest_timestep(self, noise_to_signal: float) -> int:
        """The timestep whose ratio of noise to signal is nearest to the one given."""
        return int(((1 / self.alphas_cumprod - 1).sqrt() - noise_to_signal).abs().argmin())

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """The input of the prior is the state itself."""
        return sample

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor
    ) -> torch.Tensor:
        """Equation 1 of the paper: `sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) noise`, for one timestep or one a sample."""
        alpha = self.alphas_cumprod.to(original_samples.device, original_samples.dtype)[torch.as_tensor(timesteps)]
        alpha = alpha.reshape(-1, *[1] * (original_samples.ndim - 1)) if alpha.ndim else alpha
        return (alpha.sqrt() * original_samples).addcmul_((1 - alpha).sqrt(), noise)

    def step(
        self,
        model_output: torch.Tensor | Callable[[], torch.Tensor],
        timestep: int | torch.Tensor,
        sample: torch.Tensor | Callable[[], torch.Tensor],
        project: Callable[[torch.Tensor], torch.Tensor] | None = None,
        eta: float | None = None,
        eta_b: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: torch.Tensor | Callable[[], torch.Tensor] | None = None,
        remaining_noise: Callable[[torch.Tensor, float], torch.Tensor] | None = None,
        return_dict: bool = True,
    ) -> DDRMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One DDRM update (paper, section 3, last equation), from `x_{t+1}` to `x_t`.

        Args:
            model_output: output of the prior, `[B, C, H, W]`; `[B, 2C, H, W]` of a prior with learned variance
                is cut to its first half.
            timestep: one of `timesteps`.
            sample: the state `x_{t+1}`, `[B, C, H, W]`. Both may be callables that give them up: then they go as soon
                as they can, which takes less memory.
            project: the correction `x0 -> x0'` by the measurement; without it the prior samples freely.
            eta: overrides the one of the config.
            eta_b: overrides the one of the config.
            generator: source of the fresh noise, unless that is given.
            noise: the fresh noise, `[B, C, H, W]`, or what makes it when it is needed, which takes less memory.
            remaining_noise: noise accounting: told, after `project`, the fresh noise and its ratio to the signal at the
                next level, it returns what of it the corrected image still lacks; by default all.
            return_dict: whether to return a `DDRMSchedulerOutput` or a tuple.

        Raises:
            ValueError: if `set_timesteps` was not called, or `timestep` is not one of its timesteps.
        """
        eta = self.config.eta if eta is None else eta
        eta_b = self.config.eta_b if eta_b is None else eta_b

        # 1. alpha_{t+1} and alpha_t
        alpha, alpha_next = self._alphas(timestep)
        signal_next, noise_level_next = alpha_next.sqrt().item(), (1 - alpha_next).sqrt().item()

        # 2. f_theta(x_{t+1}) and eps_theta(x_{t+1})
        model_output, sample = (one() if callable(one) else one for one in (model_output, sample))
        x0, epsilon = self._denoised(model_output, alpha, sample)
        del model_output, sample  # of a large image few copies fit into memory: what is not used again goes
        if eta == 1:
            del epsilon

        # 3. x'_t: the denoised image, corrected by the measurement
        corrected = x0 if project is None else project(x0)

        # 4. x_t, in place where it can be
        prev_sample = torch.lerp(x0, corrected, eta_b).mul_(signal_next)
        del corrected
        if callable(noise):
            noise = noise()
        elif noise is None:
            noise = randn_tensor(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        if remaining_noise is not None:
            noise = remaining_noise(noise, noise_level_next / signal_next)
        prev_sample.add_(noise, alpha=noise_level_next * eta)
        if eta < 1:
            prev_sample.add_(epsilon, alpha=noise_level_next * (1 - eta))
        if not return_dict:
            return prev_sample, x0
        return DDRMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)

    step.takes_callables = True  # a subclass with a step of its own does not say so

    def _alphas(self, timestep: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The alpha of a timestep and of the one after it; after the last nothing is left to denoise: 1."""
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        timestep, schedule = int(timestep), self.timesteps.tolist()
        if timestep not in schedule:
            raise ValueError(f"timestep {timestep} is not one of the timesteps {schedule}")
        following = schedule.index(timestep) + 1
        alpha_next = self.alphas_cumprod[schedule[following]] if following < len(schedule) else torch.tensor(1.0)
        # A copy: through what was made in inference mode no gradient passes.
        return self.alphas_cumprod[timestep].clone(), alpha_next

    def _denoised(
        self, model_output: torch.Tensor, alpha: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Denoised image and noise of a state, from whichever of them the prior predicts."""
        signal, noise_level = alpha.sqrt().item(), (1 - alpha).sqrt().item()
        prediction = model_output[:, : sample.shape[1]]
        if self.config.prediction_type == "epsilon":
            return torch.add(sample, prediction, alpha=-noise_level).div_(signal), prediction
        if self.config.prediction_type == "sample":
            return prediction, (sample - signal * prediction) / noise_level
        return signal * sample - noise_level * prediction, signal * prediction + noise_level * sample


def needs_gradient(scheduler: Any) -> bool:
    """Whether a scheduler's step differentiates the prior's output by the state."""
    return getattr(scheduler, "needs_gradient", False)


def settings_taken(scheduler: Any) -> frozenset[str]:
    """Which of the settings that not every sampler has a scheduler takes: what it says, or what its methods show."""
    said = getattr(scheduler, "settings", None)
    if said is not None:
        return said
    step = inspect.signature(scheduler.step).parameters.keys()
    taken = step & {"eta", "eta_b"}
    if hasattr(scheduler, "nearest_timestep"):
        taken |= {"init_timestep"}
    if hasattr(scheduler, "noise_to_signal"):
        taken |= {"sharpness"} | ({"correction"} if "eta_b" in step else set())
        taken |= {"noise_accounting"} if "remaining_noise" in step else set()
    return frozenset(taken)


def of_protocol(scheduler: Any) -> Any:
    """A scheduler as it is if its steps take a correction and noise, else a `DDRMScheduler` of its config."""
    step = getattr(scheduler, "step", None)
    if step is not None and {"project", "noise"} <= inspect.signature(step).parameters.keys():
        return scheduler
    return DDRMScheduler.from_config({**scheduler.config, "_class_name": type(scheduler).__name__})


def scheduled(scheduler: Any, settings: Settings, uncertainty: float | None = None) -> Any:
    """A copy of a scheduler with its timesteps set; the original may be in use by other threads.

    Args:
        scheduler: any of the protocol (docs/architecture.md).
        settings: `num_inference_steps`, `init_timestep` and `timestep_spacing` are read. With the start `"auto"`
            sampling starts by the uncertainty, the later the finer the measurement, and not above the paper's 300
            where the betas are the paper's.
        uncertainty: what the operator says of itself; without it `"auto"` is the scheduler's own start.
    """
    scheduler, steps = copy.copy(scheduler), settings.num_inference_steps
    options = {"init_timestep": settings.init_timestep, "timestep_spacing": settings.timestep_spacing}
    options = {name: value for name, value in options.items() if value not in (None, "auto")}
    if settings.init_timestep == "auto" and uncertainty is not None:
        # Found with the embedded prior and the correction "posterior" (docs/corrections.md). What is coarser than
        # libjpeg's quality factor 7 needs more, given three steps or more to come down from it; never more than the
        # paper's 300 has.
        # A single step has to begin low: what it takes for noise it cannot put right later.
        noise_to_signal = 1.3 * uncertainty**0.5 * (1 - 0.6 / steps if steps > 1 else 0.2)
        if steps > 2:
            noise_to_signal *= max(uncertainty / 0.22, 1.0) ** (1.5 - 1.5 / steps)
        start = scheduler.nearest_timestep(min(noise_to_signal, 1.24))
        options["init_timestep"] = max(start, steps)
    scheduler.set_timesteps(steps, **options)
    return scheduler
