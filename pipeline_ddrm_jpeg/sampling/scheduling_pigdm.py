"""The update of "Pseudoinverse-Guided Diffusion Models for Inverse Problems".

Song, Vahdat, Mardani, Kautz, ICLR 2023; called "the paper" below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers asks the module for it
from diffusers.utils.torch_utils import randn_tensor

from .scheduling_ddrm import DDRMScheduler, DDRMSchedulerOutput


class PiGDMScheduler(DDRMScheduler):
    """Pseudoinverse guidance (the paper, section 3 and Algorithm 1) in a DDIM step, on the noise schedule of DDRM.

    A denoised image `x0` is not corrected itself: what its measurement lacks goes back through the prior to the
    state `x_t`, by the guidance `g = (h^+(y) - h^+(h(x0)))^T dx0/dx_t`. The gradient of `log p(y | x_t)` is then
    `g / r_t^2` (equation 8, with any `h` for the matrix `H`), `r_t^2` being the variance of `x0` given `x_t` (equation
    4); the adaptive weight is `r_t^2`, so that `r_t` need not be known. For JPEG, `h` encodes and `h^+` decodes.

    A step costs the prior's evaluation and a backward pass through it, about two more: three in all. Where the prior
    sees several windows, each is computed once more on the way back instead of being kept: four.

    Args:
        eta: weight of fresh noise against predicted noise, 0 (DDIM) to 1 (DDPM, the paper's).
        others: as of `DDRMScheduler`, but for `eta_b`, which there is not.
    """

    name: ClassVar = "pigdm"
    settings: ClassVar = frozenset({"eta", "init_timestep", "sharpness"})
    evaluations_a_step: ClassVar = 3
    needs_gradient = True
    ignore_for_config: ClassVar = ["eta_b"]

    @classmethod
    def from_config(cls, config: Any = None, **kwargs: Any) -> PiGDMScheduler:
        """As of the base class; the `eta_b` of a `DDRMScheduler` is left out."""
        config = {name: value for name, value in (config or {}).items() if name not in cls.ignore_for_config}
        return super().from_config(config, **kwargs)

    def step(
        self,
        model_output: torch.Tensor | Callable[[], torch.Tensor],
        timestep: int | torch.Tensor,
        sample: torch.Tensor | Callable[[], torch.Tensor],
        project: Callable[[torch.Tensor], torch.Tensor] | None = None,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: torch.Tensor | Callable[[], torch.Tensor] | None = None,
        return_dict: bool = True,
    ) -> DDRMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One step of Algorithm 1 of the paper, from `x_t` to `x_s`.

        Args:
            model_output: output of the prior, computed from `sample` with gradients enabled, `[B, C, H, W]`;
                `[B, 2C, H, W]` of a prior with learned variance is cut to its first half.
            timestep: one of `timesteps`.
            sample: the state `x_t`, `[B, C, H, W]`, which requires a gradient. Both may be callables that give them up.
            project: the correction `x0 -> x0 - h^+(h(x0)) + h^+(y)`, or another, by the measurement; without it the
                prior samples freely.
            eta: overrides the one of the config.
            generator: source of the fresh noise, unless that is given.
            noise: the fresh noise, `[B, C, H, W]`, or what makes it when it is needed.
            return_dict: whether to return a `DDRMSchedulerOutput` or a tuple.

        Returns:
            `x_s`, and `x0` before any guidance; neither has a gradient.

        Raises:
            ValueError: if `set_timesteps` was not called, `timestep` is not one of its timesteps, or there is no
                gradient to follow.
        """
        model_output, sample = (one() if callable(one) else one for one in (model_output, sample))
        if project is not None and not (sample.requires_grad and model_output.requires_grad):
            raise ValueError(
                "PiGDMScheduler needs the gradient through the prior: compute model_output from a sample that requires"
                " one, with gradients enabled and outside of torch.inference_mode"
            )
        eta = self.config.eta if eta is None else eta
        alpha, alpha_next = self._alphas(timestep)

        # 1. x0 and epsilon, the predicted noise; the guidance of the former, through the prior
        with torch.set_grad_enabled(project is not None):
            x0, epsilon = self._denoised(model_output, alpha, sample)
        del model_output
        guidance = None
        if project is not None:
            lacking = project(x0.detach()) - x0.detach()
            (guidance,) = torch.autograd.grad(x0, sample, lacking)  # sets the prior's activations free
            del lacking
        x0, epsilon = x0.detach(), epsilon.detach()
        del sample

        # 2. x_s = sqrt(alpha_s) x0 + c1 noise + c2 epsilon + sqrt(alpha_s alpha_t) g, the last weight as in the
        # authors' program (NVlabs/RED-diff)
        c1 = eta * ((1 - alpha / alpha_next) * (1 - alpha_next) / (1 - alpha)).sqrt().item()
        c2 = (1 - alpha_next - c1**2).clamp(min=0).sqrt().item()
        prev_sample = (alpha_next.sqrt().item() * x0).add_(epsilon, alpha=c2)
        del epsilon
        if guidance is not None:
            prev_sample.add_(guidance, alpha=(alpha_next * alpha).sqrt().item())
        if c1:
            if callable(noise):
                noise = noise()
            elif noise is None:
                noise = randn_tensor(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
            prev_sample.add_(noise, alpha=c1)
        if not return_dict:
            return prev_sample, x0
        return DDRMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)

    step.takes_callables = True
