"""One image on its way through the sampler: its schedule, its passes, every step of them, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Generator as Coroutine
from typing import Any

import torch

from .corrections import Correction, final_error, first_state
from .denoiser_error import DenoiserError, WienerError
from .observation import Observation
from .samples import PIXELS_IN_A_PASS, Generator, Noise, Samples, passes
from .scheduling_ddrm import needs_gradient, scheduled, settings_taken
from .settings import Settings, settings_of
from .tiling import State, views_at

# What a setting is for a sampler that does not take it: the value that asks for nothing.
_UNASKED = {
    "eta": None,
    "eta_b": None,
    "correction": "ddrm",
    "noise_accounting": False,
    "init_timestep": None,
    "sharpness": 0.0,
}


def chosen(
    scheduler: Any, preset: str | None, settings: Mapping[str, Any] | None, changes: Mapping[str, Any]
) -> Settings:
    """The settings that a preset, settings in its place, and single changes of either make for a scheduler.

    Of a preset and of whole `Settings`, what the scheduler does not take is left out.

    Args:
        scheduler: any of the protocol (docs/architecture.md).
        preset, settings, changes: as of `settings_of`.

    Raises:
        ValueError, TypeError: as `settings_of` does; and for a single setting that the scheduler does not take, or
            timesteps that it does not have.
    """
    named = {*changes, *(() if isinstance(settings, Settings) else settings or ())}
    settings = settings_of(preset, settings, changes)
    taken, left_out = settings_taken(scheduler), {}
    for name, unasked in _UNASKED.items():
        value = settings[name]
        fits = value in ("nearest", unasked) or (name == "init_timestep" and value != "auto")
        if name in taken or fits:
            continue
        if name in named and (name != "noise_accounting" or settings.correction == "posterior"):
            raise ValueError(f"{type(scheduler).__name__} does not take {name} {value}; leave it out")
        left_out[name] = unasked
    settings |= left_out
    if settings.init_timestep != "auto":
        scheduled(scheduler, settings)
    return settings


class Session:
    """The sampler of the paper (section 3) at work on one image, or on a batch of one size.

    Iterate over it for the steps. At each, `step.state()` is what the prior is asked, `step.advance(output)` takes what
    it says; after the last, `finish` has the result. Who iterates calls the prior: windows of several sessions can
    share its calls.

    Args:
        observation: what is known of the image.
        scheduler: any of the protocol (docs/architecture.md); it is copied.
        error: how far the prior is off.
        settings: those that the scheduler takes (`chosen`).
        generator: source of all noise, as of the pipeline's call.
        output_type: `"pil"`, `"np"` or `"pt"`.
        device: where the samples are made.
        labels: classes, `[B]`, for a class-conditional prior.
        most_pixels: of the samples that share a pass.
    """

    def __init__(
        self,
        observation: Observation,
        scheduler: Any,
        error: DenoiserError | WienerError,
        settings: Settings,
        generator: Generator,
        output_type: str,
        device: torch.device,
        labels: torch.Tensor | None = None,
        most_pixels: int = PIXELS_IN_A_PASS,
    ) -> None:
        self.observation, self.error, self.settings, self.labels = observation, error, settings, labels
        self.schedule = scheduled(scheduler, settings, observation.operator.uncertainty())
        self.gradient = needs_gradient(self.schedule)
        self.shape = observation.operator.decode(observation.y).shape
        self.passes = passes(generator, settings, self.shape, device, most_pixels)
        self.fresh = Noise(generator, self.shape, 1.0, device)
        self.samples = Samples(observation, output_type, settings.consistent)

    @property
    def states(self) -> int:
        """How many states the prior is asked about in all."""
        return self.shape[0] * self.settings.num_samples * len(self.schedule.timesteps)

    def __iter__(self) -> Iterator[Step]:
        for noise in self.passes:
            step = Step(self, noise)
            for step.i, step.timestep in enumerate(self.schedule.timesteps):
                yield step
                if step.is_last:
                    break
            for sample in step.take_sample().split(self.shape[0]):
                self.samples.add(sample)
            del step, sample  # while the next are made, that memory is needed

    def finish(self) -> list[dict[str, Any]]:
        """The fields of the pipeline's output, one dict an image; the samples are used up."""
        if self.settings.sharpness:
            std = self.error.at(self.schedule.noise_to_signal(self.schedule.timesteps[-1]))
            self.samples.sharpen(std, self.fresh.start(), self.settings.sharpness)
        images = self.samples.finish(final_error(self.observation, self.error))
        return [fields | {"timesteps": self.schedule.timesteps.tolist()} for fields in images]


