"""Named settings of the pipeline's call."""

from __future__ import annotations

from typing import Any

_FEW_STEPS = {"init_timestep": "auto", "timestep_spacing": "log", "consistent": True}
_PAPER = {"num_inference_steps": 20, "init_timestep": 300, "timestep_spacing": "leading", "eta": 1.0, "eta_b": 0.4}

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"num_samples": 1, "num_inference_steps": 5, "temperature": 0.6, **_FEW_STEPS},
    "balanced": {"num_samples": 4, "num_inference_steps": 4, "antithetic": True, **_FEW_STEPS},
    "best": {"num_samples": 8, "num_inference_steps": 8, "antithetic": True, **_FEW_STEPS},
    "paper": {"num_samples": 1, **_PAPER},
    "paper-average": {"num_samples": 8, **_PAPER},
}
"""Keyword arguments of `DDRMJPEGPipeline.__call__`: `pipe("photo.jpg", **PRESETS["fast"])`.

The first three were found by measurement with the embedded prior; `paper` and `paper-average` are the settings that
the paper calls "Ours (S)" and "Ours (A)".
"""
