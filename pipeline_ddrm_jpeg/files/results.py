"""What there is to tell of an image that was restored: from a file, in a shard, on the page or by a pipeline's call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..decoded.image import DecodedJPEG
from ..jpeg.file import JPEGFile
from .formats import upright
from .tasks import Task

_MOST_TOLD = 20  # remarks about members of a shard


@dataclass(frozen=True)
class Result:
    """What became of an image, or of a shard of them."""

    task: Task | None = None
    """What was asked for, where it is a task; of a member that of its shard."""
    status: str = "restored"
    """`"restored"`, `"skipped"` (the output was there already), `"stale"` (it was, and is older than its source),
    `"untouched"` (of another format, without a JPEG) or `"failed"`."""
    message: str = ""
    """One sentence, where it failed or is untouched, is stale, or only its mask was missing."""
    seconds: float = 0.0
    """Of reading, restoring and writing, in part beside those of other files."""
    consistency: float | None = None
    """Share of the file's coefficients that the image keeps: of its 8-bit values, before lossy formats, or, where 16
    bits are written, of the floating-point ones. Of a shard that of the image which keeps least."""
    remarks: tuple[str, ...] = ()
    """What was odd about the file, though harmless: `JPEGFile.remarks`."""
    damage: tuple[str, ...] = ()
    """What was wrong with a file that was repaired."""
    invented: float = 0.0
    """Share of the coefficients of the image that were not in the file, but made up; `Task.mask` shows where, and in
    a shard, whose largest share this is, a member that ends in `.mask.png`."""
    not_kept: tuple[str, ...] = ()
    """What of the metadata the format has no place for, or what was not to be had."""
    history: str = ""
    """What the image's JPEG was, in words that begin with "estimated" or "assumed"; empty for a JPEG file."""
    member: str | None = None
    """The name that it has in its shard."""
    written: tuple[str, ...] = ()
    """The names that its image, and its mask if there is one, have in the new shard."""
    members: tuple[Result, ...] = ()
    """Of a shard those of its images, in their order."""

    @property
    def pictures(self) -> int:
        """How many were written."""
        if self.task and self.task.is_shard and self.member is None:
            return sum(member.pictures for member in self.members)
        return int(self.status == "restored")

    @property
    def measured(self) -> str:
        """What `consistency` is a share of, in words."""
        if self.damage or self.invented:
            return "remaining coefficients"
        return f"{self.history.partition(':')[0]} coefficients".lstrip()


def result_of(file: JPEGFile | DecodedJPEG, consistency: float, **more: Any) -> Result:
    """What there is to tell of the image that was restored from a file.

    Args:
        file: as it was opened.
        consistency: of the image as it is handed out, as the pipeline's output has it.
        **more: further fields of the result.
    """
    missing = getattr(file, "missing_bits", None) is not None
    invented = float(file.invented.mean()) if missing else 0.0
    history = file.description if isinstance(file, DecodedJPEG) else ""
    told = {"remarks": file.remarks, "damage": file.damage, "invented": invented, "history": history}
    return Result(consistency=consistency, **told, **more)


def mask_of(file: JPEGFile) -> np.ndarray:
    """Upright, uint8 `[H, W]`: 255 where the image of a damaged file is made up, 0 where all was in the file."""
    return upright(np.rint(255 * file.invented).astype(np.uint8), file.orientation)


def result_of_shard(task: Task, members: Sequence[Result]) -> Result:
    """What there is to tell of a shard, from the results of its images."""
    restored, failed = ([one for one in members if one.status == status] for status in ("restored", "failed"))
    message = ""
    if failed:
        count = f"{len(failed)} of {len(failed) + len(restored)} images"
        message = f"{task.source}: {count} stay as they were: {'; '.join(_some([one.message for one in failed]))}"
    return Result(
        task,
        "failed" if failed else "restored",
        message,
        consistency=min((one.consistency for one in restored), default=None),
        remarks=_some([f"{one.member}: {words}" for one in restored for words in (*one.remarks, one.history) if words]),
        damage=_some([f"{one.member}: {words}" for one in restored for words in one.damage]),
        invented=max((one.invented for one in restored), default=0.0),
        not_kept=tuple(dict.fromkeys(words for one in restored for words in one.not_kept)),
        members=tuple(members),
    )


def _some(words: list[str]) -> tuple[str, ...]:
    more = len(words) - _MOST_TOLD
    return (*words[:_MOST_TOLD], *([f"{more} more"] if more > 0 else []))
