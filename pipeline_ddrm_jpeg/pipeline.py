"""The conversation between a diffusion prior, a scheduler and the measurement of a JPEG file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Generator as Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from PIL import Image

from .decoded.history import JPEGHistory
from .decoded.opening import Source
from .degradations.operator import Operator
from .hub import PublishedPipeline
from .priors import EMBEDDED, align, load_prior, origin_of
from .sampling.classification import classifier_for
from .sampling.cmyk import by_separations
from .sampling.denoiser_error import error_from_config
from .sampling.observation import observe, opened
from .sampling.samples import OUTPUT_TYPES, PIXELS_IN_A_PASS, DDRMJPEGPipelineOutput, Generator, check_choice, gather
from .sampling.scheduling_ddrm import needs_gradient, of_protocol
from .sampling.session import Session, Step, chosen, in_step
from .sampling.settings import Settings, moved_arguments
from .sampling.tiling import State, TiledPipeline, count_windows, labels_for, predict_together


class DDRMJPEGPipeline(PublishedPipeline, TiledPipeline, DiffusionPipeline):
    """Restores JPEG files with an unconditional diffusion prior (Kawar, Song, Ermon, Elad, 2022).

    The prior proposes a clean image, the coefficients of the file correct it, the scheduler mixes the two; the
    file is all the pipeline is told about the degradation.

    Args:
        unet: a pixel-space prior that predicts on RGB in [-1, 1], with three or six (learned variance) channels out.
        scheduler: a `DDRMScheduler`, a `PiGDMScheduler`, or another that follows their protocol
            (docs/architecture.md). That of a prior of the DDPM kind is converted by its config.
        denoiser_error: how far the prior is off by noise level and frequency, as `DenoiserError.to_config` writes it;
            by default what another pipeline with this very `unet` has, else that of Wiener's filter.

    Raises:
        ValueError: for a part that is `None`, a prior that does not take RGB, or a scheduler of another kind.

    Example:
        >>> from pipeline_ddrm_jpeg import DDRMJPEGPipeline
        >>> pipe = DDRMJPEGPipeline.from_embedded()
        >>> pipe("photo.jpg", num_samples=4).images[0].save("photo.png")
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs: ClassVar = ["sample", "pred_original_sample", "preview"]
    pixels_in_a_pass: int = PIXELS_IN_A_PASS
    """Samples of one image share a pass while their states have at most this many pixels together."""

    def __init__(self, unet: UNet2DModel, scheduler: Any, denoiser_error: dict[str, Any] | None = None) -> None:
        super().__init__()
        for name, part in (("unet", unet), ("scheduler", scheduler)):
            if part is None:
                raise ValueError(f"{name} is None; this pipeline needs one")
        if unet.config.in_channels != 3:
            raise ValueError(f"this prior takes {unet.config.in_channels} channels; it must take the 3 of RGB images")
        align(unet)
        origin_of(unet)  # while a relative path still leads there
        self.register_modules(unet=unet, scheduler=of_protocol(scheduler))
        unet.denoiser_error = denoiser_error = denoiser_error or getattr(unet, "denoiser_error", None)
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
            prior: a folder, or the id or page of a Hub repo (which is downloaded), with `unet/` and `scheduler/`.
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
        """Steps of a sample of the image at hand."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether to stop: a callback that sets `pipe._interrupt = True` ends the sampling after its step."""
        return self._interrupt

    def settings_for(
        self, preset: str | None = None, settings: Settings | Mapping[str, Any] | None = None, **single: Any
    ) -> Settings:
        """The settings that a call with these arguments has, see `sampling.session.chosen`."""
        return chosen(self.scheduler, preset, settings, single)

    def check_inputs(
        self,
        image: Any,
        file: Any,
        generator: Generator,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raise `ValueError` or `TypeError` for arguments of `__call__` that do not fit."""
        check_choice("output_type", output_type, OUTPUT_TYPES)
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {sorted(unknown)}; possible are {self._callback_tensor_inputs}"
            )
        if image is not None and file is not None:
            raise ValueError("give either image or file, not both")
        sources = next((one for one in (image, file) if isinstance(one, list)), [image])
        if not sources:
            raise ValueError("the list of images is empty")
        given = generator if isinstance(generator, list) else [generator]
        if not all(one is None or isinstance(one, torch.Generator) for one in given):
            raise TypeError("generator must be a torch.Generator, or a list with one for each image")
        if isinstance(generator, list) and len(sources) > 1 and len(generator) != len(sources):
            raise ValueError(f"got {len(generator)} generators for {len(sources)} images")

    @torch.no_grad()
    def __call__(
        self,
        image: Source | Image.Image | torch.Tensor | list | None = None,
        operator: Operator | None = None,
        preset: str | None = None,
        num_inference_steps: int | None = None,
        num_samples: int | None = None,
        sharpness: float | None = None,
        settings: Settings | Mapping[str, Any] | None = None,
        generator: Generator = None,
        class_labels: int | Sequence[int] | str | None = None,
        classifier: str | os.PathLike | None = None,
        measurement: Any = None,
        size: tuple[int, int] | None = None,
        history: str | JPEGHistory | None = None,
        file: Source | list | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("sample",),
        **moved: Any,
    ) -> DDRMJPEGPipelineOutput | tuple:
        """Restore one JPEG file or several.

        Args:
            image: a path, bytes, a binary file object or a `JPEGFile`, or a list of those; CMYK files come out as RGB.
                With `operator`: a clean image instead, whose measurement `operator.encode(image)` is then restored: a
                path, bytes, a PIL image, a tensor `[B, 3, H, W]` or `[3, H, W]` in [-1, 1], or a list of those.
            operator: the degradation, where `image` is not a JPEG file that says so itself.
            preset: a name in `PRESETS`; by default `"balanced"`. `"paper"` and `"paper-average"` are the paper's.
            num_inference_steps: network evaluations in a sample, instead of the preset's.
            num_samples: samples to average, instead of the preset's.
            sharpness: from 0, the mean of the samples, nearest to the original in PSNR, to 1, most like a photograph:
                texture that the mean lacks is expanded, and noise added. No further evaluation is needed.
            settings: `Settings` instead of a preset, or a dict of single ones that change it.
            generator: source of all noise, float32: one draw for the start, then one a step. With several samples
                it serves the first, and a copy of it seeds the others. For a list of images it serves one after
                the other; a list of generators serves one image each, so that several can be restored at once.
            class_labels: class of each image, or one for all, where the prior is class-conditional. `"auto"`: as an
                image classifier of `transformers` tells it of what the file decodes to.
            classifier: for `class_labels="auto"`, folder or Hub id of the classifier, which must know the prior's
                classes in their order; by default a ResNet-50 of ImageNet, which is downloaded (`CLASSIFIER`).
            measurement: with `operator` and instead of `image`, what it measured, with a batch axis first.
            size: with `measurement`, height and width of the image; by default all of what it decodes to.
            history: for images that were a JPEG, whose file is gone (a path, bytes, a PIL image, or a list of those):
                `"estimate"`, or a `JPEGHistory`. A JPEG is taken for the earlier, coarser one that it shows.
            file: another name of `image`, for `diffusers-cli run`, which would decode what is called `image`.
            output_type: `"pil"`, `"np"` or `"pt"`.
            return_dict: whether to return a `DDRMJPEGPipelineOutput` or the tuple `(images,)`.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after every step; `sample` and
                `pred_original_sample` in the dict it returns replace the pipeline's: the state moves by what was
                changed of the latter. Or a `PipelineCallback` of diffusers.
            callback_on_step_end_tensor_inputs: which it is given of `"sample"`, `"pred_original_sample"`, and
                `"preview"`, the latter cropped and tinted as the result will be, in [0, 1].
            **moved: single settings, and windows: arguments of the version before, for one release.

        Returns:
            The images in the orientation of the file as stored; PIL images carry its EXIF and ICC data in `info`.
            Transparency is not in them: `DecodedJPEG.put_back` adds it.

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
        self.check_inputs(image, file, generator, output_type, wanted)
        moved, windows = moved_arguments(moved)
        tiling = replace(self.tiling, **windows)
        single = {"num_inference_steps": num_inference_steps, "num_samples": num_samples, "sharpness": sharpness}
        single = moved | {name: value for name, value in single.items() if value is not None}
        own_settings = self.settings_for(preset, settings, **single)
        image = file if image is None else image
        sources = image if isinstance(image, list) else [image]
        device = self._execution_device
        counts = [len(one) if isinstance(one, torch.Tensor) and one.ndim == 4 else 1 for one in sources]
        if image is None and measurement is not None and operator is not None:
            counts = [operator.batch_size(measurement)]
        classify = classifier_for(self.unet, class_labels, classifier)
        labels = None if classify else labels_for(self.unet, class_labels, sum(counts), device)
        windows = tiling.options(self.unet, device)
        count = partial(count_windows, self.unet, **windows)
        self._interrupt = False

        # 2. The sampler, for one image: where it yields, the prior is asked.
        def sampled(
            source: Any, output_type: str, own_labels: torch.Tensor | None, own: Generator
        ) -> Coroutine[State, None, list[dict[str, Any]]]:
            seen = observe(source, operator, measurement, size, device)
            del source  # a file has what the observation has
            own_labels = classify(seen).to(device) if classify else own_labels
            session = Session(
                seen,
                self.scheduler,
                self._error,
                own_settings,
                own,
                output_type,
                device,
                own_labels,
                self.pixels_in_a_pass,
            )
            progress.total += session.states * count(*session.shape[-2:])
            progress.refresh()
            for step in session:
                state = step.state()
                yield state
                step.advance(state)
                self._end_step(step, callback_on_step_end, wanted)
            return session.finish()

        def restored(source: Any, own_labels: torch.Tensor | None, own: Generator) -> Coroutine:
            source = opened(source, operator, measurement, size, history)
            return by_separations(source, partial(sampled, own_labels=own_labels, own=own), output_type)

        # 3. One image after the other; but as many at once as it takes to fill a call of the prior, if none needs noise
        # that another draws, nor a gradient.
        generators = generator if isinstance(generator, list) and len(sources) > 1 else [generator] * len(sources)
        several = len({id(one) for one in generators}) == len(sources) and not needs_gradient(self.scheduler)
        each = zip(sources, [None] * len(sources) if labels is None else labels.split(counts), generators, strict=True)
        with self.progress_bar(total=0) as progress:
            ask = partial(predict_together, self.unet, **windows, on_windows=progress.update, dtype=self.unet.dtype)
            finished = in_step((restored(*one) for one in each), ask, count, windows["batch_size"] if several else 1)
        self.maybe_free_model_hooks()
        output = gather([fields for one in finished for fields in one], output_type)
        return output if return_dict else (output.images,)

    def _end_step(self, step: Step, callback: Callable | None, wanted: Sequence[str]) -> None:
        """Call back, and end the sampling if the callback says so."""
        self._num_timesteps = len(step.session.schedule.timesteps)
        if callback is not None:
            tensors = {name: getattr(step, "denoised" if name == "pred_original_sample" else name) for name in wanted}
            returned = callback(self, step.i, step.timestep, tensors) or {}
            step.sample = returned.get("sample", step.sample).to(step.sample)
            if "pred_original_sample" in returned:
                step.replace_denoised(returned["pred_original_sample"].to(step.denoised))
        if self.interrupt:
            step.sample, step.is_last = step.denoised, True
        step.denoised = None  # of a large image few copies fit into memory
