"""The sampler's settings: each with its words, range and default, stated once; and the presets, made of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_type_hints

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace", "log")
CORRECTIONS = ("ddrm", "nearest", "posterior")


@dataclass(frozen=True)
class About:
    """What there is to say about a setting. Command, page, modular form, checks and documentation read it here."""

    words: str
    """One sentence for people."""
    label: str
    """Its name on the page, in a word or two."""
    options: tuple[str, ...] = ()
    """The command's options; by default `--name-with-dashes`."""
    least: float | None = None
    most: float | None = None
    shown: float | None = None
    """Where the page's slider ends, if the range has no end."""
    step: float = 1
    """Of the slider."""
    choices: tuple[str, ...] = ()
    unset: str = ""
    """What `None` stands for, in words; where there are none, `None` is refused."""
    kind: Any = None
    """Its type."""

    @property
    def range(self) -> str:
        """What values there are, in words."""
        if self.choices:
            return ", ".join(self.choices)
        if self.least is None:
            return "yes or no"
        if self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        return f"above {self.least:g}" if self.kind is float else f"at least {self.least:g}"


def _setting(default: Any, words: str, label: str, **about: Any) -> Any:
    return field(default=default, metadata={"about": About(words, label, **about)})


@dataclass(frozen=True)
class Settings(Mapping):
    """The sampler's settings. Without arguments they are those of the preset `balanced`.

    A mapping, too: `settings | {"temperature": 0.5}` are others. `pipe(image, settings=...)` takes them.

    Raises:
        ValueError: for a value out of range; it names the setting.
        TypeError: for a setting that there is not.
    """

    num_samples: int = _setting(
        1, 'Samples to average; 1 is the paper\'s "(S)", 8 its "(A)".', "Samples", options=("--samples",), least=1,
        shown=16,
    )  # fmt: skip
    num_inference_steps: int = _setting(
        4, "Network evaluations in a sample.", "Sampling steps", options=("--steps",), least=1, shown=100
    )
    init_timestep: int | Literal["auto"] | None = _setting(
        "auto", "Timestep at which sampling starts; auto: the coarser the file, the noisier.", "Initial timestep",
        least=1, unset="the prior's, the paper's 300",
    )  # fmt: skip
    timestep_spacing: str | None = _setting(
        "log", "How the timesteps are spaced: uniformly, or log, denser near the end.", "Timestep spacing",
        choices=TIMESTEP_SPACINGS, unset="the prior's, leading",
    )  # fmt: skip
    eta: float | None = _setting(
        None, "Weight of fresh noise against predicted noise.", "Stochasticity", least=0, most=1, step=0.05,
        unset="the prior's, 1",
    )  # fmt: skip
    eta_b: float | None = _setting(
        None, "Weight of the corrected image at every step.", "Guidance weight", least=0, most=1, step=0.05,
        unset="1 with posterior, else the prior's, 0.4",
    )  # fmt: skip
    temperature: float | None = _setting(
        None, "Scale of all noise; 1 is the paper's, with less a sample is nearer to the mean.", "Temperature", least=0,
        most=1, step=0.05, unset="by steps and samples",
    )  # fmt: skip
    antithetic: bool = _setting(
        False, "Give every second sample the noise of the one before with its sign changed.", "Antithetic samples",
        options=("--antithetic", "--independent"),
    )  # fmt: skip
    equivariant: bool = _setting(
        True, "Show the network another flip or rotation of the image at every step.", "Test-time augmentation",
        options=("--equivariant", "--upright"),
    )  # fmt: skip
    correction: str = _setting(
        "posterior", "How every step makes the image agree with the file.", "Data consistency", choices=CORRECTIONS
    )
    error_scale: float = _setting(
        3.0, "For posterior: factor of the network's error.", "Error scale", least=0, shown=10, step=0.1
    )
    noise_accounting: bool = _setting(
        True, "For posterior: count what is left uncertain as noise, and add only the rest.", "Noise accounting",
        options=("--noise-accounting", "--no-noise-accounting"),
    )  # fmt: skip
    sharpness: float = _setting(
        0.0, "From 0, nearest to the original on average, to 1, most like a photograph.", "Sharpness",
        least=0, most=1, step=0.05,
    )  # fmt: skip
    consistent: bool = _setting(
        True, "Project the result onto the file, coefficient by coefficient.", "Final projection",
        options=("--consistent", "--no-consistent"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name, about in ABOUT.items():
            _check(name, self[name], about)
        steps, start = self.num_inference_steps, self.init_timestep
        if isinstance(start, Integral) and steps > start:
            raise ValueError(f"num_inference_steps is {steps}; it must be at most init_timestep, {start}")

    def __getitem__(self, name: str) -> Any:
        if name not in ABOUT:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(ABOUT)

    def __len__(self) -> int:
        return len(ABOUT)

    def __or__(self, changes: Mapping[str, Any]) -> Settings:
        """These settings with some changed."""
        for name in changes:
            if name not in ABOUT:
                raise TypeError(f"there is no setting {name}; there are {', '.join(ABOUT)}")
        return replace(self, **changes)

    @property
    def noise_scale(self) -> float:
        """The temperature as it is given, or by steps and samples: the more steps, the less; more again for an average.

        At the presets' own steps it is what was found best for them (docs/corrections.md).
        """
        if self.temperature is not None:
            return self.temperature
        return min(max(1.4 / self.num_inference_steps, 0.4 if self.num_samples == 1 else 0.5), 1.0)


_KINDS = get_type_hints(Settings)
ABOUT: dict[str, About] = {one.name: replace(one.metadata["about"], kind=_KINDS[one.name]) for one in fields(Settings)}
"""What there is to say about each setting, by its name."""


def _check(name: str, value: Any, about: About) -> None:
    """Raise `ValueError` for a value that a setting cannot have."""
    kinds = get_args(about.kind) or (about.kind,)
    auto = Literal["auto"] in kinds
    if (value is None and about.unset) or (auto and value == "auto"):
        return
    if about.choices:
        fits, wanted = value in about.choices, f"one of {', '.join(about.choices)}"
    elif about.least is None:
        fits, wanted = isinstance(value, bool), "True or False"
    elif int in kinds:
        fits, wanted = isinstance(value, Integral) and value >= about.least, f"a whole number of at least {about.least}"
        wanted += ', or "auto"' if auto else ""
    elif about.most is None:
        fits, wanted = isinstance(value, Real) and about.least < value < math.inf, f"a number above {about.least}"
    else:
        fits = isinstance(value, Real) and about.least <= value <= about.most
        wanted = f"between {about.least} and {about.most}"
    if not fits:
        raise ValueError(f"{name} is {value!r}; it must be {wanted}")


def settings_of(preset: str | None, settings: Mapping[str, Any] | None, changes: Mapping[str, Any]) -> Settings:
    """The settings that a preset, settings in its place, and single changes of either make.

    Args:
        preset: a name in `PRESETS`; by default `DEFAULT`.
        settings: `Settings`, which no preset goes with; or single settings by name, which change the preset.
        changes: single settings by name, which change either.

    Raises:
        ValueError: for a preset that there is not, or values out of range.
        TypeError: for a setting that there is not.
    """
    if isinstance(settings, Settings):
        if preset is not None:
            raise ValueError("give either preset or whole Settings, not both; single settings go into a dict")
        return settings | changes
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}; it must be one of {', '.join(PRESETS)}")
    return PRESETS[preset or DEFAULT] | {**(settings or {}), **changes}


def moved_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments that the pipeline's call had in the version before, as settings, and as fields of `Tiling`.

    For one release they still work; a warning says what to write.

    Raises:
        TypeError: for others.
    """
    windows = {name: value for name, value in arguments.items() if name.startswith("window_")}
    single = {name: value for name, value in arguments.items() if name not in windows}
    known = {*ABOUT, "window_size", "window_overlap", "window_batch_size"}
    if unknown := [name for name in arguments if name not in known]:
        raise TypeError(f"DDRMJPEGPipeline() got an unexpected keyword argument {unknown[0]!r}")
    for names, instead in ((single, "preset=... or settings={...}"), (windows, "pipe.enable_tiling(...)")):
        if names:
            message = f"{', '.join(names)}: the call of the next release does not take this; use {instead}"
            warnings.warn(message, FutureWarning, stacklevel=4)
    return single, {name.removeprefix("window_"): value for name, value in windows.items() if value is not None}


_PAPER = Settings(
    num_inference_steps=20,
    init_timestep=300,
    timestep_spacing="leading",
    eta=1.0,
    eta_b=0.4,
    temperature=1.0,
    equivariant=False,
    correction="ddrm",
    consistent=False,
)

PRESETS: dict[str, Settings] = {
    "fast": Settings(num_inference_steps=2, error_scale=2.5),
    "balanced": Settings(),
    "best": Settings(num_samples=2, num_inference_steps=6, antithetic=True),
    "paper": _PAPER,
    "paper-average": _PAPER | {"num_samples": 8},
}
"""Settings by name: `pipe("photo.jpg", preset="fast")`.

The first three were found by measurement with the embedded prior (docs/corrections.md); `paper` and `paper-average` are
the settings that the paper calls "Ours (S)" and "Ours (A)".
"""
DEFAULT = "balanced"
"""The preset of the call, the command, the page, the modular form and evaluations, unless another is named."""
