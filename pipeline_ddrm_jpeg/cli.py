"""The command `ddrm-jpeg`: words typed by a person, turned into calls of the package."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from dataclasses import replace
from enum import Enum
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from . import __version__
from .files import FORMATS, JPEG_SUFFIXES, STREAM, check_depth, write_atomically
from .interruption import interrupted_quietly
from .jpeg_file import JPEGFile
from .jpeg_markers import JPEGDamageError, JPEGFileError
from .presets import PRESETS
from .restoration import REPAIR_HINT, Result, mask_path, plan, restore_files


class _App(typer.Typer):
    """Tells an error of the system, such as a full disk under the standard output, in a sentence."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _prepare_streams()
        try:
            try:
                return super().__call__(*args, **kwargs)
            finally:
                sys.stdout.flush()
        except OSError as error:
            _say(f"ddrm-jpeg: {error.filename or 'standard output'}: {error.strerror or error}", sys.stderr)
            _discard(sys.stdout)
            sys.exit(1)


class _Group(TyperGroup):
    """Shows in errors of usage, too, what is odd in names of files."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(getattr(error, "message", None), str):
                error.message = visible(error.message)
            raise


class _Errors(TextIOWrapper):
    """A standard error that cannot be written to must not cost anyone a picture."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            _discard(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _discard(self)


class _Lines:
    """Takes lines, each written at once, until one cannot be; that is told, and the run goes on."""

    def __init__(self, name: str, stream: IO[str]) -> None:
        self.name, self.stream, self.failed = name, stream, False

    def __call__(self, line: str) -> None:
        if self.failed:
            return
        try:
            print(line, file=self.stream, flush=True)
        except OSError as error:
            self.failed = True
            _say(f"ddrm-jpeg: {self.name}: {error.strerror}; the run goes on without it", sys.stderr)
            _discard(self.stream)


def _prepare_streams() -> None:
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:  # closed; the next file that is opened would take its place
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
            stream = open(number, mode, closefd=False)  # noqa: SIM115 for the whole run
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    if isinstance(sys.stderr, TextIOWrapper) and not isinstance(sys.stderr, _Errors):
        sys.stderr = _Errors(sys.stderr.buffer, sys.stderr.encoding, "backslashreplace", line_buffering=True)


def _discard(stream: IO[str]) -> None:
    """Let what is still to be written to a stream vanish: it must not fail once more when Python ends."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def visible(text: str) -> str:
    """The text with escapes in place of what could command a terminal, break a line or turn its direction."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" else c
        for c in text
    )


def _say(text: str, stream: IO[str] | None = None) -> None:
    print(visible(text), file=stream or sys.stdout, flush=True)


