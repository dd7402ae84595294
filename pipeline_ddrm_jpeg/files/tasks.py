"""Which files are meant to be restored, and where their images go."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ..jpeg.markers import image_kind
from . import archives
from .formats import FORMAT_OF_SUFFIX, FORMATS, JPEG_SUFFIXES, STREAM, TEMPORARY, format_of


@dataclass(frozen=True)
class Task:
    """One file to restore: where it is and where its image goes; `STREAM` for standard input and output."""

    source: Path
    target: Path
    stored_format: str = "png"
    """One of `FORMATS`, for standard output and for what is in a shard; a file's is what its name ends in."""
    any_format: bool = False
    """Whether it is an image of another format that a search came upon, or a shard in which there may be some: what
    shows no JPEG is left as it is."""
    renamed: bool = False
    """Whether its image has a longer name than usual, because another has that one."""

    @property
    def is_shard(self) -> bool:
        """Whether source and target are archives of files."""
        return _is_shard(self.target)

    @property
    def image_format(self) -> str:
        """One of `FORMATS`."""
        named = self.target != STREAM and not self.is_shard
        return format_of(self.target) if named else self.stored_format

    @property
    def is_made(self) -> bool:
        """Whether its image is there."""
        return self.target != STREAM and os.path.exists(self.target) and not os.path.isdir(self.target)  # noqa: PTH110, PTH112 Path raises

    @property
    def is_stale(self) -> bool:
        """Whether the source was changed after the image that is there; some systems of files count two seconds."""
        try:
            return self.source != STREAM and self.source.stat().st_mtime - self.target.stat().st_mtime > 2
        except OSError:  # which is told when the source is read
            return False

    @property
    def mask(self) -> Path | None:
        """Where the mask goes if the file is repaired: white where all is made up, black where all was in the file.

        `None` for a shard, in which masks lie, and for standard output, which has no place for one.
        """
        if self.target == STREAM or self.is_shard:
            return None
        return self.target.with_name(f"{self.target.stem}.mask.png")

    @property
    def outputs(self) -> list[Path]:
        """What may be written."""
        return [self.target, *([self.mask] if self.mask else [])]


def plan(
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike | None = None,
    recursive: bool = False,
    image_format: str | None = None,
    on_error: Callable[[OSError], None] | None = None,
    on_other: Callable[[Path], None] | None = None,
    any_format: bool = False,
) -> list[Task]:
    """Pair every JPEG and every shard among files and folders with the file its image, or its images, go to.

    In folders, those files count that begin as a JPEG does, whatever they are called, and archives
    (tars such as the shards of a WebDataset, zips); with `any_format` so do images of other formats, but for those of
    earlier runs. An input that does not exist may be a pattern such as `shards/*.tar`. `"-"` is standard input, and as
    `output` standard output, which is where the image of standard input goes by default.

    Without `output` the image goes beside its source as `NAME_restored.png`. With one input file and an `output`
    that ends like an image, it goes to that file; otherwise `output` is a folder, in which the subfolders of a
    folder given as input appear again. Sources that would meet in one file (`a.jpg`, `a.jpeg`) keep their full names,
    as does one that would meet another's mask, and images of other formats make way for JPEG files. Where that is not
    enough, or a source would be replaced, a number is put behind the name.

    Args:
        inputs: JPEG files and shards, taken as they are, folders, which are searched, and patterns.
        output, recursive: file or folder; whether to search the folders below a folder.
        image_format: one of `FORMATS`; by default what `output` ends in, or PNG.
        on_error: told of each folder that cannot be listed, which is then left out.
        on_other: told of each file in a folder that does not count, but for images of earlier runs.
        any_format: whether images of other formats count, in folders and in shards.

    Raises:
        FileNotFoundError: if an input does not exist.
        OSError: if a folder cannot be listed, without `on_error`.
        ValueError: if the arguments contradict each other, or a source would be replaced.
    """
    if image_format is not None and image_format not in FORMATS:
        raise ValueError(f"the format is {image_format!r}; it must be one of {', '.join(FORMATS)}")
    if "-" in inputs or output == "-":
        return [_streamed(inputs, output, image_format)]
    inputs = [Path(item).absolute() if Path(item) == STREAM else item for item in inputs]  # a file that is called -
    inputs = [Path(path) for item in inputs for path in (_matching(item) or [item])]
    output = None if output is None else Path(output)
    tasks = _single(inputs, output, image_format, any_format)
    if tasks is None:
        searched = [(_place(path), root, path, counts) for root, path, counts in _find(inputs, recursive, on_error)]
        jpegs = {place: (root, path) for place, root, path, counts in searched if counts}
        tasks = _named(jpegs.values(), output, image_format or "png", any_format)
        # A second run must not restore the images of the first; what was asked for by name is what was meant.
        made = _made(tasks) - {_real(item) for item in inputs}
        tasks = [task for task in tasks if _real(task.source) not in made]
        others = {place: found for place, *found, _ in searched if place not in jpegs and _real(place) not in made}
        if any_format:
            tasks += _of_other_formats(others, output, image_format or "png", tasks)
            order = {place: number for number, (place, *_) in reversed(list(enumerate(searched)))}
            tasks.sort(key=lambda task: order[_place(task.source)])
        for _, path in others.values() if on_other else ():
            on_other(path)
        return _apart(tasks)
    for output in tasks[0].outputs:
        if _real(output) == _real(tasks[0].source):
            raise ValueError(f"{output} is the source itself, and would be replaced; choose another output")
    return tasks


