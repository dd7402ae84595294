"""What needs an extra, and the sentence that names it where its packages are missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around the imports of what an extra brings: without it the program ends with a sentence, status 2.

    For programs. A library function lets the `ModuleNotFoundError` through.

    Args:
        extra: its name in `pyproject.toml`.

    Raises:
        SystemExit: if a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        print(missing(error.name, extra), file=sys.stderr)
        raise SystemExit(2) from None


def missing(packages: str, extra: str) -> str:
    """That packages are not installed, and how to install them."""
    return f"{packages} is not installed; the extra {extra} brings it: {how_to_install(extra)}"


def how_to_install(extra: str) -> str:
    """The line for a shell."""
    return f"pip install 'pipeline-ddrm-jpeg[{extra}]'"
