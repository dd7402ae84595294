"""Restore several files with one call: python examples/restore_batch.py FOLDER examples/*.jpg

A generator of its own for each file makes its result independent of its neighbours. For folders of any size, with
metadata kept and a second run that goes on where the first stopped, there is `ddrm-jpeg restore`.
"""

import sys
from pathlib import Path

import torch

from pipeline_ddrm_jpeg import DDRMJPEGPipeline
from pipeline_ddrm_jpeg.formatting import percent

if len(sys.argv) < 3:
    sys.exit(__doc__)
folder, *files = map(Path, sys.argv[1:])
folder.mkdir(parents=True, exist_ok=True)
pipe = DDRMJPEGPipeline.from_embedded()
generators = [torch.Generator().manual_seed(0) for _ in files]
result = pipe(files, generator=generators, preset="fast")
for file, picture, kept in zip(files, result.images, result.consistency, strict=True):
    picture.save(folder / f"{file.stem}.png")
    print(f"{file.name}: {percent(kept)} of the coefficients kept")
