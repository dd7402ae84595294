"""How far a prior's denoised pictures are off, by timestep, component and frequency.

python scripts/measure_denoiser_error.py FOLDER [--prior FOLDER_OR_REPO] [--output denoiser_error.json]

Clean pictures are noised to a timestep and denoised once; the root mean square of the error of every DCT coefficient
(blocks of 8 x 8, planes Y, Cb, Cr at full resolution, scale of [-1, 1]) goes into the table. No picture is compressed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, JPEGOperator
from pipeline_ddrm_jpeg.files import write_atomically
from pipeline_ddrm_jpeg.operators import _block_dct, _mix

TIMESTEPS = (1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 55, 75, 100, 135, 180, 240, 320, 430, 570, 750)


def crops(folder: Path, count: int, size: int) -> torch.Tensor:
    """Centre crops `[count, 3, size, size]` in [-1, 1] of pictures evenly spaced through a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".webp"))
    chosen = []
    for path in paths[:: max(len(paths) // count, 1)]:
        picture = Image.open(path).convert("RGB")
        left, top = ((extent - size) // 2 for extent in picture.size)
        if min(left, top) >= 0:
            chosen.append(np.asarray(picture.crop((left, top, left + size, top + size))))
    if not chosen:
        raise SystemExit(f"{folder}: no PNG or WebP pictures of {size} pixels or more")
    return torch.from_numpy(np.stack(chosen[:count])).permute(0, 3, 1, 2) / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="clean photographs, PNG or WebP")
    parser.add_argument("--prior", help="folder or Hub repo; by default the embedded prior")
    parser.add_argument("--count", type=int, default=64, help="pictures")
    parser.add_argument("--size", type=int, default=128, help="pixels of a crop")
    parser.add_argument("--output", type=Path, default=Path("denoiser_error.json"))
    arguments = parser.parse_args()

    if arguments.prior is None:
        pipe = DDRMJPEGPipeline.from_embedded(dtype="auto")
    else:
        pipe = DDRMJPEGPipeline.from_prior(arguments.prior, dtype="auto")
    pictures = crops(arguments.folder, arguments.count, arguments.size)
    forward = JPEGOperator(50, "4:4:4")._forward
    generator = torch.Generator().manual_seed(0)
    levels, table = [], []
    for timestep in TIMESTEPS:
        alpha = pipe.scheduler.alphas_cumprod[timestep]
        squares = torch.zeros(3, 8, 8)
        for clean in pictures.split(8):
            noise = torch.randn(clean.shape, generator=generator)
            error = denoised(pipe, alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, timestep) - clean
            coefficients = _block_dct(_mix(error, forward).flatten(0, 1)).unflatten(0, (-1, 3))
            squares += coefficients.square().mean(dim=(2, 3)).sum(dim=0)
        squares /= len(pictures)
        luma, chroma = squares[0], squares[1:].mean(dim=0)
        levels.append(((1 - alpha) / alpha).sqrt().item())
        table.append(torch.stack([luma, chroma]).sqrt())
        print(
            f"t {timestep:4d}  noise {levels[-1]:.4f}  luma {luma.mean() ** 0.5:.4f}  chroma {chroma.mean() ** 0.5:.4f}"
        )
    record = {
        "pictures": len(pictures),
        "timesteps": TIMESTEPS,
        "noise_to_signal": [float(f"{level:.5g}") for level in levels],
        "std": [[[[float(f"{v:.4g}") for v in row] for row in part] for part in entry.tolist()] for entry in table],
    }
    write_atomically(arguments.output, lambda stream: stream.write(json.dumps(record).encode()))


@torch.inference_mode()
def denoised(pipe: DDRMJPEGPipeline, sample: torch.Tensor, timestep: int) -> torch.Tensor:
    """The prior's picture `[B, 3, H, W]` of a state."""
    inputs = sample.to(pipe.unet.dtype).contiguous(memory_format=torch.channels_last)
    output = pipe.unet(inputs, timestep, return_dict=False)[0].float()
    scheduler = pipe.scheduler
    scheduler.set_timesteps(timesteps=[timestep])
    return scheduler.step(output, timestep, sample, return_dict=False)[1]


if __name__ == "__main__":
    main()