app = _App(
    name="ddrm-jpeg",
    cls=_Group,
    help="Restore pictures ruined by JPEG, with a diffusion prior and the coefficients of their own files.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Correction = Enum("Correction", {name: name for name in ("ddrm", "nearest")}, type=str)
Depth = Enum("Depth", {name: name for name in ("8", "16")}, type=str)
Format = Enum("Format", {name: name for name in FORMATS}, type=str)
Device = Enum("Device", {name: name for name in ("auto", "cpu", "cuda", "mps")}, type=str)
TimestepSpacing = Enum("TimestepSpacing", {name: name for name in ("leading", "log")}, type=str)
Precision = Enum("Precision", {name: name for name in ("float32", "bfloat16", "float16")}, type=str)
PrecisionOrAuto = Enum("PrecisionOrAuto", {name: name for name in ("auto", *Precision.__members__)}, type=str)
Preset = Enum("Preset", {name: name for name in PRESETS}, type=str)
Convention = Enum("Convention", {name: name for name in ("libjpeg", "released")}, type=str)
Subsampling = Enum("Subsampling", {name: name for name in ("4:4:4", "4:2:2", "4:2:0")}, type=str)

# What `restore` and `evaluate` both take.
Samples = Annotated[
    int | None, typer.Option("--samples", min=1, help="Independent samples to average.", show_default="the preset's")
]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Network evaluations in a sample.", show_default="the preset's")
]
InitTimestep = Annotated[
    str | None,
    typer.Option(
        "--init-timestep",
        metavar="T",
        help="Timestep at which sampling starts, or auto: by how coarse the file is.",
        show_default="the preset's",
    ),
]
Spacing = Annotated[
    TimestepSpacing | None,
    typer.Option("--timestep-spacing", help="How the timesteps are spaced.", show_default="the preset's"),
]
Eta = Annotated[
    float | None, typer.Option("--eta", min=0, max=1, help="Weight of fresh noise.", show_default="the prior's, 1.0")
]
EtaB = Annotated[
    float | None,
    typer.Option("--eta-b", min=0, max=1, help="Weight of the correction.", show_default="the prior's, 0.4"),
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0, max=1, help="Scale of all noise.", show_default="the preset's")
]
Antithetic = Annotated[
    bool | None,
    typer.Option(
        "--antithetic/--independent",
        help="Give every second sample the noise of the one before with its sign changed.",
        show_default="the preset's",
    ),
]
CorrectionRule = Annotated[
    Correction, typer.Option("--correction", help="How a picture is made to agree with the file at every step.")
]
Consistent = Annotated[
    bool | None,
    typer.Option(
        "--consistent/--no-consistent",
        help="Project the result onto what the file says, coefficient by coefficient.",
        show_default="the preset's",
    ),
]
Prior = Annotated[
    str | None,
    typer.Option(
        "--prior", help="Folder or Hub id of another prior (a Hub id is downloaded).", show_default="embedded"
    ),
]
Where = Annotated[Device, typer.Option("--device", help="Where to compute.")]
ComputeIn = Annotated[
    PrecisionOrAuto,
    typer.Option("--dtype", help="What the network computes in; auto: float32, or bfloat16 where that is faster."),
]


def _fail(message: object, status: int = 1) -> NoReturn:
    _say(f"ddrm-jpeg: {message}", sys.stderr)
    raise typer.Exit(status)


