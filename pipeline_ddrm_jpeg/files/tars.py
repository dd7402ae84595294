"""Tars, such as WebDataset shards: their members read within bounds, and written anew, some of them replaced."""

from __future__ import annotations

import bz2
import copy
import gzip
import lzma
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO

from ..jpeg.file import MOST_BYTES
from .members import FREE_BYTES, PIECE, UNPACKED_PER_BYTE, Made, Member, Names

BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OverflowError)
"""What reading a tar raises that is none, is cut short or claims what cannot be."""

_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_MOST_GLOBAL = 100  # keys of global headers: tarfile gives each member a copy of all
_LONG_NUMBER = re.compile(rb"[0-9]{65}")  # on which tarfile would search again from every digit
_RECORD = re.compile(rb"([0-9]{1,9}) [^=\n]{1,255}=")
_FORM = (tarfile.PAX_FORMAT, tarfile.ENCODING, "surrogateescape")
_OF_THE_BYTES = re.compile(r"path|linkpath|size|hdrcharset|GNU\.sparse\..*")  # keys that hold for one member only


class Tar:
    """A tar, which may be compressed (gzip, bzip2, xz), to be read. Raises `BROKEN` where it is none."""

    def __init__(self, source: Path) -> None:
        self._stream, self._ahead = _Stream(source), _Stream(source)  # one for copies, one for what is read ahead
        try:
            self.members = _members(self._stream)
            self._reader = tarfile.TarFile(fileobj=self._ahead)
        except BaseException:
            self.close()
            raise
        self._stream.heading = self._ahead.heading = False

    def read(self, member: Member, wanted: Callable[[bytes], bool]) -> Member:
        """A member with its data, if it is a file of which the first 16 bytes are wanted."""
        return replace(member, data=_data(self._reader, member.header, wanted))

    def writer(self, file: IO[bytes]) -> _Writer:
        """What writes the members into another file, one after the other."""
        return _Writer(file, self._stream, self.members)

    def close(self) -> None:
        self._stream.close()
        self._ahead.close()


# --- Reading ---


class _Stream:
    """A tar that may be compressed, as `tarfile` reads it, within bounds."""

    def __init__(self, source: Path) -> None:
        self._file = open(source, "rb")  # noqa: SIM115 closed by `close`
        self.size = source.stat().st_size
        self.most = FREE_BYTES + UNPACKED_PER_BYTE * self.size
        self.heading = True
        """Whether headers are read."""
        self._extended = False  # whether the header just read says that the next block is its continuation
        start = self._file.read(6)
        self._file.seek(0)
        self._open = next((way for magic, way in _OPENERS.items() if start.startswith(magic)), None)
        self._stream: IO[bytes] = self._open(self._file) if self._open else self._file
        self.tell = self._stream.tell

    def read(self, size: int) -> bytes:
        if size > PIECE:
            raise tarfile.ReadError(f"it claims a header of {size} bytes")
        self._check(self.tell() + size)
        data = self._stream.read(size)
        if self.heading:
            if self._extended:
                _check_extended(data)
            self._extended = not self._extended and data[156:157] in (b"x", b"g", b"X")
        return data

    def seek(self, position: int) -> None:
        self._check(position)
        self._stream.seek(position)

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


def _members(stream: _Stream) -> list[Member]:
    """All of them, without their data, each checked before the next is looked for."""
    members, unpacked, end = [], 0, 0
    try:
        shard = tarfile.TarFile(fileobj=stream)
        for header in shard:
            if header.size < 0 or shard.offset <= end:
                raise tarfile.ReadError(f"{header.name} claims a size below zero")
            unpacked += header.size if header.isreg() or header.type not in tarfile.SUPPORTED_TYPES else 0
            if unpacked > stream.most:
                raise stream.out_of_proportion()
            if len(shard.pax_headers) > _MOST_GLOBAL:
                raise tarfile.ReadError(f"it has global headers with more than {_MOST_GLOBAL} keys")
            if key := next(filter(_OF_THE_BYTES.fullmatch, shard.pax_headers), None):
                raise tarfile.ReadError(f"it has a global header that gives all members one {key}")
            if header.sparse is not None and not _in_order(header.sparse, header.size):
                raise tarfile.ReadError(f"{header.name} is sparse, and its parts are not one behind the other")
            members.append(Member(header.name, header, end, shard.offset))
            end = shard.offset
    except RecursionError:
        raise tarfile.ReadError("it has headers of headers without end") from None
    except (ValueError, KeyError, IndexError) as error:
        raise tarfile.ReadError(f"it has a header that is none ({error})") from None
    return members


