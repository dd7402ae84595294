"""CMYK files (and YCCK ones): their three colours and their black, restored as two images and laid on each other."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Generator as Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..jpeg.colour import CMYK_SPACES, COLOUR_SPACES
from ..jpeg.file import JPEGFile
from .observation import info_of
from .samples import as_array, presented

# The sampling of one source, for a type of output: yields states for the prior, returns the fields of its images.
Restore = Callable[[Any, str], Coroutine[Any, None, list[dict[str, Any]]]]


def by_separations(source: Any, restore: Restore, output_type: str) -> Coroutine[Any, None, list[dict[str, Any]]]:
    """What `restore` makes of a source; of a CMYK file, that of the image in RGB which it prints.

    Args:
        source: a `JPEGFile`, or anything else that `restore` takes.
        restore: called with the source; of a CMYK file with its colours and, once these are done, with its black.
        output_type: `"pil"`, `"np"` or `"pt"`.
    """
    printed = getattr(source, "color_space", None) in CMYK_SPACES
    return _printed(source, restore, output_type) if printed else restore(source, output_type)


def separations(file: JPEGFile) -> tuple[JPEGFile, JPEGFile]:
    """The three colours of a CMYK file as a file of three components, and its black as one in grey.

    The profile goes with neither: it is for the four.
    """
    colours, black = slice(0, 3), slice(3, 4)
    own = {"metadata": file.metadata.without_profile()}
    components = (replace(file.components[3], horizontal_factor=1, vertical_factor=1),)
    return (
        replace(_only(file, colours), colour=COLOUR_SPACES["YCbCr" if file.color_space == "YCCK" else "RGB"], **own),
        replace(_only(file, black), colour=COLOUR_SPACES["L"], components=components, **own),
    )


def _only(file: JPEGFile, those: slice) -> JPEGFile:
    missing = file.missing_bits and file.missing_bits[those]
    parts = {"components": file.components[those], "coefficients": file.coefficients[those], "missing_bits": missing}
    return replace(file, **parts)


def _printed(file: JPEGFile, restore: Restore, output_type: str) -> Coroutine[Any, None, list[dict[str, Any]]]:
    """Light that one ink lets through meets the next, so their shares multiply.

    That is what viewers show who know no profile, and they take the values for inverted, as Adobe writes them. Shares
    of coefficients are of all four components, timesteps those of the colours.
    """
    of_colours, of_black = separations(file)
    (colours,) = yield from restore(of_colours, "pt")
    (black,) = yield from restore(of_black, "pt")
    info = info_of(file.metadata.without_profile())

    def passing(values: torch.Tensor) -> torch.Tensor:
        return (1 - values if file.color_space == "YCCK" else values).clamp(0, 1)

    def printed(colours: torch.Tensor, black: torch.Tensor) -> Any:
        return presented(passing(colours) * black.clamp(0, 1), output_type, info)

    def off(name: str) -> Any:
        std = torch.hypot(colours[name] * black["images"], passing(colours["images"]) * black[name])
        return as_array(std, output_type)

    weights = [sum(plane.size for plane in planes) for planes in (file.coefficients[:3], file.coefficients[3:])]
    return [
        {
            "images": printed(colours["images"], black["images"]),
            "samples": [printed(*pair) for pair in zip(colours["samples"], black["samples"], strict=True)],
            "std": off("std"),
            "expected_error": off("expected_error"),
            "timesteps": colours["timesteps"],
        }
        | {
            name: float(np.average([colours[name], black[name]], weights=weights))
            for name in ("consistency", "consistency_8bit")
        }
    ]
