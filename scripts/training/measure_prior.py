"""How well priors denoise, by the size of the window they see, and what they restore.

python scripts/training/measure_prior.py FOLDER... --prior PRIOR [--prior PRIOR ...] [--count 6] [--output FILE.json]

The middle 256 x 256 pixels of images from each folder, and of them

  residual  the variance of the denoiser's error over that of the noise, at several timesteps: of whole images, and
            of the same 64 x 64 pixels in their middle through windows of 64, 128 and 256. Normalisation reads the
            window, so that more context can make a network worse.
  gain      in PSNR over the JPEG (Pillow, 4:2:0), in dB, of the presets fast, balanced and best, one seed for all.

Noise, images and seeds are the same for every prior. Crops of the size a prior was trained on flatter it: of these
only the windows tell. A prior that has a table of its error restores by that, unless --wiener.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure_denoiser_error import crops, denoised
from PIL import Image

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGPipeline
from pipeline_ddrm_jpeg.evaluation.metrics import psnr
from pipeline_ddrm_jpeg.evaluation.tables import markdown
from pipeline_ddrm_jpeg.files.formats import write_atomically

SIZE, MIDDLE = 256, 64
WINDOWS = (64, 128, 256)
TIMESTEPS = (5, 15, 30, 60, 100, 150, 200, 285)


def residuals(pipe: DDRMJPEGPipeline, images: torch.Tensor) -> dict[str, list[float]]:
    """`"whole"`, and for each window the middle through it: the residual at each of `TIMESTEPS`."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    found: dict[str, list[float]] = {"whole": [], **{f"window {size}": [] for size in WINDOWS}}
    for timestep in TIMESTEPS:
        variance = pipe.scheduler.noise_to_signal(timestep) ** 2
        noisy = pipe.scheduler.add_noise(images, noise, timestep)
        for window in WINDOWS:
            error = torch.cat(
                [
                    denoised(pipe, middle(part, window), timestep) - middle(clean, window)
                    for part, clean in zip(noisy.split(4), images.split(4), strict=True)
                ]
            )
            found[f"window {window}"].append(middle(error, MIDDLE).square().mean().item() / variance)
        found["whole"].append(error.square().mean().item() / variance)
    return found


def middle(images: torch.Tensor, size: int) -> torch.Tensor:
    """The middle `[..., size, size]` of square images."""
    first = (images.shape[-1] - size) // 2
    return images[..., first : first + size, first : first + size]


def gains(
    pipe: DDRMJPEGPipeline, images: torch.Tensor, presets: list[str], factors: list[int]
) -> dict[str, list[float]]:
    """For each preset the mean gain in PSNR over the JPEG, by quality factor."""
    found: dict[str, list[float]] = {preset: [] for preset in presets}
    originals = [Image.fromarray(one) for one in ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()]
    for factor in factors:
        files = []
        for image in originals:
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=factor, subsampling="4:2:0")
            files.append(stream.getvalue())
        before = np.mean([psnr(Image.open(io.BytesIO(f)), p) for f, p in zip(files, originals, strict=True)])
        for preset in presets:
            restored = [pipe(f, generator=torch.Generator().manual_seed(0), preset=preset).images[0] for f in files]
            after = np.mean([psnr(r, p) for r, p in zip(restored, originals, strict=True)])
            found[preset].append(float(after - before))
    return found


def shown(record: dict[str, dict[str, Any]], factors: list[int]) -> str:
    """Two tables: a row for each prior and window, and one for each prior and preset."""
    denoising = [["prior", "pixels", *(f"t = {t}" for t in TIMESTEPS), "mean log"]]
    restoring = [["prior", "preset", *(f"QF {factor}" for factor in factors), "mean"]]
    for prior, found in record.items():
        for name, values in found["residual"].items():
            denoising.append([prior, name, *(f"{v:.4f}" for v in values), f"{np.log(values).mean():.4f}"])
        for preset, values in found["gain"].items():
            restoring.append([prior, preset, *(f"{v:+.3f}" for v in values), f"{np.mean(values):+.3f}"])
    return f"{markdown(denoising)}\n\n{markdown(restoring)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="clean images, one folder for each set")
    parser.add_argument(
        "--prior", type=Path, action="append", required=True, help="folder with unet/ and scheduler/; several times"
    )
    parser.add_argument("--count", type=int, default=6, help="images of each folder (6)")
    parser.add_argument("--presets", nargs="*", choices=list(PRESETS), default=["fast", "balanced", "best"])
    parser.add_argument("--quality-factors", type=int, nargs="+", default=[5, 10, 20, 30, 40], metavar="QF")
    parser.add_argument("--wiener", action="store_true", help="restore by Wiener's formula, whatever table a prior has")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write every number there, as JSON")
    arguments = parser.parse_args()

    images = torch.cat([crops(folder, arguments.count, SIZE) for folder in arguments.folders])
    record = {}
    for prior in arguments.prior:
        pipe = DDRMJPEGPipeline.from_prior(prior)
        if arguments.wiener:
            pipe = DDRMJPEGPipeline(unet=pipe.unet, scheduler=pipe.scheduler)
        pipe.set_progress_bar_config(disable=True)
        record[prior.name] = {
            "residual": residuals(pipe, images),
            "gain": gains(pipe, images, arguments.presets, arguments.quality_factors),
        }
        print(shown({prior.name: record[prior.name]}, arguments.quality_factors), flush=True)
    if arguments.output:
        text = json.dumps(record, indent=1) + "\n"
        write_atomically(arguments.output, lambda stream: stream.write(text.encode()))


if __name__ == "__main__":
    main()
