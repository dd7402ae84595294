"""A visitor's upload, read in a process of its own, which is ended where it takes too much time or memory.

Headers and metadata are read there too, and what an image was is estimated there. So no file holds the page, or what
it does for others. The process is limited, not confined.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from pipeline_ddrm_jpeg import JPEGFile, read_image
from pipeline_ddrm_jpeg.decoded.image import DecodedJPEG, with_pillow
from pipeline_ddrm_jpeg.decoded.opening import Assumed, open_image
from pipeline_ddrm_jpeg.files.formats import check_depth, encode
from pipeline_ddrm_jpeg.jpeg.markers import image_kind
from pipeline_ddrm_jpeg.jpeg.metadata import Metadata

_SECONDS = 20  # of processor time, beyond what grows with the image and its file

log = logging.getLogger("space")

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error)  # what Pillow raises about a file


class Refused(Exception):
    """Why an upload is not read: a sentence without its full stop."""


# --- The process, as the page sees it ---


def read_within(name: str, megapixels: float, function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)`, called in a process that may take as much as honest images of this size do.

    Of those it takes most to estimate what a screenshot was: 22 s and 1.2 GB for 2000 x 2000 pixels.

    Args:
        name: of the upload, for messages.
        megapixels: of the largest image that it may be.
        function: one of those below.
        arguments: of it.

    Raises:
        Refused: where it takes more.
        Exception: what the function raises.
    """
    called = pickle.dumps((function, arguments))
    seconds = round(_SECONDS + 10 * megapixels + 5e-6 * len(called))  # of processor time; to repair takes 5 a megabyte
    memory = round(256e6 + 350e6 * megapixels + 20 * len(called))
    written = round(16e6 + 32e6 * megapixels + 4 * len(called))  # four planes of coefficients, and images
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OPENBLAS_NUM_THREADS": "1",  # each would take memory
    }
    with TemporaryFile() as answer:
        try:
            status = subprocess.run(
                [sys.executable, "-W", "ignore", __file__, str(seconds), str(memory), str(written)],
                env=environment,
                input=called,
                stdout=answer,
                stderr=subprocess.DEVNULL,
                timeout=10 * seconds,  # however busy the machine is
            ).returncode
        except subprocess.TimeoutExpired:
            status = signal.SIGKILL
        answer.seek(0)
        outcome = MemoryError() if status else pickle.load(answer)
    if isinstance(outcome, MemoryError):
        log.warning("a reader has ended with status %d", status)
        raise Refused(
            f"{name} takes more to read than this server allows, {seconds} s of processor time and"
            f" {memory / 1e6:.0f} MB of memory"
        )
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _main(seconds: str, memory: str, written: str) -> None:
    """The process: a call at its standard input, and what comes of it, or the exception, at its output."""
    output = os.dup(1)
    os.dup2(2, 1)  # a library that prints
    with suppress(ImportError):  # Windows
        import resource

        for kind, limit in {"CPU": seconds, "DATA": memory, "FSIZE": written, "CORE": "0"}.items():
            with suppress(AttributeError, ValueError, OSError):  # not every system has, or grants, each of them
                resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (int(limit), int(limit)))
    try:
        function, arguments = pickle.load(sys.stdin.buffer)
        Image.init()
        Image.ID.remove("EPS")  # a program, for which Pillow starts Ghostscript
        outcome = function(*arguments)
    except Exception as error:
        error.add_note(traceback.format_exc())  # for the log, where nobody foresaw it
        outcome = error
    with open(output, "wb") as stream:
        pickle.dump(outcome, stream)


# --- What is called there ---


@dataclass(frozen=True)
class Opened:
    """A JPEG file, or an image that was one."""

    file: JPEGFile | DecodedJPEG
    """It has no more metadata than its orientation and profile, so that nobody needs limits for those."""
    metadata: Metadata
    """All that goes with the restored image, to be read by `files` only."""
    sizes: dict[str, int]
    """Bytes of each kind of metadata that there is."""
    decoded: Image.Image | None
    """What viewers make of it, upright; `None` of a damaged file, and of an image, which is what it is."""
    earlier: str | None
    """The earlier, coarser JPEG that its pixels show, in words."""


