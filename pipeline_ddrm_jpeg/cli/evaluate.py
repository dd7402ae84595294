"""`evaluate`: restorations of images that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..importing import importing
from ..sampling.settings import DEFAULT, PRESETS, settings_of
from .computing import check_settings, dtype_of, gather, load, processes
from .options import ChromaSubsampling, Computing, Preset, Sampling, numbers, with_options
from .terminal import complain, fail, say


@with_options
def evaluate(
    *,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="SET...", help="Folders of images, and text files that name one a line.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")],
    quality: Annotated[str, typer.Option("--quality", help="Quality factors, with commas.")] = "5,10,30",
    convention: Annotated[
        Literal["libjpeg", "released"],
        typer.Option(help="Real files written by Pillow, or the JPEG of the paper's program."),
    ] = "libjpeg",
    subsampling: ChromaSubsampling = "4:2:0",
    size: Annotated[
        int, typer.Option(min=0, help="Central square of an image, resized to so many pixels; 0 leaves it as it is.")
    ] = 256,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images of a set, evenly spread.")] = None,
    preset: Preset = DEFAULT,
    sampling: Sampling,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics beside PSNR, with commas.", show_default="all that are installed")
    ] = None,
    baseline: Annotated[list[str] | None, typer.Option(help="Another program to run on the same files.")] = None,
    lpips_weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="AlexNet's weights for LPIPS, safetensors.", show_default="torchvision's"),
    ] = None,
    computing: Computing,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of a process on a CPU. The last digits of a result depend on it.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar; only failures are printed.")] = False,
) -> None:  # fmt: skip
    """Measure restorations of images that are known, as in Table 1 of the paper.

    Every image is compressed, restored and compared with itself. The same command again goes on where it stopped.
    To use several processes or GPUs: accelerate launch --num_processes N -m pipeline_ddrm_jpeg evaluate ...
    """
    with importing():
        import torch
        from tqdm import tqdm

        from ..evaluation import baselines, lpips
        from ..evaluation import metrics as measures
        from ..evaluation.protocol import Protocol, find_images
        from ..evaluation.run import Evaluation, fingerprint

    for name in baseline or ():
        if name not in baselines.BASELINES:
            fail(f"--baseline {name} is not one of {', '.join(baselines.BASELINES)}", 2)
        if (reason := baselines.unavailable(name)) is not None:
            fail(f"--baseline {name}: {reason}", 2)
    wanted = list(measures.METRICS) if metrics is None else [name for name in metrics.split(",") if name]
    if unknown := [name for name in wanted if name not in measures.METRICS]:
        fail(f"--metrics {unknown[0]} is not one of {', '.join(measures.METRICS)}", 2)
    if lpips_weights is not None and (reason := lpips.obstacle(lpips_weights)):
        fail(f"--lpips-weights: {reason}", 2)
    notes = {name: reason for name in wanted if (reason := measures.unavailable(name, lpips_weights)) is not None}
    if metrics and notes:
        fail("; ".join(f"--metrics {name}: {reason}" for name, reason in notes.items()), 2)
    settings = settings_of(**sampling.arguments(preset), changes={})
    try:
        protocol = Protocol(
            quality_factors=numbers("--quality", quality),
            convention=convention,
            chroma_subsampling=subsampling,
            size=size or None,
            preset=preset if settings == PRESETS[preset] else None,
            settings=settings,
            metrics=tuple(name for name in wanted if name not in notes),
            lpips_weights=lpips_weights,
            baselines=tuple(baseline or ()),
            seed=seed,
        )
        images = find_images(inputs, limit)
        network = lpips.load(lpips_weights) if "lpips" in protocol.metrics else None
    except (ValueError, OSError) as error:
        fail(error, 2)

    state = processes(computing.device)
    if state.device.type == "cpu":
        torch.set_num_threads(threads)
    pipe = load(computing.prior, computing.dtype, state.device, sampling.sampler)
    protocol = replace(protocol, settings=check_settings(pipe, preset, sampling.chosen))
    pipe.set_progress_bar_config(disable=True)
    facts = {
        "prior": computing.prior or "embedded",
        "prior_sha256": fingerprint(pipe.unet),
        "sampler": type(pipe.scheduler).__name__,
        "lpips_sha256": network and fingerprint(network),
        "dtype": dtype_of(pipe),
        "device": state.device.type,
        "threads": threads if state.device.type == "cpu" else None,
    }
    disabled = quiet or not state.is_main_process or None  # None: where no terminal is
    try:
        evaluation = Evaluation(output, protocol, facts)
        pending = evaluation.pending(images)
        state.wait_for_everyone()  # all see the same images missing before one is finished
        if state.is_main_process:
            evaluation.begin()
        whose = f"first of {state.num_processes} processes" if state.num_processes > 1 else None
        with (
            state.split_between_processes(pending) as mine,
            tqdm(desc=whose, total=len(mine), unit="image", disable=disabled) as bar,
        ):
            failures = evaluation.run(pipe, mine, bar.update)
        failures = [failure for part in gather(failures) for failure in part]
        if not state.is_main_process:
            raise typer.Exit(1 if failures else 0)
        text = evaluation.finish(images, notes)
    except KeyboardInterrupt:
        left = len(evaluation.pending(images))
        fail(f"stopped with {left} of {len(images)} images left; run the same command again to go on", 130)
    except (ValueError, OSError) as error:
        fail(error, 2)
    for path, reason in failures:
        complain(reason if path in reason else f"{path}: {reason}")
    for line in () if quiet else (*text.splitlines(), f"All rows and settings are in {output}"):
        say(line)
    if failures:
        raise typer.Exit(1)
