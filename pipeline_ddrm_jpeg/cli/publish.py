"""`convert` and `push`: pipelines for others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from ..formatting import size
from ..importing import importing
from .computing import load
from .options import DType, numbers, with_options
from .terminal import fail, say


@dataclass
class Flags:
    """Those of guided-diffusion, under their names there."""

    image_size: Annotated[int | None, typer.Option()] = None
    num_channels: Annotated[int | None, typer.Option()] = None
    num_res_blocks: Annotated[int | None, typer.Option()] = None
    channel_mult: Annotated[str | None, typer.Option(help="Such as 1,2,3,4.")] = None
    attention_resolutions: Annotated[str | None, typer.Option(help="Such as 32,16,8.")] = None
    num_head_channels: Annotated[int | None, typer.Option()] = None
    learn_sigma: Annotated[bool | None, typer.Option()] = None
    class_cond: Annotated[bool | None, typer.Option()] = None
    resblock_updown: Annotated[bool | None, typer.Option()] = None
    use_scale_shift_norm: Annotated[bool | None, typer.Option()] = None
    use_new_attention_order: Annotated[bool | None, typer.Option()] = None
    diffusion_steps: Annotated[int | None, typer.Option()] = None
    noise_schedule: Annotated[str | None, typer.Option(help="linear or cosine.")] = None


@with_options
def convert(
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pipeline, laid out as a Hub repo.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="The .pt file; with --download, where it is kept.", show_default="PRESET.pt")
    ] = None,
    fetch: Annotated[bool, typer.Option("--download", help="Fetch the preset's checkpoint first (2.2 GB).")] = False,
    preset: Annotated[
        str, typer.Option(help="A model guided-diffusion released; the flags below change single settings of it.")
    ] = "256x256_diffusion_uncond",
    flags: Flags,
    dtype: Annotated[DType, typer.Option(help="What the weights are stored in.")] = "float32",
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Hub repo to upload the folder to.")] = None,
) -> None:  # fmt: skip
    """Convert a guided-diffusion checkpoint, such as the paper's prior, to a pipeline."""
    given = {name: value for name, value in vars(flags).items() if value is not None}
    for name, kind in (("channel_mult", float), ("attention_resolutions", int)):
        if name in given:
            given[name] = numbers(f"--{name.replace('_', '-')}", given[name], kind)
    with importing():
        import torch

        from .. import conversion

    if preset not in conversion.CHECKPOINTS:
        fail(f"--preset {preset} is not one of {', '.join(conversion.CHECKPOINTS)}", 2)
    if checkpoint is None and not fetch:
        fail("give --checkpoint FILE, or --download to fetch the one of the preset", 2)
    if fetch and preset not in conversion.DOWNLOADS:
        fail(f"--download knows only {', '.join(conversion.DOWNLOADS)}; give --checkpoint FILE", 2)
    checkpoint = checkpoint or Path(f"{preset}.pt")
    model = replace(conversion.CHECKPOINTS[preset], **given)
    try:
        model.check()
        if fetch:
            conversion.download(conversion.DOWNLOADS[preset], checkpoint)
        conversion.convert_checkpoint(checkpoint, output, model, getattr(torch, dtype))
        if push is not None:
            from ..hub import name_repo, upload

            name_repo(output, push)
            say(upload(output, push).repo_url)
    except conversion.ConversionError as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.strerror else str(error).splitlines()[0])
    except KeyboardInterrupt:
        fail("stopped; a download goes on where it was when the command is run again", 130)
    say(f"{output}  load it with DiffusionPipeline.from_pretrained({str(output)!r}, trust_remote_code=True)")


def push(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Hub repo, OWNER/NAME; made if need be.")],
    prior: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of the pipeline or prior to publish.", show_default="embedded"),
    ] = None,
    space: Annotated[
        bool, typer.Option("--space", help="Upload the web demo as well: space/ of a checkout, and the package.")
    ] = False,
    space_repo: Annotated[
        str | None, typer.Option(metavar="REPO", help="Name of the Space.", show_default="REPO-space")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make repos that are made private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch of the model repo; made if need be.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be uploaded; the Hub is not asked.")
    ] = False,
) -> None:  # fmt: skip
    """Publish a pipeline as a Hub repo that loads without this package.

    Weights go up in float32 and, as the variant fp16, in float16. The token is the one of `hf auth login` or HF_TOKEN.
    A second push of the same makes no commit.
    """
    with importing():
        from .. import hub

    try:
        with TemporaryDirectory() as model, TemporaryDirectory() as web:
            uploads = [(Path(model), repo, "model")]
            for dtype, variant in (("float32", None), ("float16", "fp16")):
                load(prior, dtype).save_pretrained(model, variant=variant)
            hub.name_repo(Path(model), repo)
            if space or space_repo:
                uploads.append((Path(web), space_repo or f"{repo}-space", "space"))
                hub.assemble_space(Path(web))
            for folder, name, _ in uploads:
                hub.check(folder, name)
            if dry_run:
                for folder, name, kind in uploads:
                    _show_tree(folder, f"{name} ({kind})")
                return
            addresses = [
                hub.upload(folder, name, private or None, revision if kind == "model" else None, kind).repo_url
                for folder, name, kind in uploads
            ]
    except (OSError, ValueError) as error:
        fail(str(error).splitlines()[0])
    except KeyboardInterrupt:
        fail("stopped; what was not committed is not in the repo, and the same command uploads it", 130)
    for address in addresses:
        say(address)
    options = f"revision={revision!r}, " if revision else ""
    say(f"load it with DiffusionPipeline.from_pretrained({addresses[0].repo_id!r}, {options}trust_remote_code=True)")


def _show_tree(folder: Path, title: str) -> None:
    sizes = {path.relative_to(folder): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    say(f"{title}: {len(sizes)} files, {size(sum(sizes.values()))}")
    for path, count in sizes.items():
        say(f"{size(count):>12}  {path.as_posix()}")
