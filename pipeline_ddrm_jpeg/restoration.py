"""Restoring files: one after the other, in stages, taking up where it stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any, TypeVar

import numpy as np

from . import shards
from .decoded_jpeg import DecodedJPEG
from .files import FORMATS, JPEG_START, STREAM, check_depth, check_size, encode, save, upright
from .jpeg_file import JPEGFile
from .jpeg_markers import JPEGDamageError, picture_kind
from .metadata import Metadata
from .sources import REPAIR_HINT, Assumed, NoJPEGError, open_source
from .tasks import Task, mask_path

T = TypeVar("T")
_PIXELS_TOGETHER = 2**24  # of files that go to the pipeline at once, where their windows share calls
_MOST_TOGETHER = 256
_MOST_TOLD = 20  # remarks about members of a shard


@dataclass(frozen=True)
class Result:
    """What became of a task."""

    task: Task
    status: str
    """`"restored"`, `"skipped"` (the output was there already), `"untouched"` (of another format, without a JPEG) or
    `"failed"`."""
    message: str = ""
    """One sentence, where it failed or is untouched."""
    seconds: float = 0.0
    """Of reading, restoring and writing, in part beside those of other files."""
    consistency: float | None = None
    """Share of the file's coefficients that the picture keeps: of its 8-bit values, before lossy formats, or, where 16
    bits are written, of the floating-point ones. Of a shard that of the picture which keeps least."""
    remarks: tuple[str, ...] = ()
    """What was odd about the file, though harmless: `JPEGFile.remarks`."""
    damage: tuple[str, ...] = ()
    """What was wrong with a file that was repaired."""
    invented: float = 0.0
    """Share of the coefficients of the picture that were not in the file, but made up; `mask_path` shows where, and in
    a shard, whose largest share this is, a member that ends in `.mask.png`."""
    not_kept: tuple[str, ...] = ()
    """What of the metadata the format has no place for, or what was not to be had."""
    pictures: int = 0
    """How many were written."""
    history: str = ""
    """What the picture's JPEG was, in words that begin with "estimated" or "assumed"; empty for a JPEG file."""


def restore_files(
    pipe: Any,
    tasks: Iterable[Task],
    overwrite: bool = False,
    seed: int = 0,
    repair: bool = False,
    depth: int = 8,
    assumed: Assumed = Assumed(),
    on_start: Callable[[Task], None] | None = None,
    **settings: Any,
) -> Iterator[Result]:
    """Restore one file after the other, and go on after a file that fails.

    Every file starts from the same seed, so its picture does not depend on the files around it. Outputs that exist
    are skipped unless `overwrite`, so a run that was stopped goes on where it was. While the network works on one file,
    the next is read and the picture of the one before is written. Where calls of the prior hold several windows
    (`window_batch_size`), so on a GPU, that is done with several files at once.

    Args:
        pipe: a `DDRMJPEGPipeline`.
        tasks: what `plan` returns.
        overwrite: whether to replace outputs that exist.
        seed: of the random numbers of each file.
        repair: as for `restore_file`.
        depth: as for `restore_file`.
        assumed: as for `restore_file`.
        on_start: told of each task when the network turns to it.
        **settings: arguments of the pipeline's call.

    Yields:
        A `Result` for each task, in order, once its picture is written. After Ctrl-C comes that of the picture which
        was just being written, then the `KeyboardInterrupt`.
    """
    run = _Run(pipe, seed, repair, depth, assumed, settings)

    def read(task: Task) -> _Job:
        job = _Job(task)
        job.do(run.skip_or_read, task, overwrite)
        return job

    def restore(jobs: list[_Job]) -> list[_Job]:
        for job in jobs:
            if on_start and not (job.error or isinstance(job.value, Result)):
                on_start(job.item)
            if job.value is job.item:
                job.do(run.restore_shard, job.item)
        run.restore(jobs)
        return jobs

    def write(jobs: list[_Job]) -> list[Result]:
        for job in jobs:
            if isinstance(job.value, tuple):
                job.do(_written, job.item, job.value)
            if job.error:
                job.value = Result(job.item, "failed", _sentence(job.error, job.item, repair))
        return [replace(job.value, seconds=job.seconds) for job in jobs]

    yield from _staged(_batches(map(read, tasks), run.most_pixels), restore, write)


