"""The conversation between a diffusion prior, a scheduler and the measurement of a JPEG file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Generator as Coroutine
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from PIL import Image

from .classification import classifier_for
from .corrections import CORRECTIONS, Correction, check_sharpness, final_error, first_state, step_arguments
from .decoded_coefficients import DecodedCoefficients  # noqa: F401  for the Hub
from .decoded_jpeg import DecodedJPEG  # noqa: F401  for the Hub
from .denoiser_error import error_from_config
from .history_estimation import estimate_history  # noqa: F401  for the Hub
from .hub import PublishedPipeline
from .inks import by_separations
from .inputs import observe, opened
from .jpeg_detection import detect  # noqa: F401  for the Hub
from .jpeg_entropy import decode_scans  # noqa: F401  others need it; the Hub copies only what is named here
from .jpeg_file import JPEGFile  # noqa: F401  for the Hub
from .jpeg_history import JPEGHistory
from .jpeg_markers import JPEGFileError  # noqa: F401  for the Hub
from .jpeg_operator import JPEGOperator  # noqa: F401  for the Hub
from .jpeg_planes import planes_of  # noqa: F401  for the Hub
from .jpeg_reader import read_coefficients  # noqa: F401  for the Hub
from .jpeg_tables import quality_tables  # noqa: F401  for the Hub
from .metadata import Metadata  # noqa: F401  for the Hub
from .modular_blocks import DDRMJPEGBlocks  # noqa: F401  for the Hub
from .opening import Source
from .operators import Operator
from .posterior import truncated_normal  # noqa: F401  for the Hub
from .priors import EMBEDDED, align, load_prior, origin_of
from .samples import (
    OUTPUT_TYPES,
    DDRMJPEGPipelineOutput,
    Generator,
    Noise,
    Samples,
    check_choice,
    check_numbers,
    gather,
    passes,
)
from .scheduling_ddrm import check_step, needs_gradient, of_protocol, scheduled
from .scheduling_pigdm import PiGDMScheduler  # noqa: F401  for the Hub
from .tiling import State, count_windows, labels_for, predict_together, views_at, window_options


class DDRMJPEGPipeline(PublishedPipeline, DiffusionPipeline):
    """Restores JPEG files with an unconditional diffusion prior (Kawar, Song, Ermon, Elad, 2022).

    The prior proposes a clean picture, the coefficients of the file correct it, the scheduler mixes the two; the
    file is all the pipeline is told about the degradation.

    Args:
        unet: a pixel-space prior that predicts on RGB in [-1, 1], with three or six (learned variance) channels out.
        scheduler: a `DDRMScheduler`, a `PiGDMScheduler`, or another that follows their protocol
            (docs/architecture.md). That of a prior of the DDPM kind is converted by its config.
        denoiser_error: how far the prior is off by noise level and frequency, as `DenoiserError.to_config` writes it;
            by default that of Wiener's filter is taken.

    Raises:
        ValueError: for a prior that does not take RGB, or a scheduler of another kind.

    Example:
        >>> from pipeline_ddrm_jpeg import DDRMJPEGPipeline
        >>> pipe = DDRMJPEGPipeline.from_embedded()
        >>> pipe("photo.jpg", num_samples=4).images[0].save("photo.png")
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs: ClassVar = ["sample", "pred_original_sample"]

    def __init__(self, unet: UNet2DModel, scheduler: Any, denoiser_error: dict[str, Any] | None = None) -> None:
        super().__init__()
        if unet.config.in_channels != 3:
            raise ValueError(f"this prior takes {unet.config.in_channels} channels; it must take the 3 of RGB pictures")
        align(unet)
        origin_of(unet)  # while a relative path still leads there
        self.register_modules(unet=unet, scheduler=of_protocol(scheduler))
        self.register_to_config(denoiser_error=denoiser_error)
        self._error = error_from_config(denoiser_error)
        self._num_timesteps, self._interrupt = 0, False

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, of_protocol(value) if name == "scheduler" else value)

    @classmethod
    def from_embedded(cls, dtype: torch.dtype | str = "auto") -> DDRMJPEGPipeline:
        """The pipeline with the small prior that is part of this package; nothing is downloaded.

        Args:
            dtype: what the network computes in; `"auto"`: see `fastest_dtype`. The sampler itself stays in float32.
        """
        if not EMBEDDED.is_dir():
            raise FileNotFoundError(
                "the embedded prior is not beside this module; install the package, or use from_pretrained"
            )
        return cls.from_prior(EMBEDDED, dtype=dtype)

    @classmethod
    def from_prior(cls, prior: str | os.PathLike, dtype: torch.dtype | str = "auto", **kwargs: Any) -> DDRMJPEGPipeline:
        """The pipeline with the UNet and the noise schedule of a folder or Hub repo in the layout of a pipeline.

        Args:
            prior: a folder, or the id of a Hub repo (which is downloaded), with `unet/` and `scheduler/`.
            dtype: what the network computes in; `"auto"`: see `fastest_dtype`. The sampler itself stays in float32.
            **kwargs: passed on to `from_pretrained` of the two: `revision`, `token`, `cache_dir`, ...

        Raises:
            OSError: if there is no such folder or repo, or a part of it is missing.
            ValueError: for a dtype that is none, or a scheduler of another kind.
        """
        components = load_prior(prior, kwargs.pop("torch_dtype", dtype), **kwargs)  # diffusers' older keyword
        return cls(**components)

    @property
    def num_timesteps(self) -> int:
        """Steps of a sample of the picture at hand."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether to stop: a callback that sets `pipe._interrupt = True` ends the sampling after its step."""
        return self._interrupt

    def check_inputs(
        self,
        num_samples: int,
        correction: str,
        output_type: str,
        fractions: dict[str, float | None],
        sizes: dict[str, int | None],
        callback_on_step_end_tensor_inputs: Sequence[str],
        error_scale: float = 1.0,
    ) -> None:
        """Raise `ValueError` for an argument of `__call__` that is out of range.

        Args:
            num_samples: at least 1.
            correction: one of `CORRECTIONS`.
            output_type: `"pil"`, `"np"` or `"pt"`.
            fractions: arguments between 0 and 1, by name.
            sizes: arguments that are whole numbers of at least 1, by name.
            callback_on_step_end_tensor_inputs: among those that there are.
            error_scale: above 0.
        """
        check_numbers({"num_samples": num_samples, **sizes}, fractions, {"error_scale": error_scale})
        check_choice("correction", correction, CORRECTIONS)
        check_choice("output_type", output_type, OUTPUT_TYPES)
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {sorted(unknown)}; possible are {self._callback_tensor_inputs}"
            )

    @torch.no_grad()
    def __call__(
        self,
        image: Source | Image.Image | torch.Tensor | list | None = None,
        operator: Operator | None = None,
        num_inference_steps: int = 20,
        init_timestep: int | str | None = None,
        timestep_spacing: str | None = None,
        eta: float | None = None,
        eta_b: float | None = None,
        temperature: float = 1.0,
        num_samples: int = 1,
        antithetic: bool = False,
        equivariant: bool = False,
        correction: str = "ddrm",
        error_scale: float = 1.0,
        noise_accounting: bool = True,
        sharpness: float = 0.0,
        consistent: bool = False,
        generator: Generator = None,
        class_labels: int | Sequence[int] | str | None = None,
        window_size: int | None = None,
        window_overlap: int | None = None,
        window_batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("sample",),
        measurement: Any = None,
        size: tuple[int, int] | None = None,
        file: Source | list | None = None,
        classifier: str | os.PathLike | None = None,
        history: str | JPEGHistory | None = None,
    ) -> DDRMJPEGPipelineOutput | tuple:
        """Restore one JPEG file or several. The defaults are the paper's.

        Args:
            image: a path, bytes, a binary file object or a `JPEGFile`, or a list of those; files of four inks come
                out as RGB, by two pictures that take their steps one after the other. With `operator`: a picture
                instead, whose measurement `operator.encode(picture)` is then restored: a path, bytes,
                a PIL image, a tensor `[B, 3, H, W]` or `[3, H, W]` in [-1, 1], or a list of those.
            operator: the degradation, where `image` is not a JPEG file that says so itself.
            num_inference_steps: network evaluations in a sample, 1..`init_timestep`. A single one wants
                `temperature=1`, whatever a preset has.
            init_timestep: where sampling starts; the scheduler's (the paper's 300) unless given. `"auto"`: by how
                coarse the quantization tables of a file are, or what the operator says of itself.
            timestep_spacing: `"leading"` (the paper's), `"trailing"`, `"linspace"` or `"log"`; the scheduler's unless
                given.
            eta: weight of fresh against predicted noise, 0 to 1; the scheduler's (1.0) unless given.
            eta_b: weight of the corrected picture, 0 to 1; the scheduler's (0.4) unless given, or 1 with the correction
                `"posterior"`. With less than 1 a sample need not agree with the file exactly.
            temperature: scale of all noise, 0 to 1; 1 is the paper's. With less, samples are nearer to their mean.
            num_samples: samples to average; 1 is the paper's "(S)", 8 its "(A)".
            antithetic: whether every second sample has the noise of the one before with its sign changed, which makes
                the average of few samples better; otherwise they are independent.
            equivariant: whether every step of every sample shows the prior another of the eight flips and rotations of
                the picture, so that its errors do not add up (Terris et al., 2024, arXiv:2312.01831).
            correction: `"ddrm"`, the paper's (`x - decode(encode(x)) + decode(y)`); `"nearest"`, clamp to the measured
                bins; or `"posterior"`, the mean of a Gaussian around the denoised picture, truncated to the bins.
            error_scale: for `"posterior"`, factor of the denoiser's error: errors of a network repeat from step to
                step, so that in the end they are larger than those of one evaluation.
            noise_accounting: for `"posterior"`, whether the variance that a corrected picture has left counts as noise,
                so that a step adds only the rest.
            sharpness: where the result stands between distortion and perception, 0 to 1: 0 is the mean of the samples,
                nearest to the original in PSNR; with more it gets back texture that the mean lacks, by expanding what
                it has of it and by noise; 1 looks more like a photograph (LPIPS), but not for fine files (at
                quality factor 92 LPIPS is least with 0). No further evaluation is needed.
            consistent: project the samples onto the measurement: every coefficient then lies in the bin that the file
                gives. Values lie in [0, 1] as well, unless no such picture was found (files of saturated noise or
                graphics, mostly): then float values overshoot.
            generator: source of all noise, float32: one draw for the start, then one a step. With several samples
                it serves the first, and a copy of it seeds the others. For a list of pictures it serves one after
                the other; a list of generators serves one picture each, so that several can be restored at once.
            class_labels: class of each picture, or one for all, where the prior is class-conditional. `"auto"`: as an
                image classifier of `transformers` tells it of the picture that the file decodes to.
            window_size: the prior sees the picture through windows of this many pixels; by default its own size,
                but at least 256, or 384 for a prior without attention.
            window_overlap: pixels that neighbouring windows share; by default 64, or a quarter of a smaller window.
            window_batch_size: windows in one call of the prior, also of several pictures that have a generator each;
                by default one on a CPU, and as many as half of the free memory holds on a CUDA device.
            output_type: `"pil"`, `"np"` or `"pt"`.
            return_dict: whether to return a `DDRMJPEGPipelineOutput` or the tuple `(images,)`.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after every step; tensors
                in the dict it returns replace the pipeline's. Or a `PipelineCallback` of diffusers.
            callback_on_step_end_tensor_inputs: which of `"sample"` and `"pred_original_sample"` it is given.
            measurement: with `operator` and instead of `image`, what it measured, with a batch axis first.
            size: with `measurement`, height and width of the picture; by default all of what it decodes to.
            history: for pictures that were a JPEG, whose file is gone (a path, bytes, a PIL image, or a list of those):
                `"estimate"`, or a `JPEGHistory`. A JPEG is taken for the earlier, coarser one that it shows.
            file: another name of `image`, for `diffusers-cli run`, which would decode what is called `image`.
            classifier: for `class_labels="auto"`, folder or Hub id of the classifier, which must know the prior's
                classes in their order; by default a ResNet-50 of ImageNet, which is downloaded (`CLASSIFIER`).

        Returns:
            The pictures in the orientation of the file as stored; PIL images carry its EXIF and ICC data in `info`.

        Raises:
            JPEGFileError: if a file is not a JPEG that can be restored.
            ValueError, TypeError: for arguments that do not fit.
            OSError: if a path cannot be read, or the classifier cannot be loaded.
            ImportError: for `class_labels="auto"` without `transformers`.
            FloatingPointError: where a step gives what is no number, as weights do that overflow.
        """
        # 1. Check the arguments.
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        wanted = callback_on_step_end_tensor_inputs or ()
        self.check_inputs(
            num_samples,
            correction,
            output_type,
            {"eta": eta, "eta_b": eta_b, "temperature": temperature, "sharpness": sharpness},
            {"window_size": window_size, "window_batch_size": window_batch_size},
            wanted,
            error_scale,
        )
        if image is not None and file is not None:
            raise ValueError("give either image or file, not both")
        image = file if image is None else image
        sources = image if isinstance(image, list) else [image]
        if not sources:
            raise ValueError("the list of pictures is empty")
        given = generator if isinstance(generator, list) else [generator]
        if not all(one is None or isinstance(one, torch.Generator) for one in given):
            raise TypeError("generator must be a torch.Generator, or a list with one for each picture")
        if isinstance(generator, list) and len(sources) > 1 and len(generator) != len(sources):
            raise ValueError(f"got {len(generator)} generators for {len(sources)} pictures")
        counts = [len(one) if isinstance(one, torch.Tensor) and one.ndim == 4 else 1 for one in sources]
        if image is None and measurement is not None and operator is not None:
            counts = [operator.batch_size(measurement)]
        device = self._execution_device
        classify = classifier_for(self.unet, class_labels, classifier)
        labels = None if classify else labels_for(self.unet, class_labels, sum(counts), device)

        # 2. Prepare what all pictures share.
        etas = {name: value for name, value in (("eta", eta), ("eta_b", eta_b)) if value is not None}
        check_sharpness(self.scheduler, sharpness)
        check_step(self.scheduler, [*etas, *step_arguments(correction, noise_accounting)])
        windows = window_options(self.unet, window_size, window_overlap, window_batch_size, device)
        self._interrupt = False

        def on_step(i: int, t: torch.Tensor, tensors: dict[str, torch.Tensor], steps: int) -> torch.Tensor:
            self._num_timesteps = steps
            if callback_on_step_end is None:
                return tensors["sample"]
            changed = callback_on_step_end(self, i, t, {name: tensors[name] for name in wanted}) or {}
            return changed.get("sample", tensors["sample"])

        # 3. Each picture: its measurement, its samples, their mean. The prior is asked by yielding a state.
        def sampled(
            source: Any, output_type: str, own_labels: torch.Tensor | None, own: Generator
        ) -> Coroutine[State, None, list[dict[str, Any]]]:
            seen = observe(source, operator, measurement, size, device)
            del source  # a file has what the observation has
            scheduler = scheduled(
                self.scheduler, num_inference_steps, init_timestep, timestep_spacing, seen.operator.uncertainty()
            )
            shape, timesteps = seen.operator.decode(seen.y).shape, scheduler.timesteps.tolist()
            progress.total += shape[0] * num_samples * len(timesteps) * count_windows(self.unet, *shape[-2:], **windows)
            progress.refresh()
            own_labels = classify(seen).to(device) if classify else own_labels
            samples = Samples(seen, output_type, consistent)
            for noise in passes(own, num_samples, antithetic, temperature, shape, device):
                correct = Correction(seen, correction, self._error, error_scale, noise_accounting)
                sample = yield from self._sample(scheduler, own_labels, correct, noise, etas, equivariant, on_step)
                for one in sample.split(shape[0]):
                    samples.add(one)
                del sample, one  # while the next are made, that memory is needed
            if sharpness:
                std = self._error.at(scheduler.noise_to_signal(scheduler.timesteps[-1]))
                samples.sharpen(std, Noise(own, shape, 1.0, device).start(), sharpness)
            return [fields | {"timesteps": timesteps} for fields in samples.finish(final_error(seen, self._error))]

        def restored(source: Any, own_labels: torch.Tensor | None, own: Generator) -> Coroutine:
            source = opened(source, operator, measurement, size, history)
            return by_separations(source, partial(sampled, own_labels=own_labels, own=own), output_type)

        # 4. One after the other; but as many at once as it takes to fill a call of the prior, if none needs random
        # numbers that another draws, nor a gradient.
        generators = generator if isinstance(generator, list) and len(sources) > 1 else [generator] * len(sources)
        several = len({id(one) for one in generators}) == len(sources) and not needs_gradient(self.scheduler)
        most = windows["batch_size"] if several else 1
        each = zip(sources, [None] * len(sources) if labels is None else labels.split(counts), generators, strict=True)
        with self.progress_bar(total=0) as progress:
            ask = partial(predict_together, self.unet, **windows, on_windows=progress.update, dtype=self.unet.dtype)
            count = partial(count_windows, self.unet, **windows)
            finished = _in_step((restored(*one) for one in each), ask, count, most)
        self.maybe_free_model_hooks()

        # 5. Gather.
        output = gather([fields for picture in finished for fields in picture], output_type)
        return output if return_dict else (output.images,)

    def _sample(
        self,
        scheduler: Any,
        labels: torch.Tensor | None,
        correct: Correction,
        noise: Noise,
        etas: dict[str, float],
        equivariant: bool,
        on_step: Callable[[int, torch.Tensor, dict[str, torch.Tensor], int], torch.Tensor],
    ) -> Coroutine[State, None, torch.Tensor]:
        """The sampler of the paper (section 3): from `decode(y)`, noised to the first timestep, to `x_0`.

        Yields states, to be given what the prior says of them.
        """
        options = {"noise": noise.step, "return_dict": False, **etas}
        sample = first_state(scheduler, correct, noise)
        steps, gradient = len(scheduler.timesteps), needs_gradient(scheduler)
        for i, t in enumerate(scheduler.timesteps):
            sample = sample.detach().requires_grad_(gradient)
            state = State(sample, t, labels, views_at(noise.numbers, i, steps) if equivariant else None)
            yield state
            step = partial(scheduler.step, **correct.options(scheduler, t) | options)
            with torch.set_grad_enabled(gradient):
                # What the prior predicts has no name here, so that the scheduler can let go of it.
                sample, pred_original_sample = step(state.take(), t, sample)
            sample, pred_original_sample = sample.detach(), pred_original_sample.detach()
            sample = on_step(i, t, {"sample": sample, "pred_original_sample": pred_original_sample}, steps)
            if self.interrupt:
                return pred_original_sample
            del pred_original_sample
        return sample


def _in_step(
    pictures: Iterable[Coroutine[State, None, Any]],
    predict: Callable[[list[State]], None],
    count: Callable[[int, int], int],
    most: int,
) -> list[Any]:
    """What generators return that yield states for the prior, in their order.

    Args:
        pictures: the generators; one is begun while the states of those that are have fewer than `most` windows.
        predict: gives states their output.
        count: the windows of a state, by its height and width.
        most: windows.
    """
    following, asking, finished = enumerate(pictures), {}, {}

    def go_on(index: int, picture: Coroutine[State, None, Any]) -> None:
        asking.pop(index, None)
        try:
            asking[index] = picture, next(picture)
        except StopIteration as end:
            finished[index] = end.value

    def windows() -> int:
        return sum(len(state.sample) * count(*state.sample.shape[-2:]) for _, state in asking.values())

    while True:
        while (not asking or windows() < most) and (one := next(following, None)):
            go_on(*one)
        if not asking:
            return [finished[index] for index in sorted(finished)]
        with torch.set_grad_enabled(any(state.sample.requires_grad for _, state in asking.values())):
            predict([state for _, state in asking.values()])
        for index, (picture, _) in list(asking.items()):
            go_on(index, picture)
