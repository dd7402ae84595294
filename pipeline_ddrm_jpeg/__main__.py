"""`python -m pipeline_ddrm_jpeg` is the command `ddrm-jpeg`."""

from .importing import importing
from .threads import sleep_while_waiting


def main() -> None:
    sleep_while_waiting()
    with importing():
        from .cli import app
        from .cli.computing import end
    try:
        app(prog_name="ddrm-jpeg")
    except SystemExit as done:
        end(done.code)
        raise


if __name__ == "__main__":
    main()
