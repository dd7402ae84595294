"""Archives of images: which there are, and how one is written anew, of which some members are replaced."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

from . import tars, zips
from .formats import write_atomically
from .members import Made, Member

_KINDS = {".tar": tars.Tar, ".tar.gz": tars.Tar, ".tgz": tars.Tar, ".zip": zips.Zip, ".cbz": zips.Zip}
"""Suffix -> what reads it; those that end in gz are compressed when they are written."""
BROKEN = (*tars.BROKEN, *zips.BROKEN)
"""What `rewrite` raises where the source is no archive, is cut short or claims what cannot be."""
Convert = Callable[[Iterator[Member]], Iterator[tuple[Member, Made]]]


def suffix_of(path: Path) -> str:
    """What the name of an archive ends in, as it stands there; empty for other files."""
    return next((path.name[-len(suffix) :] for suffix in _KINDS if path.name.lower().endswith(suffix)), "")


def kind_of(path: Path) -> str:
    """`"Tar"` or `"Zip"`, by the name of an archive."""
    return _KINDS[suffix_of(path).lower()].__name__


def rewrite(
    source: Path, target: Path, wanted: Callable[[bytes], bool], convert: Convert, modified: int | None = None
) -> list[list[str]]:
    """Write an archive anew, whole or not at all, as another of its kind.

    A member that is replaced gets another suffix, and with it stays in its sample, the members whose names are the
    same up to the first dot; where its new name is taken, the suffix is put behind the old one. Links to it follow.
    All else is copied byte for byte, headers included. Nothing is unpacked.

    `wanted` tells by its first 16 bytes whether a file is to be read for `convert`, which is given all members and
    returns each in its order, with what takes its place, or nothing for it to stay. It may ask for them ahead, and from
    another thread. `modified` is as for `write_atomically`. Returns the names of what took the place of each member
    that was replaced.

    Raises:
        BROKEN: if the source is no such archive, cut short, or out of all proportion to its bytes.
        ValueError: if it is encrypted.
        OSError: if it cannot be read or the other not written.
    """
    with closing(_KINDS[suffix_of(source).lower()](source)) as archive:
        names, read = [], (archive.read(member, wanted) for member in archive.members)

        def write(file: io.BufferedWriter) -> None:
            packed = suffix_of(target).lower().endswith("gz")
            with gzip.GzipFile("", "wb", 6, file, mtime=0) if packed else nullcontext(file) as stream:
                writer = archive.writer(stream)
                for member, made in convert(read):
                    written = writer.put(member, made)
                    names.extend([written] if written else [])
                writer.finish()

        write_atomically(target, write, modified)
    return names
