"""Restoring files: which are meant, where their pictures go, one after the other, taking up where it stopped."""

from __future__ import annotations

import glob
import io
import os
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from . import shards
from .decoded_jpeg import DecodedJPEG, read_picture
from .files import (
    FORMAT_OF_SUFFIX,
    FORMATS,
    JPEG_START,
    JPEG_SUFFIXES,
    STREAM,
    check_depth,
    check_size,
    encode,
    save,
    starts_like_jpeg,
    upright,
)
from .inks import restore_any
from .jpeg_file import FOUR_INKS, MOST_BYTES, JPEGFile
from .jpeg_history import assume_history
from .jpeg_markers import JPEGDamageError, JPEGFileError, picture_kind
from .metadata import Metadata

REPAIR_HINT = " (--repair restores what is left)"

T = TypeVar("T")
_PIXELS_TOGETHER = 2**24  # of files that go to the pipeline at once, where their windows share calls
_MOST_TOGETHER = 256


@dataclass(frozen=True)
class Task:
    """One file to restore: where it is and where its picture goes; `STREAM` for standard input and output."""

    source: Path
    target: Path
    stored_format: str = "png"
    """One of `FORMATS`, for standard output and for what is in a shard; a file's is what its name ends in."""
    any_format: bool = False
    """Whether it is a picture of another format that a search came upon, or a shard in which there may be some: what
    shows no JPEG is left as it is."""

    @property
    def is_shard(self) -> bool:
        """Whether source and target are tars of files."""
        return self.target.suffix == shards.SUFFIX

    @property
    def image_format(self) -> str:
        """One of `FORMATS`."""
        named = self.target != STREAM and not self.is_shard
        return FORMAT_OF_SUFFIX[self.target.suffix.lower()] if named else self.stored_format


@dataclass(frozen=True)
class Assumed:
    """What somebody says of the JPEG that a picture was."""

    quality_factor: int | None = None
    """libjpeg's, 1..100; `None`: it is estimated."""
    chroma_subsampling: str = "4:2:0"
    grid: tuple[int, int] = (0, 0)
    """Column and row, from 0, at which its first whole block begins, or any other one."""
    saved_again: bool = False
    """Whether JPEG files are restored from an earlier, coarser JPEG that their pixels show."""


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
    bits are written, of the floating-point ones."""
    remarks: tuple[str, ...] = ()
    """What was odd about the file, though harmless: `JPEGFile.remarks`."""
    damage: tuple[str, ...] = ()
    """What was wrong with a file that was repaired."""
    invented: float = 0.0
    """Share of the coefficients of the picture that were not in the file, but made up; `mask_path` shows where."""
    not_kept: tuple[str, ...] = ()
    """What of the metadata the format has no place for, or what was not to be had."""
    pictures: int = 0
    """How many were written."""
    history: str = ""
    """What the picture's JPEG was, in words that begin with "estimated" or "assumed"; empty for a JPEG file."""


class NoJPEGError(JPEGFileError):
    """A picture of another format that shows no JPEG, or that cannot be read."""


def mask_path(target: Path) -> Path:
    """Where the mask of a repaired picture goes: white where all is made up, black where all was in the file."""
    return target.with_name(f"{target.stem}.mask.png")


