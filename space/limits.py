"""What this server takes: its limits, and a sentence for everything it refuses."""

from __future__ import annotations

import logging
import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from gradio.utils import get_upload_folder
from PIL import Image, UnidentifiedImageError
from reader import UNREADABLE, Opened, Refused, open_clean, open_upload, read_within

from pipeline_ddrm_jpeg import JPEGDamageError, JPEGFile, JPEGFileError
from pipeline_ddrm_jpeg.decoded.image import NOTHING_FOUND, DecodedJPEG
from pipeline_ddrm_jpeg.decoded.opening import Assumed
from pipeline_ddrm_jpeg.files.formats import upright
from pipeline_ddrm_jpeg.files.results import mask_of
from pipeline_ddrm_jpeg.jpeg.metadata import Metadata
from pipeline_ddrm_jpeg.sampling.observation import observe

log = logging.getLogger("space")


def _limit(name: str, default: float, kind: type = float) -> Any:
    """The environment variable `DDRM_JPEG_<name>`, a positive number, whole if `kind` is `int`, or its default."""
    text = os.environ.get(f"DDRM_JPEG_{name}", "")
    try:
        value = kind(text or default)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise SystemExit(f"DDRM_JPEG_{name} is {text!r}; it must be a positive{' whole' * (kind is int)} number")
    return value


MAX_MEGAPIXELS = _limit("MAX_MEGAPIXELS", 4)
MAX_MEGABYTES = _limit("MAX_MEGABYTES", 10)
MAX_SECONDS = _limit("MAX_SECONDS", 300)
MAX_WAITING = _limit("MAX_WAITING", 20, int)
MAX_BYTES = int(1e6 * MAX_MEGABYTES)
CONCURRENCY = _limit("CONCURRENCY", 1, int)
KEEP_MINUTES = _limit("KEEP_MINUTES", 30)
MAX_FILES = _limit("MAX_FILES", 16, int)

_REMEMBERED = 4  # uploads, each with some 15 bytes a pixel
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class Damaged(gr.Error):
    """A refusal of a file that can be repaired."""


class NoTraces(gr.Error):
    """A refusal of an image of which somebody may say what JPEG it was."""


def refusal(sentence: str, kind: type[gr.Error] = gr.Error) -> gr.Error:
    """The error that shows this sentence, given without its full stop, on the page."""
    return kind(f"{sentence}.", print_exception=False)


@contextmanager
def refusals(path: str | None = None) -> Iterator[None]:
    """Turn what the package and Pillow raise about a visitor's input into a refusal that names no path of this server.

    Args:
        path: the upload, whose name goes before what Pillow says.
    """
    name = f"{Path(path).name}: " if path else ""
    try:
        yield
    except gr.Error:
        raise
    except (JPEGFileError, Refused) as error:
        raise refusal(str(error)) from None
    except UnidentifiedImageError:
        raise refusal(f"{name}not an image that can be read") from None
    except FileNotFoundError:
        raise refusal(f"Uploads are deleted after {KEEP_MINUTES:g} minutes; please upload it again") from None
    except OSError as error:
        raise refusal(f"{name}{error.strerror or _first_line(error)}") from None
    except UNREADABLE as error:
        raise refusal(f"{name}{_first_line(error)}") from None
    except (MemoryError, torch.OutOfMemoryError):
        raise refusal("This server has not enough memory for it; try a smaller image") from None
    except Exception:  # a visitor gets a sentence, whatever it was; the log gets the rest
        log.exception("unforeseen")
        raise refusal("Something went wrong on this server, which is not your file's fault; its log has more") from None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def upload_path(path: object) -> Path:
    """The upload that a request calls by this path: a plain file in this server's upload folder, not behind a link.

    Raises:
        gr.Error: for anything else, with one sentence, whether it is there or not.
    """
    stranger = refusal("The request names a file that was not uploaded to this server; upload the image first")
    if not isinstance(path, str) or "\0" in path:
        raise stranger
    folder = Path(get_upload_folder()).resolve()
    asked = Path(path)
    for parent in (folder, Path(get_upload_folder())):
        if asked.is_relative_to(parent) and asked != parent:
            asked = folder / asked.relative_to(parent)
            break
    else:
        raise stranger
    try:
        if asked.resolve() != asked or not (asked.is_file() or not asked.exists()):
            raise stranger
    except (OSError, RuntimeError):  # a name too long, a loop of links
        raise stranger from None
    return asked


