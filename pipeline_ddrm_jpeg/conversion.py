"""Guided-diffusion checkpoints (OpenAI, 2021) as `UNet2DModel`, tensor for tensor."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DModel
from huggingface_hub.file_download import http_get

from .hub import first_line, write_card
from .pipeline import DDRMJPEGPipeline
from .sampling.scheduling_ddrm import DDRMScheduler

# guided-diffusion, script_util.create_model: channel multipliers by image size where none are given.
_CHANNEL_MULT = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}
_NORM_GROUPS = 32
_CLASSES = 1000


class ConversionError(ValueError):
    """A checkpoint or its flags cannot be converted; the message says which tensor or flag, and why."""


@dataclass(frozen=True)
class GuidedDiffusionFlags:
    """The flags of guided-diffusion's scripts that shape a model, under their names and with their defaults."""

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    channel_mult: tuple[float, ...] | None = None
    """Channels of each level in units of `num_channels`; by default those of the image size."""
    attention_resolutions: tuple[int, ...] = (16, 8)
    """Pixels across at which there is attention."""
    num_heads: int = 4
    num_head_channels: int = -1
    learn_sigma: bool = False
    class_cond: bool = False
    resblock_updown: bool = False
    use_scale_shift_norm: bool = True
    use_new_attention_order: bool = False
    """Rows of the qkv weights: `False` heads first, then q, k, v (the released 256 x 256 models); `True` the other
    way round. Both load; the wrong one gives garbage."""
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"

    @property
    def multipliers(self) -> tuple[float, ...]:
        """`channel_mult`, or the default of the image size."""
        mult = self.channel_mult or _CHANNEL_MULT.get(self.image_size)
        if mult is None:
            raise ConversionError(f"image_size {self.image_size} has no default channel_mult; give one")
        return mult

    def has_attention(self, level: int) -> bool:
        """Whether the blocks of a level attend."""
        return self.image_size // 2**level in self.attention_resolutions

    def check(self) -> None:
        """Raise `ConversionError` for a model that `UNet2DModel` cannot represent."""
        if min(self.num_channels, self.num_res_blocks, self.diffusion_steps, *self.multipliers) <= 0:
            raise ConversionError("num_channels, num_res_blocks, diffusion_steps and channel_mult must be above 0")
        if self.num_head_channels < 1:
            raise ConversionError(
                f"this model has a fixed number of attention heads (num_heads {self.num_heads}), so their size differs"
                " from level to level; UNet2DModel has one size for all (class-conditional 128x128 is such a model)"
            )
        if self.multipliers[0] != 1:
            raise ConversionError(
                f"this model starts with {self.multipliers[0]} times its channels; in UNet2DModel the time embedding"
                " has the width of the first level (class-conditional 512x512 is such a model)"
            )
        for level, multiplier in enumerate(self.multipliers):
            channels = multiplier * self.num_channels
            if channels % _NORM_GROUPS:
                raise ConversionError(f"a level of {channels:g} channels cannot be divided into {_NORM_GROUPS} groups")
            attends = self.has_attention(level) or level == len(self.multipliers) - 1  # the middle block always does
            if attends and channels % self.num_head_channels:
                raise ConversionError(
                    f"a level of {channels:g} channels cannot be divided into heads of {self.num_head_channels}"
                )
        if self.noise_schedule not in ("linear", "cosine"):
            raise ConversionError(f'noise_schedule is {self.noise_schedule!r}; it must be "linear" or "cosine"')

    def unet_config(self) -> dict[str, Any]:
        """The arguments of `UNet2DModel` for this model, where its defaults are not those."""
        self.check()
        levels = range(len(self.multipliers))
        plain_down = "ResnetDownsampleBlock2D" if self.resblock_updown else "DownBlock2D"
        plain_up = "ResnetUpsampleBlock2D" if self.resblock_updown else "UpBlock2D"
        resampling = "resnet" if self.resblock_updown else "conv"
        return {
            "sample_size": self.image_size,
            "out_channels": 6 if self.learn_sigma else 3,
            "down_block_types": tuple("AttnDownBlock2D" if self.has_attention(i) else plain_down for i in levels),
            "up_block_types": tuple("AttnUpBlock2D" if self.has_attention(i) else plain_up for i in reversed(levels)),
            "block_out_channels": tuple(int(m * self.num_channels) for m in self.multipliers),
            "layers_per_block": self.num_res_blocks,
            "downsample_type": resampling,
            "upsample_type": resampling,
            "attention_head_dim": self.num_head_channels,
            "norm_num_groups": _NORM_GROUPS,
            "attn_norm_num_groups": _NORM_GROUPS,
            "resnet_time_scale_shift": "scale_shift" if self.use_scale_shift_norm else "default",
            "num_class_embeds": _CLASSES if self.class_cond else None,
        }

    def scheduler(self) -> DDRMScheduler:
        """The noise schedule the model was trained with (guided-diffusion, `get_named_beta_schedule`)."""
        if self.noise_schedule == "cosine":
            return DDRMScheduler(self.diffusion_steps, beta_schedule="squaredcos_cap_v2")
        scale = 1000 / self.diffusion_steps
        return DDRMScheduler(self.diffusion_steps, beta_start=scale * 1e-4, beta_end=scale * 2e-2)


