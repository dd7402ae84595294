"""Files and megapixels a second of folders of files, and the same work done by the released program and by others.

python scripts/reports/throughput.py PICTURES [--only folders|compared] [--folders 256x256:1000 1000x500:100
    4000x3000:10] [--preset balanced] [--limit SECONDS] [--compared 3] [--quality 10] [--output docs/throughput]

Each folder of --folders, so many files of so many pixels made of an image of examples/, is restored by a process of
its own: files and megapixels a second without loading, pixels that the network is shown over pixels of the image,
processor time for 256 x 256 of its pixels and how often that of a file of 256 x 256 it is, the share of time in which
the network works, what a file takes beside it, and the peak resident memory of that process (a reader has its own, 96
MiB and some bytes a pixel).
What a folder will take is printed before; with --limit no file begins after so many seconds. Then --compared images of
the folder PICTURES, cut to a square, are restored from files of one quality factor by our presets, by the loop of the
released program, written anew here, with the same network and dtype, and by the other programs that are installed, all
in one run. Writes OUTPUT.json and OUTPUT.md; what --only leaves out, and folders of other sizes, are taken from
OUTPUT.json, so that the whole can be made in pieces.
"""

import argparse
import json
import math
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark import diffjpeg, make_file
from common import ROOT, in_a_process, page_of, text, write
from PIL import Image, ImageOps

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGPipeline, observe
from pipeline_ddrm_jpeg.evaluation.baselines import BASELINES, unavailable
from pipeline_ddrm_jpeg.evaluation.metrics import psnr
from pipeline_ddrm_jpeg.evaluation.protocol import find_images
from pipeline_ddrm_jpeg.evaluation.run import fingerprint
from pipeline_ddrm_jpeg.evaluation.tables import markdown
from pipeline_ddrm_jpeg.files.restoration import restore_files
from pipeline_ddrm_jpeg.files.tasks import Task, plan
from pipeline_ddrm_jpeg.formatting import duration
from pipeline_ddrm_jpeg.sampling.observation import to_bytes
from pipeline_ddrm_jpeg.sampling.tiling import count_windows
from pipeline_ddrm_jpeg.threads import sleep_while_waiting

STEPS, START, SAMPLES, ETA_B = 20, 300, 8, 0.4  # the released program's, whose eta is 1


def load() -> DDRMJPEGPipeline:
    pipe = DDRMJPEGPipeline.from_embedded(dtype="auto")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def first_window(width: int, height: int) -> bytes:
    """A file of one window."""
    return make_file(min(width, 448), min(height, 448))


def expected(pipe: DDRMJPEGPipeline, width: int, height: int, count: int, preset: str) -> float:
    """Seconds that a folder will take, about."""
    for _ in range(2):  # the first time, something is slow
        start = time.perf_counter()
        pipe(first_window(width, height), preset=preset)
        seconds = time.perf_counter() - start
    return count * seconds * count_windows(pipe.unet, height, width, **pipe.tiling.options(pipe.unet, pipe.device))


