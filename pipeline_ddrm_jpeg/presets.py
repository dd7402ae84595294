"""Named settings of the pipeline's call."""

from __future__ import annotations

from typing import Any

_POSTERIOR = {
    "correction": "posterior",
    "eta_b": 1.0,
    "equivariant": True,
    "init_timestep": "auto",
    "timestep_spacing": "log",
    "consistent": True,
}
_PAPER = {
    "num_inference_steps": 20,
    "init_timestep": 300,
    "timestep_spacing": "leading",
    "eta": 1.0,
    "eta_b": 0.4,
    "correction": "ddrm",
}

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"num_samples": 1, "num_inference_steps": 2, "error_scale": 2.5, "temperature": 0.7, **_POSTERIOR},
    "balanced": {"num_samples": 1, "num_inference_steps": 4, "error_scale": 3.0, "temperature": 0.4, **_POSTERIOR},
    "best": {
        "num_samples": 2,
        "num_inference_steps": 6,
        "antithetic": True,
        "error_scale": 3.0,
        "temperature": 0.5,
        **_POSTERIOR,
    },
    "paper": {"num_samples": 1, **_PAPER},
    "paper-average": {"num_samples": 8, **_PAPER},
}
"""Keyword arguments of `DDRMJPEGPipeline.__call__`: `pipe("photo.jpg", **PRESETS["fast"])`.

The first three were found by measurement with the embedded prior (docs/corrections.md); `paper` and `paper-average` are
the settings that the paper calls "Ours (S)" and "Ours (A)".
"""
