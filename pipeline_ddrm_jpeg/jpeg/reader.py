"""The coefficients of a whole JPEG file, read by libjpeg-turbo in a process of its own, with limits.

A separate process, because the C library may print, warn or crash on a damaged file: its warnings are how damage is
found, and a crash must not take a server down. Where the system can fork, that process is a fork of a small one that
has the library loaded and never sees a file: a new interpreter would take ten times as long as most files do.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO

import numpy as np

if __package__:  # not when this file is run as the reader process, see _run_reader
    from .markers import JPEGDamageError, JPEGFileError

# Decoder warnings that do not put a coefficient in doubt; bytes too many anywhere but at the end do.
_SURPLUS_WARNING = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")
_HARMLESS_WARNING = re.compile(rf"{_SURPLUS_WARNING.pattern}|Invalid SOS parameters")
_READER_MEMORY = 96 * 2**20  # bytes of the reader process, beyond what grows with the file
_READER_SECONDS = 30  # of processor time, likewise; a second for each megabyte comes on top
_READ_TIMEOUT = 120  # seconds; a whole 180-megapixel file takes a few
_MOST_IDLE = 2  # servers that wait for another file
_READING = "reading"  # what a reader says when it begins: what goes wrong before that is not the file's fault
_UNWRITTEN = re.compile(r"^not written: (.*)$", re.MULTILINE)  # what a reader says of its own output
_CAN_SERVE = hasattr(os, "fork") and hasattr(socket, "send_fds")
_PYTHON = re.compile(r"(python|pypy)w?[\d.]*(t|d|-\w+)?(\.exe)?", re.IGNORECASE)  # what an interpreter's file is called


def read_coefficients(parts: Iterable[bytes], shapes: Sequence[tuple[int, int]]) -> tuple[list[np.ndarray], bool]:
    """Planes of a JPEG, int16 of the given shapes `[..., 8, 8]`, and whether the decoder passed over bytes at its end.

    `parts` are the file without application markers: the library overruns an array after 50 of them. Raises
    `JPEGDamageError` where the library warns of damage, gives up or crashes, `JPEGFileError` where it takes too long,
    the system has no room for them, or no process can be started that reads them.
    """
    if importlib.util.find_spec("jpeglib") is None:
        raise ImportError("reading JPEG coefficients needs the package jpeglib: pip install jpeglib")

    geometry = ",".join(f"{rows}x{columns}" for rows, columns in shapes)
    with _unnamed_file() as stream, _unnamed_file() as output:
        try:
            stream.writelines(parts)
            stream.seek(0)
        except OSError as error:  # `ulimit -f`, or a full disk
            raise _no_room(error.strerror) from None
        try:
            status, messages = _run_reader(stream, output, geometry)
        except (TimeoutError, subprocess.TimeoutExpired):
            raise JPEGFileError(f"reading its coefficients took more than {_READ_TIMEOUT} seconds") from None
        except OSError as error:  # `ulimit -u`
            raise _not_started(str(error)) from None
        lines = messages.splitlines()
        if _READING not in lines:
            raise _not_started(messages.strip().rpartition("\n")[2] or f"{_command()[0]} gave status {status}")
        if unwritten := _UNWRITTEN.search(messages):
            raise _no_room(unwritten[1])
        damage = [line for line in lines if line not in ("", _READING) and not _HARMLESS_WARNING.search(line)]
        if status or damage:
            reason = damage[0] if damage else f"the reader stopped with status {status}"
            raise JPEGDamageError(f"damaged or truncated: {reason}")
        output.seek(0)
        values = np.fromfile(output, dtype=np.int16)

    ends = np.cumsum([64 * rows * columns for rows, columns in shapes])
    if len(values) != ends[-1]:  # a crash, where SIGCHLD is ignored and nobody is told of it
        raise JPEGDamageError("damaged or truncated: the reader stopped before its end")
    planes = zip(np.split(values, ends[:-1]), shapes, strict=True)
    return [plane.reshape(*shape, 8, 8) for plane, shape in planes], bool(_SURPLUS_WARNING.search(messages))


def _no_room(reason: str) -> JPEGFileError:
    return JPEGFileError(f"there is no room for its coefficients: {reason} (a limit such as ulimit -f, or a full disk)")


def _not_started(reason: str) -> JPEGFileError:
    return JPEGFileError(f"the process that reads its coefficients did not start: {reason}")


def _unnamed_file() -> IO[bytes]:
    """A file without a name, in memory where the system can: whoever is killed leaves nothing of it behind."""
    try:
        return open(os.memfd_create("ddrm-jpeg"), "w+b")
    except (AttributeError, OSError):  # not Linux, or not allowed
        return tempfile.TemporaryFile()


class _Server:
    """A process that forks one of its own for each file."""

    def __init__(self) -> None:
        command = [*_command(), "serve"]
        self.connection, theirs = socket.socketpair()
        self.connection.settimeout(_READ_TIMEOUT)
        with theirs:
            self.process = subprocess.Popen(
                command,
                env=_environment(),
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us; and all of it ends together
            )

    def read(self, files: Sequence[IO[bytes]], geometry: str) -> int:
        """The exit status of a reader that has these for its standard input, output and errors; or an `OSError`."""
        socket.send_fds(self.connection, [geometry.encode()], [file.fileno() for file in files])
        answer = self.connection.recv(16)
        if not answer:
            raise ConnectionError("the server of readers has ended")
        return int(answer)

    def stop(self) -> None:
        """End it, and the reader that it may be waiting for."""
        self.connection.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


_idle: list[_Server] = []


def _command() -> list[str]:
    """How to start this file: by `sys.executable`, or the same Python in the environment that is in use.

    Inside an application (uWSGI, a frozen one) `sys.executable` may be empty, or be that application, which must not be
    started a second time.
    """
    name = "python{}.{}".format(*sys.version_info)
    beside = (Path(sys.prefix, place) for place in (f"bin/{name}", "python.exe", "Scripts/python.exe"))
    for path in (Path(sys.executable or ""), *beside):
        if _PYTHON.fullmatch(path.name) and path.is_file():
            return [str(path), "-W", "ignore", __file__]
    raise JPEGFileError(
        f"its coefficients are read in another process of Python, and there is none to start: sys.executable is"
        f" {sys.executable!r}, and {sys.prefix} has no {name}; set sys.executable to a {name} that has jpeglib"
    )


def _run_reader(stream: IO[bytes], planes: IO[bytes], geometry: str) -> tuple[int, str]:
    """Run `_reader_process` in another process; returns its exit status and what it wrote to stderr."""
    with _unnamed_file() as errors:
        status = _serve_reader((stream, planes, errors), geometry) if _CAN_SERVE else None
        if status is None:
            for written in (planes, errors):  # by a reader whose server has ended
                written.seek(0)
                written.truncate()
            stream.seek(0)
            streams = {"stdin": stream, "stdout": planes, "stderr": errors}
            status = subprocess.run(
                [*_command(), geometry], env=_environment(), timeout=_READ_TIMEOUT, **streams
            ).returncode
        errors.seek(0)
        return status, errors.read().decode(errors="replace")


def _serve_reader(files: Sequence[IO[bytes]], geometry: str) -> int | None:
    """The exit status of a reader forked by a server; `None` where there is none, or it could not say."""
    try:
        server = _idle.pop()
    except IndexError:
        server = _Server()
    try:
        status = server.read(files, geometry)
    except BaseException as error:  # Ctrl-C too
        server.stop()
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            return None
        raise
    if status < 0 or len(_idle) >= _MOST_IDLE:  # after a crash the next one begins anew
        server.stop()
    else:
        _idle.append(server)
    return status


def _stop_servers() -> None:
    while _idle:
        _idle.pop().stop()


atexit.register(_stop_servers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # one server cannot answer two


def _environment() -> dict[str, str]:
    path = os.pathsep.join(p for p in sys.path if p)
    return os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}  # each thread of which would take memory


def _server_process() -> None:
    """Entry point of a server: requests of `_Server.read` at its standard input, until that is closed."""
    import jpeglib._bind  # noqa: F401 what the readers need

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it, as those may who start us, learns no status
    connection = socket.socket(fileno=os.dup(0))
    while True:
        geometry, files, _, _ = socket.recv_fds(connection, 256, 3)
        if not geometry:
            return
        reader = os.fork()
        if not reader:
            connection.close()
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            try:
                _reader_main(geometry.decode())
                os._exit(0)  # without taking Python down, which takes as long as most files do
            except BaseException as error:
                os.write(2, str(error).encode())
            finally:
                os._exit(1)
        for file in files:
            os.close(file)
        _, status = os.waitpid(reader, 0)
        connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))


def _reader_process(geometry: str) -> None:
    """Entry point of the separate process: a stripped stream at its standard input, raw int16 planes to its output."""
    shapes = [tuple(int(n) for n in shape.split("x")) for shape in geometry.split(",")]
    import jpeglib
    from jpeglib._bind import CJpegLib  # what jpeglib.read_dct calls for a copy of the file that it makes on disk

    os.write(2, f"{_READING}\n".encode())
    _limit_resources(os.fstat(0).st_size, sum(64 * rows * columns for rows, columns in shapes))
    jpeglib.version.set("turbo210")
    planes = [np.zeros((rows, columns, 64), dtype=np.int16) for rows, columns in shapes]
    pointers = [plane.ctypes.data_as(ctypes.c_void_p) for plane in planes]
    output = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # the library prints to it when it fails
    path = Path("/dev/fd/0")
    with nullcontext() if path.exists() else tempfile.TemporaryDirectory() as folder:
        if folder is not None:  # Windows
            path = Path(folder, "stream.jpg")
            path.write_bytes(sys.stdin.buffer.read())
        pointers += [None] * (4 - len(planes))
        CJpegLib.read_jpeg_dct(str(path), *pointers, (ctypes.c_ushort * 256)(), (ctypes.c_short * 4)())
    try:
        with open(output, "wb") as file:
            for plane in planes:
                file.write(plane)
    except OSError as error:
        sys.exit(f"not written: {error.strerror}")


def _limit_resources(size: int, coefficients: int) -> None:
    """Bound what this process may use to some times what an honest file of that size takes, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    memory = _READER_MEMORY + 4 * size + 5 * coefficients  # two int16 planes, the library's and numpy's
    processor = _READER_SECONDS + size // 2**20
    written = 2 * coefficients + 2**20  # the planes, and as many words as anyone needs
    limits = {"RLIMIT_DATA": memory, "RLIMIT_CPU": processor, "RLIMIT_FSIZE": written, "RLIMIT_CORE": 0}
    for kind, limit in limits.items():
        try:
            resource.setrlimit(getattr(resource, kind), (limit, limit))
        except (AttributeError, ValueError, OSError):  # not every system has, or grants, each of them
            continue


def _reader_main(geometry: str) -> None:
    try:
        _reader_process(geometry)
    except OSError:
        sys.exit("the decoder gave up")  # its own words, where it has any, stand before this line
    except MemoryError:
        sys.exit("not enough memory")


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose module names must not shadow anyone's
    _server_process() if sys.argv[1] == "serve" else _reader_main(sys.argv[1])
