"""Measure restorations as in the paper's Table 1: `ddrm-jpeg evaluate` as a script, for `accelerate launch`.

python scripts/evaluate.py --help
accelerate launch --num_processes 2 scripts/evaluate.py FOLDER --output RESULTS
"""

import sys

from pipeline_ddrm_jpeg.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]])