def plan(
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike | None = None,
    recursive: bool = False,
    image_format: str | None = None,
    on_error: Callable[[OSError], None] | None = None,
    on_other: Callable[[Path], None] | None = None,
    any_format: bool = False,
) -> list[Task]:
    """Pair every JPEG and every shard among files and folders with the file its picture, or its pictures, go to.

    In folders, those files count that begin as a JPEG does, whatever they are called, and tars, which are shards of a
    WebDataset; with `any_format` so do pictures of other formats, but for those of earlier runs. An input that does not
    exist may be a pattern such as `shards/*.tar`. `"-"` is standard input, and as `output` standard output, which is
    where the picture of standard input goes by default.

    Without `output` the picture goes beside its source as `NAME_restored.png`. With one input file and an `output`
    that ends like a picture, it goes to that file; otherwise `output` is a folder, in which the subfolders of a
    folder given as input appear again. Sources that would meet in one file (`a.jpg`, `a.jpeg`) keep their full names,
    and pictures of other formats make way for JPEG files.

    Args:
        inputs: JPEG files and shards, taken as they are, folders, which are searched, and patterns.
        output: file or folder.
        recursive: whether to search the folders below a folder.
        image_format: one of `FORMATS`; by default what `output` ends in, or PNG.
        on_error: told of each folder that cannot be listed, which is then left out.
        on_other: told of each file in a folder that does not count, but for pictures of earlier runs.
        any_format: whether pictures of other formats count, in folders and in shards.

    Raises:
        FileNotFoundError: if an input does not exist.
        OSError: if a folder cannot be listed, without `on_error`.
        ValueError: if the arguments contradict each other, or a picture would replace its own source.
    """
    if image_format is not None and image_format not in FORMATS:
        raise ValueError(f"the format is {image_format!r}; it must be one of {', '.join(FORMATS)}")
    if "-" in inputs or output == "-":
        return [_streamed(inputs, output, image_format)]
    inputs = [Path(item).absolute() if Path(item) == STREAM else item for item in inputs]  # a file that is called -
    inputs = [path for item in inputs for path in (_matching(item) or [item])]
    folder = None if output is None else Path(output)
    first = Path(inputs[0])
    if folder is not None and not folder.is_dir():
        suffix = folder.suffix.lower()
        if suffix in Image.registered_extensions() and suffix not in FORMAT_OF_SUFFIX:
            raise ValueError(f"{folder} ends in {suffix}; pictures are written as {', '.join(FORMAT_OF_SUFFIX)}")
    if folder is not None and not folder.is_dir() and len(inputs) == 1 and _is_shard(first) and _is_shard(folder):
        tasks = [Task(_existing(first), folder, image_format or "png", any_format)]
    elif folder is not None and not folder.is_dir() and folder.suffix.lower() in FORMAT_OF_SUFFIX:
        named = FORMAT_OF_SUFFIX[folder.suffix.lower()]
        if len(inputs) > 1 or first.is_dir():
            raise ValueError(f"{folder} names one file, but there are several inputs; name a folder")
        if image_format not in (None, named):
            raise ValueError(f"{folder} ends in {folder.suffix}, but the format is {image_format}")
        tasks = [Task(_existing(first), folder)]
    else:
        searched = list(_find(inputs, recursive, on_error))
        found = {_real(path): (root, path) for root, path, counts in searched if counts}
        tasks = _named(found.values(), folder, image_format or "png", any_format)
        named = {_real(item) for item in inputs}
        made = {_real(task.target) for task in tasks if _real(task.target) != _real(task.source)}
        # A second run must not restore the pictures of the first; what was asked for by name is what was meant.
        tasks = [t for t in tasks if _real(t.source) in named or _real(t.source) not in made]
        made |= {_real(mask_path(task.target)) for task in tasks}
        others = {_real(path): (root, path) for root, path, counts in searched if not counts}
        others = {real: pair for real, pair in others.items() if real not in found and real not in made}
        if any_format:
            tasks += _of_other_formats(others, folder, image_format or "png", tasks)
            order = {real: place for place, real in enumerate(dict.fromkeys(_real(path) for _, path, _ in searched))}
            tasks.sort(key=lambda task: order[_real(task.source)])
        for _, path in others.values() if on_other else ():
            on_other(path)
    taken: dict[str, Path] = {}
    for task in tasks:
        target = _real(task.target)
        if target == _real(task.source):
            raise ValueError(f"{task.source} would be replaced by its own picture; choose another output")
        if target in taken:
            raise ValueError(f"{taken[target]} and {task.source} would both become {task.target}; restore them apart")
        taken[target] = task.source
    return tasks


def is_other_picture(path: Path) -> bool:
    """Whether a file begins as a picture does that is no JPEG."""
    try:
        with open(path, "rb") as stream:
            return picture_kind(stream.read(16)) is not None
    except OSError:
        return False


_real = os.path.realpath  # Path.resolve raises where links go round in a circle


def _named(
    found: Iterable[tuple[Path, Path]],
    folder: Path | None,
    image_format: str,
    any_format: bool,
    taken: Container[Path] = (),
) -> list[Task]:
    """Tasks of what was found, (folder that was searched, file), under short names where no two meet."""
    found, suffix, ending = list(found), FORMATS[image_format], "" if folder else "_restored"
    parents = [path.parent if folder is None else folder / path.parent.relative_to(root) for root, path in found]
    short = [parent / f"{path.stem}{ending}{suffix}" for parent, (_, path) in zip(parents, found, strict=True)]
    count = Counter(target for target, (_, path) in zip(short, found, strict=True) if not _is_shard(path))
    tasks = []
    for parent, target, (_, path) in zip(parents, short, found, strict=True):
        if _is_shard(path):
            tasks.append(Task(path, parent / f"{path.stem}{ending}{shards.SUFFIX}", image_format, any_format))
            continue
        if count[target] > 1 or target in taken:
            target = parent / f"{path.name}{ending}{suffix}"
        tasks.append(Task(path, target))
    return tasks


