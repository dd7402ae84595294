"""Settings of the page: their presets, and the address that holds them."""

from __future__ import annotations

from typing import Any

import gradio as gr
import presentation
from gate import checked
from work import AUTO, PIPE

from pipeline_ddrm_jpeg import PRESETS
from pipeline_ddrm_jpeg.sampling.scheduling_ddrm import settings_taken
from pipeline_ddrm_jpeg.sampling.settings import ABOUT, DEFAULT

# What only some samplers take: of another prior's sampler the page does not show it.
_OF_POSTERIOR = ("eta_b", "error_scale", "noise_accounting")
_TAKEN = settings_taken(PIPE.scheduler)
BESIDE = ("sharpness",)  # what goes with any preset
SETTINGS = tuple(name for name in ABOUT if name not in BESIDE and ("correction" in _TAKEN or name not in _OF_POSTERIOR))


def values_of(preset: str) -> list:
    """The settings of a preset, as the controls of the page hold them, in their order."""
    settings, config = PIPE.settings_for(preset), PIPE.scheduler.config
    values = {name: config.get(name) if value is None else value for name, value in settings.items()}
    if settings.correction == "posterior" and settings.eta_b is None:
        values["eta_b"] = 1.0
    return [AUTO if values[name] == "auto" else values[name] for name in SETTINGS]


def marked(*values: Any) -> list[str | None]:
    """What the two lists of presets mark, the page's own and the paper's, if one has these settings."""
    name = next((name for name in PRESETS if values_of(name) == list(values)), None)
    return [name if name in own else None for own in (presentation.PRESETS, presentation.PUBLISHED)]


def from_query(query: dict[str, str], controls: dict[str, Any]) -> list:
    """The presets marked and what the controls show as the page's address has them, and warnings of what does not fit.

    Args:
        query: names and values.
        controls: components of the settings, sharpness and seed, by name; they know what values there may be.
    """
    preset = query.get("preset", DEFAULT)
    if preset not in PRESETS:
        gr.Warning(f"The address asks for a preset that is not there; there are {', '.join(PRESETS)}.")
        preset = DEFAULT
    values = dict(zip(SETTINGS, values_of(preset), strict=True))
    values |= {name: PRESETS[preset][name] for name in BESIDE} | {"seed": 0}
    for name, control in controls.items():
        if name not in query:
            continue
        try:
            text = query[name]
            if isinstance(control, gr.Checkbox):
                text = {"true": True, "false": False}[text]
            elif not isinstance(control, gr.Radio):
                text = float(text) if text else None
            values[name] = checked(control, text)
        except (gr.Error, LookupError, ValueError, OverflowError):
            gr.Warning(f"The address gives a value of {name} that does not fit; it is left at {values[name]}.")
    return [*marked(*(values[name] for name in SETTINGS)), *(values[name] for name in controls)]


# Run in the browser with the values of both presets, settings, sharpness and seed; formatted with the names of the
# settings.
TO_QUERY = """(own_preset, published, ...values) => {
  const preset = own_preset ?? published, names = %s, [sharpness, seed] = values.slice(names.length);
  ddrm.compareSettings(preset, values);
  const own = preset ? [["preset", preset]] : names.map((name, i) => [name, values[i] ?? ""]);
  if (sharpness) own.push(["sharpness", sharpness]);
  if (seed !== null) own.push(["seed", seed]);
  const query = new URLSearchParams(own).toString();
  history.replaceState(null, "", "?" + query);
  if (window.parent !== window) window.parent.postMessage({queryString: query}, "https://huggingface.co");
}"""
