"""What each part of the posterior correction is worth, at equal network evaluations.

python scripts/reports/corrections.py FOLDER... [--count 6] [--output docs/corrections]

The middle of each picture is compressed (Pillow, 4:2:0) and restored by every rule; a row is the mean gain in PSNR over
the JPEG, of 8-bit RGB. Then the preset `balanced` at several values of `sharpness`, with LPIPS over the JPEG's where
its weights are; and for coarse files, with twice as many pictures, the presets from several starts. OUTPUT.json keeps
every number, and what is there of the same weights is not computed again; OUTPUT.md is made of it.

The settings of the presets were chosen with `mcmaster18` and `live1`; do not choose with sets that you report on.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, Measured, prior_line, write
from PIL import Image

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGPipeline
from pipeline_ddrm_jpeg.denoiser_error import DenoiserError
from pipeline_ddrm_jpeg.evaluation import lpips
from pipeline_ddrm_jpeg.evaluation.metrics import psnr
from pipeline_ddrm_jpeg.evaluation.tables import markdown

SAMPLES = {12: 2}  # of so many evaluations; else one
_START = {"init_timestep": "auto", "timestep_spacing": "log", "consistent": True, "antithetic": True}
_POSTERIOR = {**_START, "correction": "posterior", "error_scale": 3.0}
# Settings, and where the denoiser's error comes from.
RULES: dict[str, tuple[dict[str, Any], str]] = {
    "whole-bin shift (the paper's)": ({**_START, "correction": "ddrm", "temperature": 0.7}, "table"),
    "clip": ({**_START, "correction": "nearest", "eta_b": 1.0, "temperature": 0.4}, "table"),
    "truncated mean, one error": ({**_POSTERIOR, "noise_accounting": False, "temperature": 0.4}, "one number"),
    "an error for each frequency": ({**_POSTERIOR, "noise_accounting": False, "temperature": 0.4}, "table"),
    "and noise accounting": ({**_POSTERIOR, "temperature": 0.5}, "table"),
    "and views": ({**_POSTERIOR, "temperature": 0.5, "equivariant": True}, "table"),
    "the same with Wiener's error": ({**_POSTERIOR, "temperature": 0.5, "equivariant": True}, "formula"),
}
SHARPNESS = (0.0, 0.25, 0.5, 0.75, 1.0)
STARTS, COARSE = ("auto", 125, 150, 200, 250, 300), (3, 5, 7, 10)  # timesteps, and quality factors

TEXT = """# Corrections

What the parts of `correction="posterior"` are worth: mean gain in PSNR over the JPEG, in dB, on the middle
{size} x {size} pixels of {pictures} pictures of {sets}, with the embedded prior, by

```sh
{command}
```

{rules}

- **Truncated mean**: the coefficient lies in its bin, the denoiser says where, with an error of known size. The mean of
  a Gaussian truncated to the bin replaces the shift by whole bins, of which 40 % are made.
- **Noise accounting**: what is left uncertain is noise that the picture already has; a step adds only the rest.
- **Views**: errors of a network repeat from step to step and add up, unless it sees another flip or rotation each time.
- **Wiener's error** needs no measurement: the table of a prior is not what makes it good.

Errors are scaled by 3 (`error_scale`), because they repeat; less noise than the schedule has (`temperature`) is better
for averages. One seed: differences below about 0.02 dB are not findings.

