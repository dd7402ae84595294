"""JPEG artifact correction with denoising diffusion restoration models, as a diffusers pipeline."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives. Imported on first use, so that reading a file's header does not load torch.
_MODULES = {
    "DDRMJPEGBlocks": "modular_blocks",
    "DDRMJPEGPipeline": "pipeline",
    "DDRMJPEGPipelineOutput": "pipeline",
    "DDRMScheduler": "scheduling_ddrm",
    "DDRMSchedulerOutput": "scheduling_ddrm",
    "Coefficients": "jpeg_operator",
    "Crop": "operators",
    "DecodedJPEG": "decoded_jpeg",
    "Downsampling": "operators",
    "JPEGDamageError": "jpeg_markers",
    "JPEGFile": "jpeg_file",
    "JPEGFileError": "jpeg_markers",
    "JPEGHistory": "jpeg_history",
    "JPEGOperator": "jpeg_operator",
    "Observation": "inputs",
    "Operator": "operators",
    "PRESETS": "settings",
    "PiGDMScheduler": "scheduling_pigdm",
    "ImageOperator": "operators",
    "QuantizationOperator": "operators",
    "Settings": "settings",
    "assume_history": "jpeg_history",
    "estimate_history": "history_estimation",
    "observe": "inputs",
    "read_image": "decoded_jpeg",
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
