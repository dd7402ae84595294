"""Seconds of every stage of a restoration, and its peak memory, by image size.

python scripts/reports/benchmark.py [--sizes 256x256 1000x1000 4000x3000 6000x4000] [--processes 2]
    [--output docs/benchmark] [--check SHARE]

Each size runs in a process of its own, whose peak resident memory is what the operating system says. The image is one
of examples/, repeated, as a JPEG file of quality factor 30. One step of one sample is measured; of large images every
further sample keeps a byte a channel, and the second also their spread. With --processes, twelve files of 256 x 256 are
restored by one process and by as many as given, each in one thread. Writes OUTPUT.json and OUTPUT.md. With --check, the
exit status is 1 if what is not the network (correction and scheduler) takes more than that share of its time: a ratio,
which holds on a busy machine too.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import ROOT, in_a_process, text, write
from PIL import Image

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGPipeline, JPEGFile, observe
from pipeline_ddrm_jpeg.evaluation.tables import markdown
from pipeline_ddrm_jpeg.files.formats import save_image
from pipeline_ddrm_jpeg.sampling.denoiser_error import error_from_config
from pipeline_ddrm_jpeg.sampling.tiling import predict

PICTURE = ROOT / "examples" / "originals" / "cat.png"
ONE_STEP = {"num_inference_steps": 1}
STAGES = {
    "read": "read the file",
    "network": "network, one step",
    "correction": "correction (posterior mean), one step",
    "scheduler": "scheduler with noise accounting, one step",
    "round_trip": "JPEGOperator, encode and decode",
    "diffjpeg": "the same as DiffJPEG does it",
    "pillow": "Pillow, encode and decode",
    "whole": "whole restoration (`balanced`), one step",
    "write": "write PNG",
}


def make_file(width: int, height: int) -> bytes:
    pixels = np.asarray(Image.open(PICTURE).convert("RGB"))
    repeats = (-(-height // pixels.shape[0]), -(-width // pixels.shape[1]), 1)
    stream = io.BytesIO()
    Image.fromarray(np.tile(pixels, repeats)[:height, :width]).save(stream, "JPEG", quality=30)
    return stream.getvalue()


def diffjpeg(x: torch.Tensor, tables: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Encode and decode as a differentiable JPEG usually does: a sum over 8 x 8 pixels for each of 8 x 8 frequencies.

    Shin and Song (2017) and what followed; 4:2:0, RGB in [0, 255].
    """
    angles = (2 * torch.arange(8)[:, None] + 1) * torch.arange(8) * torch.pi / 16
    scale = torch.tensor([0.5**0.5] + [1.0] * 7) / 2
    basis = torch.einsum("xu,yv,u,v->xyuv", angles.cos(), angles.cos(), scale, scale)
    luma = torch.tensor([0.299, 0.587, 0.114])
    y = torch.tensordot(x, luma, dims=([1], [0]))
    chroma = [(x[:, 2] - y) / 1.772, (x[:, 0] - y) / 1.402]
    planes = []
    for plane, table in zip([y - 128, *(F.avg_pool2d(c[:, None], 2)[:, 0] for c in chroma)], tables, strict=True):
        batch, height, width = plane.shape
        blocks = plane.view(batch, height // 8, 8, width // 8, 8).permute(0, 1, 3, 2, 4)
        levels = (torch.tensordot(blocks, basis, 2) / table).round()
        blocks = torch.tensordot(levels * table, basis.permute(2, 3, 0, 1), 2)
        planes.append(blocks.permute(0, 1, 3, 2, 4).reshape(batch, height, width))
    cb, cr = (F.interpolate(c[:, None], scale_factor=2)[:, 0] for c in planes[1:])
    y = planes[0] + 128
    return torch.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], dim=1)