These values, and where sampling ends, come from a search on crops of the same two sets and of training pictures, which
is not in this repository. It found flat optima, but for two evaluations, of which the second must come at 0.44 of the
first one's noise; and that these brought nothing: linear combinations of the steps' pictures, a start from the mean of
a prior on coefficients, other scales or temperatures by step, two views in the last step, three samples of four steps
instead of two of six. An error for each block, by the likelihood of its bins, was worse. A start from a deblocked
picture (Wiener's filter in overlapping blocks, itself 0.9 dB above the JPEG at quality factor 5 and 0.7 at 10) was
worth 0.06 dB at quality factor 5 with two evaluations, in the best of its variants, and cost 0.05 or more at 10. Its
errors correlate by 0.93 with those of the result, and averaging the two pictures brought nothing either.

## Sharpness

A mean is smooth. `sharpness` gives it back texture within the bins, and needs no evaluation: it expands what the mean
has of it, coefficients being larger in a photograph than in a mean of guesses, and adds noise to luma. Both grow with
what the posterior leaves open of a coefficient, with the root of its frequency, and with the share that a block's own
texture has in itself and what is open, so that smooth blocks stay smooth.

Some 350 settings of this and other forms were tried, most of them by random steps, on 27 crops of the same two sets
and of training pictures at quality factors 5 to 40: LPIPS over the JPEG's fell from 0.80, with texture by a block's
activity over the picture's, to 0.72, and the gain from 1.29 to 1.17 dB. The crops below are of the same pictures, so
they flatter it: of the pictures of all sets [presets.md](presets.md) has 0.74 to 0.79. Luma gets no grain for the first
0.8 grey levels of posterior deviation, so fine files lose little. Still, on 13 crops at quality factor 92 the mean had
0.50 of the JPEG's LPIPS and the sharp end 0.60; with 4:4:4 it was 0.78 and 1.23. Texture that the network makes, of
noise that is added to the result, costs an evaluation and was no better.

The preset `balanced`, gain in PSNR / LPIPS over the JPEG's:

{sharpness}

## Where sampling starts

The presets start at the timestep that `init_timestep="auto"` finds from the quantization tables: with more noise the
coarser they are, and with more than in proportion where they are very coarse and there are more than two steps.
Gain of the presets in dB, from there and from fixed timesteps, on {more} pictures:

{starts}

What is best differs from picture to picture, most of all at quality factor 5; the rule goes by the mean.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="clean pictures, one folder for each set")
    parser.add_argument("--count", type=int, default=6, help="pictures of each folder (6)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (128)")
    parser.add_argument("--quality-factors", type=int, nargs="+", default=[5, 10, 20, 30, 40])
    parser.add_argument("--evaluations", type=int, nargs="+", default=[2, 4, 12])
    parser.add_argument("--lpips-weights", type=Path, metavar="FILE", help="as of ddrm-jpeg evaluate")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "corrections", help="without suffix")
    arguments = parser.parse_args()

    pictures = [crop(path, arguments.size) for folder in arguments.folders for path in spread(folder, arguments.count)]
    pipes = priors()
    measured = Measured(arguments.output.with_suffix(".json"), pipes["table"].unet)

    where = f"{len(pictures)} of {', '.join(folder.name for folder in arguments.folders)}, {arguments.size} pixels"
    rows = [["rule", "evaluations", *(f"QF {factor}" for factor in arguments.quality_factors), "mean"]]
    for evaluations in arguments.evaluations:
        samples = SAMPLES.get(evaluations, 1)
        for name, (settings, error) in RULES.items():
            settings = settings | {"num_samples": samples, "num_inference_steps": evaluations // samples}
            gains = [
                measured(
                    f"{where}; {name}; {settings}; QF {factor}",
                    lambda f=factor, e=error, s=settings: mean_gain(pipes[e], pictures, f, s),
                )
                for factor in arguments.quality_factors
            ]
            rows.append([name, str(evaluations), *(f"{gain:+.2f}" for gain in [*gains, sum(gains) / len(gains)])])

    network = None if lpips.obstacle(arguments.lpips_weights) else lpips.load(arguments.lpips_weights)
    dial = [["sharpness", *(f"QF {factor}" for factor in arguments.quality_factors)]]
    for sharpness in SHARPNESS:
        settings, cells = PRESETS["balanced"] | {"sharpness": sharpness}, [f"{sharpness}"]
        for factor in arguments.quality_factors:
            key = f"{where}; sharpness {sharpness}; {PRESETS['balanced']}; QF {factor}"
            gain = measured(f"{key}; gain", lambda f=factor, s=settings: mean_gain(pipes["table"], pictures, f, s))
            cells.append(f"{gain:+.2f}")
            if network is not None:
                ratio = measured(
                    f"{key}; LPIPS", lambda f=factor, s=settings: lpips_ratio(pipes["table"], pictures, f, s, network)
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
                    f"{len(more)} of {where}; {chosen}; QF {factor}",
                    lambda f=factor, s=chosen: mean_gain(pipes["table"], more, f, s),
                )
                for factor in COARSE
            ]
            starts.append([preset, str(start), *(f"{gain:+.2f}" for gain in gains)])

    names = " ".join(folder.name for folder in arguments.folders)
    factors = " ".join(map(str, arguments.quality_factors))
    command = f"python scripts/reports/corrections.py {names} --count {arguments.count} --quality-factors {factors}"
    text = TEXT.format(
        command=command,
        size=arguments.size,
        pictures=len(pictures),
        sets=" and ".join(f"`{folder.name}`" for folder in arguments.folders),
        rules=markdown(rows),
        sharpness=markdown(dial),
        more=len(more),
        starts=markdown(starts),
    )
    write(arguments.output.with_suffix(".md"), f"{text}\n{prior_line(measured.record['prior_sha256'])}")


def spread(folder: Path, count: int) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".webp"))
    return [paths[round(i)] for i in np.linspace(0, len(paths) - 1, min(count, len(paths)))]


def crop(path: Path, size: int) -> Image.Image:
    picture = Image.open(path).convert("RGB")
    left, top = ((extent - size) // 2 for extent in picture.size)
    return picture.crop((left, top, left + size, top + size))


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


def restored(pipe: Any, picture: Image.Image, factor: int, settings: dict[str, Any]) -> tuple[Image.Image, Image.Image]:
    """The JPEG as Pillow decodes it, and what the pipeline makes of it."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=factor, subsampling="4:2:0")
    result = pipe(stream.getvalue(), generator=torch.Generator().manual_seed(0), settings=settings)
    return Image.open(stream).convert("RGB"), result.images[0]


def mean_gain(pipe: Any, pictures: list[Image.Image], factor: int, settings: dict[str, Any]) -> float:
    pairs = [(restored(pipe, picture, factor, settings), picture) for picture in pictures]
    return round(float(np.mean([psnr(ours, picture) - psnr(jpeg, picture) for (jpeg, ours), picture in pairs])), 4)


def lpips_ratio(pipe: Any, pictures: list[Image.Image], factor: int, settings: dict[str, Any], network: Any) -> float:
    """Mean LPIPS of the results over that of the JPEG files."""
    totals = np.zeros(2)
    for picture in pictures:
        both = [tensor(image) for image in restored(pipe, picture, factor, settings)]
        totals += [float(network(x, tensor(picture))) for x in both]
    return round(float(totals[1] / totals[0]), 4)


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1


if __name__ == "__main__":
    main()
