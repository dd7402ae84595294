"""Ctrl-C while modules are imported, which would end in the tracebacks of whoever was being imported."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupted_quietly() -> Iterator[None]:
    """Within, where nothing can be half done, Ctrl-C ends the process with a sentence and status 130."""

    def stop(*_) -> None:
        os.write(2, b"ddrm-jpeg: stopped\n")
        os._exit(130)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or someone else's business
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
