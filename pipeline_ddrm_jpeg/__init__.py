"""JPEG artifact correction with denoising diffusion restoration models, as a diffusers pipeline."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives. Imported on first use, so that reading a file's header does not load torch.
_MODULES = {
    "files.formats": ("save_image",),
    "files.restoration": ("restore_file", "restore_files"),
    "files.tasks": ("Task", "plan"),
    "decoded.history": ("JPEGHistory", "assume_history"),
    "decoded.image": ("DecodedJPEG", "read_image"),
    "decoded.opening": ("Assumed", "open_image"),
    "decoded.regions": ("estimate_history",),
    "degradations.jpeg": ("Coefficients", "JPEGOperator"),
    "degradations.operator": ("Crop", "Downsampling", "ImageOperator", "Operator", "QuantizationOperator"),
    "jpeg.file": ("JPEGFile",),
    "jpeg.markers": ("JPEGDamageError", "JPEGFileError"),
    "modular_blocks": ("DDRMJPEGBlocks",),
    "pipeline": ("DDRMJPEGPipeline", "DDRMJPEGPipelineOutput"),
    "sampling.observation": ("Observation", "observe"),
    "sampling.scheduling_ddrm": ("DDRMScheduler", "DDRMSchedulerOutput"),
    "sampling.scheduling_pigdm": ("PiGDMScheduler",),
    "sampling.settings": ("PRESETS", "Settings"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_MODULE_OF, "__version__"]
_RENAMED = {"PictureOperator": "ImageOperator", "read_picture": "read_image"}  # for one release


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"{name} is called {_RENAMED[name]} now", FutureWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
