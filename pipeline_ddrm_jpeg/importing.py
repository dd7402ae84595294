"""Importing what takes seconds to import, such as torch and diffusers."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Within, Ctrl-C ends the process with a sentence and status 130, and no garbage is collected.

    Nothing can be half done there, and all that is made stays: to look for garbage took a tenth to a fifth of the time.
    """

    def stop(*_) -> None:
        os.write(2, b"ddrm-jpeg: stopped\n")
        os._exit(130)

    collects, ours = gc.isenabled(), signal.getsignal(signal.SIGINT) is signal.default_int_handler
    gc.disable()
    if ours:  # otherwise it is ignored, or someone else's business
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if collects:
            gc.enable()
