"""The conversation between a diffusion prior, the DDRM scheduler and the measurement of a JPEG file."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from .entropy_decoding import decode_scans  # noqa: F401  jpeg_file.py needs it; the Hub copies only what is named here
from .hub import complete, upload
from .jpeg_file import JPEGFile
from .operators import JPEGOperator, Operator
from .quantization import quality_tables  # noqa: F401  so does operators.py
from .scheduling_ddrm import DDRMScheduler
from .tiling import count_windows, predict, windows_in_a_call

Source = str | os.PathLike | bytes | IO[bytes] | JPEGFile
Generator = torch.Generator | list[torch.Generator] | None

# Samples of one picture share a pass through the loop while their states have at most this many pixels together.
_PIXELS_IN_A_PASS = 2**22
# Grey levels that the last projections stay inside the measured bins, so that rounding to 8 bits rarely leaves them;
# less and less where that cannot be had together with values in [0, 1].
_ROUNDING_MARGINS = (0.5,) * 8 + (0.25,) * 8 + (0.1,) * 8 + (0.02,) * 16
_OVER_RELAXATION = 1.9
_PATIENCE = 12  # projections without progress
# init_timestep "auto": where the ratio of noise to signal is this many times the root of the operator's uncertainty.
# Chosen with the embedded prior on a few evaluation pictures, by a search that is not in this repository.
_AUTO_INIT = 1.2


@dataclass
class DDRMJPEGPipelineOutput(BaseOutput):
    """Output of `DDRMJPEGPipeline`. Lists have one entry a picture.

    Args:
        images: the restored pictures, the mean of the samples of each: PIL images (mode L for a greyscale file),
            or, for `output_type` `"np"` and `"pt"`, float32 values in [0, 1], `[B, H, W, C]` or `[B, C, H, W]`;
            a list of arrays where sizes differ.
        samples: for each picture the list of its samples, in the same form.
        std: for each picture the standard deviation of its samples, `[H, W, C]` or `[C, H, W]` on the scale
            of [0, 1]; zero for a single sample.
        consistency: share of the measured values (the coefficients of the file) that the float32 picture keeps,
            with the padding to whole MCUs that a file has at the right and bottom and that is then cropped away.
        consistency_8bit: the same after rounding to 8 bits.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor | list[np.ndarray] | list[torch.Tensor]
    samples: list | None = None
    std: list | None = None
    consistency: list[float] | None = None
    consistency_8bit: list[float] | None = None


