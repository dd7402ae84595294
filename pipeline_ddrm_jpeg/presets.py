"""Named settings of the pipeline's call."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"num_samples": 1, "num_inference_steps": 5, "init_timestep": 60, "consistent": True},
    "balanced": {"num_samples": 4, "num_inference_steps": 8, "init_timestep": 100, "consistent": True},
    "best": {"num_samples": 8, "num_inference_steps": 8, "init_timestep": 100, "consistent": True},
    "paper": {"num_samples": 1, "num_inference_steps": 20, "init_timestep": 300, "eta": 1.0, "eta_b": 0.4},
    "paper-average": {"num_samples": 8, "num_inference_steps": 20, "init_timestep": 300, "eta": 1.0, "eta_b": 0.4},
}
"""Keyword arguments of `DDRMJPEGPipeline.__call__`: `pipe("photo.jpg", **PRESETS["fast"])`.

The first three are made for the embedded prior; `paper` and `paper-average` are the settings that the paper calls
"Ours (S)" and "Ours (A)".
"""
