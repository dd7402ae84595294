"""The work: one visitor's restoration, its progress, and its end before time."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

try:  # on ZeroGPU, where it must be imported before torch
    import spaces
except ImportError:
    spaces = None

import gradio as gr
import torch
from limits import MAX_SECONDS, refusal, refusals

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, DDRMScheduler

log = logging.getLogger("space")

PRIOR = os.environ.get("DDRM_JPEG_PRIOR")
PIPE = DDRMJPEGPipeline.from_prior(PRIOR) if PRIOR else DDRMJPEGPipeline.from_embedded()
PIPE.to("cuda" if torch.cuda.is_available() else "cpu")


class Meter:
    """What the pipeline reports its calls of the prior to. It shows them, and ends the work when it has to end.

    Args:
        num_inference_steps, num_samples: of the pipeline's call.
        go: file that is there as long as the work is to go on. A file, because ZeroGPU works in another process.
        show: progress on the page.
    """

    def __init__(self, num_inference_steps: int, num_samples: int, go: Path, show: gr.Progress) -> None:
        self.num_inference_steps, self.num_samples = num_inference_steps, num_samples
        self.go, self.show = go, show
        self.total = self.done = 0
        self.step = self.samples_before = self.done_before = 0
        self.start = time.monotonic()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        log.info("%d of %d calls of the prior, %.1f s", self.done, self.total, time.monotonic() - self.start)

    def refresh(self) -> None:
        """The pipeline has set `total`."""
        self.show((0, self.total), desc=f"Step 1 of {self.num_inference_steps}", unit="calls of the prior")

    def update(self, calls: int) -> None:
        """The prior has been called this often since the last time."""
        self.done += calls
        if not self.go.exists():
            raise refusal("Stopped")
        elapsed = time.monotonic() - self.start
        left = elapsed * (self.total - self.done) / self.done
        # Soon enough to spare the wait, late enough to know.
        if elapsed > MAX_SECONDS or (elapsed > MAX_SECONDS / 10 and elapsed + left > 1.5 * MAX_SECONDS):
            raise refusal(
                f"This would take about {elapsed + left:.0f} s; the limit of this server is {MAX_SECONDS:g} s."
                " Try a smaller picture, fewer samples or fewer steps"
            )
        calls_a_sample = self.total // (self.num_inference_steps * self.num_samples)
        sample = self.samples_before + math.ceil((self.done - self.done_before) / calls_a_sample)
        self.show(
            (self.done, self.total),
            desc=f"Step {self.step + 1} of {self.num_inference_steps}, sample {sample} of {self.num_samples},"
            f" {f'{left:.0f} s' if left < 100 else f'{left / 60:.0f} min'} left",
            unit="calls of the prior",
        )

    def on_step_end(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict:
        """Callback of the pipeline. It takes as many samples through the steps together as memory allows."""
        self.step, self.done_before = step + 1, self.done
        if self.step == self.num_inference_steps:
            self.step = 0
            self.samples_before += len(tensors["sample"])
        return {}


class Visit(DDRMJPEGPipeline):
    """The pipeline of one visitor: a schedule and a meter of its own around the network that all share."""

    meter: Meter

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Meter:
        return self.meter


def run(source: Any, operator: Any, settings: dict[str, Any], seed: int, go: Path, show: gr.Progress) -> Any:
    """The pipeline's output for `source`.

    Raises:
        gr.Error: for what cannot be restored, or not in time, or when `go` is deleted meanwhile. Of other exceptions
            ZeroGPU would bring back only the name.
    """
    visit = Visit(PIPE.unet, DDRMScheduler.from_config(PIPE.scheduler.config))
    visit.meter = Meter(settings["num_inference_steps"], settings["num_samples"], go, show)
    generator = torch.Generator().manual_seed(seed)
    with refusals():
        return visit(source, operator, generator=generator, callback_on_step_end=visit.meter.on_step_end, **settings)


if spaces is not None:
    run = spaces.GPU(duration=int(MAX_SECONDS))(run)
