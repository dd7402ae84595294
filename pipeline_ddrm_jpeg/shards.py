"""WebDataset shards: tars of which some members are replaced and the others carried over."""

from __future__ import annotations

import copy
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .files import write_atomically

SUFFIX = ".tar"


@dataclass(frozen=True)
class Member:
    """What a shard has under a name."""

    header: tarfile.TarInfo
    data: bytes | None
    """Of a file, what is in it."""

    @property
    def name(self) -> str:
        return self.header.name


Convert = Callable[[Iterator[Member]], Iterator[tuple[Member, bytes | None]]]


def rewrite(source: Path, target: Path, convert: Convert, suffix: str) -> None:
    """Write a shard anew, whole or not at all.

    A member that is replaced gets another suffix, and with it stays in its sample, the members whose names are the
    same up to the first dot; where its new name is taken, the suffix is put behind the old one. Nothing is unpacked.

    Args:
        source: the tar, not compressed or compressed; what is written is not.
        target: where the new one goes.
        convert: given all members, returns each in its order, with the bytes that take the place of its own, or `None`
            for it to stay. It may ask for them ahead, and from another thread.
        suffix: of what is converted, such as `".png"`.

    Raises:
        tarfile.TarError: if the source is no tar, or cut short.
        OSError: if it cannot be read or the other not written.
    """
    with tarfile.open(source) as shard:
        taken = set(shard.getnames())

        def write(stream: io.BufferedWriter) -> None:
            with tarfile.open(fileobj=stream, mode="w") as written:
                for member, made in convert(_members(shard)):
                    header, data = member.header, member.data
                    if made is not None:
                        renamed = str(PurePosixPath(header.name).with_suffix(suffix))
                        header.name = (
                            renamed if renamed == header.name or renamed not in taken else header.name + suffix
                        )
                        header.size, data = len(made), made
                    written.addfile(header, None if data is None else io.BytesIO(data))

        write_atomically(target, write)


def _members(shard: tarfile.TarFile) -> Iterator[Member]:
    for found in shard:
        header, file = copy.copy(found), shard.extractfile(found) if found.isfile() else None
        # What the header says itself has to hold: name and size may change, and holes are filled.
        header.pax_headers = {key: value for key, value in found.pax_headers.items() if key not in ("path", "size")}
        header.type = tarfile.REGTYPE if found.isfile() else found.type
        yield Member(header, file and file.read())