_LSUN = GuidedDiffusionFlags(
    256, 256, 2, None, (32, 16, 8), num_head_channels=64, learn_sigma=True, resblock_updown=True
)
_CLASSES_256 = replace(_LSUN, class_cond=True)
_CLASSES_64 = replace(_CLASSES_256, image_size=64, num_channels=192, num_res_blocks=3, noise_schedule="cosine")
CHECKPOINTS: dict[str, GuidedDiffusionFlags] = {
    "256x256_diffusion_uncond": _LSUN,
    "256x256_diffusion": _CLASSES_256,
    "64x64_diffusion": replace(_CLASSES_64, use_new_attention_order=True),
    "128x128_diffusion": replace(_CLASSES_256, image_size=128, num_head_channels=-1),
    "512x512_diffusion": replace(_CLASSES_256, image_size=512),
    "lsun_bedroom": _LSUN,
    "lsun_cat": _LSUN,
    "lsun_horse": _LSUN,
}
"""The models that guided-diffusion released, by the names of their checkpoints."""


@dataclass(frozen=True)
class Download:
    """Where a checkpoint is, and how to know it."""

    url: str
    size: int
    sha256: str


DOWNLOADS = {
    "256x256_diffusion_uncond": Download(
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion_uncond.pt",
        2_211_383_297,
        "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
    ),
}
"""Checkpoints whose size and checksum are known. OpenAI's model card limits them to research use."""


def download(source: Download, target: str | os.PathLike) -> Path:
    """Fetch a checkpoint, verified before it is given its name; what an earlier try fetched is not fetched again.

    Raises `ConversionError` if size or checksum differ from the known ones; the file is then deleted; `OSError` if the
    server cannot be reached, after some retries.
    """
    target = Path(target)
    if target.exists():
        _verify(source, target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".incomplete")
    fetched = partial.stat().st_size if partial.exists() else 0
    if fetched < source.size:
        with partial.open("ab") as stream:
            try:
                http_get(source.url, stream, resume_size=fetched, expected_size=source.size)
            except Exception as error:  # the HTTP library's own classes differ from release to release
                raise OSError(f"{source.url}: {first_line(error)} (run again to go on)") from error
    try:
        _verify(source, partial)
    except ConversionError:
        partial.unlink()
        raise
    return partial.replace(target)


def _verify(source: Download, path: Path) -> None:
    size = path.stat().st_size
    if size != source.size:
        raise ConversionError(f"{path} has {size} bytes, expected {source.size}; delete it and download it again")
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != source.sha256:
        raise ConversionError(f"{path} has SHA-256 {digest}, expected {source.sha256}")


def load_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a `.pt` file, mapped rather than read; nothing in the file is executed.

    Raises `ConversionError` if it is no dictionary of plain tensors of floating-point numbers, or truncated.
    """
    path = Path(path)
    with path.open("rb") as stream:
        start = stream.read(4)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=start == b"PK\3\4")
    except pickle.UnpicklingError:
        raise ConversionError(
            f"{path}: not a checkpoint of plain tensors; nothing else is loaded, because it could run code"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ConversionError(f"{path}: not a checkpoint, or a truncated one ({first_line(error)})") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConversionError(f"{path}: expected a dictionary of tensors, a guided-diffusion state dict")
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta or not value.is_floating_point():
            raise ConversionError(f"{path}: tensor {name} is not a plain array of floating-point numbers")
    return state


def convert(
    state: Mapping[str, torch.Tensor], flags: GuidedDiffusionFlags, dtype: torch.dtype = torch.float32
) -> UNet2DModel:
    """The `UNet2DModel` that computes what the guided-diffusion model with these weights computes.

    Tensors that need no change are shared with `state`, not copied. Raises `ConversionError` for flags or tensors that
    do not fit, naming the first one.
    """
    unet = _empty(flags)
    converted, remaining = {}, dict(state)
    for source, targets, shape in _tensors(flags, unet):
        if source not in remaining:
            raise ConversionError(f"tensor {source} is missing; is it the checkpoint of another model?")
        tensor = remaining.pop(source)
        if tensor.shape != shape:
            raise ConversionError(f"tensor {source} has shape {list(tensor.shape)}, expected {list(shape)}")
        for target, part in zip(targets, _split(tensor.to(dtype), len(targets), flags), strict=True):
            converted[target] = part.reshape(unet.get_parameter(target).shape).contiguous()
    if remaining:
        raise ConversionError(f"tensor {next(iter(remaining))} has no place in this model; do the flags fit?")
    unet.load_state_dict(converted, strict=True, assign=True)
    return unet.eval()


def _split(tensor: torch.Tensor, parts: int, flags: GuidedDiffusionFlags) -> tuple[torch.Tensor, ...]:
    """Query, key and value rows of an attention's `qkv`; anything else as it is."""
    if parts == 1:
        return (tensor,)
    if flags.use_new_attention_order:
        return tensor.chunk(parts)
    heads = tensor.unflatten(0, (-1, parts, flags.num_head_channels))
    return tuple(part.flatten(0, 1) for part in heads.unbind(1))