def _of_other_formats(
    others: dict[str, tuple[Path, Path]], folder: Path | None, image_format: str, jpegs: list[Task]
) -> list[Task]:
    """Tasks of the pictures among other files, which are taken out, as are those that earlier runs have made."""
    for real, (root, _) in list(others.items()):
        if folder is not None and Path(_real(folder)) in Path(real).parents:
            if _real(root) == _real(folder):
                raise ValueError(
                    f"{folder} is searched for pictures of any format and cannot take those that are made of them;"
                    " choose another output"
                )
            del others[real]
    pictures = {real: pair for real, pair in others.items() if is_other_picture(pair[1])}
    tasks = _named(pictures.values(), folder, image_format, False, {task.target for task in jpegs})
    made = {_real(task.target.with_suffix(suffix)) for task in (*jpegs, *tasks) for suffix in FORMATS.values()}
    made |= {_real(mask_path(task.target)) for task in tasks}
    for real in pictures:
        del others[real]
    return [replace(task, any_format=True) for task in tasks if _real(task.source) not in made]


def _is_shard(path: Path) -> bool:
    return path.suffix == shards.SUFFIX


def _matching(pattern: str | os.PathLike) -> list[str]:
    """What a pattern finds that is no name of a file itself: too many names for a command line, say."""
    return [] if os.path.lexists(pattern) else sorted(glob.glob(os.fspath(pattern)))  # noqa: PTH207 a Path has no pattern


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return path


def _find(
    inputs: Iterable[str | os.PathLike],
    recursive: bool,
    on_error: Callable[[OSError], None] | None,
) -> Iterator[tuple[Path, Path, bool]]:
    """(folder that was searched, file, whether it is named, a shard or like a JPEG), in a fixed order.

    Links to folders are not followed, pipes not read.
    """

    def fail(error: OSError) -> None:
        raise error

    for item in map(Path, inputs):
        if not _existing(item).is_dir():
            yield item.parent, item, True
            continue
        folders = [item]
        while folders:  # one level at a time: os.walk calls itself, which ends 1000 folders down
            parent, below, names = next(os.walk(folders.pop(), onerror=on_error or fail), (item, [], []))
            if recursive:
                found = (Path(parent, name) for name in sorted(below, reverse=True))
                folders += [path for path in found if not os.path.islink(path)]  # noqa: PTH114 raises where too long
            for path in (Path(parent, name) for name in sorted(names)):
                named = path.suffix.lower() in JPEG_SUFFIXES
                try:
                    if path.is_file() and not _is_shard(path) and not starts_like_jpeg(path):
                        yield item, path, False
                    elif path.is_file() or (named and not path.exists()):
                        yield item, path, True  # a broken link too: it is a file that is missed
                except OSError:  # nobody may read it, say; that is told when its turn comes
                    if named:
                        yield item, path, True


def _streamed(inputs: Sequence[str | os.PathLike], output: str | os.PathLike | None, image_format: str | None) -> Task:
    """The task of a single picture that is read from standard input or written to standard output."""
    if len(inputs) > 1 or Path(inputs[0]).is_dir():
        raise ValueError("-, which is standard input or output, is for one picture; give a single file")
    source = STREAM if inputs[0] == "-" else _existing(Path(inputs[0]))
    if output in (None, "-"):
        return Task(source, STREAM, image_format or "png")
    target = Path(output)
    named = None if target.is_dir() else FORMAT_OF_SUFFIX.get(target.suffix.lower())
    if named is None or image_format not in (None, named):
        raise ValueError(f"{output} cannot take the picture of standard input; name a file that ends in its format")
    return Task(source, target)


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
        together = [job for job in jobs if job.is_read and getattr(job.value, "color_space", None) not in FOUR_INKS]
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
        return restore_any(self.pipe, file, generator=generator, output_type=output_type, **self.settings)

    def _pixels(
        self, file: JPEGFile | DecodedJPEG, result: Any, i: int
    ) -> tuple[JPEGFile | DecodedJPEG, np.ndarray, float]:
        if self.depth == 8:
            return file, np.asarray(result.images[i]), result.consistency_8bit[i]
        pixels = np.rint(65535 * result.images[i].clip(0, 1)).astype(np.uint16)
        return file, pixels[..., 0] if pixels.shape[2] == 1 else pixels, result.consistency[i]

    def restore_shard(self, task: Task) -> Result:
        """Write a shard whose pictures are restored, but for those that cannot be, which stay as they are."""
        kept: list[float] = []
        failures: list[str] = []

        def read(member: shards.Member) -> _Job:
            job, data = _Job(member), member.data or b""
            if data.startswith(JPEG_START) or (task.any_format and picture_kind(data)):
                job.do(self.read, task, data)
            if isinstance(job.error, NoJPEGError) and task.any_format:
                job.error = None
            return job

        def restore(jobs: list[_Job]) -> list[_Job]:
            self.restore(jobs)
            return jobs

        def encoded(file: JPEGFile | DecodedJPEG, pixels: np.ndarray, consistency: float) -> tuple[bytes, float]:
            made, _ = encode(upright(pixels, file.orientation), task.image_format, file.metadata.upright())
            return made, consistency

        def finish(jobs: list[_Job]) -> list[_Job]:
            for job in jobs:
                if job.value:
                    job.do(encoded, *job.value)
            return jobs

        def convert(members: Iterator[shards.Member]) -> Iterator[tuple[shards.Member, bytes | None]]:
            for job in _staged(_batches(map(read, members), self.most_pixels), restore, finish):
                made, consistency = job.value or (None, None)
                if job.error:
                    failures.append(f"{job.item.name}: {str(job.error).removeprefix('<bytes>: ')}")
                elif made:
                    kept.append(consistency)
                yield job.item, made

        try:
            shards.rewrite(task.source, task.target, convert, FORMATS[task.image_format])
        except tarfile.TarError as error:
            raise ValueError(f"it is no tar, or cut short: {error}") from None
        count = f"{len(failures)} of {len(failures) + len(kept)} pictures"
        message = f"{task.source}: {count} stay as they were, first {failures[0]}" if failures else ""
        return Result(
            task,
            "failed" if failures else "restored",
            message,
            consistency=min(kept, default=None),
            pictures=len(kept),
        )