def _version(wanted: bool) -> None:
    if wanted:
        _say(f"ddrm-jpeg {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Exit status: 0 all done, 1 something failed, 2 wrong usage, 130 stopped with Ctrl-C."""


@app.command()
def restore(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="JPEG files, and folders of them; - is standard input."),
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Folder for the pictures, or a file name for a single one, or - for"
                     " standard output; by default each goes beside its source as NAME_restored.png."),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search the folders below a folder.")] = False,
    preset: Annotated[Preset, typer.Option(help="Settings to start from; the options below change single ones.")] = (
        Preset.balanced
    ),
    samples: Samples = None,
    steps: Steps = None,
    init_timestep: InitTimestep = None,
    timestep_spacing: Spacing = None,
    eta: Eta = None,
    eta_b: EtaB = None,
    temperature: Temperature = None,
    antithetic: Antithetic = None,
    correction: CorrectionRule = Correction.ddrm,
    consistent: Consistent = None,
    prior: Prior = None,
    class_label: Annotated[
        int | None, typer.Option(min=0, help="Class of the pictures, for a class-conditional prior.")
    ] = None,
    device: Where = Device.auto,
    dtype: ComputeIn = PrecisionOrAuto.auto,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of each file's random numbers.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace outputs that exist; by default they are skipped.")
    ] = False,
    image_format: Annotated[
        Format | None, typer.Option("--format", help="Format of the pictures.", show_default="png")
    ] = None,
    depth: Annotated[
        Depth, typer.Option("--depth", help="Bits a channel of the pictures; 16 for PNG and TIFF alone.")
    ] = Depth["8"],
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Restore what is left of damaged files too; the rest is made up, and"
                     " NAME.mask.png beside the picture shows where."),
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
    settings = _settings(
        preset,
        num_samples=samples,
        num_inference_steps=steps,
        init_timestep=init_timestep,
        timestep_spacing=timestep_spacing and timestep_spacing.value,
        eta=eta,
        eta_b=eta_b,
        temperature=temperature,
        antithetic=antithetic,
        consistent=consistent,
        correction=correction.value,
        class_labels=class_label,
    )
    unlisted: list[OSError] = []
    others: list[Path] = []
    try:
        tasks = plan(inputs, output, recursive, image_format and image_format.value, unlisted.append, others.append)
        for task in tasks if depth is Depth["16"] else ():
            check_depth(16, task.image_format)
        to_stream = [task.target for task in tasks] == [STREAM]
        if to_stream and json_log == "-":
            raise ValueError("--json-log - and a picture cannot both go to standard output; name a file for one")
        log = _log(json_log)
        report = _Lines("standard error", sys.stderr) if to_stream else _Lines("standard output", sys.stdout)
    except (ValueError, OSError) as error:
        _fail(error, 2)
    nothing = "no JPEG files in " + ", ".join(map(str, inputs)) + ("" if recursive else " (try --recursive)")
    if not tasks and not unlisted:
        _fail(nothing)

    state = _processes(device)
    statuses = {"restored": 0, "skipped": 0, "failed": 0}
    for error in unlisted if state.is_main_process else ():
        statuses["failed"] += 1
        _say(f"ddrm-jpeg: {error.filename}: {error.strerror}", sys.stderr)
        log(json.dumps({"source": error.filename, "status": "failed", "message": error.strerror}))
    if not tasks:
        _fail(nothing)
    quiet_report = quiet or json_log == "-"
    try:
        pending = tasks if overwrite or to_stream else [task for task in tasks if not _exists(task.target)]
        done_before = set(tasks) - set(pending)
        state.wait_for_everyone()  # all see the same files missing before one makes the first
        pipe = _load(prior, state.device, dtype) if pending else None
        if pipe is not None:
            _check_schedule(pipe, settings)
        dtype_name = pipe and str(pipe.unet.dtype).removeprefix("torch.")
        with state.split_between_processes(pending) as mine:
            skipped = [task for task in tasks if task in done_before] if state.is_main_process else []
            announced = _announced([*skipped, *mine], pipe, quiet)
            for result in restore_files(
                pipe, announced, overwrite, seed, repair=repair, depth=int(depth.value), **settings
            ):
                statuses[result.status] += 1
                log(json.dumps(_facts(result) | {"dtype": dtype_name}))
                if result.status == "failed":
                    _say(f"ddrm-jpeg: {result.message}", sys.stderr)
                elif quiet_report:
                    continue
                elif result.status == "skipped":
                    report(visible(f"{result.task.target}  exists, skipped (--overwrite replaces it)"))
                else:
                    kept = f"{100 * result.consistency:.2f} % of the coefficients kept"
                    made_up = f", {100 * result.invented:.1f} % made up" if result.damage else ""
                    remarks = "".join(f"; the file has {remark}" for remark in result.remarks)
                    remarks += f"; not kept: {', '.join(result.not_kept)}" if result.not_kept else ""
                    report(visible(f"{result.task.target}  {result.seconds:.1f} s, {kept}{made_up}{remarks}"))
        statuses = {status: sum(one[status] for one in _gather(statuses)) for status in statuses}
    except KeyboardInterrupt:
        done = statuses["restored"] + statuses["skipped"]
        _fail(f"stopped after {done} of {len(tasks)}; run the same command again to go on", 130)
    if len(tasks) > 1 and not quiet_report and state.is_main_process:
        report(", ".join(f"{count} {status}" for status, count in statuses.items() if count))
    if others and not quiet_report and state.is_main_process:
        report(f"{len(others)} {'files were' if len(others) > 1 else 'file was'} not JPEG pictures")
    if statuses["failed"] or log.failed:
        raise typer.Exit(1)


def _settings(preset: Preset, init_timestep: str | None, **chosen: Any) -> dict[str, Any]:
    """The preset's arguments of the pipeline's call, with those that were chosen one by one."""
    settings = PRESETS[preset.value] | {name: value for name, value in chosen.items() if value is not None}
    if init_timestep is not None:
        if init_timestep != "auto" and not (init_timestep.isascii() and init_timestep.isdigit()):
            _fail(f"--init-timestep {init_timestep} is neither a whole number nor auto", 2)
        settings["init_timestep"] = init_timestep if init_timestep == "auto" else int(init_timestep)
    steps, start = settings["num_inference_steps"], settings["init_timestep"]
    if start != "auto" and steps > start:
        _fail(f"--steps {steps} does not fit below --init-timestep {start}; raise one or lower the other", 2)
    return settings