def _in_order(parts: Iterable[tuple[int, int]], size: int) -> bool:
    end = 0
    for start, length in parts:
        if length and not end <= start < start + length <= size:  # unused places of a header have none
            return False
        end = start + length if length else end
    return True


def _data(reader: tarfile.TarFile, header: tarfile.TarInfo, wanted: Callable[[bytes], bool]) -> bytes | None:
    if not header.isreg():
        return None
    with reader.extractfile(header) as file:
        pieces = [file.read(16)]
        if not wanted(pieces[0]):
            return None
        left = min(header.size, MOST_BYTES + 1) - 16
        while left > 0:
            pieces.append(file.read(min(left, PIECE)))
            left -= len(pieces[-1])
        return b"".join(pieces)


# --- Writing ---


class _Writer(Names):
    """A tar that is written: what is replaced, under names of its own, and what leads to it."""

    def __init__(self, file: IO[bytes], source: _Stream, members: Sequence[Member]) -> None:
        super().__init__(members)
        self._file, self._source = file, source
        self._unwritten = set(self._taken)
        self._waiting: dict[str, list[tarfile.TarInfo]] = {}
        """Name -> symbolic links to what is still to be written under it."""

    def put(self, member: Member, made: Made) -> list[str]:
        """Write what takes the place of a member, whose names are returned, or the member itself."""
        header, name, placed = member.header, posixpath.normpath(member.name), []
        self._copy(member.start, header.offset)
        if header.issym() and name != _leads_to(header) and _leads_to(header) in self._unwritten:
            self._waiting.setdefault(_leads_to(header), []).append(header)
            return []
        if header.issym() or header.islnk():
            self._link(header)
        elif made:
            placed = self.placed(header.name, made)
            for new, data in placed:
                self._write(header, new, data)
        else:
            self._copy(header.offset, member.end)
        written = [name]
        while written:  # now the links that waited for it, and those that waited for them
            name = written.pop()
            self._unwritten.discard(name)
            for link in self._waiting.pop(name, []):
                self._link(link)
                written.append(posixpath.normpath(link.name))
        return [new for new, _ in placed]

    def finish(self) -> None:
        """Write the links that lead to one another in a circle, and the end."""
        for link in chain(*self._waiting.values()):
            self._link(link)
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.write(bytes(-self._file.tell() % tarfile.RECORDSIZE))

    def _link(self, header: tarfile.TarInfo) -> None:
        """Write a link; to what was renamed, under a name with the same suffix if it had the same before."""
        old = _leads_to(header) if header.issym() else posixpath.normpath(header.linkname)
        new, link, name = self._renamed.get(old), copy.copy(header), header.name
        if new is not None:
            place = posixpath.dirname(header.linkname) if header.issym() else posixpath.dirname(new)
            link.linkname = posixpath.join(place, posixpath.basename(new))
            if posixpath.splitext(name)[1] == posixpath.splitext(old)[1]:
                name = self.rename(name, posixpath.splitext(new)[1])
        self._write(link, name)

    def _copy(self, start: int, end: int) -> None:
        """Write a part of the old tar."""
        self._source.seek(start)
        for at in range(start, end, PIECE):
            self._file.write(self._source.read(min(end - at, PIECE)))

    def _write(self, header: tarfile.TarInfo, name: str, data: bytes = b"") -> None:
        """Write a member under a name, so that its header says nothing but what holds for these bytes."""
        new = copy.copy(header)
        new.name, new.size = name, len(data)
        new.type = tarfile.REGTYPE if header.isreg() else header.type
        new.pax_headers = {key: said for key, said in header.pax_headers.items() if not _OF_THE_BYTES.fullmatch(key)}
        try:
            int(new.mtime)  # it may be infinite, or no number
            block = new.tobuf(*_FORM)
        except (ValueError, OverflowError, TypeError, AttributeError):  # numbers and keys that no header can hold
            plain = tarfile.TarInfo(name)
            plain.size, plain.type, plain.linkname = new.size, new.type, new.linkname
            block = plain.tobuf(*_FORM)
        self._file.write(block + data + bytes(-len(data) % tarfile.BLOCKSIZE))


def _leads_to(header: tarfile.TarInfo) -> str:
    """The name of the member that a symbolic link leads to, if it leads to one."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(header.name), header.linkname))
