"""Running a prior on a picture of any size: padded to what its levels need, in overlapping windows, blended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import torch

_MOST_WINDOWS = 64  # beyond, a GPU is busy anyway
# The flips and rotations of a square, each a sum of 1 (left to right), 2 (upside down) and 4 (rows to columns), in an
# order in which neighbours differ much.
VIEWS = (0, 5, 2, 7, 1, 4, 3, 6)


class _Recomputed(torch.autograd.Function):
    """A call of the prior that keeps its input alone, and for a gradient is made again.

    `torch.utils.checkpoint` kept part of what it had computed again until the last of the windows was done.
    """

    @staticmethod
    def forward(ctx: Any, prior: Callable, windows: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        ctx.prior, ctx.labels = prior, labels
        ctx.save_for_backward(windows)
        return prior(windows, labels)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        with torch.enable_grad():
            windows = ctx.saved_tensors[0].detach().requires_grad_()
            output = ctx.prior(windows, ctx.labels)
        return None, torch.autograd.grad(output, windows, gradient)[0], None


def count_windows(
    unet: torch.nn.Module, height: int, width: int, window_size: int = 256, overlap: int = 64, batch_size: int = 1
) -> int:
    """Windows (not calls of the prior with `batch_size` of them) that `predict` makes for one state of this size."""
    multiple = _check(unet, window_size, overlap)
    sizes = (size + -size % multiple for size in (height, width))
    rows, columns = (len(_starts(size, window_size, overlap)[0]) for size in sizes)
    return rows * columns


def _check(unet: torch.nn.Module, window_size: int, overlap: int) -> int:
    """What height and width of the UNet's input must be multiples of; raises `ValueError` for windows that are not."""
    multiple = 2 ** (len(unet.config.block_out_channels) - 1)
    if window_size < multiple or window_size % multiple:
        raise ValueError(f"window_size is {window_size}; it must be a multiple of {multiple} for this prior")
    if not isinstance(overlap, Integral) or not 0 <= overlap < window_size:
        raise ValueError(
            f"overlap is {overlap!r}; it must be a whole number of at least 0 and less than window_size ({window_size})"
        )
    return multiple


