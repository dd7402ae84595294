"""The command in processes of its own, which are forked from one that has done the imports: they take seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "accelerate", "pipeline_ddrm_jpeg.pipeline", "pipeline_ddrm_jpeg.cli"])


class Command:
    """The command, running; with the methods of `subprocess.Popen`. It computes in one thread.

    Args:
        arguments: of the command.
        words: a new folder for what it prints: `stdout` and `stderr`.
        prelude: Python that it runs first.
    """

    def __init__(self, *arguments: object, words: Path, prelude: str = "") -> None:
        self.words = words
        words.mkdir()
        started = (words, [*map(str, arguments)], prelude)
        self.process = _context.Process(target=_run, args=started, daemon=True)
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> int:
        self.process.join(timeout)
        assert self.returncode is not None, (self.words / "stderr").read_text()
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        return (self.words / "stdout").read_text(), (self.words / "stderr").read_text()


def _run(words: Path, arguments: list[str], prelude: str) -> None:
    import torch

    from pipeline_ddrm_jpeg.cli import app

    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(words / name, os.O_WRONLY | os.O_CREAT), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    exec(prelude, {})
    app(arguments, prog_name="ddrm-jpeg")
