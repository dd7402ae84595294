"""The coefficients of a whole JPEG file, read by libjpeg-turbo in a process of its own, with limits.

A separate process, because the C library may print, warn or crash on a damaged file: its warnings are how damage is
found, and a crash must not take a server down.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

if __package__:  # not when this file is run as the reader process, see _run_reader
    from .jpeg_markers import JPEGDamageError, JPEGFileError

# Decoder warnings that do not put a coefficient in doubt; bytes too many anywhere but at the end do.
_SURPLUS_WARNING = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")
_HARMLESS_WARNING = re.compile(rf"{_SURPLUS_WARNING.pattern}|Invalid SOS parameters")
_READER_MEMORY = 96 * 2**20  # bytes of the reader process, beyond what grows with the file
_READER_SECONDS = 30  # of processor time, likewise; a second for each megabyte comes on top
_READ_TIMEOUT = 120  # seconds; a whole 180-megapixel file takes a few


def read_coefficients(parts: Iterable[bytes], shapes: Sequence[tuple[int, int]]) -> tuple[list[np.ndarray], bool]:
    """Coefficient planes of a JPEG, and whether the decoder passed over bytes before its end.

    Args:
        parts: the file, without application markers: the library overruns an array after 50 of them.
        shapes: blocks down and across of each component.

    Returns:
        int16 planes `[blocks down, blocks across, 8, 8]`, and the sign of a harmless oddity.

    Raises:
        JPEGDamageError: where the library warns of damage, gives up or crashes.
        JPEGFileError: where it takes too long.
    """
    if importlib.util.find_spec("jpeglib") is None:
        raise ImportError("reading JPEG coefficients needs the package jpeglib: pip install jpeglib")

    geometry = ",".join(f"{rows}x{columns}" for rows, columns in shapes)
    with _unnamed_file() as stream, _unnamed_file() as output:
        stream.writelines(parts)
        stream.seek(0)
        try:
            status, messages = _run_reader(stream, output, geometry)
        except subprocess.TimeoutExpired:
            raise JPEGFileError(f"reading its coefficients took more than {_READ_TIMEOUT} seconds") from None
        damage = [line for line in messages.strip().splitlines() if not _HARMLESS_WARNING.search(line)]
        if status or damage:
            reason = damage[0] if damage else f"the reader stopped with status {status}"
            raise JPEGDamageError(f"damaged or truncated: {reason}")
        output.seek(0)
        values = np.fromfile(output, dtype=np.int16)

    ends = np.cumsum([64 * rows * columns for rows, columns in shapes])
    planes = zip(np.split(values, ends[:-1]), shapes, strict=True)
    return [plane.reshape(*shape, 8, 8) for plane, shape in planes], bool(_SURPLUS_WARNING.search(messages))


def _unnamed_file() -> IO[bytes]:
    """A file without a name, in memory where the system can: whoever is killed leaves nothing of it behind."""
    try:
        return open(os.memfd_create("ddrm-jpeg"), "w+b")
    except (AttributeError, OSError):  # not Linux, or not allowed
        return tempfile.TemporaryFile()


def _run_reader(stream: IO[bytes], planes: IO[bytes], geometry: str) -> tuple[int, str]:
    """Run `_reader_process` in a new interpreter; returns its exit status and what it wrote to stderr."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OPENBLAS_NUM_THREADS": "1",  # each thread would take memory, and none has anything to do
    }
    reader = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, geometry],
        env=environment,
        stdin=stream,
        stdout=planes,
        stderr=subprocess.PIPE,
        timeout=_READ_TIMEOUT,
    )
    return reader.returncode, reader.stderr.decode(errors="replace")


def _reader_process(geometry: str) -> None:
    """Entry point of the separate process: a stripped stream at its standard input, raw int16 planes to its output."""
    shapes = [tuple(int(n) for n in shape.split("x")) for shape in geometry.split(",")]
    _limit_resources(os.fstat(0).st_size, sum(64 * rows * columns for rows, columns in shapes))
    import jpeglib
    from jpeglib._bind import CJpegLib  # what jpeglib.read_dct calls for a copy of the file that it makes on disk

    jpeglib.version.set("turbo210")
    planes = [np.zeros((rows, columns, 64), dtype=np.int16) for rows, columns in shapes]
    pointers = [plane.ctypes.data_as(ctypes.c_void_p) for plane in planes]
    output = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # the library prints to it when it fails
    with _stdin_path() as path:
        CJpegLib.read_jpeg_dct(
            path, *pointers, *[None] * (4 - len(planes)), (ctypes.c_ushort * 256)(), (ctypes.c_short * 4)()
        )
    with open(output, "wb") as file:
        for plane in planes:
            plane.tofile(file)


@contextmanager
def _stdin_path() -> Iterator[str]:
    """A path under which the standard input can be opened."""
    if Path("/dev/fd/0").exists():
        yield "/dev/fd/0"
        return
    with tempfile.TemporaryDirectory() as folder:  # Windows
        path = Path(folder, "stream.jpg")
        path.write_bytes(sys.stdin.buffer.read())
        yield str(path)


def _limit_resources(size: int, coefficients: int) -> None:
    """Bound what this process may use to some times what an honest file of that size takes, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    memory = _READER_MEMORY + 4 * size + 5 * coefficients  # two int16 planes, the library's and numpy's
    processor = _READER_SECONDS + size // 2**20
    for kind, limit in (("RLIMIT_DATA", memory), ("RLIMIT_CPU", processor), ("RLIMIT_CORE", 0)):
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
    _reader_main(*sys.argv[1:])
