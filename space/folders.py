"""Folders of this server's own, for what visitors leave, and the end of those whose server is gone."""

from __future__ import annotations

import atexit
import os
import re
import shutil
from pathlib import Path
from tempfile import gettempdir, mkdtemp

try:
    import fcntl
except ImportError:  # Windows, where the folders of a server that was killed stay
    fcntl = None

_OWN: list[Path] = []


def own_folder(prefix: str, parent: str | None = None) -> Path:
    """A new folder, which goes when this process ends; those of servers that were killed go now.

    A folder is locked as long as its server lives, however it ends. Whoever gets the lock may delete it.

    Args:
        prefix: what the names of such folders begin with.
        parent: where they are; by default where temporary files are.
    """
    parent = Path(parent or gettempdir())
    for left in parent.iterdir():
        if re.fullmatch(re.escape(prefix) + r"[a-z0-9_]{8}", left.name):  # as `mkdtemp` makes names
            lock = _lock(left)
            if lock is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
    made = Path(mkdtemp(prefix=f".{prefix}", dir=parent))
    _lock(made)  # kept until this process ends
    # It gets its name only now, so that no other server finds it before it is locked.
    _OWN.append(made.rename(made.with_name(made.name[1:])))
    return _OWN[-1]


def _lock(folder: Path) -> int | None:
    """The lock of a folder, if nobody has it and the system has such locks."""
    if fcntl is None:
        return None
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


@atexit.register
def delete_folders() -> None:
    """Delete this server's folders, with all that visitors have left in them."""
    for folder in _OWN:
        shutil.rmtree(folder, ignore_errors=True)
