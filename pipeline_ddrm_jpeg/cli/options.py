"""Options that several commands take, each stated once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer

from ..jpeg.tables import WRITTEN_SUBSAMPLINGS
from ..sampling.settings import ABOUT, PRESETS, About, settings_of
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


# Modules of the samplers are scheduling_NAME.py; to import one takes seconds.
_MODULES = (Path(__file__).parents[1] / "sampling").glob("scheduling_*.py")
_SAMPLERS = tuple(sorted(path.stem.removeprefix("scheduling_") for path in _MODULES))


def _flags(name: str) -> tuple[str, ...]:
    """Options of a setting; of two the second is its opposite."""
    return ABOUT[name].options or ("--" + name.replace("_", "-"),)


def _option(name: str, about: About) -> tuple[str, Any, Any]:
    """A setting as a field of `Sampling`: its name, annotated type, and default."""
    kind = next((one for one in get_args(about.kind) if one is not NoneType), about.kind)
    limits = {} if about.least is None else {"min": about.least, "max": about.most}
    if about.choices:
        kind = Literal[about.choices]
    elif Literal["auto"] in get_args(about.kind):
        kind, limits = str, {"metavar": "T"}
    option = typer.Option("/".join(_flags(name)), help=about.words, show_default="the preset's", **limits)
    return name, Annotated[kind | None, option], field(default=None)


class _Sampling:
    """The scheduler, and the settings chosen one by one."""

    sampler: str | None

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that were given, by name."""
        chosen = {name: getattr(self, name) for name in ABOUT if getattr(self, name) is not None}
        start = chosen.get("init_timestep", "auto")
        if start != "auto":
            if not (start.isascii() and start.isdigit()):
                fail(f"--init-timestep {start} is neither a whole number nor auto", 2)
            chosen["init_timestep"] = int(start)
        return chosen

    def arguments(self, preset: str) -> dict[str, Any]:
        """Preset and settings as arguments of the pipeline's call; what does not fit ends in a sentence."""
        arguments = {"preset": preset, "settings": self.chosen}
        try:
            settings_of(**arguments, changes={})
        except ValueError as error:
            fail(in_options(error), 2)
        return arguments


_SAMPLER = Annotated[
    Literal[_SAMPLERS] | None,
    typer.Option(
        help="How prior and file are brought together: DDRM, or pseudoinverse guidance, whose steps cost three.",
        show_default="the prior's, ddrm",
    ),
]
Sampling = make_dataclass(
    "Sampling",
    [("sampler", _SAMPLER, field(default=None)), *(_option(*one) for one in ABOUT.items())],
    bases=(_Sampling,),
)


def in_options(error: Exception) -> str:
    """What is wrong with settings, with the names that they have as options."""
    text = str(error)
    for name in ABOUT:
        text = re.sub(rf"\b{name}\b", _flags(name)[0], text)
    return text


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
