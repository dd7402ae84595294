"""Make a training folder from photographs: no trace of JPEG left, small enough to read fast.

python scripts/training/prepare_data.py PHOTOGRAPHS OUTPUT [--longest 640] [--licence CC0-1.0]

An image that was a JPEG is shrunk by two or more, which leaves nothing of its grid of 8 x 8 blocks; every image is
shrunk until its longer side fits. OUTPUT receives lossless WebP files, and manifest.csv with the source of each; give
--licence, folder by folder, because weights are published under what those allow. Images that are in OUTPUT already
are left alone, so that more folders can be added and a stopped run goes on.

The embedded prior's set was made so, from the sources that pipeline_ddrm_jpeg/prior/README.md lists.
"""

import argparse
import csv
import io
from pathlib import Path

from PIL import Image, ImageOps
from tqdm.auto import tqdm

from pipeline_ddrm_jpeg.files.formats import write_atomically

FIELDS = ("file", "source", "licence", "original_width", "original_height", "original_format")
SMALLEST = 160  # pixels of the shorter side; less gives too few different crops


def prepare(source: Path, longest: int) -> tuple[Image.Image, tuple[int, int], str] | None:
    """The image as it is trained on, its original size and format; or None where too little would be left."""
    with Image.open(source) as opened:
        kind = opened.format
        image = ImageOps.exif_transpose(opened).convert("RGB")
    size = image.size
    factor = max(max(size) / longest, 2.0 if kind in ("JPEG", "MPO") else 1.0)
    target = tuple(round(side / factor) for side in size)
    if min(target) < SMALLEST:
        return None
    return image.resize(target, Image.Resampling.LANCZOS), size, kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder, read with its subfolders")
    parser.add_argument("output", type=Path)
    parser.add_argument("--longest", type=int, default=640, help="pixels of the longer side (640)")
    parser.add_argument("--licence", default="", help="of all these images, for the manifest")
    arguments = parser.parse_args()
    suffixes = set(Image.registered_extensions())
    sources = sorted(path for path in arguments.photographs.rglob("*") if path.suffix.lower() in suffixes)
    if not sources:
        raise SystemExit(f"{arguments.photographs}: no images there.")
    manifest = arguments.output / "manifest.csv"
    rows = list(csv.DictReader(manifest.open(newline=""))) if manifest.exists() else []
    known = {row["file"] for row in rows}
    left_out = []
    try:
        for source in tqdm(sources, unit="picture"):
            relative = source.relative_to(arguments.photographs)
            name = "__".join((arguments.photographs.name, *relative.parts)) + ".webp"
            if name in known:
                continue
            try:
                prepared = prepare(source, arguments.longest)
            except (OSError, Image.DecompressionBombError) as error:
                left_out.append(f"{source}: {error}")
                continue
            if prepared is None:
                left_out.append(f"{source}: fewer than {SMALLEST} pixels would be left of its shorter side")
                continue
            image, size, kind = prepared
            write_atomically(
                arguments.output / name, lambda out, p=image: p.save(out, "WEBP", lossless=True, quality=80)
            )
            rows.append(dict(zip(FIELDS, (name, str(relative), arguments.licence, *size, kind), strict=True)))
    finally:  # Ctrl-C: what is there is listed
        if rows:
            text = io.StringIO()
            writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_atomically(manifest, lambda out: out.write(text.getvalue().encode()))
    print(*left_out, f"{len(rows)} images in {arguments.output}, {len(left_out)} left out", sep="\n")


if __name__ == "__main__":
    main()
