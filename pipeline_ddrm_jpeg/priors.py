"""Priors: where they are loaded from, and what they compute in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DModel

from .scheduling_ddrm import DDRMScheduler

EMBEDDED = Path(__file__).parent / "prior"


def load_prior(prior: str | os.PathLike, dtype: torch.dtype | str = "auto", **kwargs: Any) -> dict[str, Any]:
    """UNet, noise schedule and denoiser's error of a folder or Hub repo, as arguments of the pipeline.

    Args:
        prior: a folder, or the id of a Hub repo (which is downloaded), with `unet/` and `scheduler/` as a pipeline has
            them, or everything at the root as the first DDPM repos have it. The error is in `model_index.json`.
        dtype: what the network computes in: a torch dtype or its name, or `"auto"`: see `fastest_dtype`.
        **kwargs: passed on to `from_pretrained` of the two: `revision`, `token`, `cache_dir`, ...

    Raises:
        OSError: if there is no such folder or repo, or a part of it is missing or does not fit.
        ValueError: for a dtype that is none, or a scheduler of another kind.
    """
    kwargs["dtype"] = as_dtype(dtype)
    try:
        unet = _load_unet(prior, subfolder="unet", **kwargs)
        config = DDRMScheduler.load_config(prior, subfolder="scheduler", **_without_dtype(kwargs))
    except OSError as error:
        try:  # everything at the root
            unet = _load_unet(prior, **kwargs)
            config = DDRMScheduler.load_config(prior, **_without_dtype(kwargs))
        except OSError:
            raise error from None
    try:
        error = DiffusionPipeline.load_config(prior, **_without_dtype(kwargs)).get("denoiser_error")
    except OSError:  # a prior alone
        error = None
    return {
        "unet": unet.to(memory_format=torch.channels_last),
        "scheduler": DDRMScheduler.from_config(config),
        "denoiser_error": error,
    }


def _without_dtype(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "dtype"}


def _load_unet(prior: str | os.PathLike, **kwargs: Any) -> UNet2DModel:
    """`UNet2DModel.from_pretrained`, refusing weights that do not fit instead of making some up."""
    try:
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
    """What a network computes in fastest, without harm to its pictures: bfloat16 or float32.

    By what the processor or GPU has, not by measuring, so that a machine always gives the same pictures: bfloat16 is
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
    """Give weights at odd addresses memory of their own.

    safetensors leaves them as views into the mapped file, wherever they lie there, and some matrix products round by
    the alignment of what they multiply.
    """
    for tensor in (*unet.parameters(), *unet.buffers()):
        if tensor.data_ptr() % 64:  # what torch's own allocator aligns to
            tensor.data = tensor.data.clone()