def _written(task: Task, restored: tuple[JPEGFile | DecodedJPEG, np.ndarray, float]) -> Result:
    file, pixels, consistency = restored
    if file.damage and task.target != STREAM:  # the mask first: no picture without it
        mask = np.rint(255 * file.invented).astype(np.uint8)
        save(upright(mask, file.orientation), mask_path(task.target), "png", Metadata())
    pixels = upright(pixels, file.orientation)
    not_kept = save(pixels, task.target, task.image_format, file.metadata.upright())
    invented = float(file.invented.mean()) if file.damage else 0.0
    history = file.description if isinstance(file, DecodedJPEG) else ""
    return Result(task, "restored", "", 0.0, consistency, file.remarks, file.damage, invented, not_kept, 1, history)


def open_source(
    source: Path | bytes | IO[bytes], repair: bool = False, assumed: Assumed = Assumed()
) -> JPEGFile | DecodedJPEG:
    """A JPEG file, or a picture of another format that was one.

    Raises:
        NoJPEGError: for pictures that show no JPEG.
        JPEGFileError: for files that are no pictures.
        OSError: if a path cannot be read.
    """
    stream = read_once(source)
    if picture_kind(stream.getbuffer()[:16].tobytes()) is None:
        file = JPEGFile.open(stream, repair=repair)
        if not assumed.saved_again:
            return file
        with Image.open(stream) as picture:
            picture.filename = stream.name
            return DecodedJPEG.open(picture, metadata=file.metadata)
    try:
        with Image.open(stream) as picture:
            picture.filename = stream.name
            if assumed.quality_factor is None:
                return DecodedJPEG.open(picture)
            pixels = np.array(read_picture(picture))
            offset = -assumed.grid[1], -assumed.grid[0]
            history = assume_history(pixels, assumed.quality_factor, assumed.chroma_subsampling, offset)
            return DecodedJPEG.open(picture, history)
    except (UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        reason = "not a picture that Pillow can read" if isinstance(error, UnidentifiedImageError) else error
        raise NoJPEGError(f"{stream.name}: {str(reason).removeprefix(f'{stream.name}: ')}") from None


def read_once(source: Path | bytes | IO[bytes]) -> io.BytesIO:
    """What a source holds, with its name: a pipe can be read but once."""
    if isinstance(source, Path):
        with open(source, "rb") as file:
            return read_once(file)
    stream = io.BytesIO(source if isinstance(source, bytes) else source.read(MOST_BYTES + 1))
    stream.name = "<bytes>" if isinstance(source, bytes) else source.name
    return stream


def _sentence(error: Exception, task: Task, repair: bool) -> str:
    if isinstance(error, MemoryError):
        return f"{task.source}: not enough memory"
    if isinstance(error, OSError) and error.strerror:
        ours = error.filename is None or str(error.filename).endswith(".tmp")
        return f"{task.target if ours else error.filename}: {error.strerror}"
    reason = str(error).removeprefix(f"{task.source}: ").partition("\n")[0]  # the name may have line breaks
    hint = REPAIR_HINT if isinstance(error, JPEGDamageError) and not repair else ""
    return f"{task.source}: {reason or type(error).__name__}{hint}"
