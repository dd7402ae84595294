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

from .classification import classifier_for
from .corrections import CORRECTIONS, Correction, check_sharpness, final_error, first_state, step_arguments
from .decoded_coefficients import DecodedCoefficients  # noqa: F401  for the Hub
from .decoded_jpeg import DecodedJPEG  # noqa: F401  for the Hub
from .denoiser_error import error_from_config
from .history_estimation import estimate_history  # noqa: F401  for the Hub
from .inputs import Observation, observe
from .jpeg_detection import detect  # noqa: F401  for the Hub
from .jpeg_entropy import decode_scans  # noqa: F401  others need it; the Hub copies only what is named here
from .jpeg_file import JPEGFile  # noqa: F401  for the Hub
from .jpeg_history import JPEGHistory  # noqa: F401  for the Hub
from .jpeg_markers import JPEGFileError  # noqa: F401  for the Hub
from .jpeg_operator import JPEGOperator  # noqa: F401  for the Hub
from .jpeg_planes import planes_of  # noqa: F401  for the Hub
from .jpeg_reader import read_coefficients  # noqa: F401  for the Hub
from .jpeg_tables import quality_tables  # noqa: F401  for the Hub
from .metadata import Metadata  # noqa: F401  for the Hub
from .opening import Source
from .operators import Operator
from .posterior import truncated_normal  # noqa: F401  for the Hub
from .priors import align
from .samples import OUTPUT_TYPES, Noise, Samples, check_choice, check_numbers, gather, passes
from .scheduling_ddrm import check_step, needs_gradient, of_protocol, scheduled
from .scheduling_pigdm import PiGDMScheduler  # noqa: F401  for the Hub
from .tiling import count_windows, labels_for, predict, views_at, window_options

_UNET = ComponentSpec("unet", UNet2DModel, description="Pixel-space prior on RGB in [-1, 1].")
_SCHEDULER = ComponentSpec(
    "scheduler", DDPMScheduler, description="Noise schedule of the prior: any of the DDPM kind, or a DDRMScheduler."
)
_OBSERVATION = InputParam(
    "observation", Observation, required=True, description="Operator, measurement, true size and metadata."
)
_SCHEDULE = InputParam("schedule", required=True, description="A scheduler with its timesteps set.")
_PREDICT = InputParam("predict", required=True, description="The prior on states of any size.")
_SAMPLE = InputParam("sample", torch.Tensor, required=True, description="The state, `[B, 3, H, W]` float32.")
_NOISE = InputParam("noise", Noise, required=True, description="All noise of the pass.")