def predict(
    unet: torch.nn.Module,
    sample: torch.Tensor,
    timestep: int | torch.Tensor,
    window_size: int = 256,
    overlap: int = 64,
    batch_size: int = 1,
    class_labels: torch.Tensor | None = None,
    on_windows: Callable[[int], None] | None = None,
    views: Sequence[int] | None = None,
    recompute: bool = False,
) -> torch.Tensor:
    """Output of a `UNet2DModel` on a state of any size, as if its window were that large.

    Windows lie on a grid of `window_size - overlap` pixels, the last ones flush with the far border, and are blended
    with weights that rise linearly over the overlap. A state that fits one window is one ordinary call.

    With gradients enabled the output can be differentiated by the state. Activations are kept for a single call; of
    several calls, each is computed again on the way back, so that no more than one call's are ever there.

    Args:
        unet: the prior; its height and width must be multiples of `2**(levels - 1)`, to which a smaller state is
            padded by mirroring.
        sample: state `[B, 3, H, W]`, float32.
        timestep: the timestep of the whole state.
        window_size: height and width of a window in pixels, a multiple of `2**(levels - 1)`.
        overlap: pixels that neighbouring windows share, less than `window_size`.
        batch_size: windows in one call of the prior.
        class_labels: `[B]` or `[1]` classes, for a class-conditional prior.
        on_windows: told, after each call of the prior, how many windows it held.
        views: of each state, which of `VIEWS` the prior sees; its output is turned back.
        recompute: whether a gradient computes a single call again too.

    Returns:
        `[B, C, H, W]` float32, `C` being the prior's number of output channels.

    Raises:
        ValueError: for a window size or overlap that does not fit.
    """
    if views is not None and any(views):
        options = {"window_size": window_size, "overlap": overlap, "batch_size": batch_size, "on_windows": on_windows}
        outputs = []
        for i, view in enumerate(views):
            labels = None if class_labels is None else class_labels.expand(len(sample))[i : i + 1]
            turned, several = _turned(sample[i : i + 1], view), len(views) > 1
            output = predict(unet, turned, timestep, class_labels=labels, recompute=several, **options)
            outputs.append(_turned(output, view, back=True))
        return torch.cat(outputs)
    multiple = _check(unet, window_size, overlap)
    batch, _, height, width = sample.shape
    padded = _mirror(sample, -height % multiple, -width % multiple)
    tops, window_height = _starts(padded.shape[2], window_size, overlap)
    lefts, window_width = _starts(padded.shape[3], window_size, overlap)
    corners = [(b, top, left) for b in range(batch) for top in tops for left in lefts]
    recompute = torch.is_grad_enabled() and (recompute or len(corners) > batch_size)

    def prior(windows: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return unet(windows.to(unet.dtype), timestep, class_labels=labels, return_dict=False)[0].float()

    call = partial(_Recomputed.apply, prior) if recompute else prior

    total = weights = None
    for start in range(0, len(corners), batch_size):
        chunk = corners[start : start + batch_size]
        windows = torch.stack([padded[b, :, y : y + window_height, x : x + window_width] for b, y, x in chunk])
        labels = None if class_labels is None else torch.stack([class_labels.expand(batch)[b] for b, _, _ in chunk])
        outputs = call(windows, labels)
        if on_windows is not None:
            on_windows(len(chunk))
        if len(corners) == len(chunk) == batch:  # every state fits one window
            return outputs[..., :height, :width]
        if total is None:
            total = outputs.new_zeros(batch, outputs.shape[1], *padded.shape[2:])
            weights = outputs.new_zeros(padded.shape[2:])
        for (b, y, x), output in zip(chunk, outputs, strict=True):
            ramp_y = _ramp(y, window_height, padded.shape[2], overlap, outputs.device)
            ramp_x = _ramp(x, window_width, padded.shape[3], overlap, outputs.device)
            weight = ramp_y[:, None] * ramp_x
            total[b, :, y : y + window_height, x : x + window_width] += weight * output
            if b == 0:
                weights[y : y + window_height, x : x + window_width] += weight
    return total.div_(weights)[..., :height, :width]


def window_options(
    unet: torch.nn.Module,
    window_size: int | None,
    window_overlap: int | None,
    window_batch_size: int | None,
    device: torch.device,
) -> dict[str, int]:
    """The arguments of `predict` that say how a picture is cut, with defaults for those that are `None`."""
    window_size = window_size or default_window_size(unet.config)
    overlap = min(64, window_size // 4) if window_overlap is None else window_overlap
    batch_size = window_batch_size or windows_in_a_call(unet, window_size, device)
    return {"window_size": window_size, "overlap": overlap, "batch_size": batch_size}


def views_at(numbers: Sequence[int], i: int, steps: int) -> list[int]:
    """The view that each state shows the prior in step `i` of `steps`, by the number of the sample it is of."""
    return [VIEWS[(number * steps + i) % len(VIEWS)] for number in numbers]


def labels_for(
    unet: torch.nn.Module, class_labels: int | Sequence[int] | None, pictures: int, device: torch.device
) -> torch.Tensor | None:
    """One class for each picture, or none for a prior that knows no classes.

    Raises:
        ValueError: for classes that the prior does not have, or a number of them that is not 1 or that of pictures.
    """
    classes = unet.config.num_class_embeds
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


def windows_in_a_call(unet: torch.nn.Module, window_size: int, device: torch.device) -> int:
    """Windows that a call of the prior may hold: one on a CPU, where more are slower, else what memory is free for.

    A window takes about sixteen feature maps of the first level (14 measured, with the embedded prior); half of a
    CUDA device's free memory is given to them. Other devices do not tell: eight.
    """
    if device.type == "cpu":
        return 1
    if device.type != "cuda":
        return 8
    free, _ = torch.cuda.mem_get_info(device)
    window = 16 * unet.config.block_out_channels[0] * window_size**2 * unet.dtype.itemsize
    return min(max(free // 2 // window, 1), _MOST_WINDOWS)


def default_window_size(config: Any) -> int:
    """Large windows waste less on overlap, but attention is at home only in the size it was trained on.

    Without attention 384 pixels are fastest on a CPU: the activations of larger ones no longer fit what malloc keeps.
    """
    attention = config.add_attention or any("Attn" in block for block in config.down_block_types)
    trained = config.sample_size if isinstance(config.sample_size, int) else max(config.sample_size or [256])
    return max(trained, 256 if attention else 384)


def _turned(picture: torch.Tensor, view: int, back: bool = False) -> torch.Tensor:
    """A view of `[B, C, H, W]`, or what it is a view of."""
    dims = [dim for bit, dim in ((1, -1), (2, -2)) if view & bit]
    if back and view & 4:
        picture = picture.transpose(-1, -2)
    picture = picture.flip(dims) if dims else picture
    return picture.transpose(-1, -2) if view & 4 and not back else picture


def _mirror(sample: torch.Tensor, down: int, across: int) -> torch.Tensor:
    """Extend at the bottom and the right by reflection, as often as it takes."""
    if not down and not across:
        return sample
    rows, columns = (
        torch.arange(size + extra, device=sample.device) % (2 * size)
        for size, extra in ((sample.shape[2], down), (sample.shape[3], across))
    )
    rows = torch.where(rows < sample.shape[2], rows, 2 * sample.shape[2] - 1 - rows)
    columns = torch.where(columns < sample.shape[3], columns, 2 * sample.shape[3] - 1 - columns)
    return sample[:, :, rows][..., columns]


def _starts(size: int, window_size: int, overlap: int) -> tuple[list[int], int]:
    """First pixels of the windows along one axis, and the extent of a window there."""
    if size <= window_size:
        return [0], size
    starts = list(range(0, size - window_size, window_size - overlap))
    return [*starts, size - window_size], window_size


def _ramp(start: int, extent: int, size: int, overlap: int, device: torch.device) -> torch.Tensor:
    """Blending weights of a window along one axis: rising at its inner borders, flat at the picture's own."""
    position = torch.arange(extent, device=device, dtype=torch.float32) + 0.5
    weight = torch.ones_like(position)
    if overlap and start > 0:
        weight = weight.minimum(position / overlap)
    if overlap and start + extent < size:
        weight = weight.minimum((extent - position) / overlap)
    return weight
