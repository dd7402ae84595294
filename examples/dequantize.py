"""Dequantization: python examples/dequantize.py examples/originals/cat.png dequantized.png

Reduces an image to 3 bits a channel (the paper's "9 bits per colour"), and restores it. Writes the reduced image
beside the result.
"""

import sys
from pathlib import Path

from PIL import Image

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, QuantizationOperator
from pipeline_ddrm_jpeg.evaluation.metrics import psnr

if len(sys.argv) != 3:
    sys.exit(__doc__)
source, target = map(Path, sys.argv[1:])
picture = Image.open(source).convert("RGB")
operator = QuantizationOperator(bits=3, reconstruction="center")
reduced = picture.point([level // operator.step * operator.step + operator.step // 2 for level in range(256)] * 3)
reduced.save(target.with_name(f"{target.stem}_reduced.png"))

pipe = DDRMJPEGPipeline.from_embedded()
restored = pipe(picture, operator=operator).images[0]
restored.save(target)
print(f"{psnr(reduced, picture):.2f} dB before, {psnr(restored, picture):.2f} dB after")
