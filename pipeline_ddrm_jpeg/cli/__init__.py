"""The command `ddrm-jpeg`: words typed by a person, turned into calls of the package."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from .evaluate import evaluate
from .inspect import degrade, inspect
from .publish import convert, push
from .restore import restore
from .terminal import App, Group, say

app = App(
    name="ddrm-jpeg",
    cls=Group,
    help="Restore images ruined by JPEG, with a diffusion prior and the coefficients of their own files.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (restore, evaluate, convert, push, inspect, degrade):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"ddrm-jpeg {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Exit status: 0 all done, 1 something failed, 2 wrong usage, 130 stopped with Ctrl-C."""
