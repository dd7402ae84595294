"""`inspect` and `degrade`: what a file or an image says of its JPEG, and files to try the restoration on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..decoded.image import DecodedJPEG
from ..decoded.opening import REPAIR_HINT, open_image
from ..files.formats import JPEG_SUFFIXES, write_atomically
from ..formatting import size
from ..importing import importing
from ..jpeg.file import JPEGFile
from ..jpeg.markers import JPEGDamageError, JPEGFileError
from .options import ChromaSubsampling
from .terminal import fail, say


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JPEG file, or an image that was one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Take what is left of a damaged file.")] = False,
) -> None:
    """Show what a JPEG file says about itself, or the pixels of another image about the JPEG that it was."""
    try:
        jpeg = open_image(file, repair)
    except JPEGDamageError as error:
        fail(f"{error}{'' if repair else REPAIR_HINT}")
    except JPEGFileError as error:
        fail(error)
    except OSError as error:
        fail(f"{file}: {error.strerror or error}")
    decoded = isinstance(jpeg, DecodedJPEG)
    facts = {"file": str(file), "width": jpeg.width, "height": jpeg.height}
    facts |= _facts_of_image(jpeg) if decoded else _facts_of_file(jpeg)
    if as_json:
        lines = json.dumps(facts, indent=2).splitlines()
    else:
        facts |= {} if decoded else _in_words(jpeg)
        told = {name: value for name, value in facts.items() if name not in _OF_PARTS}
        lines = [f"{name.replace('_', ' '):20} {value}" for name, value in told.items()]
        lines += _tables(facts["quantization_tables"], facts.get("determined"))
    for line in lines:
        say(line)


_OF_PARTS = {
    *("region", "determined", "quantization_tables"),
    *("color_space_reason", "grey_stored_as_colour", "quality_factor_is_exact"),
}
"""Facts that are told as parts of others."""


def _facts_of_file(jpeg: JPEGFile) -> dict[str, Any]:
    """What a JPEG file says, for `--json`."""
    facts = {
        "file_size": jpeg.file_size,
        "bits_per_pixel": round(jpeg.bits_per_pixel, 4),
        "color_space": jpeg.color_space,
        "color_space_reason": jpeg.colour.reason,
        "grey_stored_as_colour": jpeg.tint == (0, 0),
        "chroma_subsampling": jpeg.chroma_subsampling,
        "sampling_factors": [[c.horizontal_factor, c.vertical_factor] for c in jpeg.components],
        "quality_factor": jpeg.quality_factor,
        "quality_factor_is_exact": jpeg.quality_factor_is_exact,
        "progressive": jpeg.progressive,
        "restart_interval": jpeg.restart_interval,
        "orientation": jpeg.orientation,
        "metadata_bytes": jpeg.metadata.sizes(),
        "quantization_tables": [c.quantization_table.tolist() for c in jpeg.components],
    }
    if jpeg.earlier:
        earlier = f"{jpeg.earlier.description}; then at {jpeg.quality_factor}"
        facts |= {"double_compression": earlier, "saved_again": earlier}
    if jpeg.remarks:
        facts["remarks"] = jpeg.remarks
    if jpeg.missing_bits is not None:
        facts |= {"damage": jpeg.damage, "invented": round(float(jpeg.invented.mean()), 4)}
    return facts


def _in_words(jpeg: JPEGFile) -> dict[str, str]:
    """Those of its facts that a person reads in another form."""
    grey = ", grey stored as colour" if jpeg.tint == (0, 0) else ""
    words = {
        "color_space": f"{jpeg.color_space} ({jpeg.colour.reason}){grey}",
        "chroma_subsampling": jpeg.chroma_subsampling or "none",
        "sampling_factors": ", ".join(f"{c.horizontal_factor}x{c.vertical_factor}" for c in jpeg.components),
        "quality_factor": f"{'' if jpeg.quality_factor_is_exact else 'about '}{jpeg.quality_factor}",
        "progressive": "yes" if jpeg.progressive else "no",
        "metadata_bytes": ", ".join(f"{name} {count}" for name, count in jpeg.metadata.sizes().items()) or "none",
        "remarks": "; ".join(jpeg.remarks),
        "damage": "; ".join(jpeg.damage),
    }
    return {name: text for name, text in words.items() if text}


def _tables(tables: list[list[list[int]]], determined: list[list[list[bool]]] | None = None) -> Iterator[str]:
    """Lines of the quantization tables of components, or of those of an image, where some steps may not be shown."""
    for number, table in enumerate(tables):
        if determined:
            kind, shown = ("luma", "chroma")[number], determined[number]
            yield f"quantization table of {kind}; in brackets: not shown by the image, but libjpeg's"
        elif table in tables[:number]:
            yield f"quantization table of component {number + 1}: as of component {tables.index(table) + 1}"
            continue
        else:
            shown = [[True] * 8] * 8
            yield f"quantization table of component {number + 1}"
        for steps, row in zip(table, shown, strict=True):
            yield "".join(f"{step if sure else f'({step})':>6}" for step, sure in zip(steps, row, strict=True))


def _facts_of_image(image: DecodedJPEG) -> dict[str, Any]:
    """What the pixels of an image say, for `--json`."""
    history = image.history
    return {
        "history": image.description,
        "color_space": history.color_space,
        "chroma_subsampling": history.chroma_subsampling,
        "fancy_upsampling": history.fancy_upsampling,
        "region": history.region and history.region._asdict(),
        "offset": history.offset,
        "quality_factor": history.quality_factor,
        "share_determined": round(history.share_determined, 4),
        "blocks_explained": round(history.explained, 4),
        "evidence": round(history.evidence, 1),
        "quantization_tables": [table.tolist() for table in history.quantization_tables],
        "determined": [shown.tolist() for shown in history.determined],
    }


def degrade(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image in any format Pillow reads.")],
    quality: Annotated[int, typer.Option("-q", "--quality", min=1, max=100, help="libjpeg quality factor.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The JPEG file.", show_default="IMAGE_qQF.jpg")
    ] = None,
    subsampling: ChromaSubsampling = "4:2:0",
    progressive: Annotated[bool, typer.Option("--progressive", help="Write a progressive file.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Compress an image to a JPEG file of a given quality factor, to try the restoration on."""
    with importing():
        from PIL import Image, ImageOps

        from ..decoded.image import read_image

    target = output or image.with_name(f"{image.stem}_q{quality}.jpg")
    if target.suffix.lower() not in JPEG_SUFFIXES:
        fail(f"{target} is written as JPEG; its name must end in one of {', '.join(JPEG_SUFFIXES)}", 2)
    if target.exists() and not overwrite:
        fail(f"{target} exists; --overwrite replaces it")
    try:
        picture = ImageOps.exif_transpose(read_image(image))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        fail(f"{image}: {str(reason).removeprefix(f'{image}: ')}")
    options = {"quality": quality, "progressive": progressive, "icc_profile": picture.info.get("icc_profile")}
    if picture.mode == "RGB":
        options["subsampling"] = subsampling
    try:
        write_atomically(target, lambda stream: picture.save(stream, "jpeg", **options))
    except OSError as error:
        fail(f"{target}: {error.strerror or error}")
    say(f"{target}  {size(target.stat().st_size)}")
