"""What needs an extra, and the sentence that names it where its packages are missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around the imports of a program that an extra brings: without it that ends with a sentence, status 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        print(missing(error.name, extra), file=sys.stderr)
        raise SystemExit(2) from None


def missing(packages: str, extra: str) -> str:
    """That packages are not installed, and how to install them."""
    return f"{packages} is not installed; the extra {extra} brings it: pip install 'pipeline-ddrm-jpeg[{extra}]'"