def _processes(device: Device) -> Any:
    """The processes that `accelerate launch` started, this one alone otherwise, and the device of this one."""
    from datetime import timedelta

    with interrupted_quietly():
        import torch
        from accelerate import PartialState

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.value, True):
        _fail(f"--device {device.value} is not available on this machine", 2)
    # Without cpu=True, accelerate takes several processes on a machine without an accelerator for one each.
    accelerators = (torch.cuda, torch.xpu, torch.backends.mps)
    on_cpu = device is Device.cpu or not any(accelerator.is_available() for accelerator in accelerators)
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=7))  # one may be done long before another
    if device.value not in ("auto", state.device.type):
        _fail(f"--device {device.value} is not what accelerate chose, {state.device.type}", 2)
    return state


def _gather(value: Any) -> list[Any]:
    """The values of all processes, in all processes."""
    from accelerate.utils import gather_object

    return gather_object([value])


def _check_schedule(pipe: Any, settings: dict[str, Any]) -> None:
    start = settings["init_timestep"]
    try:
        pipe.scheduler.set_timesteps(settings["num_inference_steps"], init_timestep=None if start == "auto" else start)
    except ValueError as error:
        _fail(error, 2)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long, for one: what is wrong is told when its turn comes
        return False


def _log(name: str | None) -> _Lines:
    """What takes the lines of `--json-log`."""
    if name == "-":
        return _Lines("standard output", sys.stdout)
    return _Lines(name or os.devnull, open(name or os.devnull, "a", encoding="utf-8"))


def _facts(result: Result) -> dict[str, Any]:
    """A result as a line of `--json-log`."""
    return {
        "source": str(result.task.source),
        "target": str(result.task.target),
        "status": result.status,
        "message": result.message,
        "seconds": round(result.seconds, 3),
        "consistency": result.consistency,
        "invented": result.invented,
        "damage": result.damage,
        "remarks": result.remarks,
        "not_kept": result.not_kept,
        "mask": str(mask_path(result.task.target)) if result.damage else None,
    }


def _announced(tasks: list, pipe: Any, quiet: bool) -> Any:
    """The tasks, with the progress bar of the pipeline named after the one at hand."""
    for number, task in enumerate(tasks, 1):
        if pipe is not None:
            place = visible(task.source.name) + (f" ({number} of {len(tasks)})" if len(tasks) > 1 else "")
            pipe.set_progress_bar_config(desc=place, unit="call", leave=False, disable=quiet)
        yield task


def _load(prior: str | None, device: Any, dtype: PrecisionOrAuto) -> Any:
    with interrupted_quietly():
        import torch

        from .pipeline import DDRMJPEGPipeline
        from .priors import fastest_dtype

    # Machines may differ in what they have units for: the first decides.
    precision = _gather(fastest_dtype(device))[0] if dtype is PrecisionOrAuto.auto else getattr(torch, dtype.value)
    if prior is None:
        pipe = DDRMJPEGPipeline.from_embedded(dtype=precision)
    else:
        try:
            pipe = DDRMJPEGPipeline.from_prior(prior, dtype=precision)
        except (OSError, ValueError) as error:
            _fail(f"--prior {prior}: {str(error).splitlines()[0]}")
    return pipe if device is None else pipe.to(device)


