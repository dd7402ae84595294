"""`inspect` and `degrade`: what a file or an image says of its JPEG, and files to try the restoration on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..decoded.image import DecodedJPEG
from ..decoded.opening import REPAIR_HINT, open_image
from ..files.formats import JPEG_SUFFIXES, write_atomically
from ..formatting import size
from ..interruption import interrupted_quietly
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
    if isinstance(jpeg, DecodedJPEG):
        facts = {"file": str(file), "width": jpeg.width, "height": jpeg.height} | _history_facts(jpeg)
        tables, determined = facts["quantization_tables"], facts["determined"]
        if not as_json:
            del facts["region"], facts["quantization_tables"], facts["determined"]
        _print(facts, as_json)
        for kind, table, shown in zip(("luma", "chroma"), tables, determined, strict=False) if not as_json else ():
            say(f"quantization table of {kind}; in brackets: not shown by the image, but libjpeg's")
            _print_table(table, shown)
        return
    facts = {
        "file": str(file),
        "width": jpeg.width,
        "height": jpeg.height,
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
        facts["double_compression"] = facts["saved_again"] = (
            f"{jpeg.earlier.description}; then at {jpeg.quality_factor}"
        )
    if jpeg.remarks:
        facts["remarks"] = jpeg.remarks
    if jpeg.damage:
        facts |= {"damage": jpeg.damage, "invented": round(float(jpeg.invented.mean()), 4)}
    if as_json:
        _print(facts, as_json)
        return
    tables = facts.pop("quantization_tables")
    facts |= {
        "chroma_subsampling": jpeg.chroma_subsampling or "none",
        "sampling_factors": ", ".join(f"{h}x{v}" for h, v in facts["sampling_factors"]),
        "quality_factor": f"{'' if facts.pop('quality_factor_is_exact') else 'about '}{jpeg.quality_factor}",
        "progressive": "yes" if jpeg.progressive else "no",
        "color_space": f"{jpeg.color_space} ({facts.pop('color_space_reason')})"
        + (", grey stored as colour" if facts.pop("grey_stored_as_colour") else ""),
        "metadata_bytes": ", ".join(f"{name} {size}" for name, size in facts["metadata_bytes"].items()) or "none",
    }
    for words in {"remarks", "damage"} & facts.keys():
        facts[words] = "; ".join(facts[words])
    _print(facts)
    for number, table in enumerate(tables):
        if table in tables[:number]:
            say(f"quantization table of component {number + 1}: as of component {tables.index(table) + 1}")
        else:
            say(f"quantization table of component {number + 1}")
            _print_table(table)


def _print(facts: dict[str, Any], as_json: bool = False) -> None:
    """A line for each fact, or JSON."""
    lines = [f"{name.replace('_', ' '):20} {value}" for name, value in facts.items()]
    for line in json.dumps(facts, indent=2).splitlines() if as_json else lines:
        say(line)


def _print_table(table: list[list[int]], shown: list[list[bool]] = [[True] * 8] * 8) -> None:
    """The steps, in brackets those that are not shown."""
    for steps, row in zip(table, shown, strict=True):
        say("".join(f"{step if sure else f'({step})':>6}" for step, sure in zip(steps, row, strict=True)))


def _history_facts(image: DecodedJPEG) -> dict[str, Any]:
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
    with interrupted_quietly():
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
