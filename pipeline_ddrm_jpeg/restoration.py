"""Files: JPEG path in, picture path out, metadata kept, written atomically, folders, and taking up where it stopped."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, PngImagePlugin

from .jpeg_file import JPEGFile
from .jpeg_markers import JPEGDamageError

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")

# Suffix and Pillow options of each output format; JPEG is the one that loses anything, as little as it can.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": (".png", {"optimize": True}),
    "webp": (".webp", {"lossless": True, "quality": 100, "method": 4}),
    "jpeg": (".jpg", {"quality": 97, "subsampling": "4:4:4"}),
    "tiff": (".tif", {}),  # compressed, libtiff would refuse the sub-directories of a camera's EXIF
}
REPAIR_HINT = " (--repair restores what is left)"
_TIFF_XMP = 700  # tag number, XMP specification part 3
_FORMAT_OF_SUFFIX = {".png": "png", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff"} | dict.fromkeys(
    JPEG_SUFFIXES, "jpeg"
)


@dataclass(frozen=True)
class Task:
    """One file to restore: where it is and where its picture goes."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Result:
    """What became of a task."""

    task: Task
    status: str
    """`"restored"`, `"skipped"` (the output was there already) or `"failed"`."""
    message: str = ""
    """One sentence, where it failed."""
    seconds: float = 0.0
    consistency: float | None = None
    """Share of the file's coefficients that the picture written keeps; of its 8-bit values, before lossy formats."""
    remarks: tuple[str, ...] = ()
    """What was odd about the file, though harmless: `JPEGFile.remarks`."""
    damage: tuple[str, ...] = ()
    """What was wrong with a file that was repaired."""
    invented: float = 0.0
    """Share of the coefficients of the picture that were not in the file, but made up; `mask_path` shows where."""


def mask_path(target: Path) -> Path:
    """Where the mask of a repaired picture goes: white where all is made up, black where all was in the file."""
    return target.with_name(f"{target.stem}.mask.png")


def plan(
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike | None = None,
    recursive: bool = False,
    image_format: str | None = None,
    on_error: Callable[[OSError], None] | None = None,
) -> list[Task]:
    """Pair every JPEG among files and folders with the file its picture goes to.

    Without `output` the picture goes beside its source as `NAME_restored.png`. With one input file and an `output`
    that ends like a picture, it goes to that file; otherwise `output` is a folder, in which the subfolders of a
    folder given as input appear again. Sources that would meet in one file (`a.jpg`, `a.jpeg`) keep their full names.

    Args:
        inputs: JPEG files, taken as they are, and folders, searched for files named like a JPEG.
        output: file or folder.
        recursive: whether to search the folders below a folder.
        image_format: one of `FORMATS`; by default what `output` ends in, or PNG.
        on_error: told of each folder that cannot be listed, which is then left out.

    Raises:
        FileNotFoundError: if an input does not exist.
        OSError: if a folder cannot be listed, without `on_error`.
        ValueError: if the arguments contradict each other, or a picture would replace its own source.
    """
    if image_format is not None and image_format not in FORMATS:
        raise ValueError(f"the format is {image_format!r}; it must be one of {', '.join(FORMATS)}")
    folder = None if output is None else Path(output)
    first = Path(inputs[0])
    if folder is not None and not folder.is_dir():
        suffix = folder.suffix.lower()
        if suffix in Image.registered_extensions() and suffix not in _FORMAT_OF_SUFFIX:
            raise ValueError(f"{folder} ends in {suffix}; pictures are written as {', '.join(_FORMAT_OF_SUFFIX)}")
    if folder is not None and not folder.is_dir() and folder.suffix.lower() in _FORMAT_OF_SUFFIX:
        named = _FORMAT_OF_SUFFIX[folder.suffix.lower()]
        if len(inputs) > 1 or first.is_dir():
            raise ValueError(f"{folder} names one file, but there are several inputs; name a folder")
        if image_format not in (None, named):
            raise ValueError(f"{folder} ends in {folder.suffix}, but the format is {image_format}")
        tasks = [Task(_existing(first), folder)]
    else:
        suffix = FORMATS[image_format or "png"][0]
        found = list({_real(path): (root, path) for root, path in _find(inputs, recursive, on_error)}.values())
        if folder is None:
            stems = [(path.parent, path.stem + "_restored", path.name + "_restored") for _, path in found]
        else:
            stems = [(folder / path.parent.relative_to(root), path.stem, path.name) for root, path in found]
        count = Counter((parent, short) for parent, short, _ in stems)
        tasks = [
            Task(path, parent / ((short if count[parent, short] == 1 else full) + suffix))
            for (_, path), (parent, short, full) in zip(found, stems, strict=True)
        ]
        named = {_real(item) for item in inputs}
        made = {_real(task.target) for task in tasks if _real(task.target) != _real(task.source)}
        # A second run must not restore the pictures of the first; what was asked for by name is what was meant.
        tasks = [t for t in tasks if _real(t.source) in named or _real(t.source) not in made]
    taken: dict[str, Path] = {}
    for task in tasks:
        target = _real(task.target)
        if target == _real(task.source):
            raise ValueError(f"{task.source} would be replaced by its own picture; choose another output")
        if target in taken:
            raise ValueError(f"{taken[target]} and {task.source} would both become {task.target}; restore them apart")
        taken[target] = task.source
    return tasks


_real = os.path.realpath  # Path.resolve raises where links go round in a circle


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return path


