"""WebDataset shards: tars of which some members are replaced and the others carried over."""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import lzma
import math
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..jpeg.file import MOST_BYTES
from .formats import write_atomically

SUFFIX = ".tar"
BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OverflowError)
"""What reading a tar raises that is none, is cut short or claims what cannot be."""

_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
# What it may unpack to, holes of sparse members included: text is packed ten to one, images hardly.
_FREE_BYTES, _UNPACKED_PER_BYTE = 2**26, 100
_PIECE = 2**20  # bytes that are read at once; a header of more is none
_MOST_GLOBAL = 100  # keys of global headers: tarfile gives each member a copy of all
_LONG_NUMBER = re.compile(rb"[0-9]{65}")  # on which tarfile would search again from every digit
_RECORD = re.compile(rb"([0-9]{1,9}) [^=\n]{1,255}=")
_OF_THE_BYTES = ("path", "linkpath", "size", "hdrcharset")  # what an extended header says that may change


@dataclass(frozen=True)
class Member:
    """What a shard has under a name."""

    header: tarfile.TarInfo
    data: bytes | None
    """Of a file that may be wanted, what is in it."""

    @property
    def name(self) -> str:
        return self.header.name


Made = Sequence[tuple[str, bytes]]
"""What takes the place of a member: (suffix, bytes) of a file, and of more that are named after it."""
Convert = Callable[[Iterator[Member]], Iterator[tuple[Member, Made]]]


def rewrite(source: Path, target: Path, wanted: Callable[[bytes], bool], convert: Convert) -> list[str]:
    """Write a shard anew, whole or not at all.

    A member that is replaced gets another suffix, and with it stays in its sample, the members whose names are the
    same up to the first dot; where its new name is taken, the suffix is put behind the old one. Links to it follow.
    Holes of sparse members are written as the zeros that they are. Nothing is unpacked.

    Args:
        source: the tar, not compressed or compressed (gzip, bzip2, xz); what is written is not.
        target: where the new one goes.
        wanted: tells by its first 16 bytes whether a file is to be read for `convert`.
        convert: given all members, returns each in its order, with what takes its place, or nothing for it to stay. It
            may ask for them ahead, and from another thread.

    Returns:
        What could not be carried over, in a sentence each.

    Raises:
        BROKEN: if the source is no tar, cut short, or out of all proportion to its bytes.
        OSError: if it cannot be read or the other not written.
    """
    with closing(_Stream(source)) as stream, closing(_Stream(source)) as ahead, _tar(stream) as shard:
        headers = _headers(shard, stream)
        with _tar(ahead) as reader:

            def members() -> Iterator[Member]:
                for header in headers:
                    yield Member(header, _data(reader, header, wanted))

            def write(file: io.BufferedWriter) -> None:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as written:
                    writer = _Writer(written, headers)
                    for member, made in convert(members()):
                        writer.put(member.header, made, lambda one: shard.extractfile(one))
                    writer.finish()
                    problems.extend(writer.problems)

            problems: list[str] = []
            write_atomically(target, write)
    return problems


# --- Reading ---


class _Stream:
    """A tar that may be compressed, as `tarfile` reads it, within bounds."""

    def __init__(self, source: Path) -> None:
        self._file = open(source, "rb")  # noqa: SIM115 closed by `close`
        self.size = source.stat().st_size
        self.most = _FREE_BYTES + _UNPACKED_PER_BYTE * self.size
        self.heading = True
        """Whether headers are read."""
        start = self._file.read(6)
        self._file.seek(0)
        self._open = next((way for magic, way in _OPENERS.items() if start.startswith(magic)), None)
        self._stream: IO[bytes] = self._open(self._file) if self._open else self._file
        self._extended = False

    def read(self, size: int) -> bytes:
        if size > _PIECE:
            raise tarfile.ReadError(f"it claims a header of {size} bytes")
        self._check(self.tell() + size)
        data = self._stream.read(size)
        if self.heading and self._extended:
            _check_extended(data)
        self._extended = not self._extended and data[156:157] in (b"x", b"g", b"X")
        return data

    def seek(self, position: int) -> None:
        self._check(position)
        self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        self._file.close()

    def _check(self, end: int) -> None:
        if self._open and end > self.most:
            raise self.out_of_proportion()

    def out_of_proportion(self) -> tarfile.ReadError:
        return tarfile.ReadError(f"it unpacks to more than {self.most} bytes, out of all proportion to its {self.size}")


