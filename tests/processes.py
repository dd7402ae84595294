"""The command, and scripts, in processes of their own, which are forked from one that has done the imports.

Those of torch and diffusers take seconds. Such a process has what a process has, signals, exit status, limits and
children, but not an environment of its own; it computes in one thread.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from functools import cache
from itertools import count
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch", "accelerate", "pipeline_ddrm_jpeg.pipeline", "pipeline_ddrm_jpeg.cli", "matplotlib.pyplot"]
)
_numbers = count()


@cache
def _words() -> tempfile.TemporaryDirectory:
    """For what processes print; not made in one of them."""
    return tempfile.TemporaryDirectory(prefix="words")


class Process:
    """A running process, with the methods of `subprocess.Popen`.

    Args:
        program: a script, or `None` for the command.
        arguments: of it.
        prelude: Python that it runs first.
    """

    def __init__(self, program: Path | None, *arguments: object, prelude: str = "") -> None:
        folder = Path(_words().name, str(next(_numbers)))
        folder.mkdir()
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        for path in (self.stdout, self.stderr):
            path.touch()
        started = (program, [*map(str, arguments)], prelude, self.stdout, self.stderr)
        self._process = _context.Process(target=_run, args=started, daemon=True)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> int:
        self._process.join(timeout)
        assert self.returncode is not None, self.stderr.read_text()
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        return self.stdout.read_text(), self.stderr.read_text()


def run(program: Path | None, *arguments: object) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run`, of a script or of the command (`None`)."""
    process = Process(program, *arguments)
    output, errors = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


def _run(program: Path | None, arguments: list[str], prelude: str, stdout: Path, stderr: Path) -> None:
    import torch

    from pipeline_ddrm_jpeg.cli import app

    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    exec(prelude, {})
    if program is None:
        return app(arguments, prog_name="ddrm-jpeg")
    sys.argv = [str(program), *arguments]
    sys.path.insert(0, str(program if program.is_dir() else program.parent))
    runpy.run_path(str(program), run_name="__main__")
