"""How far images are off, and how far they were expected to be; beside that, how far their samples differ.

python scripts/reports/uncertainty.py FOLDER... [--count 6] [--quality-factors 5 10 20 40 75 92]
                                      [--output docs/uncertainty]

The middle of each image is compressed (Pillow) and restored. Squares of 8 x 8 pixels are sorted by the error that is
expected of them, the root mean square over pixels and channels, and compared with what it is, fifth by fifth.
OUTPUT.json keeps every number, OUTPUT.md is made of it.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, page_of, write
from corrections import crop, spread
from PIL import Image

from pipeline_ddrm_jpeg import PRESETS, DDRMJPEGPipeline, Settings
from pipeline_ddrm_jpeg.evaluation.run import fingerprint
from pipeline_ddrm_jpeg.evaluation.tables import markdown

PARTS = 5
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "`fast`": ("4:2:0", PRESETS["fast"]),
    "`balanced`": ("4:2:0", PRESETS["balanced"]),
    "`best`": ("4:2:0", PRESETS["best"]),
    "`balanced`, 4:4:4": ("4:4:4", PRESETS["balanced"]),
    "`balanced`, sharpness 1": ("4:2:0", PRESETS["balanced"] | {"sharpness": 1.0}),
}


def statistics(
    pipe: DDRMJPEGPipeline, images: list[Image.Image], factor: int, subsampling: str, settings: Settings
) -> dict[str, Any]:
    """Expected and actual errors in grey levels: of fifths of the squares, and their ratios."""
    expected, actual, deviations = [], [], []
    for image in images:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=factor, subsampling=subsampling)
        result = pipe(stream.getvalue(), generator=torch.Generator().manual_seed(0), settings=settings)
        expected.append(_squares(255 * result.expected_error[0]))
        actual.append(_squares(np.asarray(image, float) - np.asarray(result.images[0].convert("RGB"), float)))
        deviations.append(_squares(255 * result.std[0]))
    expected, actual, deviations = map(np.stack, (expected, actual, deviations))
    ratios = (actual.mean(axis=1) / expected.mean(axis=1)) ** 0.5
    parts = np.array_split(expected.flatten().argsort(), PARTS)
    found = {
        "ratio": float((actual.mean() / expected.mean()) ** 0.5),
        "pictures": [float(ratios.min()), float(ratios.max())],
        "parts": [[float(values.flatten()[part].mean() ** 0.5) for values in (expected, actual)] for part in parts],
        "correlation": float(np.corrcoef(np.log(expected.flatten()), np.log(actual.flatten() + 0.05))[0, 1]),
    }
    return found | ({"spread": float((actual.mean() / deviations.mean()) ** 0.5)} if deviations.any() else {})


def _squares(values: np.ndarray) -> np.ndarray:
    """Mean squares of 8 x 8 pixels of `[H, W, C]`, all channels together."""
    height, width, channels = values.shape
    return np.square(values).reshape(height // 8, 8, width // 8, 8, channels).mean(axis=(1, 3, 4)).flatten()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="clean images, one folder for each set")
    parser.add_argument("--count", type=int, default=6, help="images of each folder (6)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side, a multiple of 8 (128)")
    parser.add_argument("--quality-factors", type=int, nargs="+", default=[5, 10, 20, 40, 75, 92])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "uncertainty", help="without suffix")
    arguments = parser.parse_args()

    images = [crop(path, arguments.size) for folder in arguments.folders for path in spread(folder, arguments.count)]
    pipe = DDRMJPEGPipeline.from_embedded()
    pipe.set_progress_bar_config(disable=True)
    record = {}
    for name, (subsampling, settings) in SETTINGS.items():
        for factor in arguments.quality_factors:
            record[f"{name}; QF {factor}"] = statistics(pipe, images, factor, subsampling, settings)
    names = " ".join(folder.name for folder in arguments.folders)
    factors = " ".join(map(str, arguments.quality_factors))
    command = f"python scripts/reports/uncertainty.py {names} --count {arguments.count} --quality-factors {factors}"
    found = {
        "prior_sha256": fingerprint(pipe.unet),
        "command": command,
        "size": arguments.size,
        "images": len(images),
        "sets": [folder.name for folder in arguments.folders],
        "found": record,
    }
    write(arguments.output.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    write(arguments.output.with_suffix(".md"), as_page(found))


def as_page(record: dict[str, Any]) -> str:
    """What OUTPUT.json holds as Markdown."""
    rows = [["settings", "QF", "ratio", "images", *["expected / actual"] * PARTS, "correlation"]]
    for key, found in record["found"].items():
        name, _, factor = key.partition("; QF ")
        cells = [f"{expected:.1f} / {actual:.1f}" for expected, actual in found["parts"]]
        least, most = found["pictures"]
        shown = [f"{found['ratio']:.2f}", f"{least:.2f} to {most:.2f}", *cells, f"{found['correlation']:.2f}"]
        rows.append([name, factor, *shown])
    spreads = [found["spread"] for found in record["found"].values() if "spread" in found]
    return page_of(
        "uncertainty",
        record["prior_sha256"],
        command=record["command"],
        size=record["size"],
        images=record["images"],
        sets=", ".join(f"`{name}`" for name in record["sets"]),
        table=markdown(rows),
        low=f"{min(spreads):.1f}",
        high=f"{max(spreads):.1f}",
    )


if __name__ == "__main__":
    main()