def _check_extended(data: bytes) -> None:
    """Refuse what `tarfile` would take long for, or fail on, as an extended header (POSIX.1-2008, pax)."""
    at = 0
    while (record := _RECORD.match(data, at)) and int(record[1]):
        at += int(record[1])
    if _LONG_NUMBER.search(data) or data[at:].strip(b"\0"):
        raise tarfile.ReadError("it has an extended header that is none")


def _tar(stream: _Stream) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r:")
    except RecursionError:
        raise tarfile.ReadError("it has headers of headers without end") from None
    except (ValueError, KeyError, IndexError) as error:
        raise tarfile.ReadError(f"it has a header that is none ({error})") from None


def _headers(shard: tarfile.TarFile, stream: _Stream) -> list[tarfile.TarInfo]:
    """All of them, each checked before the next is looked for."""
    headers, unpacked, end = [], 0, -1
    try:
        for header in shard:
            if header.size < 0 or shard.offset <= end:
                raise tarfile.ReadError(f"{header.name} claims a size below zero")
            end = shard.offset
            unpacked += header.size if _has_data(header) else 0
            if unpacked > stream.most:
                raise stream.out_of_proportion()
            if len(shard.pax_headers) > _MOST_GLOBAL:
                raise tarfile.ReadError(f"it has global headers with more than {_MOST_GLOBAL} keys")
            if header.sparse is not None and not _in_order(header.sparse, header.size):
                raise tarfile.ReadError(f"{header.name} is sparse, and its parts are not one behind the other")
            headers.append(header)
    except RecursionError:
        raise tarfile.ReadError("it has headers of headers without end") from None
    except (ValueError, KeyError, IndexError) as error:
        raise tarfile.ReadError(f"it has a header that is none ({error})") from None
    stream.heading = False
    return headers


def _in_order(parts: Iterable[tuple[int, int]], size: int) -> bool:
    end = 0
    for start, length in parts:
        if length and not end <= start < start + length <= size:  # unused places of a header have none
            return False
        end = start + length if length else end
    return True


def _has_data(header: tarfile.TarInfo) -> bool:
    return header.isreg() or header.type not in tarfile.SUPPORTED_TYPES


def _data(reader: tarfile.TarFile, header: tarfile.TarInfo, wanted: Callable[[bytes], bool]) -> bytes | None:
    if not header.isreg():
        return None
    with reader.extractfile(header) as file:
        pieces = [file.read(16)]
        if not wanted(pieces[0]):
            return None
        left = min(header.size, MOST_BYTES + 1) - 16
        while left > 0:
            pieces.append(file.read(min(left, _PIECE)))
            left -= len(pieces[-1])
        return b"".join(pieces)


# --- Writing ---


