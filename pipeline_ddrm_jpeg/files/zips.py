"""Zips, such as those of comics (CBZ): their members read within bounds, and written anew, some of them replaced."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from ..jpeg.file import MOST_BYTES
from .members import FREE_BYTES, PIECE, UNPACKED_PER_BYTE, Made, Member, Names

BROKEN = (zipfile.BadZipFile,)
"""What reading a zip raises that is none, is cut short or claims what cannot be."""

_ENCRYPTED, _UTF_8 = 1, 0x800  # flags of a member (APPNOTE 6.3.10, 4.4.4)
_ZIP64, _UNICODE_PATH = 1, 0x7075  # extra fields: sizes and places, and the name once more
_SHORTEST_HEADER = 30
# What reading a member raises that is damaged, or packed in a way that Python does not know; bzip2 raises OSError.
_TROUBLE = (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, struct.error)


class Zip:
    """A zip to be read. Raises `BROKEN` where it is none, and `ValueError` where it is encrypted."""

    def __init__(self, source: Path) -> None:
        self._file = open(source, "rb")  # noqa: SIM115 closed by `close`
        try:
            try:
                self._zip = zipfile.ZipFile(source)
            except (NotImplementedError, ValueError, struct.error) as error:
                raise zipfile.BadZipFile(str(error)) from None
            self.members = [*self._members(source.stat().st_size)]
        except BaseException:
            self.close()
            raise

    def _members(self, size: int) -> Iterator[Member]:
        infos = self._zip.infolist()
        if any(info.flag_bits & _ENCRYPTED for info in infos):
            raise ValueError("it is encrypted; unpack it with its password, and restore what is in it")
        most = FREE_BYTES + UNPACKED_PER_BYTE * size
        if sum(info.file_size for info in infos) > most:
            raise zipfile.BadZipFile(f"it unpacks to more than {most} bytes, out of all proportion to its {size}")
        starts = sorted(info.header_offset for info in infos)
        ends = dict(zip(starts[::-1], [self._zip.start_dir, *starts[:0:-1]], strict=False))
        for info in infos:
            start, end = info.header_offset, ends[info.header_offset]
            if start < 0 or end - start < _SHORTEST_HEADER + info.compress_size:
                raise zipfile.BadZipFile("its members lie upon one another")
            yield Member(info.orig_filename, info, start, end)

    def read(self, member: Member, wanted: Callable[[bytes], bool]) -> Member:
        """A member with its data, if it is a file of which the first 16 bytes are wanted; all are looked through."""
        try:
            with self._zip.open(member.header) as file:
                pieces = [file.read(16)]
                keep, left = wanted(pieces[0]), MOST_BYTES
                while piece := file.read(PIECE):
                    pieces += [piece] if keep and left > 0 else []
                    left -= len(piece)
        except OSError as error:
            if error.errno is not None:
                raise
            return replace(member, trouble=f"it cannot be unpacked: {error}")
        except _TROUBLE as error:
            return replace(member, trouble=f"it cannot be unpacked: {error}")
        return replace(member, data=b"".join(pieces)) if keep else member

    def writer(self, file: IO[bytes]) -> _Writer:
        """What writes the members into another file, one after the other."""
        return _Writer(file, self._file, self._zip, self.members)

    def close(self) -> None:
        self._file.close()
        if hasattr(self, "_zip"):
            self._zip.close()


class _Entry(zipfile.ZipInfo):
    """A member of a zip that is written. Its name stays in the bytes that it has: many say no character set."""

    __slots__ = ()

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode("utf-8" if self.flag_bits & _UTF_8 else "cp437"), self.flag_bits


class _Writer(Names):
    """A zip that is written: what is replaced, under names of its own, and all else byte for byte."""

    def __init__(self, file: IO[bytes], source: IO[bytes], old: zipfile.ZipFile, members: Sequence[Member]) -> None:
        super().__init__(members)
        self._file, self._source, self._old = file, source, old
        self._entries: list[_Entry] = []

    def put(self, member: Member, made: Made) -> list[str]:
        """Write what takes the place of a member, whose names are returned, or the member itself."""
        if not made:
            self._enter(member.header, member.name, (_ZIP64,))
            self._source.seek(member.start)
            for at in range(member.start, member.end, PIECE):
                self._file.write(self._source.read(min(member.end - at, PIECE)))
            return []
        flags, placed = member.header.flag_bits & _UTF_8, self.placed(member.name, made)
        for name, data in placed:
            new = {"compress_type": zipfile.ZIP_STORED, "CRC": zlib.crc32(data), "flag_bits": flags}
            new |= dict.fromkeys(("compress_size", "file_size"), len(data))
            entry = self._enter(member.header, name, (_ZIP64, _UNICODE_PATH), **new)
            self._file.write(entry.FileHeader())
            self._file.write(data)
        return [name for name, _ in placed]

    def finish(self) -> None:
        """Write the directory."""
        with zipfile.ZipFile(self._file, "w") as new:  # which begins where the file is, and writes its directory there
            new.filelist, new.comment = self._entries, self._old.comment

    def _enter(self, header: zipfile.ZipInfo, name: str, without: tuple[int, ...], **changed: Any) -> _Entry:
        """Put a member into the directory, as it stood in the old one but for what has changed."""
        entry = _Entry()
        for field in zipfile.ZipInfo.__slots__:
            if hasattr(header, field):
                setattr(entry, field, getattr(header, field))
        entry.filename, entry.header_offset = name, self._file.tell()
        kept, extra, at = [], header.extra, 0
        while at + 4 <= len(extra):
            kind, size = struct.unpack_from("<HH", extra, at)
            kept += [extra[at : at + 4 + size]] if kind not in without else []
            at += 4 + size
        entry.extra = b"".join(kept)
        for field, value in changed.items():
            setattr(entry, field, value)
        self._entries.append(entry)
        return entry
