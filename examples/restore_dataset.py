"""Restore the image column of a dataset: python examples/restore_dataset.py FOLDER_OF_PICTURES restored

It needs the extra `datasets`. The folder is one of images, as `load_dataset("imagefolder")` takes it. A dataset hands
out decoded images unless it is told not to, and the coefficients are in the files.
"""

import sys

from pipeline_ddrm_jpeg import DDRMJPEGPipeline
from pipeline_ddrm_jpeg.extras import needs

with needs("datasets"):
    from datasets import Features, Image, load_dataset

if len(sys.argv) != 3:
    sys.exit(__doc__.splitlines()[0])

pipe = DDRMJPEGPipeline.from_embedded()
pipe.set_progress_bar_config(disable=True)


def restored(row: dict) -> dict:
    file = row["image"]["bytes"] or row["image"]["path"]
    return {"image": pipe(file, preset="fast").images[0]}


dataset = load_dataset("imagefolder", data_dir=sys.argv[1], split="train")
dataset = dataset.cast_column("image", Image(decode=False))
dataset.map(restored, features=Features(dataset.features | {"image": Image()})).save_to_disk(sys.argv[2])