def scaling(processes: int) -> dict[str, Any]:
    """Seconds in which one process, and several, restore twelve files, and how many times as fast several are.

    That is told with loading, from start to end, and without: from when each process has restored its first file.
    """

    def restored(folder: Path, count: int) -> float:
        start = time.perf_counter()
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count)]
        command = ["-m", "pipeline_ddrm_jpeg", "restore", folder, "--output", folder / str(count)]
        subprocess.run(
            [sys.executable, *(launch if count > 1 else []), *command, "--dtype", "float32"],
            check=True,
            capture_output=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return time.perf_counter() - start

    seconds, rates = {}, {}
    with tempfile.TemporaryDirectory() as name:
        for count in (1, processes):
            first, all_files = Path(name, f"{count} first"), Path(name, f"{count} all")
            for folder, files in ((first, count), (all_files, 12)):
                folder.mkdir()
                for i in range(files):
                    (folder / f"{i}.jpg").write_bytes(make_file(256, 256))
            until_first, seconds[count] = restored(first, count), restored(all_files, count)
            rates[count] = (12 - count) / (seconds[count] - until_first)
    return {
        "processes": processes,
        "seconds": seconds,
        "speedup": seconds[1] / seconds[processes],
        "speedup_without_loading": rates[processes] / rates[1],
    }


def measure(width: int, height: int, dtype: str) -> dict[str, Any]:
    """Seconds of each stage at one size, in this process."""
    data = make_file(width, height)
    pipe = DDRMJPEGPipeline.from_embedded(dtype=dtype if dtype == "auto" else getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any], repeats: int = 1) -> Any:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            result = work()
            times.append(time.perf_counter() - start)
        seconds[stage] = min(times)
        return result

    variance: Any = None
    few = 5 if width * height < 2e6 else 1
    file = timed("read", lambda: JPEGFile.open(data), few)
    result = timed(
        "whole",
        lambda: pipe(file, **ONE_STEP, generator=torch.Generator().manual_seed(0)),
        few,
    )
    with tempfile.TemporaryDirectory() as folder:
        timed("write", lambda: save_image(result.images[0], Path(folder, "picture.png")))
    facts = {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}

    seen = observe(file)
    operator, y = seen.operator, seen.y
    with torch.inference_mode():
        x = operator.decode(y)
        error = PRESETS["balanced"].error_scale * error_from_config(pipe.config.denoiser_error).at(0.2)
        _, variance = timed("correction", lambda: operator.posterior(x, y, error), few)
        timed("round_trip", lambda: operator.decode(operator.encode(x)), few)
        timed("diffjpeg", lambda: diffjpeg((x + 1) * 127.5, operator.quantization_tables), few)
        difference = (diffjpeg((x + 1) * 127.5, operator.quantization_tables) / 127.5 - 1 - x).abs().max()
        if difference > 1e-3:
            sys.exit(f"the two round trips differ by {difference}")
        pipe.scheduler.set_timesteps(timesteps=[60, 20])
        remaining = {"remaining_noise": lambda noise, level: operator.remaining_noise(noise, level, variance)}
        timed("scheduler", lambda: pipe.scheduler.step(x, 60, x, eta_b=1.0, **remaining), few)
        predict(pipe.unet, x[..., :64, :64], 0)  # warm
        windows = pipe.tiling.options(pipe.unet, pipe.device)
        timed("network", lambda: predict(pipe.unet, x, 0, **windows), few)
    image = Image.open(io.BytesIO(data)).convert("RGB")

    def round_trip() -> None:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=30)
        Image.open(stream).load()

    timed("pillow", round_trip, few)
    facts |= {"dtype": str(pipe.unet.dtype).removeprefix("torch."), "threads": torch.get_num_threads()}
    return {"width": width, "height": height, "seconds": seconds, **facts}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [["seconds", *(f"{row['width']} x {row['height']}" for row in rows)]]
    lines += [[label, *(f"{row['seconds'][stage]:.3f}" for row in rows)] for stage, label in STAGES.items()]
    lines.append(["share of correction and scheduler", *(f"{100 * share(row):.1f} %" for row in rows)])
    lines.append(["peak memory, MiB", *(f"{row['peak_memory_mib']:.0f}" for row in rows)])
    return markdown(lines)


def as_page(record: dict[str, Any]) -> str:
    """What OUTPUT.json holds as Markdown."""
    rows, scaled = record["sizes"], ""
    if found := record.get("scaling"):
        one, several = (f"{seconds:.1f}" for seconds in found["seconds"].values())
        speedup = f"{found['speedup']:.2f}"
        if "speedup_without_loading" in found:  # pages that were made before have none
            speedup += f" (without loading {found['speedup_without_loading']:.2f})"
        scaled = text("benchmark-scaling", one=one, processes=found["processes"], several=several, speedup=speedup)
    return text(
        "benchmark",
        command=record["command"],
        table=table(rows),
        dtype=rows[0]["dtype"],
        threads=rows[0]["threads"],
        torch=record["torch"],
        scaling=scaled,
    )


def share(row: dict[str, Any]) -> float:
    seconds = row["seconds"]
    return (seconds["correction"] + seconds["scheduler"]) / seconds["network"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["256x256", "1000x1000", "4000x3000", "6000x4000"])
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmark", help="without suffix")
    parser.add_argument("--processes", type=int, metavar="N", help="measure 1 against N processes as well")
    parser.add_argument("--check", type=float, metavar="SHARE", help="highest share of what is not the network")
    arguments = parser.parse_args()
    rows = []
    for size in arguments.sizes:
        rows.append(in_a_process(measure, *map(int, size.split("x")), arguments.dtype))
        print(f"{size} done", file=sys.stderr)
    command = f"python scripts/reports/benchmark.py --sizes {' '.join(arguments.sizes)} --dtype {arguments.dtype}"
    command += f" --processes {arguments.processes}" if arguments.processes else ""
    record: dict[str, Any] = {"command": command, "torch": torch.__version__, "sizes": rows}
    if arguments.processes:
        record["scaling"] = scaling(arguments.processes)
    print(as_page(record))
    write(arguments.output.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    write(arguments.output.with_suffix(".md"), as_page(record))
    if arguments.check is not None and (worst := max(map(share, rows))) > arguments.check:
        sys.exit(f"correction and scheduler take {100 * worst:.1f} % of the network's time")


if __name__ == "__main__":
    main()