def folder_of(width: int, height: int, count: int, preset: str, limit: float) -> dict[str, Any]:
    """What a folder of equal files takes, in this process."""
    pipe = load()
    working, since, shown, asked = 0.0, 0.0, 0, 0

    def begin(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal since, shown, asked
        batch, _, *size = inputs[0].shape
        shown, asked = shown + batch * math.prod(size), asked + batch
        since = time.perf_counter()

    def end(*_: Any) -> None:
        nonlocal working
        working += time.perf_counter() - since

    with tempfile.TemporaryDirectory() as folder:
        data = make_file(width, height)
        for i in range(count):
            Path(folder, f"{i:05}.jpg").write_bytes(data)
        tasks = plan([folder], Path(folder, "out"))
        pipe(first_window(width, height), preset=preset)  # what is slow once
        pipe.unet.register_forward_pre_hook(begin)
        pipe.unet.register_forward_hook(end)
        windows = count_windows(pipe.unet, height, width, **pipe.tiling.options(pipe.unet, pipe.device))
        processor, start, files = time.process_time(), time.perf_counter(), 0

        def in_time(task: Task) -> bool:
            return task is tasks[0] or not limit or time.perf_counter() - start < limit

        for result in restore_files(pipe, takewhile(in_time, tasks), preset=preset):
            if result.status != "restored":
                sys.exit(result.message)
            files += 1
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return {
        "width": width,
        "height": height,
        "asked": count,
        "files": files,
        "preset": preset,
        "seconds": seconds,
        "network": working,
        "processor": processor,
        "shown_over_true": shown * windows / (asked * width * height),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


@torch.inference_mode()
def released(pipe: DDRMJPEGPipeline, file: Path, seed: int) -> torch.Tensor:
    """One sample as the released program draws it: a linear schedule, a step every 15, its operator at each of them."""
    alphas = (1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64).float()).cumprod(0)
    schedule = list(range(0, START, START // STEPS))[::-1]
    seen = observe(file)
    decoded, tables = seen.operator.decode(seen.y), seen.operator.quantization_tables
    generator = torch.Generator().manual_seed(seed)

    def noise() -> torch.Tensor:
        return torch.randn(decoded.shape, generator=generator)

    x = alphas[schedule[0]].sqrt() * decoded + (1 - alphas[schedule[0]]).sqrt() * noise()
    for t, following in zip(schedule, [*schedule[1:], None], strict=True):
        epsilon = pipe.unet(x.to(pipe.unet.dtype), t).sample[:, :3].float()
        x0 = (x - (1 - alphas[t]).sqrt() * epsilon) / alphas[t].sqrt()
        corrected = x0 + decoded - (diffjpeg((x0 + 1) * 127.5, tables) / 127.5 - 1)
        mixed = ETA_B * corrected + (1 - ETA_B) * x0
        if following is None:
            return mixed
        x = alphas[following].sqrt() * mixed + (1 - alphas[following]).sqrt() * noise()
    raise AssertionError


def compare(folder: Path, count: int, quality: int, size: int) -> dict[str, dict[str, float]]:
    """Seconds and PSNR (8 bits) of each way, the mean over images."""
    pipe = load()

    def ours(preset: str) -> Callable[[Path], Any]:
        return lambda path: pipe(path, generator=torch.Generator().manual_seed(0), preset=preset).images[0]

    def average(path: Path) -> Image.Image:
        mean = torch.stack([released(pipe, path, seed) for seed in range(SAMPLES)]).mean(0)[0]
        return Image.fromarray(to_bytes(mean / 2 + 0.5))

    ways = {"JPEG": lambda path: Image.open(path).convert("RGB"), "the released loop, 160 evaluations": average}
    ways |= {f"`{name}`": ours(name) for name in ("fast", "balanced", "best")}
    ways |= {name: way for name, way in BASELINES.items() if unavailable(name) is None}
    found: dict[str, dict[str, float]] = {name: {"seconds": 0.0, "psnr": 0.0} for name in ways}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "picture.jpg")
        for image in find_images([folder], count):
            clean = ImageOps.fit(Image.open(image.path).convert("RGB"), (size, size))
            clean.save(path, quality=quality)
            for name, way in ways.items():
                start = time.perf_counter()
                restored = way(path)
                found[name]["seconds"] += (time.perf_counter() - start) / count
                found[name]["psnr"] += float(psnr(np.asarray(restored), clean)) / count
            print(f"{image.path.name} done", file=sys.stderr)
    return found


def processor_time(row: dict[str, Any]) -> float:
    """Seconds for each 256 x 256 pixels of the images."""
    return row["processor"] * 256**2 / (row["files"] * row["width"] * row["height"])


def as_page(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    rows, compared, folders, in_other_ways = record["folders"], record["compared"], "", ""
    lines = [
        [
            *("files", "of", "size", "preset", "files a second", "megapixels a second", "shown over true"),
            *("processor s for 256 x 256", "over that of 256 x 256", "network at work", "ms a file beside it"),
            "peak memory, MiB",
        ]
    ]
    cost = {(row["preset"], row["width"], row["height"]): processor_time(row) for row in rows}
    for row in rows:
        rate = row["files"] / row["seconds"]
        unit = cost.get((row["preset"], 256, 256))
        lines.append(
            [
                str(row["files"]),
                str(row["asked"]),
                f"{row['width']} x {row['height']}",
                f"`{row['preset']}`",
                f"{rate:.2f}",
                f"{rate * row['width'] * row['height'] / 1e6:.3f}",
                f"{row['shown_over_true']:.3f}",
                f"{processor_time(row):.2f}",
                f"{processor_time(row) / unit:.2f}" if unit else "",
                f"{100 * row['network'] / row['seconds']:.1f} %",
                f"{1000 * (row['seconds'] - row['network']) / row['files']:.1f}",
                f"{row['peak_memory_mib']:.0f}",
            ]
        )
    if rows:
        kinds = sorted({f"{row['dtype']} by {row['threads']} threads" for row in rows})
        folders = text("throughput-folders", kinds=" or ".join(kinds), torch=record["torch"], table=markdown(lines))
    if compared:
        ways = [["", "seconds an image", "times as fast as the released loop", "PSNR, dB"]]
        slowest = compared["the released loop, 160 evaluations"]["seconds"]
        for name, one in compared.items():
            speed = "" if name == "JPEG" else f"{slowest / one['seconds']:.1f}"
            ways.append([name, f"{one['seconds']:.2f}", speed, f"{one['psnr']:.2f}"])
        in_other_ways = text("throughput-compared", what=record["what"], table=markdown(ways))
    commands = "\n".join(record["commands"])
    return page_of("throughput", record["prior_sha256"], commands=commands, folders=folders, compared=in_other_ways)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder of clean images")
    parser.add_argument(
        "--only", choices=["folders", "compared"], help="one part; the other is kept if it is of this prior"
    )
    parser.add_argument("--folders", nargs="+", default=["256x256:1000", "1000x500:100", "4000x3000:10"])
    parser.add_argument("--preset", choices=list(PRESETS), default="balanced", help="of the folders (balanced)")
    parser.add_argument("--limit", type=float, default=0, metavar="SECONDS", help="of each folder; 0: none (0)")
    parser.add_argument("--compared", type=int, default=3, metavar="N", help="images for the comparison (3)")
    parser.add_argument("--quality", type=int, default=10, help="quality factor of the comparison (10)")
    parser.add_argument("--size", type=int, default=256, help="its images' side in pixels (256)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "throughput", help="without suffix")
    arguments = parser.parse_args()
    sleep_while_waiting()  # the processes of the folders, which have not begun
    stored = arguments.output.with_suffix(".json")
    empty = {"commands": [], "folders": [], "compared": {}, "what": ""}
    known = json.loads(stored.read_text()) if arguments.only and stored.exists() else {}
    pipe = load()
    prior = fingerprint(pipe.unet)
    record = known if known.get("prior_sha256") == prior else empty | {"prior_sha256": prior}
    record["torch"] = torch.__version__
    name = arguments.pictures.resolve().name
    command = f"python scripts/reports/throughput.py {name}" + (f" --only {arguments.only}" if arguments.only else "")
    if arguments.only != "compared":
        command += f" --folders {' '.join(arguments.folders)} --preset {arguments.preset}"
        command += f" --limit {arguments.limit:g}" if arguments.limit else ""
        for folder in arguments.folders:
            width, height, count = map(int, re.split("[x:]", folder))
            seconds = duration(expected(pipe, width, height, count, arguments.preset))
            print(f"{width}x{height}: {count} files take about {seconds}", file=sys.stderr, flush=True)
            row = in_a_process(folder_of, width, height, count, arguments.preset, arguments.limit)
            same = ("width", "height", "preset")
            kept = [other for other in record["folders"] if any(other[key] != row[key] for key in same)]
            record["folders"] = sorted([*kept, row], key=lambda row: (row["width"] * row["height"], row["preset"]))
            print(f"{folder} done: {row['files']} files in {duration(row['seconds'])}", file=sys.stderr)
    if arguments.only != "folders":
        command += f" --compared {arguments.compared} --quality {arguments.quality} --size {arguments.size}"
        record["compared"] = compare(arguments.pictures, arguments.compared, arguments.quality, arguments.size)
        record["what"] = (
            f"{arguments.compared} images of {name}, {arguments.size} pixels a side, quality factor {arguments.quality}"
        )
    record["commands"] = [*(one for one in record["commands"] if one != command), command]
    print(as_page(record))
    write(stored, json.dumps(record, indent=1) + "\n")
    write(arguments.output.with_suffix(".md"), as_page(record))


if __name__ == "__main__":
    main()
