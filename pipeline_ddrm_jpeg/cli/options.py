"""Options that several commands take, each stated once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, Literal, get_type_hints

import typer

from ..jpeg_tables import WRITTEN_SUBSAMPLINGS
from ..presets import PRESETS
from .terminal import fail

Preset = Annotated[
    Literal[tuple(PRESETS)], typer.Option(help="Settings to start from; the options below change single ones.")
]
Subsampling = Literal[WRITTEN_SUBSAMPLINGS]
ChromaSubsampling = Annotated[Subsampling, typer.Option(help="Chroma subsampling.")]
DType = Literal["float32", "bfloat16", "float16"]


def with_options(command: Callable) -> Callable:
    """A command whose parameters that are dataclasses are typed by a person as their single fields."""
    parameters, groups = [], {}
    for parameter in signature(command, eval_str=True).parameters.values():
        kind = parameter.annotation
        if not is_dataclass(kind):
            parameters.append(parameter)
            continue
        groups[parameter.name] = kind
        hints = get_type_hints(kind, include_extras=True)
        parameters += [
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
            for field in fields(kind)
        ]

    @wraps(command)
    def grouped(**given: Any) -> Any:
        made = {name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
                for name, kind in groups.items()}  # fmt: skip
        return command(**given, **made)

    grouped.__signature__ = Signature([one.replace(kind=Parameter.KEYWORD_ONLY) for one in parameters])
    return grouped


# Settings of presets that are about one sampler, and so not for another.
_OF_DDRM = ("correction", "eta_b", "error_scale")


@dataclass
class Sampling:
    """The scheduler, and arguments of the pipeline's call, under their names there."""

    sampler: Annotated[
        Literal["ddrm", "pigdm"] | None,
        typer.Option(
            help="How prior and file are brought together: DDRM, or pseudoinverse guidance, whose steps cost three.",
            show_default="the prior's, ddrm",
        ),
    ] = None
    num_samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="Independent samples to average.", show_default="the preset's"),
    ] = None
    num_inference_steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            help="Network evaluations in a sample; 1 alone wants --temperature 1.",
            show_default="the preset's",
        ),
    ] = None
    init_timestep: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="Timestep at which sampling starts, or auto: by how coarse the file is.",
            show_default="the preset's",
        ),
    ] = None
    timestep_spacing: Annotated[
        Literal["leading", "trailing", "linspace", "log"] | None,
        typer.Option(help="How the timesteps are spaced.", show_default="the preset's"),
    ] = None
    eta: Annotated[
        float | None, typer.Option(min=0, max=1, help="Weight of fresh noise.", show_default="the prior's, 1.0")
    ] = None
    eta_b: Annotated[
        float | None, typer.Option(min=0, max=1, help="Weight of the correction.", show_default="the prior's, 0.4")
    ] = None
    temperature: Annotated[
        float | None, typer.Option(min=0, max=1, help="Scale of all noise.", show_default="the preset's")
    ] = None
    antithetic: Annotated[
        bool | None,
        typer.Option(
            "--antithetic/--independent",
            help="Give every second sample the noise of the one before with its sign changed.",
            show_default="the preset's",
        ),
    ] = None
    equivariant: Annotated[
        bool | None,
        typer.Option(
            "--equivariant/--upright",
            help="Show the network another flip or rotation of the picture at every step.",
            show_default="the preset's",
        ),
    ] = None
    correction: Annotated[
        Literal["ddrm", "nearest", "posterior"] | None,
        typer.Option(help="How a picture is made to agree with the file at every step.", show_default="the preset's"),
    ] = None
    error_scale: Annotated[
        float | None,
        typer.Option(min=0, help="For posterior: factor of the network's error.", show_default="the preset's"),
    ] = None
    sharpness: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="From 0, nearest to the original on average, to 1, most like a photograph.",
            show_default="the preset's",
        ),
    ] = None
    noise_accounting: Annotated[
        bool | None,
        typer.Option(
            help="For posterior: count what is left uncertain as noise, and add only the rest.", show_default="yes"
        ),
    ] = None
    consistent: Annotated[
        bool | None,
        typer.Option(
            help="Project the result onto what the file says, coefficient by coefficient.", show_default="the preset's"
        ),
    ] = None

    def settings(self, preset: str) -> dict[str, Any]:
        """A preset's arguments of the pipeline's call, with those that were chosen one by one."""
        chosen = {name: value for name, value in vars(self).items() if value is not None}
        sampler = chosen.pop("sampler", None)
        start = chosen.get("init_timestep", "auto")
        if start != "auto":
            if not (start.isascii() and start.isdigit()):
                fail(f"--init-timestep {start} is neither a whole number nor auto", 2)
            chosen["init_timestep"] = int(start)
        preset_settings = PRESETS[preset]
        if sampler == "pigdm":
            preset_settings = {name: value for name, value in preset_settings.items() if name not in _OF_DDRM}
        settings = preset_settings | chosen
        steps, start = settings["num_inference_steps"], settings.get("init_timestep", "auto")
        if start != "auto" and steps > start:
            fail(f"--steps {steps} does not fit below --init-timestep {start}; raise one or lower the other", 2)
        return settings


@dataclass
class Computing:
    """Which network computes, where, and in what."""

    prior: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of another prior (a Hub id is downloaded).", show_default="embedded"),
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where to compute.")] = "auto"
    dtype: Annotated[
        Literal["auto", DType],
        typer.Option(help="What the network computes in; auto: float32, or bfloat16 where that is faster."),
    ] = "auto"


def numbers(option: str, text: str, kind: type = int) -> tuple:
    """What was given to an option that takes numbers with commas."""
    try:
        return tuple(kind(number) for number in text.split(","))
    except ValueError:
        fail(f"{option} {text!r} is not a list of numbers with commas", 2)