def is_other_image(path: Path) -> bool:
    """Whether a file begins as an image does that is no JPEG."""
    try:
        return _kind_of(path) not in ("JPEG", None)
    except OSError:
        return False


def is_broken(path: Path) -> bool:
    """Whether a file is called a JPEG and begins like no image; what macOS keeps beside files is called so, too."""
    try:
        named = path.suffix.lower() in JPEG_SUFFIXES and not path.name.startswith("._")
        return named and _kind_of(path) is None
    except OSError:
        return False


def _kind_of(path: Path) -> str | None:
    with open(path, "rb") as stream:
        return image_kind(stream.read(16))


_real = os.path.realpath  # Path.resolve raises where links go round in a circle


def _place(path: Path) -> str:
    """A name, wherever it leads to: one file may have several, and each gets its image."""
    return os.path.join(_real(path.parent), path.name)  # noqa: PTH118 a Path would be slower


def _single(inputs: list[Path], output: Path | None, image_format: str | None, any_format: bool) -> list[Task] | None:
    """The task whose output is one file; `None` where the output is a folder."""
    if output is None or output.is_dir():
        return None
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    if there != output and not there.is_dir():
        raise ValueError(f"{output} cannot be made, since {there} is no folder; choose another output")
    if len(inputs) == 1 and _is_shard(inputs[0]) and _is_shard(output):
        if archives.kind_of(inputs[0]) != archives.kind_of(output):
            raise ValueError(f"{output} cannot be made of {inputs[0]}: a tar stays a tar, and a zip a zip")
        return [Task(_existing(inputs[0]), output, image_format or "png", any_format)]
    suffix = output.suffix.lower()
    named = FORMAT_OF_SUFFIX.get(suffix)
    if named is None and suffix in Image.registered_extensions():
        raise ValueError(f"{output} ends in {suffix}; images are written as {', '.join(FORMAT_OF_SUFFIX)}")
    if named is None and output.exists():
        raise ValueError(f"{output} is a file, and no image; name a folder")
    if named is None:
        return None
    if len(inputs) > 1 or inputs[0].is_dir():
        raise ValueError(f"{output} names one file, but there are several inputs; name a folder")
    if image_format not in (None, named):
        raise ValueError(f"{output} ends in {output.suffix}, but the format is {image_format}")
    return [Task(_existing(inputs[0]), output)]


def _named(
    found: Iterable[tuple[Path, Path]],
    folder: Path | None,
    image_format: str,
    any_format: bool,
    taken: Container[Path] = (),
) -> list[Task]:
    """Tasks of what was found, (folder that was searched, file), under short names where no two meet."""
    suffix, ending = FORMATS[image_format].suffixes[0], "" if folder else "_restored"
    places = [(path.parent if folder is None else folder / path.parent.relative_to(root), path) for root, path in found]
    images = [(parent, path) for parent, path in places if not _is_shard(path)]
    # What short names and full ones may become: images, and masks where files are repaired.
    count = Counter(
        parent / f"{name}{ending}{of}"
        for parent, path in images
        for name in {path.stem, path.name}
        for of in ("", ".mask")
    )
    tasks = []
    for parent, path in places:
        if _is_shard(path):
            of = archives.suffix_of(path)
            target = parent / f"{path.name.removesuffix(of)}{ending}{of}"
            tasks.append(Task(path, target, image_format, any_format))
            continue
        target = parent / f"{path.stem}{ending}{suffix}"
        renamed = count[parent / f"{path.stem}{ending}"] > 1 or target in taken
        if renamed:
            target = parent / f"{path.name}{ending}{suffix}"
        tasks.append(Task(path, target, renamed=renamed))
    return tasks


