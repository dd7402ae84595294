"""`python -m pipeline_ddrm_jpeg` is the command `ddrm-jpeg`."""

from .cli import app

app(prog_name="ddrm-jpeg")
