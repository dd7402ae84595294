"""Publish a pipeline on the Hub: `ddrm-jpeg push` as a script.

python scripts/push_to_hub.py --help
"""

import sys

from pipeline_ddrm_jpeg.cli import app

if __name__ == "__main__":
    app(["push", *sys.argv[1:]])
