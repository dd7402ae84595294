"""Take a model of the full size of the paper's prior through conversion, saving, loading and one restoration.

python scripts/check_full_size.py FOLDER [--dtype bfloat16] [--steps 2]

Needs no checkpoint: the 552.8 million weights follow a seeded rule, so the image is no better for it. FOLDER takes
4.5 GB. Each stage is a process of its own; prints its seconds and its peak memory by the operating system's account.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from pipeline_ddrm_jpeg import DDRMJPEGPipeline
from pipeline_ddrm_jpeg.conversion import CHECKPOINTS, checkpoint_shapes
from pipeline_ddrm_jpeg.formatting import percent

EXAMPLE = Path(__file__).parent.parent / "examples" / "cameraman.jpg"
PRESET = "256x256_diffusion_uncond"


def write(checkpoint: Path) -> None:
    """A checkpoint of the full size, with seeded weights."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in checkpoint_shapes(CHECKPOINTS[PRESET]).items():
        fan_in = torch.Size(shape[1:]).numel()
        state[name] = torch.randn(shape, generator=generator) * (0.5 / fan_in**0.5 if len(shape) > 1 else 0.1)
        if len(shape) == 1 and name.endswith("weight"):
            state[name] += 1
    torch.save(state, checkpoint)


def restore(folder: Path, dtype: str, steps: int) -> None:
    """Load the converted pipeline and restore a 256 x 256 image with it."""
    pipe = DDRMJPEGPipeline.from_prior(folder, dtype=getattr(torch, dtype))
    start = time.perf_counter()
    options = {"preset": "paper", "settings": {"consistent": True}, "num_inference_steps": steps}
    result = pipe(EXAMPLE, **options, generator=torch.Generator().manual_seed(0))
    seconds = (time.perf_counter() - start) / steps
    print(f"{seconds:.1f} s a step in {dtype}, {percent(result.consistency[0])} of the coefficients kept", flush=True)


def stage(name: str, *command: str | Path) -> None:
    """Run one stage in a process of its own, and print what it took."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{name} failed")
    print(f"{name}: {time.perf_counter() - start:.1f} s, peak memory {usage.ru_maxrss * 1024 / 1e9:.2f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--stage", choices=["write", "restore"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    checkpoint, repo = arguments.folder / f"{PRESET}.pt", arguments.folder / "repo"
    if arguments.stage == "write":
        write(checkpoint)
    elif arguments.stage == "restore":
        restore(repo, arguments.dtype, arguments.steps)
    else:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        settings = [arguments.folder, "--dtype", arguments.dtype, "--steps", arguments.steps]
        stage("write", __file__, *settings, "--stage", "write")
        print(f"checkpoint: {checkpoint.stat().st_size / 1e9:.2f} GB")
        stage("convert", "-m", "pipeline_ddrm_jpeg", "convert", "--checkpoint", checkpoint, "-o", repo)
        stage("restore", __file__, *settings, "--stage", "restore")


if __name__ == "__main__":
    main()