def _find(
    inputs: Iterable[str | os.PathLike], recursive: bool, on_error: Callable[[OSError], None] | None
) -> Iterator[tuple[Path, Path]]:
    """(folder that was searched, file), in a fixed order; links to folders are not followed, pipes not read."""

    def fail(error: OSError) -> None:
        raise error

    for item in map(Path, inputs):
        if not _existing(item).is_dir():
            yield item.parent, item
            continue
        folders = [item]
        while folders:  # one level at a time: os.walk calls itself, which ends 1000 folders down
            parent, below, names = next(os.walk(folders.pop(), onerror=on_error or fail), (item, [], []))
            if recursive:
                found = (Path(parent, name) for name in sorted(below, reverse=True))
                folders += [path for path in found if not os.path.islink(path)]  # noqa: PTH114 raises where too long
            for path in (Path(parent, name) for name in sorted(names)):
                if path.suffix.lower() in JPEG_SUFFIXES and (path.is_file() or not path.exists()):
                    yield item, path  # a broken link too: it is a file that is missed


def restore_files(
    pipe: Any, tasks: Iterable[Task], overwrite: bool = False, seed: int = 0, **settings: Any
) -> Iterator[Result]:
    """Restore one file after the other, and go on after a file that fails.

    Every file starts from the same seed, so its picture does not depend on the files around it. Outputs that exist
    are skipped unless `overwrite`, so a run that was stopped goes on where it was.

    Args:
        pipe: a `DDRMJPEGPipeline`.
        tasks: what `plan` returns.
        overwrite: whether to replace outputs that exist.
        seed: of the random numbers of each file.
        **settings: `repair`, and arguments of the pipeline's call.

    Yields:
        A `Result` for each task, in order.
    """
    for task in tasks:
        start = time.monotonic()
        try:
            if task.target.exists() and not overwrite:
                result = Result(task, "skipped")
            else:
                result = restore_file(pipe, task, seed, **settings)
        except Exception as error:  # whatever is wrong with one file must not cost the others
            result = Result(task, "failed", _sentence(error, task, settings.get("repair", False)))
        yield replace(result, seconds=time.monotonic() - start)


def restore_file(pipe: Any, task: Task, seed: int = 0, repair: bool = False, **settings: Any) -> Result:
    """Restore one file and write its picture, and beside it a mask of what was made up, if anything was.

    Args:
        pipe: a `DDRMJPEGPipeline`.
        task: where the file is, and where its picture goes.
        seed: of the random numbers.
        repair: whether to restore what is left of a damaged file, instead of refusing it.
        **settings: arguments of the pipeline's call.
    """
    import torch  # here, so that what only plans or writes files starts at once

    file = JPEGFile.open(task.source, repair=repair)
    result = pipe(file, generator=torch.Generator().manual_seed(seed), **settings)
    image = result.images[0]
    if file.damage:  # the mask first: no picture without it
        mask = Image.fromarray((255 * file.invented).round().astype("uint8"))
        mask.info = {"exif": file.exif} if file.exif else {}
        save_image(ImageOps.exif_transpose(mask), mask_path(task.target))
    if file.orientation != 1:
        image = ImageOps.exif_transpose(image)
    save_image(image, task.target)
    invented = float(file.invented.mean()) if file.damage else 0.0
    return Result(task, "restored", "", 0.0, result.consistency_8bit[0], file.remarks, file.damage, invented)


def save_image(image: Image.Image, target: str | os.PathLike) -> None:
    """Write a picture with the EXIF, ICC and XMP of its `info`, in the format its name ends in.

    PNG and JPEG keep a comment as well; a greyscale profile is left out of WebP, which has only colour.

    The file appears whole or not at all: it is written beside its place under a temporary name.

    Raises:
        OSError: if it cannot be written.
    """
    target = Path(target)
    name = _FORMAT_OF_SUFFIX[target.suffix.lower()]
    options = dict(FORMATS[name][1])
    metadata = {key: image.info[key] for key in ("exif", "icc_profile", "xmp", "comment") if key in image.info}
    if name == "png":
        text = PngImagePlugin.PngInfo()
        if "xmp" in metadata:
            text.add_itxt("XML:com.adobe.xmp", metadata.pop("xmp").decode("utf-8", "replace"))
        if "comment" in metadata:
            text.add_itxt("Comment", metadata.pop("comment").decode("utf-8", "replace"))
        options["pnginfo"] = text
    elif name == "webp" and image.mode == "L":
        metadata.pop("icc_profile", None)
    elif name == "tiff" and "xmp" in metadata:
        metadata["exif"] = image.getexif()
        metadata["exif"][_TIFF_XMP] = metadata.pop("xmp")
    write_atomically(target, lambda stream: image.save(stream, name, **options, **metadata))


def write_atomically(target: Path, write: Callable[[Any], None]) -> None:
    """Call `write` with a binary stream; what it writes becomes `target` when it returns, or nothing does."""
    for folder in reversed([target.parent, *takewhile(lambda folder: not folder.exists(), target.parent.parents)]):
        folder.mkdir(exist_ok=True)  # mkdir(parents=True) calls itself, and ends 1000 folders down
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:  # Ctrl-C too must leave nothing behind
        temporary.unlink(missing_ok=True)
        raise


def _sentence(error: Exception, task: Task, repair: bool) -> str:
    if isinstance(error, MemoryError):
        return f"{task.source}: not enough memory"
    if isinstance(error, OSError) and error.strerror:
        ours = error.filename is None or str(error.filename).endswith(".tmp")
        return f"{task.target if ours else error.filename}: {error.strerror}"
    reason = str(error).removeprefix(f"{task.source}: ").partition("\n")[0]  # the name may have line breaks
    hint = REPAIR_HINT if isinstance(error, JPEGDamageError) and not repair else ""
    return f"{task.source}: {reason or type(error).__name__}{hint}"