@app.command()
def evaluate(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="SET...", help="Folders of pictures, and text files that name one a line.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")],
    quality: Annotated[str, typer.Option("--quality", help="Quality factors, with commas.")] = "5,10,30",
    convention: Annotated[
        Convention, typer.Option(help="Real files written by Pillow, or the JPEG of the paper's program.")
    ] = Convention.libjpeg,
    subsampling: Annotated[Subsampling, typer.Option(help="Chroma subsampling.")] = Subsampling["4:2:0"],
    size: Annotated[
        int, typer.Option(min=0, help="Central square of a picture, resized to so many pixels; 0 leaves it as it is.")
    ] = 256,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many pictures of a set, evenly spread.")] = None,
    preset: Annotated[
        Preset, typer.Option(help="Settings to start from; the options below change single ones.")
    ] = Preset["paper-average"],
    samples: Samples = None,
    steps: Steps = None,
    init_timestep: InitTimestep = None,
    timestep_spacing: Spacing = None,
    eta: Eta = None,
    eta_b: EtaB = None,
    temperature: Temperature = None,
    antithetic: Antithetic = None,
    correction: CorrectionRule = Correction.ddrm,
    consistent: Consistent = None,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics beside PSNR, with commas.", show_default="all that are installed")
    ] = None,
    baseline: Annotated[list[str] | None, typer.Option(help="Another program to run on the same files.")] = None,
    lpips_weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="AlexNet's weights for LPIPS, safetensors.", show_default="torchvision's"),
    ] = None,
    prior: Prior = None,
    device: Where = Device.auto,
    dtype: ComputeIn = PrecisionOrAuto.auto,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of a process on a CPU. The last digits of a result depend on it.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar; only failures are printed.")] = False,
) -> None:  # fmt: skip
    """Measure restorations of pictures that are known, as in Table 1 of the paper.

    Every picture is compressed, restored and compared with itself. The same command again goes on where it stopped.
    To use several processes or GPUs: accelerate launch --num_processes N -m pipeline_ddrm_jpeg evaluate ...
    """
    with interrupted_quietly():
        import torch
        from tqdm import tqdm

        from .evaluation import baselines, lpips
        from .evaluation import metrics as measures
        from .evaluation.protocol import Protocol, find_pictures
        from .evaluation.run import Evaluation, fingerprint

    for name in baseline or ():
        if name not in baselines.BASELINES:
            _fail(f"--baseline {name} is not one of {', '.join(baselines.BASELINES)}", 2)
        if (reason := baselines.unavailable(name)) is not None:
            _fail(f"--baseline {name}: {reason}", 2)
    wanted = list(measures.METRICS) if metrics is None else [name for name in metrics.split(",") if name]
    if unknown := [name for name in wanted if name not in measures.METRICS]:
        _fail(f"--metrics {unknown[0]} is not one of {', '.join(measures.METRICS)}", 2)
    if lpips_weights is not None and (reason := lpips.obstacle(lpips_weights)):
        _fail(f"--lpips-weights: {reason}", 2)
    notes = {name: reason for name in wanted if (reason := measures.unavailable(name, lpips_weights)) is not None}
    settings = _settings(
        preset,
        num_samples=samples,
        num_inference_steps=steps,
        init_timestep=init_timestep,
        timestep_spacing=timestep_spacing and timestep_spacing.value,
        eta=eta,
        eta_b=eta_b,
        temperature=temperature,
        antithetic=antithetic,
        consistent=consistent,
        correction=correction.value,
    )
    try:
        protocol = Protocol(
            quality_factors=_numbers("--quality", quality),
            convention=convention.value,
            chroma_subsampling=subsampling.value,
            size=size or None,
            preset=preset.value if settings == {"correction": "ddrm", **PRESETS[preset.value]} else None,
            settings=settings,
            metrics=tuple(name for name in wanted if name not in notes),
            lpips_weights=lpips_weights,
            baselines=tuple(baseline or ()),
            seed=seed,
        )
        pictures = find_pictures(inputs, limit)
        network = lpips.load(lpips_weights) if "lpips" in protocol.metrics else None
    except (ValueError, OSError) as error:
        _fail(error, 2)

    state = _processes(device)
    if state.device.type == "cpu":
        torch.set_num_threads(threads)
    pipe = _load(prior, state.device, dtype)
    _check_schedule(pipe, settings)
    pipe.set_progress_bar_config(disable=True)
    facts = {
        "prior": prior or "embedded",
        "prior_sha256": fingerprint(pipe.unet),
        "lpips_sha256": network and fingerprint(network),
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": state.device.type,
        "threads": threads if state.device.type == "cpu" else None,
    }
    bar = tqdm(unit="picture", disable=quiet or not state.is_main_process)
    try:
        evaluation = Evaluation(output, protocol, facts)
        pending = evaluation.pending(pictures)
        state.wait_for_everyone()  # all see the same pictures missing before one is finished
        if state.is_main_process:
            evaluation.begin()
        with state.split_between_processes(pending) as mine, bar:
            bar.reset(len(mine))
            if state.num_processes > 1:
                bar.set_description(f"first of {state.num_processes} processes")
            failures = evaluation.run(pipe, mine, bar.update)
        failures = [failure for part in _gather(failures) for failure in part]
        if not state.is_main_process:
            raise typer.Exit(1 if failures else 0)
        text = evaluation.finish(pictures, notes)
    except KeyboardInterrupt:
        left = len(evaluation.pending(pictures))
        _fail(f"stopped with {left} of {len(pictures)} pictures left; run the same command again to go on", 130)
    except (ValueError, OSError) as error:
        _fail(error, 2)
    for path, reason in failures:
        _say(f"ddrm-jpeg: {reason if path in reason else f'{path}: {reason}'}", sys.stderr)
    for line in () if quiet else (*text.splitlines(), f"All rows and settings are in {output}"):
        _say(line)
    if failures:
        raise typer.Exit(1)


