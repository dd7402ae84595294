"""DDRM and pseudoinverse guidance (PiGDM) at equal cost of the network, and what a step of each costs.

python scripts/reports/samplers.py FOLDER... [--count 2] [--lpips-weights FILE] [--output docs/samplers]

The middle of each image is compressed (Pillow, 4:2:0) and restored by every sampler: one sample, with as many steps
as a budget of evaluations pays for; a backward pass counts as two, so a step of PiGDM as three. Seconds are those of
the processor, of one thread. One step is measured in a process of its own, with its peak memory as Linux tells it.
OUTPUT.json keeps every number, and what is there is not computed again; OUTPUT.md is made of it.
"""

import argparse
import io
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, Measured, changed, in_a_process, page_of, write
from corrections import crop, restored, spread, tensor

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGPipeline, Settings
from pipeline_ddrm_jpeg.evaluation import lpips
from pipeline_ddrm_jpeg.evaluation.metrics import psnr
from pipeline_ddrm_jpeg.evaluation.tables import markdown
from pipeline_ddrm_jpeg.priors import SAMPLERS

_START = PRESETS["balanced"] | {"temperature": 0.4, "equivariant": False}
METHODS: dict[str, tuple[str, Settings]] = {
    "DDRM, the paper's rule": ("ddrm", PRESETS["paper"]),
    "DDRM, posterior mean (`balanced`)": ("ddrm", PRESETS["balanced"]),
    "PiGDM, started as the paper's DDRM": ("pigdm", PRESETS["paper"]),
    "PiGDM, started as `balanced`": ("pigdm", _START),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="clean images, one folder for each set")
    parser.add_argument("--count", type=int, default=2, help="images of each folder (2)")
    parser.add_argument("--size", type=int, default=256, help="pixels a side (256)")
    parser.add_argument("--quality-factors", type=int, nargs="+", default=[5, 10, 30])
    parser.add_argument("--evaluations", type=int, nargs="+", default=[12, 30])
    parser.add_argument("--step-sizes", type=int, nargs="+", default=[256, 384, 1024], help="images of one step")
    parser.add_argument("--lpips-weights", type=Path, metavar="FILE", help="as of ddrm-jpeg evaluate")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "samplers", help="without suffix")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.folders:
        sys.exit("give a folder of clean images, or several")

    images = [crop(path, arguments.size) for folder in arguments.folders for path in spread(folder, arguments.count)]
    sets = " and ".join(f"`{folder.name}`" for folder in arguments.folders)
    network = None if lpips.obstacle(arguments.lpips_weights) else lpips.load(arguments.lpips_weights)
    pipe = load("ddrm")
    measured = Measured(arguments.output.with_suffix(".json"), pipe.unet)

    where = f"{len(images)} of {sets}, {arguments.size} pixels"
    rows = [["sampler", "evaluations", "steps", *(f"QF {factor}" for factor in arguments.quality_factors), "seconds"]]
    for evaluations in arguments.evaluations:
        for name, (sampler, settings) in METHODS.items():
            steps = evaluations // SAMPLERS[sampler].evaluations_a_step
            settings = settings | {"num_inference_steps": steps}
            pipe.scheduler = SAMPLERS[sampler].from_config(pipe.scheduler.config)
            found = [
                measured(
                    f"{where}; {name}; {changed(settings)}; QF {factor}; LPIPS {network is not None}",
                    lambda f=factor, s=settings: gains(pipe, images, f, s, network),
                )
                for factor in arguments.quality_factors
            ]
            cells = [
                f"{one['gain']:+.2f} / {one['lpips']:.2f}" if "lpips" in one else f"{one['gain']:+.2f}" for one in found
            ]
            seconds = np.mean([one["seconds"] for one in found])
            rows.append([name, str(evaluations), str(steps), *cells, f"{seconds:.1f}"])

    costs = [["sampler", *(text for size in arguments.step_sizes for text in (f"{size} px, seconds", "MiB"))]]
    for sampler, checkpoints in (("ddrm", "no"), ("pigdm", "no"), ("pigdm", "yes")):
        cells = [sampler + (", gradient checkpointing" if checkpoints == "yes" else "")]
        for size in arguments.step_sizes:
            one = measured(
                f"step; {sampler}; {size}; {checkpoints}",
                lambda a=(sampler, size, checkpoints == "yes"): in_a_process(one_step, *a),
            )
            cells += [f"{one['seconds']:.1f}", f"{one['mib']:.0f}"]
        costs.append(cells)

    names = " ".join(folder.name for folder in arguments.folders)
    filled = page_of(
        "samplers",
        measured.record["prior_sha256"],
        size=arguments.size,
        images=len(images),
        sets=sets,
        command=f"python scripts/reports/samplers.py {names} --count {arguments.count}",
        table=markdown(rows),
        dtype=str(pipe.unet.dtype).removeprefix("torch."),
        costs=markdown(costs),
    )
    write(arguments.output.with_suffix(".md"), filled)


def load(sampler: str) -> DDRMJPEGPipeline:
    pipe = DDRMJPEGPipeline.from_embedded()
    pipe.scheduler = SAMPLERS[sampler].from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def gains(pipe: Any, images: list, factor: int, settings: Settings, network: Any) -> dict[str, float]:
    """PSNR over the JPEG's, LPIPS divided by the JPEG's, seconds of an image: means."""
    gain, perceived, start = [], np.zeros(2), time.process_time()
    pairs = [restored(pipe, image, factor, settings) for image in images]
    seconds = (time.process_time() - start) / len(images)
    for (jpeg, ours), image in zip(pairs, images, strict=True):
        gain.append(psnr(ours, image) - psnr(jpeg, image))
        if network is not None:
            perceived += [float(network(tensor(one), tensor(image))) for one in (jpeg, ours)]
    values = {"gain": float(np.mean(gain)), "seconds": seconds}
    values |= {} if network is None else {"lpips": float(perceived[1] / perceived[0])}
    return {name: round(value, 4) for name, value in values.items()}


def one_step(sampler: str, size: int, checkpoints: bool) -> dict[str, float]:
    """Processor seconds of one step, and peak memory of this process in MiB."""
    torch.set_num_threads(1)
    pipe = load(sampler)
    if checkpoints:
        pipe.unet.enable_gradient_checkpointing()
    image = crop(ROOT / "examples" / "originals" / "cat.png", 256).resize((size, size))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=10)
    start = time.process_time()
    pipe(stream.getvalue(), preset="paper", settings={"num_inference_steps": 1, "init_timestep": 100})
    seconds = time.process_time() - start
    # Not getrusage, which begins with the peak of the process that started this one.
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    return {"seconds": round(seconds, 4), "mib": round(peak / 1024, 4)}


if __name__ == "__main__":
    main()
