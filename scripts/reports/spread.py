"""How far samples differ, and how far their mean is from the original: what the one says about the other.

python scripts/reports/spread.py FOLDER... [--count 6] [--quality-factors 5 10 20 40 75] [--output docs/spread]

The middle of each picture is compressed (Pillow, 4:2:0) and restored. Pixels are sorted by the standard deviation of
the samples, the mean of the channels, as the map of the web page has it; of the pixels of each class, the root mean
square of the error. OUTPUT.json keeps every number, OUTPUT.md is made of it.
"""

import argparse
import io
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, write
from corrections import crop, spread
from PIL import Image

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGPipeline
from pipeline_ddrm_jpeg.evaluation.tables import markdown

EDGES = (0, 0.5, 1, 2, 4, 8, math.inf)
"""Of the classes, standard deviations in grey levels."""
SETTINGS: dict[str, dict[str, Any]] = {
    "`best`, two samples": PRESETS["best"],
    "`best` with eight samples": PRESETS["best"] | {"num_samples": 8},
}

TEXT = """# What the spread of samples says

Where the samples of a picture differ, the file leaves open what was there. How far they differ (standard deviation,
mean of the channels, in grey levels) and how far their mean is from the original (root mean square), on the middle
{size} x {size} pixels of {pictures} pictures of {sets}, by

```
{command}
```

Each cell: the error, and the share of the pixels. The ratio is that of the root mean squares of error and spread over
all pixels: **samples differ less than their mean is off**. (Their noise is below the schedule's, `temperature`, and
what the network gets wrong in all of them does not show.) So the map says *where* a picture is a guess; multiply by
the ratio for *how far*.

{table}
"""


def statistics(
    pipe: DDRMJPEGPipeline, pictures: list[Image.Image], factor: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """Of each class the share of its pixels and their error, and the ratio of error and spread over all."""
    deviations, errors = [], []
    for picture in pictures:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=factor, subsampling="4:2:0")
        result = pipe(stream.getvalue(), generator=torch.Generator().manual_seed(0), **settings)
        deviations.append(255 * result.std[0].mean(axis=-1))
        errors.append((np.asarray(picture, float) - np.asarray(result.images[0], float)) ** 2)
    deviation, error = np.stack(deviations), np.stack(errors).mean(axis=-1)
    classes = []
    for low, high in pairwise(EDGES):
        own = (low <= deviation) & (deviation < high)
        classes.append([float(own.mean()), float(error[own].mean() ** 0.5) if own.any() else None])
    return {"classes": classes, "ratio": float((error.mean() / (deviation**2).mean()) ** 0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="clean pictures, one folder for each set")
    parser.add_argument("--count", type=int, default=6, help="pictures of each folder (6)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (128)")
    parser.add_argument("--quality-factors", type=int, nargs="+", default=[5, 10, 20, 40, 75])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "spread", help="without suffix")
    arguments = parser.parse_args()

    pictures = [crop(path, arguments.size) for folder in arguments.folders for path in spread(folder, arguments.count)]
    pipe = DDRMJPEGPipeline.from_embedded()
    pipe.set_progress_bar_config(disable=True)
    labels = [f"{low:g} and more" if high == math.inf else f"{low:g} to {high:g}" for low, high in pairwise(EDGES)]
    rows, record = [["settings", "QF", "ratio", *labels]], {}
    for name, settings in SETTINGS.items():
        for factor in arguments.quality_factors:
            found = record[f"{name}; QF {factor}"] = statistics(pipe, pictures, factor, settings)
            cells = ["" if error is None else f"{error:.1f} ({100 * share:.0f} %)" for share, error in found["classes"]]
            rows.append([name, str(factor), f"{found['ratio']:.2f}", *cells])
    names = " ".join(folder.name for folder in arguments.folders)
    factors = " ".join(map(str, arguments.quality_factors))
    text = TEXT.format(
        command=f"python scripts/reports/spread.py {names} --count {arguments.count} --quality-factors {factors}",
        size=arguments.size,
        pictures=len(pictures),
        sets=", ".join(f"`{folder.name}`" for folder in arguments.folders),
        table=markdown(rows),
    )
    write(arguments.output.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    write(arguments.output.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
