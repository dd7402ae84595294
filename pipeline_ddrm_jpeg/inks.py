"""Files of four inks, CMYK and YCCK: their colours and their black, restored as two pictures and laid on each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from .jpeg_file import FOUR_INKS, JPEGFile


def separations(file: JPEGFile) -> tuple[JPEGFile, JPEGFile]:
    """The three colours of a file of four inks as a file of three components, and its black as one in grey.

    The profile goes with neither: it is for the four.
    """
    colours, black = slice(0, 3), slice(3, 4)
    own = {"metadata": file.metadata.without_profile()}
    components = (replace(file.components[3], horizontal_factor=1, vertical_factor=1),)
    return (
        replace(_only(file, colours), color_space="YCbCr" if file.color_space == "YCCK" else "RGB", **own),
        replace(_only(file, black), color_space="L", components=components, **own),
    )


def _only(file: JPEGFile, those: slice) -> JPEGFile:
    missing = file.missing_bits and file.missing_bits[those]
    parts = {"components": file.components[those], "coefficients": file.coefficients[those], "missing_bits": missing}
    return replace(file, **parts)


def restore_any(pipe: Any, file: Any, output_type: str = "pil", **settings: Any) -> Any:
    """The output of a pipeline for a source; for a file of four inks that of the picture in RGB which they print.

    Light that one ink lets through meets the next, so their shares multiply. That is what viewers show who know no
    profile, and they take the values for inverted, as Adobe writes them. Shares of coefficients are of all four inks.

    Args:
        pipe: a `DDRMJPEGPipeline`.
        file: what its call takes.
        output_type: `"pil"` or `"np"`.
        **settings: other arguments of its call.
    """
    if getattr(file, "color_space", None) not in FOUR_INKS:
        return pipe(file, output_type=output_type, **settings)
    result = pipe(list(separations(file)), output_type="np", **settings)

    def passing(colours: np.ndarray) -> np.ndarray:
        return (1 - colours if file.color_space == "YCCK" else colours).clip(0, 1)

    def printed(colours: np.ndarray, black: np.ndarray) -> np.ndarray:
        return passing(colours) * black.clip(0, 1)

    def presented(picture: np.ndarray) -> Any:
        if output_type == "np":
            return picture
        image = Image.fromarray(np.rint(255 * picture).astype(np.uint8))
        exif = file.metadata.exif
        image.info.update({"exif": exif} if exif else {})
        return image

    colours, black = result.images
    result.images = [presented(printed(colours, black))]
    result.samples = [[presented(printed(*pair)) for pair in zip(*result.samples, strict=True)]]
    of_colours, of_black = result.std
    result.std = [np.hypot(of_colours * black, passing(colours) * of_black)]
    weights = [sum(plane.size for plane in planes) for planes in (file.coefficients[:3], file.coefficients[3:])]
    for shares in (result.consistency, result.consistency_8bit):
        shares[:] = [float(np.average(shares, weights=weights))]
    result.timesteps = result.timesteps[:1]
    return result
