"""How far a prior's denoised images are off, by timestep, component and frequency; stored with the prior.

python scripts/training/measure_denoiser_error.py PICTURES PRIOR

Clean images are noised to a timestep and denoised once; the root mean square of the error of every DCT coefficient
(blocks of 8 x 8, planes Y, Cb, Cr at full resolution, scale of [-1, 1]) goes into the table `denoiser_error` of
PRIOR/model_index.json. No image is compressed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline_ddrm_jpeg import DDRMJPEGPipeline
from pipeline_ddrm_jpeg.degradations.jpeg import block_dct
from pipeline_ddrm_jpeg.files.formats import write_atomically
from pipeline_ddrm_jpeg.jpeg.colour import JFIF_FORWARD
from pipeline_ddrm_jpeg.sampling.denoiser_error import DenoiserError

TIMESTEPS = (1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 55, 75, 100, 135, 180, 240, 320, 430, 570, 750)  # noise log-spaced


def crops(folder: Path, count: int, size: int) -> torch.Tensor:
    """Centre crops `[count, 3, size, size]` in [-1, 1] of images evenly spaced through a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".webp"))
    chosen = []
    for path in paths[:: max(len(paths) // count, 1)]:
        image = Image.open(path).convert("RGB")
        left, top = ((extent - size) // 2 for extent in image.size)
        if min(left, top) >= 0:
            chosen.append(np.asarray(image.crop((left, top, left + size, top + size))))
    if not chosen:
        raise SystemExit(f"{folder}: no PNG or WebP images of {size} pixels or more")
    return torch.from_numpy(np.stack(chosen[:count])).permute(0, 3, 1, 2) / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder of clean photographs, PNG or WebP")
    parser.add_argument("prior", type=Path, help="folder of the prior, with unet/ and scheduler/")
    parser.add_argument("--count", type=int, default=64, help="images (64)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side of a crop (128)")
    arguments = parser.parse_args()

    pipe = DDRMJPEGPipeline.from_prior(arguments.prior)
    images = crops(arguments.pictures, arguments.count, arguments.size)
    forward = torch.tensor(JFIF_FORWARD)
    generator = torch.Generator().manual_seed(0)
    levels, table = [], []
    for timestep in (t for t in TIMESTEPS if t < len(pipe.scheduler)):
        squares = torch.zeros(3, 8, 8)
        for clean in images.split(8):
            noise = torch.randn(clean.shape, generator=generator)
            error = denoised(pipe, pipe.scheduler.add_noise(clean, noise, timestep), timestep) - clean
            planes = torch.einsum("ij,bjhw->bihw", forward, error)
            squares += block_dct(planes.flatten(0, 1)).unflatten(0, (-1, 3)).square().mean(dim=(2, 3)).sum(dim=0)
        luma, chroma = squares[0] / len(images), squares[1:].mean(dim=0) / len(images)
        levels.append(pipe.scheduler.noise_to_signal(timestep))
        table.append(torch.stack([luma, chroma]).sqrt())
        shown = ", ".join(f"{name} {part.mean() ** 0.5:.4f}" for name, part in (("luma", luma), ("chroma", chroma)))
        print(f"t {timestep}, noise {levels[-1]:.4f}: {shown}", flush=True)

    path = arguments.prior / "model_index.json"
    config = json.loads(path.read_text("utf-8")) if path.exists() else {}
    config |= {"denoiser_error": DenoiserError(torch.tensor(levels), torch.stack(table)).to_config()}
    write_atomically(path, lambda stream: stream.write((json.dumps(config, indent=2) + "\n").encode()))
    print(path)


@torch.inference_mode()
def denoised(pipe: DDRMJPEGPipeline, sample: torch.Tensor, timestep: int) -> torch.Tensor:
    """The prior's image `[B, 3, H, W]` of a state."""
    inputs = sample.to(pipe.unet.dtype).contiguous(memory_format=torch.channels_last)
    output = pipe.unet(inputs, timestep, return_dict=False)[0].float()
    pipe.scheduler.set_timesteps(timesteps=[timestep])
    return pipe.scheduler.step(output, timestep, sample, return_dict=False)[1]


if __name__ == "__main__":
    main()