def read_upload(path: str | None) -> tuple[bytes, str]:
    """Bytes and name of an upload that is within the limits. Nothing else reads what a request names."""
    if path is None:
        raise refusal("Choose an image first")
    upload = upload_path(path)
    name = upload.name
    # Neither waits at a named pipe nor follows a link, should one have come there meanwhile.
    with open(upload, "rb", opener=lambda file, flags: os.open(file, flags | _PLAIN)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise refusal(f"{name} is not a plain file; upload the image again")
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise refusal(f"{name} has more than {MAX_MEGABYTES:g} MB, the limit of this server; choose a smaller file")
    return data, name


_opened: dict[tuple, Opened] = {}  # uploads that were looked at, since they are then restored


def read_source(path: str | None, repair: bool, assumed: Assumed) -> Opened:
    """The upload as a JPEG file, or as an image that was one, see `reader.open_upload`; the last few are kept."""
    upload = path and upload_path(path)
    asked = upload, upload and upload.stat().st_mtime_ns, repair, assumed
    opened = _opened.pop(asked, None) or _read_source(path, repair, assumed)
    _opened[asked] = opened
    for old in list(_opened)[:-_REMEMBERED]:
        _opened.pop(old, None)
    return opened


def forget_deleted() -> None:
    """Forget what was opened of uploads that are deleted by now."""
    for asked in list(_opened):
        if not asked[0].exists():
            _opened.pop(asked, None)


def _read_source(path: str, repair: bool, assumed: Assumed) -> Opened:
    data, name = read_upload(path)
    try:
        return _read(open_upload, data, name, repair, assumed)
    except JPEGDamageError as error:
        raise refusal(f"{error}. Tick repair to restore what is left of it", Damaged) from None
    except JPEGFileError as error:
        if NOTHING_FOUND not in str(error):
            raise
        raise refusal(
            f"{name}: its pixels show no JPEG that it went through. Choose the JPEG file; or, where the image was one"
            " and has been resized or edited since, say the quality factor of its JPEG",
            NoTraces,
        ) from None


def _read(function: Callable, data: bytes, name: str, *arguments: Any) -> Any:
    return read_within(name, MAX_MEGAPIXELS, function, MAX_MEGAPIXELS, data, name, *arguments)


def to_compare_with(opened: Opened) -> dict[str, Image.Image]:
    """Upright, what to compare the restored image with, by what it is called.

    That is the image as every viewer decodes it; or, of a damaged file, what is left of it and a mask of what is not.
    """
    file = opened.file
    if isinstance(file, DecodedJPEG):
        return {"as it is": Image.fromarray(np.ascontiguousarray(upright(file.pixels, file.orientation)))}
    return _what_is_left(file) if file.damage else {"JPEG": opened.decoded}


def _what_is_left(file: JPEGFile) -> dict[str, Image.Image]:
    """A damaged file with its holes filled in smoothly, and, white, where they are."""
    images = {"what is left": upright(observe(file).decoded()[0], file.orientation), "what is made up": mask_of(file)}
    return {name: Image.fromarray(np.ascontiguousarray(one)) for name, one in images.items()}


def read_clean(path: str | None, longest: int | None = None) -> tuple[Image.Image, Metadata, str, str]:
    """An image of any format, see `reader.open_clean`, its metadata and name, and the Python that reads it so."""
    data, name = read_upload(path)
    image, metadata, before = _read(open_clean, data, name, longest)
    code = f"image = ImageOps.exif_transpose(read_image({name!r}))\n"
    if before:
        code += f"image.thumbnail(({longest}, {longest}), Image.Resampling.LANCZOS)\n"
    return image, metadata, name, code