class _Job:
    """A file or a member of a shard on its way through the stages: what the last one gave, or what went wrong."""

    def __init__(self, item: Task | shards.Member) -> None:
        self.item = item
        self.value: Any = None
        self.error: Exception | None = None
        self.seconds = 0.0

    def do(self, stage: Callable, *arguments: Any) -> None:
        """Go through a stage; whatever is wrong with one file must not cost the others."""
        start = time.monotonic()
        try:
            self.value = stage(*arguments)
        except Exception as error:
            self.value, self.error = None, error
        self.seconds += time.monotonic() - start

    @property
    def is_read(self) -> bool:
        """Whether the value is a file that is to be restored."""
        return isinstance(self.value, JPEGFile | DecodedJPEG)


def _batches(jobs: Iterable[_Job], most_pixels: int) -> Iterator[list[_Job]]:
    """Files in lists that have so many pixels together or end with the one that makes them more."""
    batch, pixels = [], 0
    for job in jobs:
        batch.append(job)
        file = job.value
        own = file.width * file.height if job.is_read else most_pixels if file is job.item else 0
        own = max(own, len(job.item.data or b"")) if isinstance(job.item, shards.Member) else own
        pixels += max(own, most_pixels // _MOST_TOGETHER)
        if pixels >= most_pixels:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _staged(
    batches: Iterator[list[_Job]],
    work: Callable[[list[_Job]], list[_Job]],
    finish: Callable[[list[_Job]], list[T]],
) -> Iterator[T]:
    """What `finish(work(batch))` gives of each batch, in order; meanwhile the next is made and the last finished.

    That is done in threads, `work` in the caller's, which alone gets Ctrl-C; what was just being finished comes first.
    """
    ahead, behind = _begun(next, batches, None), None
    try:
        while (batch := ahead.result()) is not None:
            ahead = _begun(next, batches, None)
            done = work(batch)
            if behind:
                finished, behind = behind.result(), None
                yield from finished
            behind = _begun(finish, done)
        if behind:
            finished, behind = behind.result(), None
            yield from finished
    except KeyboardInterrupt:
        if behind:
            yield from behind.result()
        raise
    finally:
        if behind:
            wait([behind])


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


def restore_file(
    pipe: Any,
    task: Task,
    seed: int = 0,
    repair: bool = False,
    depth: int = 8,
    assumed: Assumed = Assumed(),
    **settings: Any,
) -> Result:
    """Restore one file and write its picture, and beside it a mask of what was made up, if anything was.

    Args:
        pipe: a `DDRMJPEGPipeline`.
        task: where the file is, and where its picture goes.
        seed: of the random numbers.
        repair: whether to restore what is left of a damaged file, instead of refusing it.
        depth: bits a channel, 8 or, for PNG and TIFF, 16.
        assumed: of pictures that are no JPEG files, but were.
        **settings: arguments of the pipeline's call.
    """
    check_depth(depth, task.image_format)
    run = _Run(pipe, seed, repair, depth, assumed, settings)
    return _written(task, run.restored(run.read(task)))


@dataclass(frozen=True)
class _Run:
    """What restores files, and in which way."""

    pipe: Any
    seed: int
    repair: bool
    depth: int
    assumed: Assumed
    settings: dict[str, Any]

    @property
    def most_pixels(self) -> int:
        """Of the files that go to the pipeline at once: one at a time where calls of the prior hold one window."""
        windows = self.settings.get("window_batch_size")
        if windows is None and self.pipe is not None and self.pipe._execution_device.type != "cpu":
            windows = 2
        return _PIXELS_TOGETHER if (windows or 1) > 1 else 1

    def skip_or_read(self, task: Task, overwrite: bool) -> JPEGFile | DecodedJPEG | Task | Result:
        """The file, or a shard as it is, or that there is nothing to do."""
        if task.target != STREAM and task.target.exists() and not overwrite:
            return Result(task, "skipped")
        check_depth(self.depth, task.image_format)
        try:
            return task if task.is_shard else self.read(task)
        except NoJPEGError as error:
            if not task.any_format:
                raise
            return Result(task, "untouched", _sentence(error, task, self.repair))

    def read(self, task: Task, data: bytes | None = None) -> JPEGFile | DecodedJPEG:
        """The file, or that which the bytes are, if its picture can be written in the format that it is meant for."""
        source = sys.stdin.buffer if task.source == STREAM else task.source
        file = open_source(source if data is None else data, self.repair, self.assumed)
        sides = (file.width, file.height)
        check_size(task.image_format, *(sides if file.orientation < 5 else sides[::-1]))
        return file

    def restore(self, jobs: list[_Job]) -> None:
        """Give those that have a file what `restored` makes of it; their windows share calls of the prior."""
        together = [job for job in jobs if job.is_read]
        if len(together) > 1:
            start = time.monotonic()
            with suppress(Exception):  # whose fault it is shows one by one
                result = self._call([job.value for job in together], [self._generator() for _ in together])
                for i, job in enumerate(together):
                    job.value = self._pixels(job.value, result, i)
            for job in together:
                job.seconds += (time.monotonic() - start) / len(together)
        for job in jobs:
            if job.is_read:
                job.do(self.restored, job.value)

    def restored(self, file: JPEGFile | DecodedJPEG) -> tuple[JPEGFile | DecodedJPEG, np.ndarray, float]:
        """The file, the pixels of its picture, in 8 or 16 bits and not yet upright, and their consistency."""
        return self._pixels(file, self._call(file, self._generator()), 0)

    def _generator(self) -> Any:
        import torch  # here, so that what only plans or writes files starts at once

        return torch.Generator().manual_seed(self.seed)

    def _call(self, file: Any, generator: Any) -> Any:
        output_type = "pil" if self.depth == 8 else "np"
        return self.pipe(file, generator=generator, output_type=output_type, **self.settings)

    def _pixels(
        self, file: JPEGFile | DecodedJPEG, result: Any, i: int
    ) -> tuple[JPEGFile | DecodedJPEG, np.ndarray, float]:
        if self.depth == 8:
            return file, np.asarray(result.images[i]), result.consistency_8bit[i]
        pixels = np.rint(65535 * result.images[i].clip(0, 1)).astype(np.uint16)
        return file, pixels[..., 0] if pixels.shape[2] == 1 else pixels, result.consistency[i]

    def restore_shard(self, task: Task) -> Result:
        """Write a shard whose pictures are restored, but for those that cannot be, which stay as they are."""
        told, failures = _Told(), []

        def wanted(start: bytes) -> bool:
            return start.startswith(JPEG_START) or (task.any_format and picture_kind(start) is not None)

        def read(member: shards.Member) -> _Job:
            job = _Job(member)
            if member.data is not None:
                job.do(self.read, task, member.data)
            if isinstance(job.error, NoJPEGError) and task.any_format:
                job.error = None
            return job

        def restore(jobs: list[_Job]) -> list[_Job]:
            self.restore(jobs)
            return jobs

        def encoded(
            file: JPEGFile | DecodedJPEG, pixels: np.ndarray, consistency: float
        ) -> tuple[JPEGFile | DecodedJPEG, float, tuple[str, ...], shards.Made]:
            metadata = file.metadata.upright()
            picture, not_kept = encode(upright(pixels, file.orientation), task.image_format, metadata)
            made = [(FORMATS[task.image_format].suffixes[0], picture)]
            if file.damage:
                made.append((".mask.png", encode(_mask(file), "png", Metadata())[0]))
            return file, consistency, not_kept, made

        def finish(jobs: list[_Job]) -> list[_Job]:
            for job in jobs:
                if job.value:
                    job.do(encoded, *job.value)
            return jobs

        def convert(members: Iterator[shards.Member]) -> Iterator[tuple[shards.Member, shards.Made]]:
            for job in _staged(_batches(map(read, members), self.most_pixels), restore, finish):
                file, consistency, not_kept, made = job.value or (None, None, (), ())
                if job.error:
                    failures.append(f"{job.item.name}: {str(job.error).removeprefix('<bytes>: ')}")
                elif made:
                    told.add(job.item.name, file, consistency, not_kept)
                yield job.item, made

        try:
            lost = shards.rewrite(task.source, task.target, wanted, convert)
        except shards.BROKEN as error:
            raise ValueError(f"it is no tar, or cut short: {error}") from None
        sentences = []
        if failures:
            count = f"{len(failures)} of {len(failures) + len(told.consistencies)} pictures"
            sentences.append(f"{count} stay as they were, first {failures[0]}")
        if lost:
            sentences.append(f"{len(lost)} members are left out, first {lost[0]}")
        message = f"{task.source}: {'; '.join(sentences)}" if sentences else ""
        return told.result(Result(task, "failed" if sentences else "restored", message))


class _Told:
    """What is told of the pictures of a shard."""

    def __init__(self) -> None:
        self.consistencies: list[float] = []
        self.invented: list[float] = []
        self.damage: list[str] = []
        self.remarks: list[str] = []
        self.not_kept: dict[str, None] = {}

    def add(self, name: str, file: JPEGFile | DecodedJPEG, consistency: float, not_kept: tuple[str, ...]) -> None:
        self.consistencies.append(consistency)
        if file.damage:
            self.invented.append(float(file.invented.mean()))
        self.damage += [f"{name}: {words}" for words in file.damage]
        self.remarks += [f"{name}: {words}" for words in file.remarks]
        self.remarks += [f"{name}: {file.description}"] if isinstance(file, DecodedJPEG) else []
        self.not_kept |= dict.fromkeys(not_kept)

    def result(self, result: Result) -> Result:
        return replace(
            result,
            consistency=min(self.consistencies, default=None),
            pictures=len(self.consistencies),
            invented=max(self.invented, default=0.0),
            damage=_some(self.damage),
            remarks=_some(self.remarks),
            not_kept=tuple(self.not_kept),
        )


def _some(words: list[str]) -> tuple[str, ...]:
    more = len(words) - _MOST_TOLD
    return (*words[:_MOST_TOLD], *([f"{more} more"] if more > 0 else []))


def _mask(file: JPEGFile | DecodedJPEG) -> np.ndarray:
    """Upright, 255 where a picture is made up and 0 where all was in the file."""
    return upright(np.rint(255 * file.invented).astype(np.uint8), file.orientation)


def _written(task: Task, restored: tuple[JPEGFile | DecodedJPEG, np.ndarray, float]) -> Result:
    file, pixels, consistency = restored
    if file.damage and task.target != STREAM:  # the mask first: no picture without it
        save(_mask(file), mask_path(task.target), "png", Metadata())
    pixels = upright(pixels, file.orientation)
    not_kept = save(pixels, task.target, task.image_format, file.metadata.upright())
    invented = float(file.invented.mean()) if file.damage else 0.0
    history = file.description if isinstance(file, DecodedJPEG) else ""
    return Result(task, "restored", "", 0.0, consistency, file.remarks, file.damage, invented, not_kept, 1, history)


def _sentence(error: Exception, task: Task, repair: bool) -> str:
    if isinstance(error, MemoryError):
        return f"{task.source}: not enough memory"
    if isinstance(error, OSError) and error.strerror:
        ours = error.filename is None or str(error.filename).endswith(".tmp")
        return f"{task.target if ours else error.filename}: {error.strerror}"
    reason = str(error).removeprefix(f"{task.source}: ").partition("\n")[0]  # the name may have line breaks
    hint = REPAIR_HINT if isinstance(error, JPEGDamageError) and not repair else ""
    return f"{task.source}: {reason or type(error).__name__}{hint}"