@app.command()
def convert(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pipeline, laid out as a Hub repo.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="The .pt file; with --download, where it is kept.", show_default="PRESET.pt")
    ] = None,
    fetch: Annotated[bool, typer.Option("--download", help="Fetch the preset's checkpoint first (2.2 GB).")] = False,
    preset: Annotated[
        str, typer.Option(help="A model guided-diffusion released; the flags below change single settings of it.")
    ] = "256x256_diffusion_uncond",
    image_size: Annotated[int | None, typer.Option()] = None,
    num_channels: Annotated[int | None, typer.Option()] = None,
    num_res_blocks: Annotated[int | None, typer.Option()] = None,
    channel_mult: Annotated[str | None, typer.Option(help="Such as 1,2,3,4.")] = None,
    attention_resolutions: Annotated[str | None, typer.Option(help="Such as 32,16,8.")] = None,
    num_head_channels: Annotated[int | None, typer.Option()] = None,
    learn_sigma: Annotated[bool | None, typer.Option()] = None,
    class_cond: Annotated[bool | None, typer.Option()] = None,
    resblock_updown: Annotated[bool | None, typer.Option()] = None,
    use_scale_shift_norm: Annotated[bool | None, typer.Option()] = None,
    use_new_attention_order: Annotated[bool | None, typer.Option()] = None,
    diffusion_steps: Annotated[int | None, typer.Option()] = None,
    noise_schedule: Annotated[str | None, typer.Option(help="linear or cosine.")] = None,
    dtype: Annotated[Precision, typer.Option(help="What the weights are stored in.")] = Precision.float32,
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Hub repo to upload the folder to.")] = None,
) -> None:  # fmt: skip
    """Convert a guided-diffusion checkpoint, such as the paper's prior, to a pipeline."""
    flags = {
        "image_size": image_size,
        "num_channels": num_channels,
        "num_res_blocks": num_res_blocks,
        "channel_mult": channel_mult and _numbers("--channel-mult", channel_mult, float),
        "attention_resolutions": None
        if attention_resolutions is None
        else _numbers("--attention-resolutions", attention_resolutions),
        "num_head_channels": num_head_channels,
        "learn_sigma": learn_sigma,
        "class_cond": class_cond,
        "resblock_updown": resblock_updown,
        "use_scale_shift_norm": use_scale_shift_norm,
        "use_new_attention_order": use_new_attention_order,
        "diffusion_steps": diffusion_steps,
        "noise_schedule": noise_schedule,
    }
    with interrupted_quietly():
        import torch

        from . import conversion

    if preset not in conversion.PRESETS:
        _fail(f"--preset {preset} is not one of {', '.join(conversion.PRESETS)}", 2)
    if checkpoint is None and not fetch:
        _fail("give --checkpoint FILE, or --download to fetch the one of the preset", 2)
    if fetch and preset not in conversion.DOWNLOADS:
        _fail(f"--download knows only {', '.join(conversion.DOWNLOADS)}; give --checkpoint FILE", 2)
    checkpoint = checkpoint or Path(f"{preset}.pt")
    model = replace(conversion.PRESETS[preset], **{name: value for name, value in flags.items() if value is not None})
    try:
        model.check()
        if fetch:
            conversion.download(conversion.DOWNLOADS[preset], checkpoint)
        conversion.convert_checkpoint(checkpoint, output, model, getattr(torch, dtype.value))
        if push is not None:
            from .hub import upload

            _say(upload(output, push))
    except conversion.ConversionError as error:
        _fail(error)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.strerror else str(error).splitlines()[0])
    except KeyboardInterrupt:
        _fail("stopped; a download goes on where it was when the command is run again", 130)
    _say(f"{output}  load it with DiffusionPipeline.from_pretrained({str(output)!r}, trust_remote_code=True)")


