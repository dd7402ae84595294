"""Priors: where they are loaded from, and what they compute in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from huggingface_hub import HfApi, RepoUrl, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .sampling.scheduling_ddrm import DDRMScheduler
from .sampling.scheduling_pigdm import PiGDMScheduler

EMBEDDED = Path(__file__).parent / "prior"
SAMPLERS = {kind.name: kind for kind in (DDRMScheduler, PiGDMScheduler)}
"""The schedulers of this package, by the names that people have for them."""
SCHEDULERS = {kind.__name__: kind for kind in SAMPLERS.values()}
"""And by those that configs have."""
_MOST_LAYERS = 100  # residual layers on the way down; those of ADM at 512 pixels have 14
_LARGEST = 65_536  # channels, and classes


@dataclass(frozen=True)
class Origin:
    """Where a prior was loaded from: a folder, which for a repo of the Hub is the snapshot of a commit in a cache."""

    folder: Path
    """Absolute, because the working folder may change between loading and saving."""
    repo_id: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    local_files_only: bool = False

    @property
    def commit(self) -> str:
        """The commit of the Hub's repo that the folder is a snapshot of."""
        return self.folder.name

    @property
    def cache_dir(self) -> Path:
        """The cache that the snapshot is in."""
        return self.folder.parents[2]


def find_origin(
    prior: str | os.PathLike,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    **_: Any,
) -> Origin | None:
    """Where something came from that has just been loaded, so is on this disk, with these arguments; nobody is asked.

    Token and `local_files_only` are kept for the documents of a repo of the Hub.
    """
    names = ("unet/config.json", "config.json")
    places = [Path(prior).absolute()]
    if not places[0].is_dir():
        try:
            cached = [
                try_to_load_from_cache(str(prior), name, cache_dir=cache_dir, revision=revision) for name in names
            ]
        except HFValidationError:  # a folder that is no more
            return None
        places = [Path(place).parent for place in cached if isinstance(place, str)]
        if not places:
            return None
    folder = places[0].parent if places[0].name == "unet" else places[0]
    repo_id, name = None, folder.parts[-3] if folder.parent.name == "snapshots" else ""
    if name.startswith("models--"):
        repo_id = name.removeprefix("models--").replace("--", "/")
    return Origin(folder, repo_id, token, local_files_only)


def origin_of(unet: torch.nn.Module) -> Origin | None:
    """Where a prior was loaded from, as far as it is known: looked up once, soon after loading, and kept with it."""
    if not hasattr(unet, "origin"):
        name = unet.config.get("_name_or_path")
        unet.origin = find_origin(name) if name else None
    return unet.origin


def load_prior(prior: str | os.PathLike, dtype: torch.dtype | str = "auto", **kwargs: Any) -> dict[str, Any]:
    """UNet, noise schedule and denoiser's error of a folder or Hub repo, as arguments of the pipeline.

    Args:
        prior: a folder, or the id or page of a Hub repo (which is downloaded), with `unet/` and `scheduler/` as a
            pipeline has them, or everything at the root as the first DDPM repos have it. The error is in
            `model_index.json`.
        dtype: what the network computes in: see `as_dtype`.
        **kwargs: passed on to `from_pretrained` of the two: `revision`, `token`, `cache_dir`, ...

    Raises:
        OSError: if there is no such folder or repo, or a part of it is missing or does not fit.
        ValueError: for a dtype that is none, or a scheduler of another kind.
    """
    if "subfolder" in kwargs:
        raise ValueError(f"{prior}: a prior is a whole repo, whose unet/ and scheduler/ are read; leave subfolder out")
    kwargs["dtype"] = as_dtype(dtype)
    prior = _named(prior)
    try:
        unet = _load_unet(prior, subfolder="unet", **kwargs)
        config = _config(DDRMScheduler, prior, subfolder="scheduler", **kwargs)
    except OSError as error:
        told = _reason(prior, error)
        try:  # everything at the root
            unet = _load_unet(prior, **kwargs)
            config = _config(DDRMScheduler, prior, **kwargs)
        except OSError as at_the_root:
            raise (at_the_root if isinstance(at_the_root, PriorError) else told) from None
    unet.origin = find_origin(prior, **kwargs)
    try:
        error = _config(DiffusionPipeline, prior, **kwargs).get("denoiser_error")
    except PriorError:
        raise
    except OSError:  # a prior alone
        error = None
    with _told(prior, "scheduler"):
        kind = SCHEDULERS.get(str(config.get("_class_name")), DDRMScheduler)
        scheduler = kind.from_config(config)
    return {"unet": unet.to(memory_format=torch.channels_last), "scheduler": scheduler, "denoiser_error": error}


class PriorError(OSError):
    """What is there is no prior; nothing else needs to be looked for."""


def _named(prior: str | os.PathLike) -> str | os.PathLike:
    """A folder that is there, or what may be the id of a Hub repo; of a repo's page that is in its address."""
    name = str(prior)
    if Path(prior).is_dir():
        return prior
    if Path(prior).exists():
        raise PriorError(f"{prior}: a prior is a folder, and this is a file; `ddrm-jpeg convert` converts checkpoints")
    if "://" in name or name.startswith("huggingface.co/"):
        try:
            page = RepoUrl(name)
        except ValueError:
            page = None
        if page and page.repo_type == "model" and name.removesuffix("/").endswith(page.repo_id):
            return page.repo_id
        raise PriorError(f"{prior}: this is not the page of a model of the Hub; write OWNER/NAME, or a folder")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise PriorError(f"{prior}: there is no such folder; a repo of the Hub is written OWNER/NAME") from None
    return name