_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def checkpoint_shapes(flags: GuidedDiffusionFlags) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of the guided-diffusion model with these flags."""
    return {source: shape for source, _, shape in _tensors(flags, _empty(flags))}


def _empty(flags: GuidedDiffusionFlags) -> UNet2DModel:
    with init_empty_weights():
        return UNet2DModel(**flags.unet_config())


def _tensors(flags: GuidedDiffusionFlags, unet: UNet2DModel) -> Iterator[tuple[str, list[str], tuple[int, ...]]]:
    """(name there, names here, shape there) of every tensor, in the order of the network."""
    shapes = {name: tuple(parameter.shape) for name, parameter in unet.named_parameters()}
    for source, target in _modules(flags):
        for kind in ("weight", "bias"):
            names = [f"{name}.{kind}" for name in target.split("+")]
            if names[0] in shapes:
                shape = (sum(shapes[name][0] for name in names), *shapes[names[0]][1:])
                if kind == "weight" and source.endswith(("qkv", "proj_out")):
                    shape = (*shape, 1)  # a convolution of one pixel there, a linear layer here
                yield f"{source}.{kind}", names, shape


def _modules(flags: GuidedDiffusionFlags) -> Iterator[tuple[str, str]]:
    """(module there, module here), in the order of the network; `+` joins what is one module there."""

    def resnet(source: str, target: str) -> list[tuple[str, str]]:
        return [(f"{source}.{theirs}", f"{target}.{ours}") for theirs, ours in _RESNET.items()]

    def attention(source: str, target: str) -> Iterator[tuple[str, str]]:
        yield f"{source}.norm", f"{target}.group_norm"
        yield f"{source}.qkv", "+".join(f"{target}.{name}" for name in ("to_q", "to_k", "to_v"))
        yield f"{source}.proj_out", f"{target}.to_out.0"

    def resampling(source: str, convolution: str, target: str) -> list[tuple[str, str]]:
        convolutional = [(f"{source}.{convolution}", f"{target}.conv")]
        return resnet(source, target) if flags.resblock_updown else convolutional

    levels = len(flags.multipliers)
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "label_emb", "class_embedding"

    yield "input_blocks.0.0", "conv_in"
    block = 1
    for level in range(levels):
        for layer in range(flags.num_res_blocks):
            yield from resnet(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{layer}")
            if flags.has_attention(level):
                yield from attention(f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{layer}")
            block += 1
        if level < levels - 1:
            yield from resampling(f"input_blocks.{block}.0", "op", f"down_blocks.{level}.downsamplers.0")
            block += 1

    yield from resnet("middle_block.0", "mid_block.resnets.0")
    yield from attention("middle_block.1", "mid_block.attentions.0")
    yield from resnet("middle_block.2", "mid_block.resnets.1")

    block = 0
    for up, level in enumerate(reversed(range(levels))):
        for layer in range(flags.num_res_blocks + 1):
            yield from resnet(f"output_blocks.{block}.0", f"up_blocks.{up}.resnets.{layer}")
            if flags.has_attention(level):
                yield from attention(f"output_blocks.{block}.1", f"up_blocks.{up}.attentions.{layer}")
            if level and layer == flags.num_res_blocks:
                position = 2 if flags.has_attention(level) else 1
                yield from resampling(f"output_blocks.{block}.{position}", "conv", f"up_blocks.{up}.upsamplers.0")
            block += 1

    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    flags: GuidedDiffusionFlags,
    dtype: torch.dtype = torch.float32,
) -> DDRMJPEGPipeline:
    """Convert a checkpoint file to a folder in the layout of a Hub repo; returns the pipeline it holds.

    Raises as `load_checkpoint` and `convert`, and `OSError` if a file cannot be read or written.
    """
    flags.check()
    try:
        unet = convert(load_checkpoint(checkpoint), flags, dtype)
    except ConversionError as error:
        raise ConversionError(str(error) if str(checkpoint) in str(error) else f"{checkpoint}: {error}") from None
    pipe = DDRMJPEGPipeline(unet=unet, scheduler=flags.scheduler())
    pipe.save_pretrained(output)
    write_card(
        Path(output),
        f"the weights of `{Path(checkpoint).name}`, {flags.image_size} x {flags.image_size} pixels, converted from"
        " [guided-diffusion](https://github.com/openai/guided-diffusion)",
        "The weights stay under the terms of the checkpoint they came from. OpenAI's model card limits its released"
        " models to research use.",
        license="other",
        license_name="see-the-checkpoint",
        license_link="https://github.com/openai/guided-diffusion/blob/main/model-card.md",
    )
    return pipe
