"""`restore`: JPEG files, and images that were some, in; images out."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from tqdm import tqdm

from ..decoded.opening import Assumed
from ..files.formats import FORMATS, STREAM, check_depth, record_of
from ..files.restoration import restore_files
from ..files.results import Result
from ..files.tasks import Task, is_broken, is_other_image, plan
from ..formatting import duration, percent
from ..sampling.settings import DEFAULT
from .computing import check_classifier, check_settings, dtype_of, gather, load, processes
from .options import Computing, Preset, Sampling, Subsampling, numbers, with_options
from .terminal import Lines, complain, fail, visible

_MOST_LISTED = 100  # names in a line
_LONG = 20  # seconds from which on people want to know


@with_options
def restore(
    *,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="JPEG files, tars (WebDataset) and zips of them, and folders of these;"
                       " - is standard input. Of a PNG or other image that was a JPEG, what it was is estimated."),
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Folder for the images, or a file name for a single one, or - for"
                     " standard output; by default each goes beside its source as NAME_restored.png."),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search the folders below a folder.")] = False,
    any_format: Annotated[
        bool,
        typer.Option("--any-format", help="In folders and archives, restore images of other formats too that were"
                     " JPEGs; those that show none are left as they are."),
    ] = False,
    preset: Preset = DEFAULT,
    sampling: Sampling,
    computing: Computing,
    class_label: Annotated[
        str | None,
        typer.Option(metavar="N", help="Class of the images, for a class-conditional prior, or auto: as a classifier"
                     " tells it of each."),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(help="For auto: folder or Hub id of an image classifier of transformers (a Hub id is downloaded).",
                     show_default="microsoft/resnet-50"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of each file's random numbers.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace outputs that exist; by default they are skipped.")
    ] = False,
    image_format: Annotated[
        Literal[tuple(FORMATS)] | None, typer.Option("--format", help="Format of the images.", show_default="png")
    ] = None,
    depth: Annotated[
        Literal["8", "16"], typer.Option(help="Bits a channel of the images; 16 for PNG and TIFF alone.")
    ] = "8",
    no_times: Annotated[
        bool, typer.Option("--no-times", help="Do not give the images the modification times of their sources.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Restore what is left of damaged files too; the rest is made up, and"
                     " NAME.mask.png beside the image shows where."),
    ] = False,
    assume_quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, metavar="Q", help="Take images that are no JPEG files for JPEGs of this"
                     " quality, where nothing can be estimated because they have been resized or edited since. A guess:"
                     " too low a quality takes away detail that is real.", show_default="estimated"),
    ] = None,
    assume_subsampling: Annotated[
        Subsampling | None, typer.Option(help="Its chroma subsampling.", show_default="4:2:0")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(metavar="X,Y", help="Column and row at which one of its blocks begins.", show_default="0,0"),
    ] = None,
    double_compression: Annotated[
        bool,
        typer.Option("--double-compression", "--saved-again", help="Restore JPEG files from the earlier, coarser JPEG"
                     " that their pixels show; inspect says whether they do."),
    ] = False,
    json_log: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Append a line of JSON for each file; - prints them instead of the report."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar; only failures are printed.")] = False,
) -> None:  # fmt: skip
    """Restore JPEG files.

    The presets fast, balanced and best are made for the embedded prior; paper and paper-average are the paper's
    "Ours (S)" and "Ours (A)".
    """
    arguments = sampling.arguments(preset)
    assumed = _assumed(assume_quality, assume_subsampling, grid, double_compression)
    if class_label is not None:
        if class_label != "auto" and not (class_label.isascii() and class_label.isdigit()):
            fail(f"--class-label {class_label} is neither a class, a whole number, nor auto", 2)
        arguments["class_labels"] = class_label if class_label == "auto" else int(class_label)
    if classifier is not None:
        arguments["classifier"] = classifier
    unlisted: list[OSError] = []
    others: list[Path] = []
    try:
        tasks = plan(inputs, output, recursive, image_format, unlisted.append, others.append, any_format)
        for task in tasks:
            check_depth(int(depth), task.image_format)
        to_stream = [task.target for task in tasks] == [STREAM]
        if to_stream and json_log == "-":
            raise ValueError("--json-log - and an image cannot both go to standard output; name a file for one")
        told_before, log = _settings_in(json_log), _log(json_log)
        report = Lines("standard error", sys.stderr) if to_stream else Lines("standard output", sys.stdout)
        reported = not quiet and json_log != "-"
    except (ValueError, OSError) as error:
        fail(error, 2)
    asked = {"prior": computing.prior, "sampler": sampling.sampler, "seed": seed, "depth": depth, **arguments}
    asked = json.loads(json.dumps(asked | {"assumed": asdict(assumed)}))  # as the log has them
    named = {name: Path(asked[name]).name for name in ("prior", "classifier") if asked.get(name)}  # not where they lie
    record = json.dumps(asked | named)
    state = processes(computing.device) if tasks or unlisted else None
    statuses, failed = Counter(), []
    for error in unlisted if state and state.is_main_process else ():
        statuses["failed"] += 1
        complain(f"{error.filename}: {error.strerror}")
        failed.append(error.filename)
        log(json.dumps({"source": error.filename, "status": "failed", "message": error.strerror}))
    other_images = 0 if any_format else sum(map(is_other_image, others))
    if not tasks:
        hint = "; --any-format looks at other images too" if other_images else ""
        fail(f"no JPEG files in {', '.join(inputs)}{'' if recursive else ' (try --recursive)'}{hint}")
    try:
        anew = overwrite or to_stream
        done_before = set() if anew else {task for task in tasks if task.is_made}
        pending = [task for task in tasks if task not in done_before]
        state.wait_for_everyone()  # all see the same files missing before one makes the first
        pipe = load(computing.prior, computing.dtype, state.device, sampling.sampler) if pending else None
        if pipe is not None:
            check_settings(pipe, preset, sampling.chosen)
            check_classifier(pipe, class_label, classifier)
        with state.split_between_processes(pending) as mine:
            skipped = [task for task in tasks if task in done_before] if state.is_main_process else []
            listed = [*skipped, *mine]
            options = {"repair": repair, "depth": int(depth), "assumed": assumed, "keep_times": not no_times}
            options["record"] = record
            options["on_start"] = _announce(listed, pipe, quiet)
            with closing(restore_files(pipe, listed, overwrite, seed, **options, **arguments)) as results:
                for result in results:
                    told = told_before.get(str(result.task.target), asked)
                    if result.status == "skipped" and told != asked and not record_of(result.task.target):
                        result = replace(result, status="stale", message="it was made with other settings")
                    statuses[result.status] += 1
                    more = {"dtype": pipe and dtype_of(pipe), "settings": asked if result.pictures else None}
                    log(json.dumps(_facts(result) | more))
                    if result.status == "failed":
                        complain(result.message)
                        failed.append(str(result.task.source))
                    elif reported:
                        report(_words(result))
        statuses = sum(gather(statuses), Counter())
        failed = [name for names in gather(failed) for name in names]
    except KeyboardInterrupt:
        done = sum(statuses.values()) - statuses["failed"]
        fail(f"stopped after {done} of {len(tasks)}; run the same command again to go on", 130)
    if reported and state.is_main_process and len(tasks) > 1:
        told = ("restored", "skipped", "stale", "untouched", "failed")
        report(", ".join(f"{statuses[status]} {status}" for status in told if statuses[status]))
        if failed:
            report(f"failed: {_listed(failed)}")
    if reported and state.is_main_process and others:
        hint = f", {other_images} of them other images (--any-format looks at these too)" if other_images else ""
        kind = "image" if any_format else "JPEG image"
        report((f"{len(others)} files were no {kind}s" if len(others) > 1 else f"1 file was no {kind}") + hint)
        if broken := [str(path) for path in others if is_broken(path)]:
            report(f"named like JPEG files, and none: {_listed(broken)}")
    if statuses["failed"] or log.failed:
        raise typer.Exit(1)


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _assumed(quality: int | None, subsampling: str | None, grid: str | None, double_compression: bool) -> Assumed:
    """What is said of the JPEG that images were."""
    if quality is None and (subsampling or grid):
        fail("--assume-subsampling and --grid go with --assume-quality; without it all three are estimated", 2)
    place = numbers("--grid", grid or "0,0")
    if len(place) != 2:
        fail(f"--grid {grid!r} is not a column and a row with a comma between them", 2)
    return Assumed(quality, subsampling or "4:2:0", place, double_compression)


def _log(name: str | None) -> Lines:
    """What takes the lines of `--json-log`."""
    if name == "-":
        return Lines("standard output", sys.stdout)
    return Lines(name or os.devnull, open(name or os.devnull, "a", encoding="utf-8"))


def _settings_in(log: str | None) -> dict[str, Any]:
    """Output -> settings that made it, of each that a log of earlier runs tells of."""
    found = {}
    if log not in (None, "-") and Path(log).is_file():
        with open(log, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with suppress(ValueError, TypeError, KeyError):  # it is somebody's file
                    told = json.loads(line)
                    found |= {told["target"]: told["settings"]} if told["settings"] else {}
    return found


def _words(result: Result) -> str:
    """A result as a line of the report."""
    name = result.task.target
    if result.task.renamed:
        name = f"{name}  (of {result.task.source.name}, since a shorter name would be another's)"
    if result.status in ("skipped", "stale"):
        words = f"{name}  exists, skipped (--overwrite replaces it)"
        if result.status == "stale":
            return f"{name}  is stale: {result.message} (--overwrite makes it again)"
        return f"{words}; {result.message}" if result.message else words
    if result.status == "untouched":
        return f"{result.message.partition(';')[0]}; left as it is"
    if result.consistency is None:
        return f"{name}  {result.seconds:.1f} s, no JPEG in it"
    kept, most, has = f"{percent(result.consistency)} of the coefficients kept", "", "the file has "
    if result.task.is_shard:
        kept, most, has = f"images restored: {result.pictures}, at least {kept} of each", "at most ", ""
    history = f"{result.history}; " if result.history else ""
    made_up = f", {most}{percent(result.invented)} made up" if result.damage or result.invented else ""
    remarks = "".join(f"; {has}{remark}" for remark in result.remarks)
    lost = f"; not kept: {', '.join(result.not_kept)}" if result.not_kept else ""
    return f"{name}  {result.seconds:.1f} s, {history}{kept}{made_up}{remarks}{lost}"


def _facts(result: Result) -> dict[str, Any]:
    """A result as a line of `--json-log`; of a shard it has those of its images."""
    task = result.task
    own = {"member": result.member, **dict(zip(("target", "mask"), (*result.written, None, None), strict=False))}
    if result.member is None:
        mask = task.mask if result.damage else None
        own = {"source": str(task.source), "target": str(task.target), "mask": mask and str(mask)}
    told = ("status", "message", "consistency", "invented", "damage", "remarks", "not_kept", "pictures")
    own |= {name: getattr(result, name) for name in told}
    own |= {"seconds": round(result.seconds, 3), "history": result.history or None}
    return own | ({"members": [_facts(member) for member in result.members]} if result.members else {})


def _announce(tasks: list[Task], pipe: Any, quiet: bool) -> Callable[[Task], None]:
    """What gives the pipeline a progress bar that is named after the task at hand."""
    numbers = {task: number for number, task in enumerate(tasks, 1)}

    def announce(task: Task) -> None:
        place = visible(task.source.name) + (f" ({numbers[task]} of {len(tasks)})" if len(tasks) > 1 else "")
        pipe.progress_bar = partial(_Progress, desc=place, quiet=quiet)

    return announce


class _Progress(tqdm):
    """A bar on a terminal. A long restoration says how long it will take, on other streams too."""

    def __init__(self, desc: str, quiet: bool, **options: Any) -> None:
        self.place, self.quiet = desc, quiet
        self.calls, self.measured_from = 0, 0.0
        shown = "{desc}: {percentage:3.0f} %|{bar}| {elapsed}<{remaining}"
        super().__init__(desc=desc, bar_format=shown, leave=False, disable=quiet or None, **options)

    def refresh(self, *arguments: Any, **options: Any) -> None:
        if self.total:  # before the first measurement it is not known
            super().refresh(*arguments, **options)

    def update(self, calls: int = 1) -> None:
        if self.calls == 0:  # measured is a call after the first, which is slow
            self.measured_from = time.monotonic()
        elif self.measured_from:
            expected = (time.monotonic() - self.measured_from) * (self.total - self.calls) / calls
            if expected > _LONG and not self.quiet:
                self.write(f"{self.place}: about {duration(expected)}", file=sys.stderr)
            self.measured_from = 0.0
        self.calls += calls
        super().update(calls)
