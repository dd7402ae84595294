"""Numbers for people: shares, sizes, times."""

from __future__ import annotations

import math


def percent(share: float) -> str:
    """A share as a percentage, rounded down: 100 % are all."""
    return "100 %" if share == 1 else f"{math.floor(1e4 * share) / 100:.2f} %"


def size(count: int) -> str:
    """A number of bytes."""
    return f"{count} bytes" if count < 1000 else f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """A time, no more exactly than it can be known beforehand."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 100 * 60 else f"{seconds / 3600:.0f} hours"
