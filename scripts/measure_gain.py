"""Measure what the embedded prior gains over the JPEG file itself, on a folder of pictures.

python scripts/measure_gain.py FOLDER [--quality 5 10 30] [--samples 4] [--steps 8] [--init-timestep 100] [--limit 10]

Every picture is cropped to its central 256 x 256 pixels, written by Pillow (4:2:0) and restored from the file. Prints
the mean PSNR in dB over 8-bit RGB of the files, and the mean gain of one sample and of the average.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipeline_ddrm_jpeg import DDRMJPEGPipeline
from pipeline_ddrm_jpeg.metrics import psnr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quality", type=int, nargs="+", default=[5, 10, 30])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--init-timestep", type=int, default=100)
    parser.add_argument("--limit", type=int, default=10, help="pictures, spread evenly over the folder")
    arguments = parser.parse_args()

    paths = sorted(path for path in arguments.folder.iterdir() if path.suffix.lower() in (".png", ".webp", ".tif"))
    if not paths:
        parser.error(f"{arguments.folder} holds no .png, .webp or .tif")
    paths = [paths[i] for i in sorted({round(i) for i in np.linspace(0, len(paths) - 1, arguments.limit)})]
    pipe = DDRMJPEGPipeline.from_embedded()
    pipe.set_progress_bar_config(disable=True)

    rows = {quality: [] for quality in arguments.quality}
    seconds = 0.0
    for path in tqdm(paths, unit="picture"):
        picture = Image.open(path).convert("RGB")
        left, top = (picture.width - 256) // 2, (picture.height - 256) // 2
        picture = picture.crop((left, top, left + 256, top + 256))
        for quality in arguments.quality:
            stream = io.BytesIO()
            picture.save(stream, "JPEG", quality=quality)
            start = time.perf_counter()
            result = pipe(
                stream.getvalue(),
                num_samples=arguments.samples,
                num_inference_steps=arguments.steps,
                init_timestep=arguments.init_timestep,
                consistent=True,
                generator=torch.Generator().manual_seed(0),
            )
            seconds += time.perf_counter() - start
            rows[quality].append([psnr(p, picture) for p in (Image.open(stream), result.samples[0][0], *result.images)])

    print(f"{len(paths)} pictures of {arguments.folder.name}, {arguments.steps} steps below {arguments.init_timestep}")
    print(f"{seconds / len(paths) / len(rows):.1f} s a picture on {torch.get_num_threads()} threads\n")
    print(f"| quality factor | JPEG | one sample | {arguments.samples} samples averaged |")
    print("|---:|---:|---:|---:|")
    for quality, values in rows.items():
        jpeg, single, average = np.mean(values, axis=0)
        print(f"| {quality} | {jpeg:.2f} | {single - jpeg:+.2f} | {average - jpeg:+.2f} |")


if __name__ == "__main__":
    main()