@app.command()
def push(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Hub repo, OWNER/NAME; made if need be.")],
    prior: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of the pipeline or prior to publish.", show_default="embedded"),
    ] = None,
    space: Annotated[
        bool, typer.Option("--space", help="Upload the web demo as well: space/ of a checkout, and the package.")
    ] = False,
    space_repo: Annotated[
        str | None, typer.Option(metavar="REPO", help="Name of the Space.", show_default="REPO-space")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make repos that are made private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch of the model repo; made if need be.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be uploaded; the Hub is not asked.")
    ] = False,
) -> None:  # fmt: skip
    """Publish a pipeline as a Hub repo that loads without this package.

    Weights go up in float32 and, as the variant fp16, in float16. The token is the one of `hf auth login` or HF_TOKEN.
    A second push of the same makes no commit.
    """
    from tempfile import TemporaryDirectory

    with interrupted_quietly():
        from . import hub

    try:
        with TemporaryDirectory() as model, TemporaryDirectory() as web:
            uploads = [(Path(model), repo, "model")]
            for precision, variant in ((Precision.float32, None), (Precision.float16, "fp16")):
                _load(prior, None, precision).save_pretrained(model, variant=variant)
            if space or space_repo:
                uploads.append((Path(web), space_repo or f"{repo}-space", "space"))
                hub.assemble_space(Path(web))
            for folder, name, _ in uploads:
                hub.check(folder, name)
            if dry_run:
                for folder, name, kind in uploads:
                    _show_tree(folder, f"{name} ({kind})")
                return
            addresses = [
                hub.upload(folder, name, private or None, revision if kind == "model" else None, kind, replace=True)
                for folder, name, kind in uploads
            ]
    except (OSError, ValueError) as error:
        _fail(str(error).splitlines()[0])
    except KeyboardInterrupt:
        _fail("stopped; what was not committed is not in the repo, and the same command uploads it", 130)
    for address in addresses:
        _say(address)
    options = f"revision={revision!r}, " if revision else ""
    _say(f"load it with DiffusionPipeline.from_pretrained({addresses[0].repo_id!r}, {options}trust_remote_code=True)")


