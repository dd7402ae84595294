"""What archives have in common: their members, what these are called when some are replaced, and bounds."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

FREE_BYTES, UNPACKED_PER_BYTE = 2**26, 100
"""What an archive may unpack to, holes of sparse members included: text is packed ten to one, images hardly."""
PIECE = 2**20
"""Bytes that are read at once; a header of more is none."""


@dataclass(frozen=True)
class Member:
    """What an archive has under a name."""

    name: str
    header: Any
    """As `tarfile` or `zipfile` read it."""
    start: int
    end: int
    """Where it lies in the archive with all that goes with it, such as global headers before it."""
    data: bytes | None = None
    """Of a file that is wanted, what is in it."""
    trouble: str = ""
    """Why it cannot be read although others can, in words; it stays as it is."""


Made = Sequence[tuple[str, bytes]]
"""What takes the place of a member: (suffix, bytes) of a file, and of more that are named after it."""


class Names:
    """The names in an archive that is written: only the suffix of what is replaced changes, and no two are the same."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._taken = {posixpath.normpath(member.name) for member in members}
        self._renamed: dict[str, str] = {}
        """Name -> new name, of what was replaced."""

    def placed(self, name: str, made: Made) -> list[tuple[str, bytes]]:
        """(name, bytes) of what takes the place of a member."""
        (suffix, data), *others = made
        new = self.rename(name, suffix)
        return [(new, data), *((self.fresh(new, suffix), data) for suffix, data in others)]

    def rename(self, name: str, suffix: str) -> str:
        """The new name of a member, in the form of the old one: `./a.jpg` and `a.jpg` are one file when unpacked."""
        key, (folder, slash, _) = posixpath.normpath(name), name.rpartition("/")
        if key not in self._renamed:
            self._renamed[key] = self.fresh(name, suffix)
        return folder + slash + posixpath.basename(self._renamed[key])

    def fresh(self, name: str, suffix: str) -> str:
        """A name that nothing else has, with another suffix, or with one more."""
        fresh = posixpath.splitext(name)[0] + suffix
        if fresh != name and posixpath.normpath(fresh) in self._taken:
            fresh = name + suffix
            while posixpath.normpath(fresh) in self._taken:
                fresh += suffix
        self._taken.add(posixpath.normpath(fresh))
        return fresh
