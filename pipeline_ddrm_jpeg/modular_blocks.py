"""The pipeline as blocks of diffusers' modular pipelines: what pipeline.py calls, and no logic of their own."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.modular_pipelines import (
    ComponentSpec,
    ConfigSpec,
    InputParam,
    LoopSequentialPipelineBlocks,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
)
from PIL import Image

from .decoded.opening import Source
from .degradations.operator import Operator
from .priors import align
from .sampling.classification import classifier_for
from .sampling.denoiser_error import error_from_config
from .sampling.observation import Observation, observe
from .sampling.samples import OUTPUT_TYPES, check_choice, gather
from .sampling.scheduling_ddrm import of_protocol
from .sampling.session import Session, Step, chosen
from .sampling.settings import ABOUT, DEFAULT, PRESETS, Settings
from .sampling.tiling import State, Tiling, count_windows, labels_for, predict_together

_UNET = ComponentSpec("unet", UNet2DModel, description="Pixel-space prior on RGB in [-1, 1].")
_SCHEDULER = ComponentSpec(
    "scheduler", DDPMScheduler, description="Noise schedule of the prior: any of the DDPM kind, or a DDRMScheduler."
)


def _passed(name: str, kind: Any, description: str) -> tuple[OutputParam, InputParam]:
    """What one block leaves for another."""
    return OutputParam(name, kind, description), InputParam(name, kind, required=True, description=description)


_OBSERVED, _OBSERVATION = _passed("observation", Observation, "Operator, measurement, true size and metadata.")
_PREPARED, _SESSION = _passed("session", Session, "Schedule, passes and samples of the image.")
_PREDICTOR, _PREDICT = _passed("predict", None, "Gives states of any size what the prior says of them.")
_COUNTED, _WINDOWS = _passed("windows", int, "Windows that the prior sees in all.")
_ASKED, _STATE = _passed("state", State, "What the prior is asked, with what it says.")
_CORRECTED, _OPTIONS = _passed(
    "step_options", dict, "Arguments of the scheduler's step: `project`, a callable x0 -> x0'."
)
_STEP = InputParam("step", Step, required=True, description="The state, its timestep and its noise.")


class DDRMJPEGInputStep(ModularPipelineBlocks):
    """Reads a JPEG file, or takes a measurement: operator, measurement, true size and metadata."""

    model_name = "ddrm-jpeg"
    description = __doc__
    expected_components: ClassVar = [_UNET]
    inputs: ClassVar = [
        InputParam(
            "file",
            Source,
            description="A JPEG file: a path, bytes, a binary file object or a JPEGFile. With `operator`, an image"
            " to measure instead: a path, bytes, a PIL image or a tensor in [-1, 1].",
        ),
        InputParam("operator", Operator, description="The degradation, where it is not a file that says so itself."),
        InputParam("measurement", description="With `operator` and instead of `file`: what it measured."),
        InputParam("size", tuple[int, int], description="With `measurement`: true height and width."),
        InputParam("history", description='Of an image whose JPEG file is gone: `"estimate"`, or a `JPEGHistory`.'),
    ]
    intermediate_outputs: ClassVar = [_OBSERVED]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        if isinstance(block_state.file, (list, tuple)):
            raise TypeError("blocks restore one file a call: give them one by one, or use DDRMJPEGPipeline")
        block_state.observation = observe(
            block_state.file,
            block_state.operator,
            block_state.measurement,
            block_state.size,
            components._execution_device,
            block_state.history,
        )
        self.set_block_state(state, block_state)
        return components, state


class DDRMJPEGStartStep(ModularPipelineBlocks):
    """Sets the timesteps, cuts the image into the windows of the prior and prepares the noise of each sample."""

    model_name = "ddrm-jpeg"
    description = __doc__
    expected_components: ClassVar = [_UNET, _SCHEDULER]
    expected_configs: ClassVar = [
        ConfigSpec("denoiser_error", None, "How far the prior is off by noise level and frequency.")
    ]
    inputs: ClassVar = [
        _OBSERVATION,
        InputParam("preset", str, description=f"Settings by name: {', '.join(PRESETS)}. By default {DEFAULT}."),
        InputParam("settings", Settings, description="`Settings` instead of a preset, or single ones in a dict."),
        *(
            InputParam(name, about.kind, description=f"{about.words} ({about.range}) By default the preset's.")
            for name, about in ABOUT.items()
        ),
        InputParam.template("generator"),
        InputParam("class_labels", description='The class, where the prior is class-conditional, or "auto".'),
        InputParam("classifier", description='For "auto": folder or Hub id of an image classifier.'),
        InputParam("tiling", dict, description="Of the windows that the prior sees: size, overlap, batch_size."),
        InputParam.template("output_type"),
    ]
    intermediate_outputs: ClassVar = [_PREPARED, _PREDICTOR, _COUNTED]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        if components.unet is None or components.scheduler is None:
            raise ValueError("unet or scheduler is not loaded: call load_components()")
        unet, seen, device = components.unet, block_state.observation, components._execution_device
        check_choice("output_type", block_state.output_type, OUTPUT_TYPES)
        single = {name: block_state[name] for name in ABOUT if block_state[name] is not None}
        scheduler = of_protocol(components.scheduler)
        settings = chosen(scheduler, block_state.preset, block_state.settings, single)
        align(unet)
        classify = classifier_for(unet, block_state.class_labels, block_state.classifier)
        images = seen.operator.batch_size(seen.y)
        labels = classify(seen).to(device) if classify else labels_for(unet, block_state.class_labels, images, device)
        block_state.session = Session(
            seen,
            scheduler,
            error_from_config(components.config.denoiser_error),
            settings,
            block_state.generator,
            block_state.output_type,
            device,
            labels,
        )
        windows = Tiling(**block_state.tiling or {}).options(unet, device)
        block_state.predict = partial(predict_together, unet, **windows)
        height, width = block_state.session.shape[-2:]
        block_state.windows = block_state.session.states * count_windows(unet, height, width, **windows)
        self.set_block_state(state, block_state)
        return components, state


class DDRMJPEGLoopPrior(ModularPipelineBlocks):
    """Within the denoising loop: what the prior predicts from the state."""

    model_name = "ddrm-jpeg"
    description = __doc__
    expected_components: ClassVar = [_UNET]
    inputs: ClassVar = [_PREDICT, _STEP]
    intermediate_outputs: ClassVar = [_ASKED]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        block_state.state = block_state.step.state()
        with torch.set_grad_enabled(block_state.state.sample.requires_grad):
            block_state.predict([block_state.state], on_windows=block_state.on_windows)
        return components, block_state


class DDRMJPEGLoopCorrection(ModularPipelineBlocks):
    """Within the denoising loop: how the step corrects the denoised image by the measurement."""

    model_name = "ddrm-jpeg"
    description = __doc__
    inputs: ClassVar = [_STEP]
    intermediate_outputs: ClassVar = [_CORRECTED]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        block_state.step_options = block_state.step.correct()
        return components, block_state


class DDRMJPEGLoopStep(ModularPipelineBlocks):
    """Within the denoising loop: the next state, mixed by the scheduler."""

    model_name = "ddrm-jpeg"
    description = __doc__
    inputs: ClassVar = [_STEP, _STATE, _OPTIONS]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        block_state.step.advance(block_state.state, block_state.step_options)
        return components, block_state


class DDRMJPEGDenoiseStep(LoopSequentialPipelineBlocks):
    """Denoising loop: at every timestep the prior proposes, the measurement corrects, the scheduler mixes."""

    model_name = "ddrm-jpeg"
    description = __doc__
    block_classes: ClassVar = [DDRMJPEGLoopPrior, DDRMJPEGLoopCorrection, DDRMJPEGLoopStep]
    block_names: ClassVar = ["prior", "correction", "step"]
    loop_inputs: ClassVar = [_SESSION, _WINDOWS]

    @property
    def inputs(self) -> list[InputParam]:
        made_in_the_loop = ("step", "state", "step_options")
        return [one for one in self._get_inputs() if one.name not in made_in_the_loop]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        with self.progress_bar(total=block_state.windows) as progress:
            block_state.on_windows = progress.update
            for step in block_state.session:
                block_state.step = step
                components, block_state = self.loop_step(components, block_state, i=step.i, t=step.timestep)
        self.set_block_state(state, block_state)
        return components, state


class DDRMJPEGOutputStep(ModularPipelineBlocks):
    """The mean of the samples as an image, with their spread and how far it agrees with the measurement."""

    model_name = "ddrm-jpeg"
    description = __doc__
    inputs: ClassVar = [_SESSION, InputParam.template("output_type")]
    intermediate_outputs: ClassVar = [
        OutputParam(
            "images",
            list[Image.Image] | np.ndarray | torch.Tensor,
            "The restored image, or images of a batch: PIL images, or values in [0, 1].",
        ),
        OutputParam("samples", list, "For each image the list of its samples."),
        OutputParam("std", list, "For each image the standard deviation of its samples."),
        OutputParam("expected_error", list, "For each image how far it is likely to be off, pixel by pixel."),
        OutputParam("consistency", list[float], "Share of the measured values that the image keeps."),
        OutputParam("consistency_8bit", list[float], "The same after rounding to 8 bits."),
    ]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        output = gather(block_state.session.finish(), block_state.output_type)
        for name in self.intermediate_output_names:
            block_state[name] = output[name]
        self.set_block_state(state, block_state)
        return components, state


class DDRMJPEGBlocks(SequentialPipelineBlocks):
    """Restores a JPEG file with an unconditional diffusion prior (Kawar, Song, Ermon, Elad, 2022).

    Example:
        >>> from pipeline_ddrm_jpeg import DDRMJPEGBlocks
        >>> pipe = DDRMJPEGBlocks().init_pipeline("owner/prior")
        >>> pipe.load_components()
        >>> pipe(file="photo.jpg", num_samples=4, output="images")[0].save("photo.png")
    """

    model_name = "ddrm-jpeg"
    _requirements: ClassVar = {"jpeglib": ">=1.0.2"}
    block_classes: ClassVar = [DDRMJPEGInputStep, DDRMJPEGStartStep, DDRMJPEGDenoiseStep, DDRMJPEGOutputStep]
    block_names: ClassVar = ["input", "start", "denoise", "output"]
    description = "Restores a JPEG file with an unconditional diffusion prior; the file says what its compression kept."
    outputs: ClassVar = DDRMJPEGOutputStep.intermediate_outputs
