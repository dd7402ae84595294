"""Restore with another prior: python examples/another_prior.py google/ddpm-church-256 examples/cat.jpg cat.png

The prior is a folder or a Hub id (which is downloaded) of any pixel-space DDPM, or what `ddrm-jpeg convert` made of the
paper's. `paper` are the paper's settings; those of the embedded prior start too low for most others.
"""

import sys

import torch

from pipeline_ddrm_jpeg import DDRMJPEGPipeline

if len(sys.argv) != 4:
    sys.exit(__doc__)
prior, source, target = sys.argv[1:]
pipe = DDRMJPEGPipeline.from_prior(prior)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
result = pipe(source, preset="paper", settings={"consistent": True})
result.images[0].save(target)
