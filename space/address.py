"""Settings of the page: their presets, and the address that holds them."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gate import checked
from work import AUTO, PIPE

from pipeline_ddrm_jpeg import PRESETS

DEFAULT_PRESET = "balanced"
# What a preset need not say.
_DEFAULTS = {
    **{name: PIPE.scheduler.config[name] for name in ("timestep_spacing", "eta", "eta_b")},
    "temperature": 1.0,
    "antithetic": False,
    "equivariant": False,
    "correction": "ddrm",
    "error_scale": 1.0,
    "noise_accounting": True,
    "consistent": False,
}
SETTINGS = ("num_samples", "num_inference_steps", "init_timestep", *_DEFAULTS)
_BESIDE = {"sharpness": 0.0, "seed": 0}  # what goes with any preset


def values_of(preset: str) -> list:
    """The settings of a preset, as the controls of the page hold them, in their order."""
    values = _DEFAULTS | PRESETS[preset]
    return [AUTO if values[name] == "auto" else values[name] for name in SETTINGS]


def preset_of(*values: Any) -> str | None:
    """The preset with these settings, if there is one."""
    return next((name for name in PRESETS if values_of(name) == list(values)), None)


def from_query(query: dict[str, str], controls: dict[str, Any]) -> list:
    """The preset and what the controls show as the page's address has them, and warnings of what does not fit.

    Args:
        query: names and values.
        controls: components of the settings, sharpness and seed, by name; they know what values there may be.
    """
    preset = query.get("preset", DEFAULT_PRESET)
    if preset not in PRESETS:
        gr.Warning(f"The address asks for a preset that is not there; there are {', '.join(PRESETS)}.")
        preset = DEFAULT_PRESET
    values = dict(zip(SETTINGS, values_of(preset), strict=True)) | _BESIDE
    for name, control in controls.items():
        if name not in query:
            continue
        try:
            text = query[name]
            if isinstance(control, gr.Checkbox):
                text = {"true": True, "false": False}[text]
            elif not isinstance(control, gr.Radio):
                text = float(text)
            values[name] = checked(control, text)
        except (gr.Error, LookupError, ValueError, OverflowError):
            gr.Warning(f"The address gives a value of {name} that does not fit; it is left at {values[name]}.")
    return [preset_of(*(values[name] for name in SETTINGS)), *(values[name] for name in controls)]


# Run in the browser with the values of preset, settings, sharpness and seed; formatted with the names of the settings.
TO_QUERY = """(preset, ...values) => {
  const names = %s, [sharpness, seed] = values.slice(names.length);
  const own = preset ? [["preset", preset]] : names.map((name, i) => [name, values[i]]);
  if (sharpness) own.push(["sharpness", sharpness]);
  if (seed !== null) own.push(["seed", seed]);
  const query = new URLSearchParams(own).toString();
  history.replaceState(null, "", "?" + query);
  if (window.parent !== window) window.parent.postMessage({queryString: query}, "https://huggingface.co");
}"""