def open_upload(megapixels: float, data: bytes, name: str, repair: bool, assumed: Assumed) -> Opened:
    """A JPEG file, or an image that was one.

    Args:
        megapixels: the largest image that is read.
        data: of the file.
        name: what messages call it.
        repair, assumed: as `opening.open_image` takes them.

    Raises:
        Refused, JPEGFileError: where it is not opened.
    """
    _check_before(megapixels, data, name)
    stream = io.BytesIO(data)
    stream.name = name
    file = open_image(stream, repair, assumed)
    _check_size(megapixels, name, file.width, file.height)
    decoded = earlier = None
    if isinstance(file, JPEGFile) and not file.damage:
        decoded, earlier = _as_viewers_do(data, name), file.earlier
    metadata, exif = file.metadata, Image.Exif()
    exif[0x0112] = file.orientation
    needed = {"metadata": Metadata.from_info({"exif": exif.tobytes(), "icc_profile": metadata.icc_profile})}
    if isinstance(file, JPEGFile):
        needed["bare"] = b""  # which nobody is to decode outside
    file, words = replace(file, **needed), earlier and earlier.description
    return Opened(file, metadata.upright(), metadata.sizes(), decoded, words)


def _as_viewers_do(data: bytes, name: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            decoded = ImageOps.exif_transpose(opened)
            decoded = decoded.convert("RGB") if decoded.mode == "CMYK" else decoded
            decoded.load()
    except UNREADABLE:
        raise Refused(
            f"{name} has markers that viewers do not understand, so there would be nothing to compare with;"
            " save it once more, or use the command ddrm-jpeg"
        ) from None
    decoded.info = {}
    return decoded


def open_clean(
    megapixels: float, data: bytes, name: str, longest: int | None
) -> tuple[Image.Image, Metadata, tuple[int, int] | None]:
    """An image of any format, upright, grey or RGB, all that goes with it, and its size before it was made smaller.

    Its longer side is at most `longest`: an image made smaller has lost the traces of earlier compression, too.
    """
    _check_before(megapixels, data, name)
    image = ImageOps.exif_transpose(read_image(data))
    before = None
    if longest and max(image.size) > longest:
        before = image.size
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    metadata = Metadata.from_info({kind: image.info.get(kind) for kind in ("exif", "icc_profile")})
    image.info = {kind: image.info[kind] for kind in ("icc_profile", "comment") if kind in image.info}
    return image, metadata, before


def files(pixels: np.ndarray, deep: np.ndarray, metadata: Metadata) -> dict[str, bytes]:
    """An image in every format that it fits in, by how its name ends; the first is the PNG that is shown.

    Args:
        pixels: `[H, W]` or `[H, W, 2 to 4]`, uint8, or uint16 where they were put back into an image that has 16 bits.
        deep: the same in 16 bits.
        metadata: what goes with it.
    """
    made = {}
    for end, image_format, own in (
        (".png", "png", pixels),
        (".webp", "webp", pixels),
        (".tif", "tiff", pixels),
        ("_16bit.png", "png", deep),
    ):
        with suppress(ValueError):  # WebP has neither 16 bits nor very long sides
            check_depth(8 * own.itemsize, image_format)
            made[end] = encode(own, image_format, metadata)[0]
    return made


def _check_before(megapixels: float, data: bytes, name: str) -> None:
    """Refuse what claims too many pixels before any are read; who reads them says what else is wrong."""
    if image_kind(data[:16]) == "HEIC":
        raise Refused(f"{name} is a HEIC image, which is not read here; convert it first, to JPEG or PNG")
    try:
        with with_pillow(data) as opened:
            size = opened.size
    except Image.DecompressionBombError:
        raise Refused(
            f"{name} claims to have more than {2e-6 * Image.MAX_IMAGE_PIXELS:.0f} megapixels;"
            f" the limit of this server is {megapixels:g} megapixels"
        ) from None
    except UNREADABLE:
        return
    _check_size(megapixels, name, *size)


def _check_size(most: float, name: str, width: int, height: int) -> None:
    megapixels = width * height / 1e6
    if megapixels > most:
        raise Refused(
            f"{name} has {width} x {height} pixels, {megapixels:.3g} megapixels; the limit of this server is"
            f" {most:g} megapixels"
        )


if __name__ == "__main__":
    from reader import _main as main  # under the name by which the page knows what is sent

    main(*sys.argv[1:])
