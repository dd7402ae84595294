"""What is printed, and where: names that command no terminal, streams that are closed or full, sentences that end."""

from __future__ import annotations

import os
import sys
import unicodedata
import warnings
from io import TextIOWrapper
from typing import IO, Any, NoReturn

import typer
from PIL import Image
from typer.core import TyperGroup


class App(typer.Typer):
    """Tells an error of the system, such as a full disk under the standard output, in a sentence."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _prepare_streams()
        # What claims too many pixels is refused in a sentence; Pillow warns of half as many.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            try:
                return super().__call__(*args, **kwargs)
            finally:
                sys.stdout.flush()
        except OSError as error:
            complain(f"{error.filename or 'standard output'}: {error.strerror or error}")
            _discard(sys.stdout)
            sys.exit(1)


class Group(TyperGroup):
    """Shows in errors of usage, too, what is odd in names of files."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(getattr(error, "message", None), str):
                error.message = visible(error.message)
            raise


class Lines:
    """Takes lines, each written at once, until one cannot be; that is told, and the run goes on."""

    def __init__(self, name: str, stream: IO[str]) -> None:
        self.name, self.stream, self.failed = name, stream, False

    def __call__(self, line: str) -> None:
        if self.failed:
            return
        try:
            say(line, self.stream)
        except OSError as error:
            self.failed = True
            complain(f"{self.name}: {error.strerror}; the run goes on without it")
            _discard(self.stream)


def say(line: str, stream: IO[str] | None = None) -> None:
    """Print a line, to the standard output unless told otherwise."""
    print(visible(line), file=stream or sys.stdout, flush=True)


def complain(message: object) -> None:
    """Print what went wrong to the standard error."""
    say(f"ddrm-jpeg: {message}", sys.stderr)


def fail(message: object, status: int = 1) -> NoReturn:
    """End with a sentence: status 1 for what failed, 2 for wrong usage, 130 for Ctrl-C."""
    complain(message)
    raise typer.Exit(status)


def visible(text: str) -> str:
    """The text with escapes in place of what could command a terminal, break a line or turn its direction."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" else c
        for c in text
    )


class _Errors(TextIOWrapper):
    """A standard error that cannot be written to must not cost anyone an image."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            _discard(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _discard(self)


def _prepare_streams() -> None:
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:  # closed; the next file that is opened would take its place
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
            stream = open(number, mode, closefd=False)  # noqa: SIM115 for the whole run
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    if isinstance(sys.stderr, TextIOWrapper) and not isinstance(sys.stderr, _Errors):
        sys.stderr = _Errors(sys.stderr.buffer, sys.stderr.encoding, "backslashreplace", line_buffering=True)


def _discard(stream: IO[str]) -> None:
    """Let what is still to be written to a stream vanish: it must not fail once more when Python ends."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