def _show_tree(folder: Path, title: str) -> None:
    sizes = {path.relative_to(folder): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    _say(f"{title}: {len(sizes)} files, {sum(sizes.values())} bytes")
    for path, size in sizes.items():
        _say(f"{size:12}  {path.as_posix()}")


def _numbers(option: str, text: str, kind: type = int) -> tuple:
    try:
        return tuple(kind(number) for number in text.split(","))
    except ValueError:
        _fail(f"{option} {text!r} is not a list of numbers with commas", 2)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JPEG file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Take what is left of a damaged file.")] = False,
) -> None:
    """Show what a JPEG file says about itself."""
    jpeg = _open(file, repair)
    facts = {
        "file": str(file),
        "width": jpeg.width,
        "height": jpeg.height,
        "file_size": jpeg.file_size,
        "bits_per_pixel": round(jpeg.bits_per_pixel, 4),
        "color_space": jpeg.color_space,
        "grey_stored_as_colour": jpeg.tint == (0, 0),
        "chroma_subsampling": jpeg.chroma_subsampling,
        "sampling_factors": [[c.horizontal_factor, c.vertical_factor] for c in jpeg.components],
        "quality_factor": jpeg.quality_factor,
        "quality_factor_is_exact": jpeg.quality_factor_is_exact,
        "progressive": jpeg.progressive,
        "restart_interval": jpeg.restart_interval,
        "orientation": jpeg.orientation,
        "metadata_bytes": jpeg.metadata.sizes(),
        "quantization_tables": [c.quantization_table.tolist() for c in jpeg.components],
    }
    if jpeg.remarks:
        facts["remarks"] = jpeg.remarks
    if jpeg.damage:
        facts |= {"damage": jpeg.damage, "invented": round(float(jpeg.invented.mean()), 4)}
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    tables = facts.pop("quantization_tables")
    facts |= {
        "chroma_subsampling": jpeg.chroma_subsampling or "none",
        "sampling_factors": ", ".join(f"{h}x{v}" for h, v in facts["sampling_factors"]),
        "quality_factor": f"{'' if facts.pop('quality_factor_is_exact') else 'about '}{jpeg.quality_factor}",
        "progressive": "yes" if jpeg.progressive else "no",
        "color_space": jpeg.color_space + (", grey stored as colour" if facts.pop("grey_stored_as_colour") else ""),
        "metadata_bytes": ", ".join(f"{name} {size}" for name, size in facts["metadata_bytes"].items()) or "none",
    }
    for words in {"remarks", "damage"} & facts.keys():
        facts[words] = "; ".join(facts[words])
    for name, value in facts.items():
        _say(f"{name.replace('_', ' '):20} {value}")
    for number, table in enumerate(tables):
        if table in tables[:number]:
            _say(f"quantization table of component {number + 1}: as of component {tables.index(table) + 1}")
        else:
            _say(f"quantization table of component {number + 1}")
            for row in table:
                _say("".join(f"{step:6}" for step in row))


@app.command()
def degrade(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture in any format Pillow reads.")],
    quality: Annotated[int, typer.Option("-q", "--quality", min=1, max=100, help="libjpeg quality factor.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The JPEG file.", show_default="IMAGE_qQF.jpg")
    ] = None,
    subsampling: Annotated[
        Subsampling, typer.Option(help="Chroma subsampling.")
    ] = Subsampling["4:2:0"],
    progressive: Annotated[bool, typer.Option("--progressive", help="Write a progressive file.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:  # fmt: skip
    """Compress a picture to a JPEG file of a given quality factor, to try the restoration on."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    target = output or image.with_name(f"{image.stem}_q{quality}.jpg")
    if target.suffix.lower() not in JPEG_SUFFIXES:
        _fail(f"{target} is written as JPEG; its name must end in one of {', '.join(JPEG_SUFFIXES)}", 2)
    if target.exists() and not overwrite:
        _fail(f"{target} exists; --overwrite replaces it")
    try:
        with Image.open(image) as opened:
            picture = ImageOps.exif_transpose(opened)
        options = {"quality": quality, "progressive": progressive}
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
            _fail(f"{image}: a picture of mode {picture.mode} has no 8-bit values; convert it first")
        if picture.mode in ("L", "RGB"):  # the profile of another colour space would be wrong
            options["icc_profile"] = picture.info.get("icc_profile")
        elif picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
        else:
            picture = picture.convert("L" if picture.mode == "1" else "RGB")
        if picture.mode == "RGB":
            options["subsampling"] = subsampling.value
    except UnidentifiedImageError:
        _fail(f"{image}: not a picture that Pillow can read")
    except (OSError, Image.DecompressionBombError) as error:
        _fail(f"{image}: {getattr(error, 'strerror', None) or error}")
    try:
        write_atomically(target, lambda stream: picture.save(stream, "jpeg", **options))
    except OSError as error:
        _fail(f"{target}: {error.strerror or error}")
    _say(f"{target}  {target.stat().st_size} bytes")


def _open(path: Path, repair: bool) -> JPEGFile:
    try:
        return JPEGFile.open(path, repair=repair)
    except JPEGDamageError as error:
        _fail(f"{error}{'' if repair else REPAIR_HINT}")
    except JPEGFileError as error:
        _fail(error)
    except OSError as error:
        _fail(f"{path}: {error.strerror or error}")