class DDRMJPEGInputStep(ModularPipelineBlocks):
    """What is known of the picture."""

    model_name = "ddrm-jpeg"

    @property
    def description(self) -> str:
        return "Reads a JPEG file, or takes a measurement: operator, measurement, true size and metadata."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [_UNET]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam(
                "file",
                Source,
                description="A JPEG file: a path, bytes, a binary file object or a JPEGFile. With `operator`, a picture"
                " to measure instead: a path, bytes, a PIL image or a tensor in [-1, 1].",
            ),
            InputParam(
                "operator", Operator, description="The degradation, where it is not a file that says so itself."
            ),
            InputParam("measurement", description="With `operator` and instead of `file`: what it measured."),
            InputParam("size", tuple[int, int], description="With `measurement`: true height and width."),
            InputParam(
                "history",
                description='Of a picture whose JPEG file is gone: `"estimate"`, or a `JPEGHistory`.',
            ),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("observation", Observation, "Operator, measurement, true size and metadata.")]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
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
    """Schedule, prior and noise."""

    model_name = "ddrm-jpeg"

    @property
    def description(self) -> str:
        return (
            "Sets the timesteps, cuts the picture into the windows of the prior and prepares the noise of each sample."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [_UNET, _SCHEDULER]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            _OBSERVATION,
            InputParam("num_inference_steps", int, 20, description="Network evaluations in a sample."),
            InputParam(
                "init_timestep",
                int | str,
                description='Where sampling starts; by default as the scheduler has it. "auto": by how coarse the'
                " quantization tables of the file are.",
            ),
            InputParam("timestep_spacing", str, description='"leading", "trailing", "linspace" or "log".'),
            InputParam("temperature", float, 1.0, description="Scale of all noise, 0 to 1."),
            InputParam("num_samples", int, 1, description="Samples to average."),
            InputParam("antithetic", bool, False, description="Whether every second sample has the opposite noise."),
            InputParam.template("generator"),
            InputParam("class_labels", description='The class, where the prior is class-conditional, or "auto".'),
            InputParam("classifier", description='For "auto": folder or Hub id of an image classifier.'),
            InputParam("window_size", int, description="The prior sees the picture through windows of this size."),
            InputParam("window_overlap", int, description="Pixels that neighbouring windows share."),
            InputParam("window_batch_size", int, description="Windows in one call of the prior."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("schedule", description="A scheduler with its timesteps set."),
            OutputParam("predict", description="The prior on states of any size."),
            OutputParam("passes", list[Noise], "The noise of the samples, by the passes in which they are made."),
            OutputParam("windows", int, "Windows that the prior sees in all."),
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        check_numbers(
            {name: block_state[name] for name in ("num_samples", "window_size", "window_batch_size")},
            {"temperature": block_state.temperature},
        )
        unet, seen, device = components.unet, block_state.observation, components._execution_device
        align(unet)
        block_state.schedule = scheduled(
            of_protocol(components.scheduler),
            block_state.num_inference_steps,
            block_state.init_timestep,
            block_state.timestep_spacing,
            seen.operator.uncertainty(),
        )
        windows = window_options(
            unet, block_state.window_size, block_state.window_overlap, block_state.window_batch_size, device
        )
        shape = seen.operator.decode(seen.y).shape
        classify = classifier_for(unet, block_state.class_labels, block_state.classifier)
        labels = classify(seen).to(device) if classify else labels_for(unet, block_state.class_labels, shape[0], device)
        block_state.predict = partial(predict, unet, **windows, class_labels=labels)
        block_state.passes = passes(
            block_state.generator,
            block_state.num_samples,
            block_state.antithetic,
            block_state.temperature,
            shape,
            device,
        )
        states = shape[0] * block_state.num_samples * len(block_state.schedule.timesteps)
        block_state.windows = states * count_windows(unet, *shape[-2:], **windows)
        self.set_block_state(state, block_state)
        return components, state


class DDRMJPEGLoopPrior(ModularPipelineBlocks):
    """In the loop: the prior."""

    model_name = "ddrm-jpeg"

    @property
    def description(self) -> str:
        return "Within the denoising loop: what the prior predicts from the state."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [_UNET]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            _PREDICT,
            _SCHEDULE,
            _SAMPLE,
            _NOISE,
            InputParam("equivariant", bool, False, description="Whether each step shows the prior another view."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("model_output", torch.Tensor, "What the prior predicts.")]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        steps = len(block_state.schedule.timesteps)
        views = views_at(block_state.noise.numbers, i, steps) if block_state.equivariant else None
        gradient = needs_gradient(block_state.schedule)
        with torch.set_grad_enabled(gradient):
            block_state.sample = block_state.sample.detach().requires_grad_(gradient)
            block_state.model_output = block_state.predict(
                block_state.sample, t, views=views, on_windows=block_state.on_windows
            )
        return components, block_state


class DDRMJPEGLoopCorrection(ModularPipelineBlocks):
    """In the loop: the correction by the measurement; the block to put another one in place of."""

    model_name = "ddrm-jpeg"

    @property
    def description(self) -> str:
        return "Within the denoising loop: how the step corrects the denoised picture by the measurement."

    @property
    def inputs(self) -> list[InputParam]:
        return [_SCHEDULE, InputParam("correct", Correction, required=True, description="The rule named `correction`.")]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("step_options", dict, "Arguments of the scheduler's step: `project`, a callable x0 -> x0'.")
        ]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        block_state.step_options = block_state.correct.options(block_state.schedule, t)
        return components, block_state


class DDRMJPEGLoopStep(ModularPipelineBlocks):
    """In the loop: the scheduler's step."""

    model_name = "ddrm-jpeg"

    @property
    def description(self) -> str:
        return "Within the denoising loop: the next state, mixed by the scheduler."

    @property
    def inputs(self) -> list[InputParam]:
        return [
            _SCHEDULE,
            _SAMPLE,
            _NOISE,
            InputParam("model_output", torch.Tensor, required=True, description="What the prior predicts."),
            InputParam("step_options", dict, required=True, description="More arguments of the scheduler's step."),
            InputParam("eta", float, description="Weight of fresh against predicted noise, 0 to 1."),
            InputParam("eta_b", float, description="Weight of the corrected picture, 0 to 1."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("sample", torch.Tensor, "The next state, after the last step a sample of the picture.")]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        etas = {name: block_state[name] for name in ("eta", "eta_b") if block_state[name] is not None}
        with torch.set_grad_enabled(needs_gradient(block_state.schedule)):
            sample, _ = block_state.schedule.step(
                block_state.model_output,
                t,
                block_state.sample,
                noise=block_state.noise.step,
                return_dict=False,
                **block_state.step_options | etas,
            )
        block_state.sample = sample.detach()
        return components, block_state


class DDRMJPEGDenoiseStep(LoopSequentialPipelineBlocks):
    """The sampler of the paper (section 3), once for each pass."""

    model_name = "ddrm-jpeg"
    block_classes: ClassVar = [DDRMJPEGLoopPrior, DDRMJPEGLoopCorrection, DDRMJPEGLoopStep]
    block_names: ClassVar = ["prior", "correction", "step"]

    @property
    def description(self) -> str:
        return "Denoising loop: at every timestep the prior proposes, the measurement corrects, the scheduler mixes."

    @property
    def loop_expected_configs(self) -> list[ConfigSpec]:
        return [ConfigSpec("denoiser_error", None, "How far the prior is off by noise level and frequency.")]

    @property
    def loop_inputs(self) -> list[InputParam]:
        return [
            _OBSERVATION,
            _SCHEDULE,
            InputParam("passes", list[Noise], required=True, description="The noise of the samples, by passes."),
            InputParam("windows", int, required=True, description="Windows that the prior sees in all."),
            InputParam("correction", str, "ddrm", description='"ddrm" (the paper\'s), "nearest" or "posterior".'),
            InputParam("error_scale", float, 1.0, description='For "posterior": factor of the denoiser\'s error.'),
            InputParam(
                "noise_accounting",
                bool,
                True,
                description='For "posterior": whether what it leaves open counts as noise.',
            ),
            InputParam("sharpness", float, 0.0, description="From the mean of the samples, 0, to most texture, 1."),
            InputParam.template("generator"),
            InputParam("consistent", bool, False, description="Whether samples are projected onto the measurement."),
            InputParam.template("output_type"),
        ]

    @property
    def loop_intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("collected", Samples, "The samples, their mean and their spread."),
            OutputParam("final_error", torch.Tensor, "The prior's, for what is expected of the picture."),
        ]

    @property
    def inputs(self) -> list[InputParam]:
        made_in_the_loop = ("sample", "noise", "correct", "model_output", "step_options")
        return [one for one in self._get_inputs() if one.name not in made_in_the_loop]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        fractions = {name: block_state[name] for name in ("eta", "eta_b", "sharpness")}
        check_numbers({}, fractions, {"error_scale": block_state.error_scale})
        check_choice("correction", block_state.correction, CORRECTIONS)
        check_choice("output_type", block_state.output_type, OUTPUT_TYPES)
        etas = [name for name in ("eta", "eta_b") if block_state[name] is not None]
        needed = step_arguments(block_state.correction, block_state.noise_accounting)
        check_step(block_state.schedule, [*etas, *needed])
        check_sharpness(block_state.schedule, block_state.sharpness)
        seen, schedule, rule = block_state.observation, block_state.schedule, block_state.correction
        error = error_from_config(components.config.denoiser_error)
        shape = seen.operator.decode(seen.y).shape
        block_state.collected = Samples(seen, block_state.output_type, block_state.consistent)
        with self.progress_bar(total=block_state.windows) as progress:
            block_state.on_windows = progress.update
            for noise in block_state.passes:
                block_state.noise = noise
                block_state.correct = Correction(
                    seen, rule, error, block_state.error_scale, block_state.noise_accounting
                )
                block_state.sample = first_state(schedule, block_state.correct, noise)
                for i, t in enumerate(schedule.timesteps):
                    components, block_state = self.loop_step(components, block_state, i=i, t=t)
                for one in block_state.sample.split(shape[0]):
                    block_state.collected.add(one)
        if block_state.sharpness:
            std = error.at(schedule.noise_to_signal(schedule.timesteps[-1]))
            noise = Noise(block_state.generator, shape, 1.0, components._execution_device)
            block_state.collected.sharpen(std, noise.start(), block_state.sharpness)
        block_state.final_error = final_error(seen, error)
        self.set_block_state(state, block_state)
        return components, state


class DDRMJPEGOutputStep(ModularPipelineBlocks):
    """Presents what was made."""

    model_name = "ddrm-jpeg"

    @property
    def description(self) -> str:
        return "The mean of the samples as a picture, with their spread and how far it agrees with the measurement."

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("collected", Samples, required=True, description="The samples, their mean and their spread."),
            InputParam(
                "final_error",
                torch.Tensor,
                required=True,
                description="The prior's, for what is expected of the picture.",
            ),
            InputParam.template("output_type"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam(
                "images",
                list[Image.Image] | np.ndarray | torch.Tensor,
                "The restored picture, or pictures of a batch: PIL images, or values in [0, 1].",
            ),
            OutputParam("samples", list, "For each picture the list of its samples."),
            OutputParam("std", list, "For each picture the standard deviation of its samples."),
            OutputParam("expected_error", list, "For each picture how far it is likely to be off, pixel by pixel."),
            OutputParam("consistency", list[float], "Share of the measured values that the picture keeps."),
            OutputParam("consistency_8bit", list[float], "The same after rounding to 8 bits."),
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        output = gather(block_state.collected.finish(block_state.final_error), block_state.output_type)
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

    @property
    def description(self) -> str:
        return "Restores a JPEG file with an unconditional diffusion prior; the file says what its compression kept."

    @property
    def outputs(self) -> list[OutputParam]:
        return self.sub_blocks["output"].intermediate_outputs