class Step:
    """Where the samples of one pass are. The same object goes through all steps of the pass."""

    i: int
    """Number of the step, from 0."""
    timestep: torch.Tensor

    def __init__(self, session: Session, noise: Noise) -> None:
        self.session, self.noise, settings = session, noise, session.settings
        self.correction = Correction(session.observation, settings, session.error)
        self.sample = first_state(session.schedule, self.correction, noise)
        """The state, `[B, 3, H, W]` float32; after the last step a sample of the image."""
        self.denoised: torch.Tensor | None = None
        """The prior's image at the last step, before any correction."""
        self.is_last = False
        """Set it to end the pass after this step."""

    def state(self) -> State:
        """What the prior is asked."""
        session = self.session
        self.denoised = None
        self.sample = self.sample.detach().requires_grad_(session.gradient)
        steps, equivariant = len(session.schedule.timesteps), session.settings.equivariant
        views = views_at(self.noise.numbers, self.i, steps) if equivariant else None
        return State(self.sample, self.timestep, session.labels, views)

    def correct(self) -> dict[str, Any]:
        """The arguments of the scheduler's step by which it corrects: `project`, a callable `x0 -> x0'`, and others."""
        return self.correction.options(self.session.schedule, self.timestep)

    def advance(self, state: State, options: dict[str, Any] | None = None) -> None:
        """Mix what the prior says of a state, corrected, and fresh noise into the next state.

        Args:
            state: with its output, which is taken from it.
            options: those of `correct`, or others.
        """
        schedule, settings = self.session.schedule, self.session.settings
        etas = {name: settings[name] for name in ("eta", "eta_b") if settings[name] is not None}
        options = {"noise": self.noise.step, "return_dict": False} | (self.correct() if options is None else options)
        given = [state.take, self._take_state]
        if not getattr(schedule.step, "takes_callables", False):
            given = [one() for one in given]
        with torch.set_grad_enabled(self.session.gradient):
            sample, denoised = schedule.step(given[0], self.timestep, given[1], **options | etas)
        self.sample, self.denoised = sample.detach(), denoised.detach()

    def replace_denoised(self, denoised: torch.Tensor) -> None:
        """Have another image in place of the prior's, `[B, 3, H, W]` in [-1, 1]; the state moves by the difference."""
        change, self.denoised = denoised - self.denoised, denoised
        following = self.session.schedule.timesteps[self.i + 1 :]
        if len(following):
            change = self.session.schedule.add_noise(change, torch.zeros_like(change), following[0])
        self.sample = self.sample + change

    @property
    def preview(self) -> torch.Tensor:
        """The prior's images at this step, `[B, 3, H, W]`, cropped and tinted as the result will be, on [0, 1]."""
        return self.session.observation.shown(self.denoised)

    def take_sample(self) -> torch.Tensor:
        """The samples of the pass, of which nothing is kept here, nor what led to them."""
        self.denoised = self.correction = None
        return self._take_state()

    def _take_state(self) -> torch.Tensor:
        sample, self.sample = self.sample, None
        return sample


def in_step(
    images: Iterable[Coroutine[State, None, Any]],
    predict: Callable[[list[State]], None],
    count: Callable[[int, int], int],
    most: int,
) -> list[Any]:
    """What generators return that yield states for the prior, in their order.

    Args:
        images: the generators; one is begun while the states of those that are have fewer than `most` windows.
        predict: gives states their output.
        count: the windows of a state, by its height and width.
        most: windows.
    """
    following, asking, finished = enumerate(images), {}, {}

    def go_on(index: int, image: Coroutine[State, None, Any]) -> None:
        asking.pop(index, None)
        try:
            asking[index] = image, next(image)
        except StopIteration as end:
            finished[index] = end.value

    def windows() -> int:
        return sum(len(state.sample) * count(*state.sample.shape[-2:]) for _, state in asking.values())

    while True:
        while (not asking or windows() < most) and (one := next(following, None)):
            go_on(*one)
        if not asking:
            return [finished[index] for index in sorted(finished)]
        with torch.set_grad_enabled(any(state.sample.requires_grad for _, state in asking.values())):
            predict([state for _, state in asking.values()])
        for index, (image, _) in list(asking.items()):
            go_on(index, image)
