"""Restoring files: one after the other, in stages, taking up where it stopped."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from shutil import copyfileobj
from threading import Thread
from typing import Any

import numpy as np

from ..decoded.image import DecodedJPEG
from ..decoded.opening import REPAIR_HINT, Assumed, NoJPEGError, open_image
from ..jpeg.file import JPEGFile
from ..jpeg.markers import JPEGDamageError, JPEGFileError, image_kind
from ..jpeg.metadata import Metadata
from . import archives
from .formats import (
    FORMATS,
    RECORD,
    STREAM,
    check_alpha,
    check_depth,
    check_size,
    encode,
    record_of,
    upright,
    write,
    write_atomically,
)
from .members import Made, Member
from .results import Result, mask_of, result_of, result_of_shard
from .tasks import Task

_PIXELS_TOGETHER = 2**24  # of files that go to the pipeline at once, where their windows share calls
_MOST_TOGETHER = 256


def restore_files(
    pipe: Any,
    tasks: Iterable[Task],
    overwrite: bool = False,
    seed: int = 0,
    repair: bool = False,
    depth: int = 8,
    assumed: Assumed = Assumed(),
    keep_times: bool = True,
    record: str = "",
    on_start: Callable[[Task], None] | None = None,
    **settings: Any,
) -> Iterator[Result]:
    """Restore one file after the other, and go on after a file that fails.

    Every file starts from the same seed, so its image does not depend on the files around it. A file that has several
    names is restored once, and each name gets its image. Outputs that exist are skipped unless `overwrite`, so a run
    that was stopped goes on where it was. While the network works on one file, the next is read and the image of the
    one before is written. Where calls of the prior hold several windows (`enable_tiling`), so on a GPU, that is done
    with several files at once.

    Args:
        pipe: a `DDRMJPEGPipeline`.
        tasks: what `plan` returns.
        overwrite: whether to replace outputs that exist.
        seed, repair, depth, assumed, keep_times: as for `restore_file`.
        record: in ASCII, what each PNG says of how it was made; one that exists and says something else is stale.
        on_start: told of each task when the network turns to it.
        **settings: arguments of the pipeline's call.

    Yields:
        A `Result` for each task, in order, once its image is written. After Ctrl-C comes that of the image which
        was just being written, then the `KeyboardInterrupt`.
    """
    run = _Run(pipe, seed, repair, depth, assumed, keep_times, settings, overwrite, record)

    def restore(jobs: list[_Job]) -> list[_Job]:
        for job in jobs:
            if on_start and not job.result:
                on_start(job.task)
            if job.is_shard and not job.same:
                run.attempt(run.restore_shard, job)
        return run.restored(jobs)

    for job in run.staged(map(_Job, tasks), restore):
        yield job.result


def restore_file(
    pipe: Any,
    task: Task,
    seed: int = 0,
    repair: bool = False,
    depth: int = 8,
    assumed: Assumed = Assumed(),
    keep_times: bool = True,
    **settings: Any,
) -> Result:
    """Restore one file and write its image, and beside it a mask of what was made up, if anything was.

    Args:
        pipe: a `DDRMJPEGPipeline`.
        task: where the file is, and where its image goes.
        seed: of the random numbers.
        repair: whether to restore what is left of a damaged file, instead of refusing it.
        depth: bits a channel, 8 or, for PNG and TIFF, 16.
        assumed: of images that are no JPEG files, but were.
        keep_times: whether what is written is given the time at which its source was last changed.
        **settings: arguments of the pipeline's call.
    """
    run, job = _Run(pipe, seed, repair, depth, assumed, keep_times, settings), _Job(task)
    for stage in (run.read, run.sample, run.finish):
        stage(job)
    return job.result


@dataclass
class _Job:
    """A file, a shard, or a member of one on its way through the stages, until it has its result."""

    task: Task
    member: Member | None = None
    file: JPEGFile | DecodedJPEG | None = None
    """What is to be restored, once it is read."""
    mask: bytes | None = None
    """A PNG of what is made up, of a damaged file."""
    restored: tuple[np.ndarray, float] | None = None
    """Pixels, in 8 or 16 bits and not yet upright, and their consistency."""
    made: Made = ()
    modified: int | None = None
    """When the source was last changed, for what is written, in nanoseconds."""
    same: _Job | None = None
    """An earlier one whose source is the same file under another name."""
    result: Result | None = None
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.member.name if self.member else str(self.task.source)

    @property
    def is_shard(self) -> bool:
        return self.task.is_shard and not self.member

    @property
    def pixels(self) -> int:
        """How much it weighs among others; of a member that is only carried along, its bytes."""
        shown = self.file.width * self.file.height if self.file else 0
        return max(shown, len(self.member.data or b"") if self.member else 0)

    def told(self, status: str, message: str = "") -> Result:
        return Result(self.task, status, message, member=self.member and self.member.name)


def _begun(call: Callable, *arguments: Any) -> Future:
    """What a call gives, in a thread, which does not keep Python from ending: a pipe may say nothing for ever."""
    future = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _stream(source: Any) -> Any:
    return sys.stdin.buffer if source == STREAM else source


def _identity(task: Task) -> tuple:
    """What tasks have in common whose files are the same under other names, and which make the same of them."""
    own = None if task.source == STREAM else task.source.stat()
    return own and (own.st_dev, own.st_ino), task.image_format, task.any_format


@dataclass(frozen=True)
class _Run:
    """What restores files, and in which way."""

    pipe: Any
    seed: int
    repair: bool
    depth: int
    assumed: Assumed
    keep_times: bool
    settings: dict[str, Any]
    overwrite: bool = True
    record: str = ""
    begun: dict[tuple, _Job] = field(default_factory=dict)
    """The first job of each file and format."""

    def staged(self, jobs: Iterable[_Job], work: Callable[[list[_Job]], list[_Job]]) -> Iterator[_Job]:
        """The jobs in order, read, worked on and finished; `work` has one batch while others are read and finished.

        That is done in threads, `work` in the caller's, which alone gets Ctrl-C; what was just being finished comes
        first.
        """
        batches = self._batches(self.attempt(self.read, job) for job in jobs)
        ahead, behind = _begun(next, batches, None), _begun(list)
        try:
            while (batch := ahead.result()) is not None:
                ahead = _begun(next, batches, None)
                done = work(batch)
                finished, behind = behind.result(), _begun(self._finished, done)
                yield from finished
            finished, behind = behind.result(), _begun(list)
            yield from finished
        except KeyboardInterrupt:
            yield from behind.result()
            raise
        finally:
            wait([behind])

    def _batches(self, jobs: Iterable[_Job]) -> Iterator[list[_Job]]:
        """Files that go to the pipeline at once: one where calls of the prior hold one window, a shard by itself."""
        windows = self.pipe.windows_in_a_call if self.pipe else 1
        most = _PIXELS_TOGETHER if windows > 1 else 1
        batch, pixels = [], 0
        for job in jobs:
            batch.append(job)
            pixels += max(job.pixels, most // _MOST_TOGETHER, 1)  # what is left as it is counts, too: it is told
            if pixels >= most or (job.is_shard and not job.result):
                yield batch
                batch, pixels = [], 0
        if batch:
            yield batch

    def restored(self, jobs: list[_Job]) -> list[_Job]:
        """Jobs whose images are sampled; their windows share calls of the prior."""
        together = [job for job in jobs if job.file]
        if len(together) > 1:
            start = time.monotonic()
            with suppress(Exception):  # whose fault it is shows one by one
                result = self._call([job.file for job in together], [self._generator() for _ in together])
                for i, job in enumerate(together):
                    job.restored = self._pixels(result, i)
            for job in together:
                job.seconds += (time.monotonic() - start) / len(together)
        for job in together:
            self.attempt(self.sample, job)
        return jobs

    def _finished(self, jobs: list[_Job]) -> list[_Job]:
        return [self.attempt(self.finish, job) for job in jobs]

    def attempt(self, stage: Callable[[_Job], None], job: _Job) -> _Job:
        """A job after a stage, unless it has its result; whatever is wrong with it must not cost the others."""
        if job.result:
            return job
        start = time.monotonic()
        try:
            stage(job)
        except Exception as error:
            job.file = None
            job.result = job.told("failed", self._sentence(error, job))
        job.seconds += time.monotonic() - start
        job.result = job.result and replace(job.result, seconds=job.seconds)
        return job

    def read(self, job: _Job) -> None:
        """Open the file of a job, if its image can be written in the format that it is meant for."""
        task, source = job.task, job.task.source
        if job.member:
            if job.member.trouble:
                raise ValueError(job.member.trouble)
            if job.member.data is None:
                return
            source = io.BytesIO(job.member.data)
            source.name = job.name
        else:
            if task.is_made and not self.overwrite:
                job.result = self._skipped(job)
                return
            if task.target != STREAM and task.target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(task.target))
            check_depth(self.depth, task.image_format)
            if self.keep_times and task.source != STREAM:
                job.modified = task.source.stat().st_mtime_ns
            job.same = self.begun.get(key := _identity(task))
            if job.same:
                return
            if job.is_shard:
                self.begun[key] = job
                return
        try:
            job.file = open_image(_stream(source), self.repair, self.assumed)
        except NoJPEGError as error:
            if not task.any_format:
                raise
            job.result = job.told("untouched", self._sentence(error, job))
            return
        sides = (job.file.width, job.file.height)
        stored = job.file.stored if isinstance(job.file, DecodedJPEG) else None
        if stored is not None:
            check_depth(8 * stored.itemsize, task.image_format)
            check_alpha(stored.shape[2], task.image_format)
        check_size(task.image_format, *(sides if job.file.orientation < 5 else sides[::-1]))
        if job.file.damage:
            job.mask = self._mask(job.file, task)
        if not job.member:
            self.begun[key] = job

    def _mask(self, file: JPEGFile, task: Task) -> bytes:
        """The mask of a damaged file, if there is a place for it, which may be where it lies already."""
        mask = encode(mask_of(file), "png", Metadata())[0]
        self._check_mask(mask, task)
        return mask

    def _check_mask(self, mask: bytes, task: Task) -> None:
        if task.target == STREAM:
            raise ValueError(
                "it is damaged, and standard output has no place for the mask of what is lost; name a file"
            )
        if task.mask and not self.overwrite and os.path.lexists(task.mask) and task.mask.read_bytes() != mask:
            raise ValueError(f"its mask would replace {task.mask} (--overwrite does that)")

    def _skipped(self, job: _Job) -> Result:
        """The result of a job whose image is there; its mask is made where that alone is missing."""
        task, result = job.task, job.told("skipped")
        if task.is_stale:
            result = job.told("stale", f"{task.source} was changed after it")
        elif self.record and record_of(task.target) not in (None, self.record):
            result = job.told("stale", "it was made with other settings")
        if self.repair and task.mask and not os.path.lexists(task.mask):
            try:
                file = JPEGFile.open(_stream(task.source), repair=True)
            except (JPEGFileError, OSError):  # of another format, say, of which nothing is damaged
                return result
            if file.damage:
                write(self._mask(file, task), task.mask)
                told = {"damage": file.damage, "invented": float(file.invented.mean())}
                words = f"{task.mask} was missing and is made again"
                result = replace(result, message=f"{result.message}; {words}" if result.message else words, **told)
        return result

    def sample(self, job: _Job) -> None:
        """Sample the image of a job, unless that is done."""
        if job.file and not job.restored:
            job.restored = self._pixels(self._call(job.file, self._generator()), 0)

    def finish(self, job: _Job) -> None:
        """Encode the image of a job and its mask, and write them, the mask first: no image without it."""
        file, task = job.file, job.task
        if job.same:
            self._copy(job)
        if not file:
            return
        pixels, consistency = job.restored
        pixels = file.put_back(pixels) if isinstance(file, DecodedJPEG) else pixels
        metadata = file.metadata.upright()
        if self.record and task.image_format == "png":
            metadata = metadata.with_text(RECORD, self.record)
        image, not_kept = encode(upright(pixels, file.orientation), task.image_format, metadata)
        if job.member:
            job.made = [(FORMATS[task.image_format].suffixes[0], image)]
            job.made += [(".mask.png", job.mask)] if job.mask else []
        else:
            if job.mask:
                write(job.mask, task.mask, job.modified)
            write(image, task.target, job.modified)
        member = job.member and job.name
        job.result = result_of(file, consistency, task=task, not_kept=not_kept, member=member)
        job.file = job.restored = job.mask = None

    def _copy(self, job: _Job) -> None:
        """Give a job what became of the same file under another name."""
        first, done = job.same.task, job.same.result
        if done.status == "restored" or done.members:
            if done.damage and first.mask:
                mask = first.mask.read_bytes()
                self._check_mask(mask, job.task)
                write(mask, job.task.mask, job.modified)
            with open(first.target, "rb") as image:
                write_atomically(job.task.target, lambda stream: copyfileobj(image, stream), job.modified)
        message = done.message.replace(job.same.name, job.name, 1)
        job.result = replace(done, task=job.task, message=message)

    def _generator(self) -> Any:
        import torch  # here, so that what only plans or writes files starts at once

        return torch.Generator().manual_seed(self.seed)

    def _call(self, file: Any, generator: Any) -> Any:
        output_type = "pil" if self.depth == 8 else "np"
        return self.pipe(file, generator=generator, output_type=output_type, **self.settings)

    def _pixels(self, result: Any, i: int) -> tuple[np.ndarray, float]:
        if self.depth == 8:
            return np.asarray(result.images[i]), result.consistency_8bit[i]
        pixels = np.rint(65535 * result.images[i].clip(0, 1)).astype(np.uint16)
        return pixels[..., 0] if pixels.shape[2] == 1 else pixels, result.consistency[i]

    def restore_shard(self, job: _Job) -> None:
        """Write a shard whose images are restored, but for those that cannot be, which stay as they are."""
        task, members = job.task, []

        def wanted(start: bytes) -> bool:
            kind = image_kind(start)
            return kind == "JPEG" or (task.any_format and kind is not None)

        def convert(found: Iterator[Member]) -> Iterator[tuple[Member, Made]]:
            for own in self.staged((_Job(task, member) for member in found), self.restored):
                members.extend([own.result] if own.result else [])
                yield own.member, own.made

        try:
            written = iter(archives.rewrite(task.source, task.target, wanted, convert, job.modified))
        except archives.BROKEN as error:
            raise ValueError(f"it is no {archives.kind_of(task.source).lower()}, or cut short: {error}") from None
        named = [replace(one, written=tuple(next(written))) if one.status == "restored" else one for one in members]
        job.result = result_of_shard(task, named)

    def _sentence(self, error: Exception, job: _Job) -> str:
        if isinstance(error, MemoryError):
            return f"{job.name}: not enough memory"
        if isinstance(error, OSError) and error.strerror:
            ours = error.filename is None or str(error.filename).endswith(".tmp")
            return f"{job.task.target if ours else error.filename}: {error.strerror}"
        reason = str(error).removeprefix(f"{job.name}: ").partition("\n")[0]  # the name may have line breaks
        hint = REPAIR_HINT if isinstance(error, JPEGDamageError) and not self.repair else ""
        return f"{job.name}: {reason or type(error).__name__}{hint}"