class _Writer:
    """A tar that is written: what is replaced, under names of its own, and what leads to it.

    Args:
        written: the new tar.
        headers: of the old one.
    """

    def __init__(self, written: tarfile.TarFile, headers: Sequence[tarfile.TarInfo]) -> None:
        self.written, self.problems = written, []
        self._taken = {header.name for header in headers}
        self._unwritten = {_normal(header.name) for header in headers}
        self._renamed: dict[str, str] = {}
        """Name -> new name, of what was replaced."""
        self._waiting: dict[str, list[tarfile.TarInfo]] = {}
        """Name -> symbolic links to what is still to be written under it."""

    def put(self, header: tarfile.TarInfo, made: Made, opened: Callable[[tarfile.TarInfo], Any]) -> None:
        """Write what takes the place of a member, or the member itself, with what `opened` gives for its data."""
        name = _normal(header.name)
        if header.issym() and _leads_to(header) in self._unwritten - {name}:
            self._waiting.setdefault(_leads_to(header), []).append(header)
            return
        if header.issym() or header.islnk():
            self._link(header)
        elif made:
            (suffix, data), *others = made
            new = self._renamed[name] = self._renamed.get(name) or self._fresh(header.name, suffix)
            self._write(header, new, len(data), io.BytesIO(data))
            for suffix, data in others:
                self._write(header, self._fresh(new, suffix), len(data), io.BytesIO(data))
        elif _has_data(header):
            with opened(header) as file:
                self._write(header, header.name, header.size, file)
        else:
            self._write(header, header.name, 0, None)
        self._settle(name)

    def finish(self) -> None:
        """Write the links that lead to one another in a circle."""
        for headers in list(self._waiting.values()):
            for header in headers:
                self._link(header)

    def _settle(self, name: str) -> None:
        """Write the links that waited for a name, and those that waited for them."""
        names = [name]
        while names:
            name = names.pop()
            self._unwritten.discard(name)
            for header in self._waiting.pop(name, []):
                self._link(header)
                names.append(_normal(header.name))

    def _link(self, header: tarfile.TarInfo) -> None:
        """Write a link; to what was renamed, under a name with the same suffix if it had the same before."""
        old = _leads_to(header) if header.issym() else _normal(header.linkname)
        new, link, name = self._renamed.get(old), copy.copy(header), header.name
        if new is not None:
            place = posixpath.dirname(header.linkname) if header.issym() else posixpath.dirname(new)
            link.linkname = posixpath.join(place, posixpath.basename(new))
            if posixpath.splitext(name)[1] == posixpath.splitext(old)[1]:
                name = self._renamed.get(_normal(name)) or self._fresh(name, posixpath.splitext(new)[1])
                self._renamed[_normal(header.name)] = name
        self._write(link, name, 0, None)

    def _fresh(self, name: str, suffix: str) -> str:
        """A name that nothing else has, with another suffix, or with one more."""
        fresh = posixpath.splitext(name)[0] + suffix
        if fresh != name and fresh in self._taken:
            fresh = name + suffix
            while fresh in self._taken:
                fresh += suffix
        self._taken.add(fresh)
        return fresh

    def _write(self, header: tarfile.TarInfo, name: str, size: int, file: IO[bytes] | None) -> None:
        """Write a member under a name, so that its header says nothing but what holds for these bytes."""
        new = copy.copy(header)
        new.name, new.size = name, size
        new.type = tarfile.REGTYPE if header.isreg() else header.type
        new.pax_headers = {
            key: value
            for key, value in header.pax_headers.items()
            if key not in _OF_THE_BYTES and not key.startswith("GNU.sparse.")
        }
        if not math.isfinite(new.mtime):
            new.mtime = 0
            new.pax_headers.pop("mtime", None)
        written = self.written
        try:
            new.tobuf(written.format, written.encoding, written.errors)
        except (ValueError, OverflowError, TypeError, AttributeError):  # numbers and keys that no header can hold
            plain = tarfile.TarInfo(name)
            plain.size, plain.type, plain.linkname = size, new.type, new.linkname
            new = plain
            try:
                new.tobuf(written.format, written.encoding, written.errors)
            except (ValueError, OverflowError) as error:
                self.problems.append(f"{name}: no header can hold its name ({error})")
                return
        written.addfile(new, file)


def _normal(name: str) -> str:
    return posixpath.normpath(name)


def _leads_to(header: tarfile.TarInfo) -> str:
    """The name of the member that a symbolic link leads to, if it leads to one."""
    return _normal(posixpath.join(posixpath.dirname(header.name), header.linkname))
