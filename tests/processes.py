"""The command, scripts and code in processes of their own, which are forked from one that has done the imports.

Those of torch and diffusers take seconds. Such a process has what a process has, signals, exit status, limits and
children, but the environment of all others; it computes in one thread.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
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

# Python that leaves a process without this package, as if it were not installed.
STRANGER = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "pipeline_ddrm_jpeg"]:
    del sys.modules[name]
sys.modules["pipeline_ddrm_jpeg"] = None  # not importable
"""


@atexit.register
def _kill_all() -> None:
    for process in multiprocessing.active_children():  # those of a test that failed before it waited for them
        process.kill()


@cache
def _words() -> tempfile.TemporaryDirectory:
    """For what processes print; not made in one of them."""
    return tempfile.TemporaryDirectory(prefix="words")


class Process:
    """A running process, with the methods of `subprocess.Popen`.

    Args:
        program: a script, Python as text, or `None` for the command.
        arguments: of it.
        prelude: Python that it runs first.
        cwd: where.
    """

    def __init__(
        self, program: Path | str | None, *arguments: object, prelude: str = "", cwd: Path | None = None
    ) -> None:
        folder = Path(_words().name, str(next(_numbers)))
        folder.mkdir()
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        for path in (self.stdout, self.stderr):
            path.touch()
        if isinstance(program, str):
            (folder / "program.py").write_text(program)
            program = folder / "program.py"
        started = (program, [*map(str, arguments)], prelude, cwd, self.stdout, self.stderr)
        self._process = _context.Process(target=_run, args=started)
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

    def complete(self) -> subprocess.CompletedProcess[str]:
        output, errors = self.communicate()
        return subprocess.CompletedProcess((), self.returncode, output, errors)


def run(program: Path | str | None, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run`, of a script, Python as text, or the command (`None`)."""
    return Process(program, *arguments, **options).complete()


def run_together(number: int, program: Path | None, *arguments: object) -> list[subprocess.CompletedProcess[str]]:
    """Several processes of one run: what torchrun and accelerate tell the processes that they start, these are told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": number}
    told |= {"LOCAL_WORLD_SIZE": number, "ACCELERATE_MIXED_PRECISION": "no"}

    def start(rank: int) -> Process:
        environment = {name: str(value) for name, value in (told | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        return Process(program, *arguments, prelude=f"import os; os.environ |= {environment}")

    return [process.complete() for process in [start(rank) for rank in range(number)]]


def _run(
    program: Path | None, arguments: list[str], prelude: str, cwd: Path | None, stdout: Path, stderr: Path
) -> None:
    import torch

    from pipeline_ddrm_jpeg.__main__ import main

    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, stdout, os.O_WRONLY), (2, stderr, os.O_WRONLY)):
        os.dup2(os.open(path, flags), number)
    sys.stdin = os.fdopen(0)  # which multiprocessing has closed
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    os.chdir(cwd or os.curdir)
    exec(prelude, {})
    sys.argv = [str(program or "ddrm-jpeg"), *arguments]
    if program is None:
        return main()
    sys.path.insert(0, str(program if program.is_dir() else program.parent))
    runpy.run_path(str(program), run_name="__main__")
