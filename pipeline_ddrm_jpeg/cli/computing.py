"""The processes of a run, the device of this one, and the pipeline on it."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

from ..importing import importing
from ..sampling.settings import Settings
from .options import in_options
from .terminal import complain, fail


def processes(device: str) -> Any:
    """The processes that `accelerate launch` started, this one alone otherwise, and the device of this one."""
    with importing():
        import torch
        from accelerate import PartialState

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        fail(f"--device {device} is not available on this machine", 2)
    # Without cpu=True, accelerate takes several processes on a machine without an accelerator for one each.
    accelerators = (torch.cuda, torch.xpu, torch.backends.mps)
    on_cpu = device == "cpu" or not any(accelerator.is_available() for accelerator in accelerators)
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=7))  # one may be done long before another
    # accelerate launch sets the first always, the address where processes meet only for several (accelerate 1.15).
    if state.num_processes == 1 and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys():
        complain(
            "accelerate launch was asked for several processes and started one, as it does on a machine without GPUs;"
            " accelerate launch --multi_gpu --num_processes N starts N there too"
        )
    if device not in ("auto", state.device.type):
        fail(f"--device {device} is not what accelerate chose, {state.device.type}", 2)
    return state


def end(status: int | str | None) -> None:
    """End this process if it is one of several, without taking Python down.

    Threads of torch.distributed let go of the last tensors that were gathered, for which they need Python; if that is
    being taken down, they abort the process (torch 2.13 on CPUs, where its group outlives `destroy_process_group`).
    """
    distributed = sys.modules.get("torch.distributed")
    if isinstance(status, int) and distributed is not None and distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def gather(value: Any) -> list[Any]:
    """The values of all processes, in all processes; ends with a sentence if one of them is gone."""
    from accelerate.utils import gather_object

    try:
        return gather_object([value])
    except RuntimeError:  # what torch raises where a connection breaks
        fail("another process of this run is gone, and its share is not finished; the same command again goes on")


def load(prior: str | None, dtype: str, device: Any = None, sampler: str | None = None) -> Any:
    """The pipeline, computing in a dtype of torch by name, or in `"auto"`, with a sampler other than the prior's."""
    with importing():
        from ..pipeline import DDRMJPEGPipeline
        from ..priors import EMBEDDED, SAMPLERS, fastest_dtype

    if dtype == "auto":  # machines may differ in what they have units for: the first decides
        dtype = gather(fastest_dtype(device))[0]
    try:
        pipe = DDRMJPEGPipeline.from_prior(prior or EMBEDDED, dtype=dtype)
    except (OSError, ValueError) as error:
        fail(f"--prior {prior or 'embedded'}: {' '.join(str(error).removeprefix(f'{prior}: ').split())}")
    if sampler is not None:
        pipe.scheduler = SAMPLERS[sampler].from_config(pipe.scheduler.config)
    return pipe if device is None else pipe.to(device)


def dtype_of(pipe: Any) -> str:
    """What the pipeline's network computes in, by name."""
    return str(pipe.unet.dtype).removeprefix("torch.")


def check_settings(pipe: Any, preset: str, settings: dict[str, Any]) -> Settings:
    """The settings of a run; ends with a sentence if prior or sampler do not have them."""
    try:
        return pipe.settings_for(preset, settings)
    except ValueError as error:
        fail(in_options(error), 2)


def check_classifier(pipe: Any, class_label: str | None, classifier: str | None) -> None:
    """End with a sentence if the classes cannot be told, or are not the prior's; otherwise it is loaded."""
    from ..sampling.classification import classifier_for

    try:
        classifier_for(pipe.unet, class_label if class_label == "auto" else None, classifier)
    except ImportError as error:
        fail(error, 2)
    except (OSError, ValueError) as error:
        fail(error)
