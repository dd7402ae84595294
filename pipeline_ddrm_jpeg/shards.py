"""WebDataset shards: tars of which some members are replaced and the others carried over."""

from __future__ import annotations

import copy
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from .files import write_atomically

SUFFIX = ".tar"


def rewrite(source: Path, target: Path, convert: Callable[[str, bytes], bytes | None], suffix: str) -> None:
    """Write a shard anew, whole or not at all.

    A member that is replaced gets another suffix, and with it stays in its sample, the members whose names are the
    same up to the first dot; where its new name is taken, the suffix is put behind the old one. Nothing is unpacked.

    Args:
        source: the tar, not compressed or compressed; what is written is not.
        target: where the new one goes.
        convert: given the name and the bytes of each file, returns those that take their place, or `None` for them to
            stay.
        suffix: of what is converted, such as `".png"`.

    Raises:
        tarfile.TarError: if the source is no tar, or cut short.
        OSError: if it cannot be read or the other not written.
    """
    with tarfile.open(source) as shard:
        taken = set(shard.getnames())
        write_atomically(target, lambda stream: _write(shard, taken, stream, convert, suffix))


def _write(
    shard: tarfile.TarFile,
    taken: set[str],
    stream: io.BufferedWriter,
    convert: Callable[[str, bytes], bytes | None],
    suffix: str,
) -> None:
    with tarfile.open(fileobj=stream, mode="w") as written:
        for member, data in _members(shard):
            made = convert(member.name, data) if data else None
            if made is not None:
                renamed = str(PurePosixPath(member.name).with_suffix(suffix))
                member.name = renamed if renamed == member.name or renamed not in taken else member.name + suffix
                member.size, data = len(made), made
            written.addfile(member, None if data is None else io.BytesIO(data))


def _members(shard: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Each member's header and, of files, the content."""
    for found in shard:
        member, file = copy.copy(found), shard.extractfile(found) if found.isfile() else None
        # What the header says itself has to hold: name and size may change, and holes are filled.
        member.pax_headers = {key: value for key, value in found.pax_headers.items() if key not in ("path", "size")}
        member.type = tarfile.REGTYPE if found.isfile() else found.type
        yield member, file and file.read()