class DDRMJPEGPipeline(DiffusionPipeline):
    """Restores JPEG files with an unconditional diffusion prior (Kawar, Song, Ermon, Elad, 2022).

    The prior proposes a clean picture, the coefficients of the file correct it, the scheduler mixes the two; the
    file is all the pipeline is told about the degradation.

    Args:
        unet: a pixel-space prior that predicts on RGB in [-1, 1], with three or six (learned variance) channels out.
        scheduler: a `DDRMScheduler`; any other scheduler is converted by its config.

    Example:
        >>> from pipeline_ddrm_jpeg import DDRMJPEGPipeline
        >>> pipe = DDRMJPEGPipeline.from_embedded()
        >>> pipe("photo.jpg", num_samples=4).images[0].save("photo.png")
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs: ClassVar = ["sample", "pred_original_sample"]

    def __init__(self, unet: UNet2DModel, scheduler: DDRMScheduler) -> None:
        super().__init__()
        if unet.config.in_channels != 3:
            raise ValueError(f"this prior takes {unet.config.in_channels} channels; it must take the 3 of RGB pictures")
        if not hasattr(scheduler.config, "eta_b"):
            scheduler = DDRMScheduler.from_config(scheduler.config)
        _align(unet)
        self.register_modules(unet=unet, scheduler=scheduler)

    @classmethod
    def from_embedded(cls, dtype: torch.dtype | str = torch.float32) -> DDRMJPEGPipeline:
        """The pipeline with the small prior that is part of this package; nothing is downloaded.

        Args:
            dtype: what the network computes in, or `"auto"`: see `fastest_dtype`.
        """
        folder = Path(__file__).parent / "prior"
        if not folder.is_dir():
            raise FileNotFoundError(
                "the embedded prior is not beside this module; install the package, or use from_pretrained"
            )
        return cls.from_prior(folder, dtype=dtype)

    @classmethod
    def from_prior(
        cls, prior: str | os.PathLike, dtype: torch.dtype | str = torch.float32, **kwargs: Any
    ) -> DDRMJPEGPipeline:
        """The pipeline with the UNet and the noise schedule of a folder or Hub repo in the layout of a pipeline.

        Args:
            prior: a folder, or the id of a Hub repo (which is downloaded), with `unet/` and `scheduler/`.
            dtype: what the network computes in, or `"auto"`: see `fastest_dtype`. The sampler itself stays in float32.
            **kwargs: passed on to `from_pretrained` of the two: `revision`, `token`, `cache_dir`, ...

        Raises:
            OSError: if there is no such folder or repo, or a part of it is missing.
        """
        dtype = fastest_dtype() if dtype == "auto" else dtype
        try:
            unet = _load_unet(prior, subfolder="unet", dtype=dtype, **kwargs)
            config = DDRMScheduler.load_config(prior, subfolder="scheduler", **kwargs)
        except OSError as error:
            try:  # the layout of the first DDPM repos: everything at the root
                unet = _load_unet(prior, dtype=dtype, **kwargs)
                config = DDRMScheduler.load_config(prior, **kwargs)
            except OSError:
                raise error from None
        unet.to(memory_format=torch.channels_last)
        return cls(unet=unet, scheduler=DDRMScheduler.from_config(config))

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write the pipeline as a repo that `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` loads.

        Beside components and code it has a card, a licence and example pictures. The card is that of the repo the
        prior was loaded from (a Hub repo is asked for it), or one that states no more than the prior's licence.

        Args:
            save_directory: folder, made if need be.
            **kwargs: as of `DiffusionPipeline.save_pretrained`, but for `push_to_hub=True`: use the method of that
                name, which uploads what this one writes.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("save_pretrained does not upload; call push_to_hub(repo_id) instead")
        super().save_pretrained(save_directory, **kwargs)
        complete(Path(save_directory), self.unet)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        revision: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Upload what `save_pretrained` writes; returns the address of the repo.

        Args:
            repo_id: `"owner/name"`, made if need be.
            commit_message: of the commit.
            private: whether a repo that is made is private; by default as the owner has it.
            token: of the Hub; by default the one of `hf auth login` or `HF_TOKEN`.
            create_pr: open a pull request instead of committing.
            revision: branch, made if need be.
            **kwargs: passed on to `save_pretrained`: `variant`, ...

        Raises:
            ValueError: for a name that no repo can have, or a prior whose card names no licence.
            OSError: where the Hub refuses or cannot be reached.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            return upload(
                folder, repo_id, private, revision, token=token, commit_message=commit_message, create_pr=create_pr
            )

    def check_inputs(
        self,
        num_samples: int,
        correction: str,
        output_type: str,
        eta: float | None,
        eta_b: float | None,
        temperature: float | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raise `ValueError` for an argument of `__call__` that is out of range."""
        if not isinstance(num_samples, Integral) or num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}; it must be a whole number of at least 1")
        if correction not in ("paper", "nearest"):
            raise ValueError(f'correction is {correction!r}; it must be "paper" or "nearest"')
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'output_type is {output_type!r}; it must be "pil", "np" or "pt"')
        for name, value in (("eta", eta), ("eta_b", eta_b), ("temperature", temperature)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be between 0 and 1")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {sorted(unknown)}; possible are {self._callback_tensor_inputs}"
            )

    @torch.no_grad()
    def __call__(
        self,
        image: Source | Image.Image | torch.Tensor | list,
        operator: Operator | None = None,
        num_inference_steps: int = 20,
        init_timestep: int | str | None = None,
        timestep_spacing: str | None = None,
        eta: float | None = None,
        eta_b: float | None = None,
        temperature: float | None = None,
        num_samples: int = 1,
        antithetic: bool = False,
        correction: str = "paper",
        consistent: bool = False,
        generator: Generator = None,
        class_labels: int | Sequence[int] | None = None,
        window_size: int | None = None,
        window_overlap: int | None = None,
        window_batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
    ) -> DDRMJPEGPipelineOutput | tuple:
        """Restore one JPEG file or several. The defaults are the paper's.

        Args:
            image: a path, bytes, a binary file object or a `JPEGFile`, or a list of those. With `operator`: a
                picture instead, whose measurement `operator.encode(picture)` is then restored: a path, bytes,
                a PIL image, a tensor `[B, 3, H, W]` or `[3, H, W]` in [-1, 1], or a list of those.
            operator: the degradation, where `image` is not a JPEG file that says so itself.
            num_inference_steps: network evaluations in a sample, 1..`init_timestep`.
            init_timestep: where sampling starts; the scheduler's (the paper's 300) unless given. `"auto"`: by how
                coarse the quantization tables of a file are, or what the operator says of itself.
            timestep_spacing: `"leading"` (the paper's) or `"log"`; the scheduler's unless given.
            eta: weight of fresh against predicted noise, 0 to 1; the scheduler's (1.0) unless given.
            eta_b: weight of the corrected picture, 0 to 1; the scheduler's (0.4) unless given. With less than 1 a
                sample need not agree with the file exactly.
            temperature: scale of all noise, 0 to 1; the scheduler's (1.0) unless given.
            num_samples: samples to average; 1 is the paper's "(S)", 8 its "(A)".
            antithetic: whether every second sample has the noise of the one before with its sign changed, which makes
                the average of few samples better; otherwise they are independent.
            correction: `"paper"` (`x - decode(encode(x)) + decode(y)`), or `"nearest"` (clamp to the measured bins).
            consistent: project the samples onto the measurement: every coefficient then lies in the bin that the file
                gives. Values lie in [0, 1] as well, unless no such picture was found (files of saturated noise or
                graphics, mostly): then float values overshoot.
            generator: source of all noise, float32: one draw for the start, then one a step. With several samples
                it serves the first, and a copy of it seeds the others. For a list of pictures it serves one after
                the other; a list of generators serves one picture each.
            class_labels: class of each picture, or one for all, where the prior is class-conditional.
            window_size: the prior sees the picture through windows of this many pixels; by default its own size,
                but at least 256, or 384 for a prior without attention.
            window_overlap: pixels that neighbouring windows share; by default 64, or a quarter of a smaller window.
            window_batch_size: windows in one call of the prior; by default one on a CPU, and as many as half of the
                free memory holds on a CUDA device.
            output_type: `"pil"`, `"np"` or `"pt"`.
            return_dict: whether to return a `DDRMJPEGPipelineOutput` or the tuple `(images,)`.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after every step; tensors
                in the dict it returns replace the pipeline's.
            callback_on_step_end_tensor_inputs: which of `"sample"` and `"pred_original_sample"` it is given.

        Returns:
            The pictures in the orientation of the file as stored; PIL images carry its EXIF and ICC data in `info`.

        Raises:
            JPEGFileError: if a file is not a JPEG that can be restored.
            ValueError, TypeError: for arguments that do not fit.
            OSError: if a path cannot be read.
        """
        # 1. Check the arguments, and set the schedule.
        self.check_inputs(
            num_samples, correction, output_type, eta, eta_b, temperature, callback_on_step_end_tensor_inputs
        )
        sources = image if isinstance(image, list) else [image]
        if not sources:
            raise ValueError("the list of pictures is empty")
        if isinstance(generator, list) and len(sources) > 1 and len(generator) != len(sources):
            raise ValueError(f"got {len(generator)} generators for {len(sources)} pictures")
        device = self._execution_device
        temperature = self.scheduler.config.temperature if temperature is None else temperature
        automatic = init_timestep == "auto"
        schedule = {"timestep_spacing": timestep_spacing, "init_timestep": None if automatic else init_timestep}
        self.scheduler.set_timesteps(num_inference_steps, **schedule)
        window_size = window_size or _window_size(self.unet.config)
        windows = {
            "window_size": window_size,
            "overlap": min(64, window_size // 4) if window_overlap is None else window_overlap,
        }
        etas = {"eta": eta, "eta_b": eta_b}

        pictures = sum(len(one) if isinstance(one, torch.Tensor) and one.ndim == 4 else 1 for one in sources)
        labels = self._labels(class_labels, pictures, device)

        # 2. One picture after the other: its measurement, its samples, their mean.
        finished = []
        with self.progress_bar(total=0) as progress:
            predict_noise = partial(
                predict,
                self.unet,
                **windows,
                batch_size=window_batch_size or windows_in_a_call(self.unet, window_size, device),
                on_windows=progress.update,
            )

            def on_step(i: int, t: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
                if callback_on_step_end is None:
                    return tensors
                chosen = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                return tensors | (callback_on_step_end(self, i, t, chosen) or {})

            for index, source in enumerate(sources):
                measured_by, y, size, info = _measure(source, operator, device)
                project = partial(measured_by.project if correction == "paper" else measured_by.nearest, y=y)
                own = generator[index] if isinstance(generator, list) and len(sources) > 1 else generator
                shape = measured_by.decode(y).shape
                if automatic:
                    schedule["init_timestep"] = self._init_timestep(measured_by, num_inference_steps)
                    self.scheduler.set_timesteps(num_inference_steps, **schedule)
                if isinstance(own, list) and len(own) != shape[0]:
                    raise ValueError(f"got {len(own)} generators for {shape[0]} pictures")
                calls = shape[0] * num_samples * len(self.scheduler.timesteps)
                progress.total += calls * count_windows(self.unet, *shape[-2:], **windows)
                progress.refresh()
                given = None if labels is None else labels[len(finished) : len(finished) + shape[0]]
                conditioned = partial(predict_noise, class_labels=given)
                batch = _Samples(measured_by, y, size, info, output_type)
                for group, signs in _passes(own, num_samples, antithetic, shape):
                    for sample in self._sample(
                        measured_by.decode(y), project, group, temperature * signs, conditioned, etas, on_step
                    ).split(shape[0]):
                        batch.add(_make_consistent(measured_by, sample, y) if consistent else sample.clamp(-1, 1))
                    del sample  # while the next one is made, that memory is needed
                finished.extend(batch.pictures())
        self.maybe_free_model_hooks()

        # 3. Gather.
        output = DDRMJPEGPipelineOutput(**{name: [one[name] for one in finished] for name in finished[0]})
        if output_type != "pil" and len({picture.shape for picture in output.images}) == 1:
            output.images = (np if output_type == "np" else torch).stack(output.images)
        return output if return_dict else (output.images,)

    def _init_timestep(self, operator: Operator, num_inference_steps: int) -> int | None:
        """Where to start for an operator: the coarser its measurement, the more noise; `None` if it cannot tell."""
        uncertainty = operator.uncertainty()
        if uncertainty is None:
            return None
        return max(self.scheduler.nearest_timestep(_AUTO_INIT * uncertainty**0.5), num_inference_steps)

    def _labels(
        self, class_labels: int | Sequence[int] | None, pictures: int, device: torch.device
    ) -> torch.Tensor | None:
        """One class for each picture, or none for a prior that knows no classes."""
        classes = self.unet.config.num_class_embeds
        if classes is None:
            if class_labels is not None:
                raise ValueError("class_labels are given, but this prior is not class-conditional")
            return None
        if class_labels is None:
            raise ValueError(f"this prior is class-conditional; give class_labels, each from 0 to {classes - 1}")
        labels = torch.as_tensor(class_labels, device=device, dtype=torch.long).reshape(-1)
        if len(labels) not in (1, pictures):
            raise ValueError(f"got {len(labels)} class_labels for {pictures} pictures")
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"class_labels are {labels.tolist()}; each must be between 0 and {classes - 1}")
        return labels.expand(pictures)

    def _sample(
        self,
        start: torch.Tensor,
        project: Callable[[torch.Tensor], torch.Tensor],
        generator: Generator,
        temperature: float | torch.Tensor,
        predict_noise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        etas: dict[str, float | None],
        on_step: Callable[[int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    ) -> torch.Tensor:
        """The sampler of the paper (section 3): from `decode(y)`, noised to the first timestep, to `x_0`."""
        if isinstance(generator, list):
            start = start.expand(len(generator), -1, -1, -1)
        if isinstance(temperature, torch.Tensor):
            temperature = temperature.to(start.device)
        sample = temperature * randn_tensor(start.shape, generator=generator, device=start.device, dtype=torch.float32)
        sample = self.scheduler.add_noise(start, sample, self.scheduler.timesteps[0])
        del start
        for i, t in enumerate(self.scheduler.timesteps):
            sample, pred_original_sample = self.scheduler.step(
                predict_noise(sample, t),  # without a name here, so that the scheduler can let go of it
                t,
                sample,
                project=project,
                temperature=temperature,
                generator=generator,
                return_dict=False,
                **etas,
            )
            sample = on_step(i, t, {"sample": sample, "pred_original_sample": pred_original_sample})["sample"]
            del pred_original_sample  # likewise
        return sample


def fastest_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """What a network computes in fastest, without harm to its pictures: bfloat16 or float32.

    By what the processor or GPU has, not by measuring, so that a machine always gives the same pictures: bfloat16 is
    one and a half times (AVX-512 BF16) to four times (AMX) as fast on processors with units for it, and several times
    as slow on those without.
    """
    device = torch.device(device)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        units = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch before 2.11
        fast = device.type == "cpu" and (units.get("amx_bf16", False) or units.get("avx512_bf16", False))
    return torch.bfloat16 if fast else torch.float32


def _align(unet: torch.nn.Module) -> None:
    """Give weights at odd addresses memory of their own.

    safetensors leaves them as views into the mapped file, wherever they lie there, and some matrix products round by
    the alignment of what they multiply.
    """
    for tensor in (*unet.parameters(), *unet.buffers()):
        if tensor.data_ptr() % 64:  # what torch's own allocator aligns to
            tensor.data = tensor.data.clone()


def _load_unet(prior: str | os.PathLike, **kwargs: Any) -> UNet2DModel:
    """`UNet2DModel.from_pretrained`, refusing weights that do not fit instead of making some up."""
    try:
        unet, report = UNet2DModel.from_pretrained(prior, output_loading_info=True, **kwargs)
    except NotImplementedError:  # what moving weights that are nowhere raises
        raise OSError(f"{prior}: the weights do not fit the config; tensors are missing") from None
    for kind in ("missing_keys", "unexpected_keys"):
        if report[kind]:
            name = sorted(report[kind])[0]
            raise OSError(f"{prior}: the weights do not fit the config; tensor {name} is {kind.partition('_')[0]}")
    return unet


def _window_size(config: Any) -> int:
    """Large windows waste less on overlap, but attention is at home only in the size it was trained on.

    Without attention 384 pixels are fastest on a CPU: the activations of larger ones no longer fit what malloc keeps.
    """
    attention = config.add_attention or any("Attn" in block for block in config.down_block_types)
    trained = config.sample_size if isinstance(config.sample_size, int) else max(config.sample_size or [256])
    return max(trained, 256 if attention else 384)


def _measure(source: Any, operator: Operator | None, device: torch.device) -> tuple[Operator, Any, tuple, dict]:
    """Operator, measurement, true (height, width), and metadata under Pillow's names, of one input."""
    if operator is None:
        if isinstance(source, (Image.Image, torch.Tensor, np.ndarray)):
            raise TypeError(
                f"a decoded picture ({type(source).__name__}) no longer carries the coefficients of its file: give"
                " the path or the bytes of the JPEG, or say with operator= what the picture went through"
            )
        file = source if hasattr(source, "coefficients") else JPEGFile.open(source)
        operator = JPEGOperator.from_file(file)
        metadata = {"exif": file.exif, "icc_profile": file.icc_profile, "xmp": file.xmp, "comment": file.comment}
        info = {name: value for name, value in metadata.items() if value is not None}
        return operator, operator.measurement(file, device), (file.height, file.width), info

    if not isinstance(source, torch.Tensor):
        if isinstance(source, np.ndarray) or hasattr(source, "coefficients"):
            raise TypeError(
                f"with operator=, give a path, bytes, a PIL image or a tensor in [-1, 1], not {type(source).__name__}"
            )
        if not isinstance(source, Image.Image):
            source = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        pixels = torch.from_numpy(np.array(source.convert("RGB")))
        source = pixels.permute(2, 0, 1).float() / 127.5 - 1.0
    if not source.is_floating_point() or not source.isfinite().all():
        raise ValueError("a picture given as a tensor must hold finite floating-point values in [-1, 1]")
    x = source if source.ndim == 4 else source.unsqueeze(0)
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
        raise ValueError(f"expected a picture [B, 3, H, W] or [3, H, W], got {list(source.shape)}")
    height, width = x.shape[-2:]
    extra = (0, -width % operator.alignment[1], 0, -height % operator.alignment[0])
    x = torch.nn.functional.pad(x.to(device, torch.float32), extra, mode="replicate")
    return operator, operator.encode(x), (height, width), {}


def _sample_generators(generator: Generator, num_samples: int, antithetic: bool) -> list[Generator]:
    """The generator itself for the first sample, others seeded from a copy of it, which leaves it as it was.

    Antithetic samples go in pairs, of which the second has a copy of the first one's.
    """
    if isinstance(generator, list):
        each = (_sample_generators(g, num_samples, antithetic) for g in generator)
        return [list(one) for one in zip(*each, strict=True)]
    generator = torch.default_generator if generator is None else generator
    different = (num_samples + 1) // 2 if antithetic else num_samples
    seeds = torch.randint(2**62, (different - 1,), generator=_copy(generator), device=generator.device).tolist()
    generators = [generator, *(torch.Generator(generator.device).manual_seed(seed) for seed in seeds)]
    if antithetic:
        generators = [one for each in generators for one in (each, _copy(each))]
    return generators[:num_samples]


def _copy(generator: torch.Generator) -> torch.Generator:
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


def _passes(
    generator: Generator, num_samples: int, antithetic: bool, shape: torch.Size
) -> list[tuple[Generator, float | torch.Tensor]]:
    """The samples of one picture in batches that go through the sampler together: their generators and the signs of
    their noise."""
    generators = _sample_generators(generator, num_samples, antithetic)
    signs = [-1.0 if antithetic and i % 2 else 1.0 for i in range(num_samples)]
    size = _PIXELS_IN_A_PASS // (shape[-2] * shape[-1])
    if shape[0] > 1 or size <= 1 or isinstance(generators[0], list):
        return list(zip(generators, signs, strict=True))
    return [
        (generators[i : i + size], torch.tensor(signs[i : i + size]).reshape(-1, 1, 1, 1))
        for i in range(0, num_samples, size)
    ]


def _make_consistent(operator: Operator, x: torch.Tensor, y: Any) -> torch.Tensor:
    """A picture near `x` that agrees with the measurement and lies in [-1, 1], by alternating projections.

    Now and then no such picture exists, because the encoder rounded on its way; then the measurement comes first.
    """
    best, found, when = -1.0, x, 0
    for i, margin in enumerate(_ROUNDING_MARGINS):
        step = _OVER_RELAXATION if i else 1.0
        x = torch.lerp(x, operator.nearest(x, y, margin), step).clamp_(-1, 1)
        consistency = operator.consistency(x, y)
        if consistency > best:
            best, found, when = consistency, x, i
        if best == 1.0:
            return found
        if i - when >= _PATIENCE:
            break
    return operator.nearest(found, y)


class _Samples:
    """The samples of one batch of pictures: each is presented as it comes, and only their mean and spread are kept."""

    def __init__(self, operator: Operator, y: Any, size: tuple[int, int], info: dict, output_type: str) -> None:
        self.operator, self.y, self.size, self.info, self.output_type = operator, y, size, info, output_type
        self.grey = getattr(operator, "color_space", None) == "L"
        self.presented: list[list] = []
        self.mean = self.squares = torch.zeros(())

    def add(self, x: torch.Tensor) -> None:
        """Take a sample `[B, 3, H, W]` in [-1, 1]; it becomes ours."""
        if self.grey:
            x = x.mean(dim=1, keepdim=True)
        self.presented.append([self._present(picture) for picture in x])
        if len(self.presented) == 1:
            self.mean, self.squares = x, torch.zeros((), device=x.device).expand_as(x)
        else:  # Welford: mean, and sum of squared distances from it
            distance = x - self.mean
            self.mean.add_(distance, alpha=1 / len(self.presented))
            self.squares = distance.mul_(x.sub_(self.mean)).add_(self.squares)

    def pictures(self) -> list[dict[str, Any]]:
        """The fields of the output, one dict a picture."""
        pictures = []
        for i in range(len(self.mean)):
            y = self.y[i : i + 1] if isinstance(self.y, torch.Tensor) else tuple(part[i : i + 1] for part in self.y)
            mean = self.mean[i : i + 1].expand(1, 3, -1, -1)
            image = self._present(self.mean[i])
            consistency = self.operator.consistency(mean, y)
            rounded = self.mean[i : i + 1].add_(1).mul_(127.5).clamp_(0, 255).round_().div_(127.5).sub_(1)
            pictures.append(
                {
                    "images": image,
                    "samples": [sample[i] for sample in self.presented],
                    "std": self._array(self.squares[i].div(4 * len(self.presented)).sqrt_()),
                    "consistency": consistency,
                    "consistency_8bit": self.operator.consistency(rounded.expand_as(mean), y),
                }
            )
        return pictures

    def _present(self, picture: torch.Tensor) -> Any:
        """A picture in [-1, 1] as the caller wants it, in memory of its own."""
        picture = (picture / 2).add_(0.5)
        if self.output_type != "pil":
            return self._array(picture)
        pixels = self._array(picture.clamp_(0, 1).mul_(255).round_().byte())
        image = Image.fromarray(pixels[..., 0] if self.grey else pixels)
        image.info.update(self.info)
        return image

    def _array(self, values: torch.Tensor) -> torch.Tensor | np.ndarray:
        """`[C, H, W]` without padding, or for any type of output but `"pt"` an array of `[H, W, C]`."""
        values = values[:, : self.size[0], : self.size[1]].cpu()
        return values if self.output_type == "pt" else values.permute(1, 2, 0).numpy()
