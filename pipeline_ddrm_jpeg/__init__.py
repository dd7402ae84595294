"""JPEG artifact correction with denoising diffusion restoration models, as a diffusers pipeline."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives. Imported on first use, so that reading a file's header does not load torch.
_MODULES = {
    "Assumed": "decoded.opening",
    "Task": "files.tasks",
    "open_image": "decoded.opening",
    "plan": "files.tasks",
    "restore_file": "files.restoration",
    "restore_files": "files.restoration",
    "save_image": "files.formats",
    "DDRMJPEGBlocks": "modular_blocks",
    "DDRMJPEGPipeline": "pipeline",
    "DDRMJPEGPipelineOutput": "pipeline",
    "DDRMScheduler": "sampling.scheduling_ddrm",
    "DDRMSchedulerOutput": "sampling.scheduling_ddrm",
    "Coefficients": "degradations.jpeg",
    "Crop": "degradations.operator",
    "DecodedJPEG": "decoded.image",
    "Downsampling": "degradations.operator",
    "JPEGDamageError": "jpeg.markers",
    "JPEGFile": "jpeg.file",
    "JPEGFileError": "jpeg.markers",
    "JPEGHistory": "decoded.history",
    "JPEGOperator": "degradations.jpeg",
    "Observation": "sampling.observation",
    "Operator": "degradations.operator",
    "PRESETS": "sampling.settings",
    "PiGDMScheduler": "sampling.scheduling_pigdm",
    "ImageOperator": "degradations.operator",
    "QuantizationOperator": "degradations.operator",
    "Settings": "sampling.settings",
    "assume_history": "decoded.history",
    "estimate_history": "decoded.regions",
    "observe": "sampling.observation",
    "read_image": "decoded.image",
}
__all__ = [*_MODULES, "__version__"]
_RENAMED = {"PictureOperator": "ImageOperator", "read_picture": "read_image"}  # for one release


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"{name} is called {_RENAMED[name]} now", FutureWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