_LOG_IN = "run `hf auth login` or set HF_TOKEN"


def _reason(prior: str | os.PathLike, error: OSError) -> OSError:
    """The error of diffusers about a part of a prior, or the reason the Hub gave for it, which diffusers leaves out."""
    match error.__context__:
        case GatedRepoError():
            reason = f"the repo is gated; ask for access on its page {HfApi().endpoint}/{prior}, and {_LOG_IN}"
        case RepositoryNotFoundError():
            reason = f"there is no such folder, and no such repo on the Hub, or it is private: then {_LOG_IN}"
        case LocalEntryNotFoundError() as missing:
            why = str(missing.__cause__ or "local_files_only").partition("\n")[0]
            reason = f"there is no such folder, nor is it in the cache; the Hub was not asked or not reached ({why})"
        case RevisionNotFoundError() | EntryNotFoundError():
            return error
        case HfHubHTTPError() as refused:
            reason = f"the Hub refuses it ({refused.response.status_code}: {refused.server_message})"
            reason += f"; {_LOG_IN}" * (refused.response.status_code in (401, 403))
        case _:
            return error
    return PriorError(f"{prior}: {reason}")


@contextmanager
def _told(prior: str | os.PathLike, part: str) -> Iterator[None]:
    """Tell in a sentence whatever a config or weights of a stranger make diffusers raise."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise PriorError(f"{prior}: its {part} cannot be made ({type(error).__name__}: {reason})") from None


def _config(kind: Any, prior: str | os.PathLike, **kwargs: Any) -> dict[str, Any]:
    """The config of a part of a prior: an object of JSON, since diffusers takes a text for the name of a repo."""
    part = kwargs.get("subfolder") or getattr(kind, "config_name", "config")
    kwargs.pop("dtype", None)
    try:
        config = kind.load_config(prior, **kwargs)
    except RecursionError:
        raise PriorError(f"{prior}: its {part} has a config that is nested without end") from None
    if not isinstance(config, dict):
        raise PriorError(f"{prior}: its {part} has a config that is no object of JSON but {str(config)[:80]!r}")
    return config


def _check_unet(prior: str | os.PathLike, config: dict[str, Any]) -> None:
    """Refuse a config that would take minutes and all memory before its weights turn out not to fit."""
    channels, layers = config.get("block_out_channels", []), config.get("layers_per_block", 1)
    groups, embedding = config.get("norm_num_groups", 1), config.get("time_embedding_dim")
    kinds = [config.get(f"{way}_block_types", []) for way in ("down", "up")]
    numbers = [layers, groups, *(channels if isinstance(channels, list) else [None])]
    numbers += [config[name] for name in ("in_channels", "out_channels", "num_class_embeds") if config.get(name)]
    numbers += [] if embedding is None else [embedding]
    if not all(isinstance(number, int) and 0 < number <= _LARGEST for number in numbers):
        raise PriorError(f"{prior}: its unet has a config with a number that is none, or not in 1..{_LARGEST}")
    if not all(isinstance(kind, list) and len(kind) <= _MOST_LAYERS for kind in kinds):
        raise PriorError(f"{prior}: its unet has a config with block types that are no list of a few")
    if layers * max(len(channels), 1) > _MOST_LAYERS:
        raise PriorError(f"{prior}: its unet has a config with more than {_MOST_LAYERS} layers")


def _load_unet(prior: str | os.PathLike, **kwargs: Any) -> UNet2DModel:
    """`UNet2DModel.from_pretrained`, refusing weights that do not fit instead of making some up."""
    _check_unet(prior, _config(UNet2DModel, prior, **kwargs))
    try:
        with _told(prior, "unet"):
            unet, report = UNet2DModel.from_pretrained(prior, output_loading_info=True, **kwargs)
    except NotImplementedError:  # what moving weights that are nowhere raises
        raise OSError(f"{prior}: the weights do not fit the config; tensors are missing") from None
    for kind in ("missing_keys", "unexpected_keys"):
        if report[kind]:
            name = sorted(report[kind])[0]
            raise OSError(f"{prior}: the weights do not fit the config; tensor {name} is {kind.partition('_')[0]}")
    return unet


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A floating-point type of torch from itself, its name, or `"auto"`."""
    found = fastest_dtype() if dtype == "auto" else getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f'dtype is {dtype!r}; it must be "auto" or a floating-point type such as torch.bfloat16')
    return found


def fastest_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """What a network computes in fastest, without harm to its images: bfloat16 or float32.

    By what the processor or GPU has, not by measuring, so that a machine always gives the same images: bfloat16 is
    one and a half times (AVX-512 BF16) to four times (AMX) as fast on processors with units for it, and several times
    as slow on those without.
    """
    device = torch.device(device)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        units = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch before 2.11
        fast = device.type == "cpu" and (units.get("amx_bf16", False) or units.get("avx512_bf16", False))
    return torch.bfloat16 if fast else torch.float32


def align(unet: torch.nn.Module) -> None:
    """Give weights at odd addresses, or made in inference mode, memory of their own.

    safetensors leaves them as views into the mapped file, wherever they lie there, and some matrix products round by
    the alignment of what they multiply. Through weights made in inference mode no gradient passes.
    """
    if any(weight.is_inference() for weight in unet.parameters()):
        with torch.inference_mode(False):
            unet.load_state_dict({name: weight.clone() for name, weight in unet.state_dict().items()}, assign=True)
    for tensor in (*unet.parameters(), *unet.buffers()):
        if tensor.data_ptr() % 64:  # what torch's own allocator aligns to
            tensor.data = tensor.data.clone()
