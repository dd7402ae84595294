"""Convert a guided-diffusion checkpoint to a pipeline: `ddrm-jpeg convert` as a script.

python scripts/convert_guided_diffusion.py --help
"""

import sys

from pipeline_ddrm_jpeg.cli import app

if __name__ == "__main__":
    app(["convert", *sys.argv[1:]])
