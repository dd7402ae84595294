"""Restore one file: python examples/restore_file.py examples/cat.jpg cat.png"""

import sys

from pipeline_ddrm_jpeg import DDRMJPEGPipeline

if len(sys.argv) != 3:
    sys.exit(__doc__)
source, target = sys.argv[1:]
pipe = DDRMJPEGPipeline.from_embedded()
result = pipe(source)
result.images[0].save(target)
