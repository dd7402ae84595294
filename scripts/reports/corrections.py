"""What each part of the posterior correction is worth, at equal network evaluations.

python scripts/reports/corrections.py FOLDER... [--count 6] [--output docs/corrections]

The middle of each image is compressed (Pillow, 4:2:0) and restored by every rule; a row is the mean gain in PSNR over
the JPEG, of 8-bit RGB. Then the preset `balanced` at several values of `sharpness`, with LPIPS over the JPEG's where
its weights are; and for coarse files, with twice as many images, the presets from several starts. OUTPUT.json keeps
every number, and what is there of the same weights is not computed again; OUTPUT.md is made of it.

The settings of the presets were chosen with `mcmaster18` and `live1`; do not choose with sets that you report on.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, Measured, changed, page_of, write
from PIL import Image

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGPipeline, Settings
from pipeline_ddrm_jpeg.evaluation import lpips
from pipeline_ddrm_jpeg.evaluation.metrics import psnr
from pipeline_ddrm_jpeg.evaluation.tables import markdown
from pipeline_ddrm_jpeg.sampling.denoiser_error import DenoiserError

SAMPLES = {12: 2}  # of so many evaluations; else one
_PLAIN = Settings(antithetic=True, equivariant=False, temperature=0.4)
_VIEWS = _PLAIN | {"temperature": 0.5, "equivariant": True}
# Settings, and where the denoiser's error comes from.
RULES: dict[str, tuple[Settings, str]] = {
    "whole-bin shift (the paper's)": (_PLAIN | {"correction": "ddrm", "temperature": 0.7}, "table"),
    "clip": (_PLAIN | {"correction": "nearest", "eta_b": 1.0}, "table"),
    "truncated mean, one error": (_PLAIN | {"noise_accounting": False}, "one number"),
    "an error for each frequency": (_PLAIN | {"noise_accounting": False}, "table"),
    "and noise accounting": (_PLAIN | {"temperature": 0.5}, "table"),
    "and views": (_VIEWS, "table"),
    "the same with Wiener's error": (_VIEWS, "formula"),
}
SHARPNESS = (0.0, 0.25, 0.5, 0.75, 1.0)
STARTS, COARSE = ("auto", 125, 150, 200, 250, 300), (3, 5, 7, 10)  # timesteps, and quality factors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="clean images, one folder for each set")
    parser.add_argument("--count", type=int, default=6, help="images of each folder (6)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (128)")
    parser.add_argument("--quality-factors", type=int, nargs="+", default=[5, 10, 20, 30, 40])
    parser.add_argument("--evaluations", type=int, nargs="+", default=[2, 4, 12])
    parser.add_argument("--lpips-weights", type=Path, metavar="FILE", help="as of ddrm-jpeg evaluate")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "corrections", help="without suffix")
    arguments = parser.parse_args()

    images = [crop(path, arguments.size) for folder in arguments.folders for path in spread(folder, arguments.count)]
    pipes = priors()
    measured = Measured(arguments.output.with_suffix(".json"), pipes["table"].unet)

    where = f"{len(images)} of {', '.join(folder.name for folder in arguments.folders)}, {arguments.size} pixels"
    rows = [["rule", "evaluations", *(f"QF {factor}" for factor in arguments.quality_factors), "mean"]]
    for evaluations in arguments.evaluations:
        samples = SAMPLES.get(evaluations, 1)
        for name, (settings, error) in RULES.items():
            settings = settings | {"num_samples": samples, "num_inference_steps": evaluations // samples}
            gains = [
                measured(
                    f"{where}; {name}; {changed(settings)}; QF {factor}",
                    lambda f=factor, e=error, s=settings: mean_gain(pipes[e], images, f, s),
                )
                for factor in arguments.quality_factors
            ]
            rows.append([name, str(evaluations), *(f"{gain:+.2f}" for gain in [*gains, sum(gains) / len(gains)])])

    network = None if lpips.obstacle(arguments.lpips_weights) else lpips.load(arguments.lpips_weights)
    dial = [["sharpness", *(f"QF {factor}" for factor in arguments.quality_factors)]]
    for sharpness in SHARPNESS:
        settings, cells = PRESETS["balanced"] | {"sharpness": sharpness}, [f"{sharpness}"]
        for factor in arguments.quality_factors:
            key = f"{where}; sharpness {sharpness}; balanced; QF {factor}"
            gain = measured(f"{key}; gain", lambda f=factor, s=settings: mean_gain(pipes["table"], images, f, s))
            cells.append(f"{gain:+.2f}")
            if network is not None:
                ratio = measured(
                    f"{key}; LPIPS", lambda f=factor, s=settings: lpips_ratio(pipes["table"], images, f, s, network)
                )
                cells[-1] += f" / {ratio:.2f}"
        dial.append(cells)

    more = [crop(path, arguments.size) for folder in arguments.folders for path in spread(folder, 2 * arguments.count)]
    starts = [["preset", "start", *(f"QF {factor}" for factor in COARSE)]]
    for preset, settings in PRESETS.items():
        if settings["num_inference_steps"] * settings["num_samples"] not in arguments.evaluations:
            continue
        for start in STARTS:
            chosen = settings | {"init_timestep": start}
            gains = [
                measured(
                    f"{len(more)} of {where}; {changed(chosen)}; QF {factor}",
                    lambda f=factor, s=chosen: mean_gain(pipes["table"], more, f, s),
                )
                for factor in COARSE
            ]
            starts.append([preset, str(start), *(f"{gain:+.2f}" for gain in gains)])

    names = " ".join(folder.name for folder in arguments.folders)
    factors = " ".join(map(str, arguments.quality_factors))
    command = f"python scripts/reports/corrections.py {names} --count {arguments.count} --quality-factors {factors}"
    filled = page_of(
        "corrections",
        measured.record["prior_sha256"],
        command=command,
        size=arguments.size,
        images=len(images),
        sets=" and ".join(f"`{folder.name}`" for folder in arguments.folders),
        rules=markdown(rows),
        sharpness=markdown(dial),
        more=len(more),
        starts=markdown(starts),
    )
    write(arguments.output.with_suffix(".md"), filled)


def spread(folder: Path, count: int) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".webp"))
    return [paths[round(i)] for i in np.linspace(0, len(paths) - 1, min(count, len(paths)))]


def crop(path: Path, size: int) -> Image.Image:
    image = Image.open(path).convert("RGB")
    left, top = ((extent - size) // 2 for extent in image.size)
    return image.crop((left, top, left + size, top + size))


def priors() -> dict[str, DDRMJPEGPipeline]:
    """The embedded prior, with its error from its table, as one number for each noise level, and from the formula."""
    pipe = DDRMJPEGPipeline.from_embedded()
    table = DenoiserError.from_config(pipe.config.denoiser_error)
    level = table.std.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().expand_as(table.std)
    flat = DenoiserError(table.noise_to_signal, level).to_config()
    pipes = {
        name: DDRMJPEGPipeline(pipe.unet, pipe.scheduler, denoiser_error=error)
        for name, error in (("table", table.to_config()), ("one number", flat), ("formula", None))
    }
    for each in pipes.values():
        each.set_progress_bar_config(disable=True)
    return pipes


def restored(pipe: Any, image: Image.Image, factor: int, settings: Settings) -> tuple[Image.Image, Image.Image]:
    """The JPEG as Pillow decodes it, and what the pipeline makes of it."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=factor, subsampling="4:2:0")
    result = pipe(stream.getvalue(), generator=torch.Generator().manual_seed(0), settings=settings)
    return Image.open(stream).convert("RGB"), result.images[0]


def mean_gain(pipe: Any, images: list[Image.Image], factor: int, settings: Settings) -> float:
    pairs = [(restored(pipe, image, factor, settings), image) for image in images]
    return round(float(np.mean([psnr(ours, image) - psnr(jpeg, image) for (jpeg, ours), image in pairs])), 4)


def lpips_ratio(pipe: Any, images: list[Image.Image], factor: int, settings: Settings, network: Any) -> float:
    """Mean LPIPS of the results over that of the JPEG files."""
    totals = np.zeros(2)
    for picture in images:
        both = [tensor(image) for image in restored(pipe, picture, factor, settings)]
        totals += [float(network(x, tensor(picture))) for x in both]
    return round(float(totals[1] / totals[0]), 4)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1


if __name__ == "__main__":
    main()