def _apart(tasks: Iterable[Task]) -> list[Task]:
    """The same with a number in the name of an image that would replace a source, or what is made of another."""
    sources, taken, apart = {_real(task.source) for task in tasks}, {}, []
    for task in tasks:
        source, first, number = _real(task.source), task.target, 1
        if _real(first) == source and task.image_format == "jpeg":  # the next run would take its images for sources
            raise ValueError(f"{first} is the source itself, and would be replaced; choose another output")
        # Of one file that is given twice the images are the same.
        while any(_real(at) in sources or taken.get(_real(at), source) != source for at in task.outputs):
            number += 1
            ending = archives.suffix_of(first) or first.suffix
            name = f"{first.name.removesuffix(ending)}.{number}{ending}"
            task = replace(task, target=first.with_name(name), renamed=True)
        taken |= dict.fromkeys(map(_real, task.outputs), source)
        apart.append(task)
    return apart


def _made(tasks: Iterable[Task]) -> set[str]:
    """What tasks make in whatever format, masks as well, but for their own sources."""
    made = set()
    for task in tasks:
        names = task.outputs
        names += [] if task.is_shard else [task.target.with_suffix(own.suffixes[0]) for own in FORMATS.values()]
        made |= set(map(_real, names)) - {_real(task.source)}
    return made


def _of_other_formats(
    others: dict[str, Sequence[Path]], folder: Path | None, image_format: str, jpegs: list[Task]
) -> list[Task]:
    """Tasks of the images among other files, which are taken out, as are those that earlier runs have made."""
    output = folder and _real(folder)
    for place, (root, _) in list(others.items()):
        if output and Path(output) in Path(place).parents:
            if _real(root) == output:
                raise ValueError(
                    f"{folder} is searched for images of any format and cannot take those that are made of them;"
                    " choose another output"
                )
            del others[place]
    images = [others.pop(place) for place, (_, path) in list(others.items()) if is_other_image(path)]
    tasks = _named(images, folder, image_format, False, {output for task in jpegs for output in task.outputs})
    made = _made([*jpegs, *tasks])
    return [replace(task, any_format=True) for task in tasks if _real(task.source) not in made]


def _is_shard(path: Path) -> bool:
    return archives.suffix_of(path) != ""


def _matching(pattern: str | os.PathLike) -> list[str]:
    """What a pattern finds that is no name of a file itself: too many names for a command line, say."""
    return [] if os.path.lexists(pattern) else sorted(glob.glob(os.fspath(pattern)))  # noqa: PTH207 a Path has no pattern


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return path


def _find(
    inputs: Iterable[Path], recursive: bool, on_error: Callable[[OSError], None] | None
) -> Iterator[tuple[Path, Path, bool]]:
    """(folder that was searched, file, whether it is named, a shard or like a JPEG), in a fixed order.

    Links to folders are not followed, pipes not read. What programs keep for themselves is passed over: folders such as
    `.git`, `.thumbnails` and `@eaDir`, and what a run that was killed was writing.
    """

    def fail(error: OSError) -> None:
        raise error

    for item in inputs:
        if not _existing(item).is_dir():
            yield item.parent, item, True
            continue
        folders = [item]
        while folders:  # one level at a time: os.walk calls itself, which ends 1000 folders down
            parent, below, names = next(os.walk(folders.pop(), onerror=on_error or fail), (item, [], []))
            if recursive:
                found = (Path(parent, name) for name in sorted(below, reverse=True))
                found = (path for path in found if path.name != "@eaDir" and not path.name.startswith("."))
                folders += [path for path in found if not os.path.islink(path)]  # noqa: PTH114 raises where too long
            for path in (Path(parent, name) for name in sorted(names) if not TEMPORARY.fullmatch(name)):
                named = path.suffix.lower() in JPEG_SUFFIXES
                try:
                    if path.is_file() and not _is_shard(path) and _kind_of(path) != "JPEG":
                        yield item, path, False
                    elif path.is_file() or (named and not path.exists()):
                        yield item, path, True  # a broken link too: it is a file that is missed
                except OSError:  # nobody may read it, say; that is told when its turn comes
                    if named:
                        yield item, path, True


def _streamed(inputs: Sequence[str | os.PathLike], output: str | os.PathLike | None, image_format: str | None) -> Task:
    """The task of a single image that is read from standard input or written to standard output."""
    if len(inputs) > 1 or Path(inputs[0]).is_dir():
        raise ValueError("-, which is standard input or output, is for one image; give a single file")
    source = STREAM if inputs[0] == "-" else _existing(Path(inputs[0]))
    if output in (None, "-"):
        return Task(source, STREAM, image_format or "png")
    target = Path(output)
    named = None if target.is_dir() else FORMAT_OF_SUFFIX.get(target.suffix.lower())
    if named is None or image_format not in (None, named):
        raise ValueError(f"{output} cannot take the image of standard input; name a file that ends in its format")
    return Task(source, target)
