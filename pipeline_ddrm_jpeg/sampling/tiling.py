"""Running a prior on an image of any size: padded to what its levels need, in overlapping windows, blended."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise, product
from numbers import Integral
from typing import Any, NamedTuple

import torch

from ..priors import origin_of

# With the embedded prior and 16 pixels in common, an image differs a third more from one restored with 192 in common
# where windows meet than elsewhere; with 24 it differs less there.
_OVERLAP = 24
_MOST_WINDOWS = 64  # beyond, a GPU is busy anyway
# The flips and rotations of a square, each a sum of 1 (left to right), 2 (upside down) and 4 (rows to columns), in an
# order in which neighbours differ much.
VIEWS = (0, 5, 2, 7, 1, 4, 3, 6)


class _Recomputed(torch.autograd.Function):
    """A call of the prior that keeps its input alone, and for a gradient is made again.

    `torch.utils.checkpoint` kept part of what it had computed again until the last of the windows was done.
    """

    @staticmethod
    def forward(ctx: Any, prior: Callable, windows: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
        ctx.prior, ctx.others = prior, others
        ctx.save_for_backward(windows)
        return prior(windows, *others)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor, None, None]:
        with torch.enable_grad():
            windows = ctx.saved_tensors[0].detach().requires_grad_()
            output = ctx.prior(windows, *ctx.others)
        return None, torch.autograd.grad(output, windows, gradient)[0], None, None


def count_windows(
    unet: torch.nn.Module, height: int, width: int, window_size: int, overlap: int, rounded_to: int = 1, **_: Any
) -> int:
    """Windows that `predict_together` makes of one state of this size, with the same options."""
    multiple = _check(unet, window_size, overlap, rounded_to)
    rows, columns = (len(spread(size, window_size, overlap, multiple)[0]) for size in (height, width))
    return rows * columns


def spread(size: int, window_size: int, overlap: int, multiple: int) -> tuple[list[int], int]:
    """First pixels of the windows along an axis of `size` pixels, and the extent that all of them have.

    They are as few as can be, then as small as a `multiple` can be, and lie evenly. A single one may reach beyond.
    """
    count = max(math.ceil((size - overlap) / (window_size - overlap)), 1)
    extent = math.ceil((size + (count - 1) * overlap) / count / multiple) * multiple
    return [i * (size - extent) // max(count - 1, 1) for i in range(count)], extent


def _check(unet: torch.nn.Module, window_size: int, overlap: int, rounded_to: int = 1) -> int:
    """What height and width of windows are multiples of; raises `ValueError` for windows that cannot be."""
    multiple = 2 ** (len(unet.config.block_out_channels) - 1)
    if window_size < multiple or window_size % multiple:
        raise ValueError(f"window_size is {window_size}; it must be a multiple of {multiple} for this prior")
    if not isinstance(overlap, Integral) or not 0 <= overlap < window_size:
        raise ValueError(
            f"overlap is {overlap!r}; it must be a whole number of at least 0 and less than window_size ({window_size})"
        )
    return max(multiple, math.gcd(window_size, rounded_to))


@dataclass
class State:
    """States of one image at one timestep, and what the prior says of them once it was asked."""

    sample: torch.Tensor | None
    """`[B, 3, H, W]`, float32."""
    timestep: int | torch.Tensor
    class_labels: torch.Tensor | None = None
    """`[B]` or `[1]` classes, for a class-conditional prior."""
    views: Sequence[int] | None = None
    """Of each, which of `VIEWS` the prior sees; its output is turned back."""
    output: torch.Tensor | None = None
    """`[B, C, H, W]`, float32."""

    def take(self) -> torch.Tensor:
        """The output, of which nothing is kept here: of a large image few copies fit into memory."""
        output, self.output, self.sample = self.output, None, None
        return output


def predict(
    unet: torch.nn.Module,
    sample: torch.Tensor,
    timestep: int | torch.Tensor,
    class_labels: torch.Tensor | None = None,
    views: Sequence[int] | None = None,
    **options: Any,
) -> torch.Tensor:
    """Output of a `UNet2DModel` on states of one size, `[B, C, H, W]` float32; options as of `predict_together`."""
    state = State(sample, timestep, class_labels, views)
    predict_together(unet, [state], **options)
    return state.take()


def predict_together(
    unet: torch.nn.Module,
    states: Sequence[State],
    window_size: int = 256,
    overlap: int = 64,
    batch_size: int = 1,
    rounded_to: int = 1,
    on_windows: Callable[[int], None] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Give states of any sizes and timesteps their output of a `UNet2DModel`, as if its window were that large.

    Along each axis lie as few windows as `window_size` and `overlap` allow, evenly, of one extent that is as small as
    can be; they are blended with weights that rise linearly over what they share. Windows of one extent share calls,
    whatever states they are of.

    With gradients enabled an output can be differentiated by its state. Activations are kept for a single call; of
    several calls, each is computed again on the way back, so that no more than one call's are ever there.

    Args:
        unet: the prior; its height and width must be multiples of `2**(levels - 1)`, to which a window that ends at a
            border is padded by mirroring.
        states: which get their `output`.
        window_size: largest height and width of a window in pixels, a multiple of `2**(levels - 1)`.
        overlap: pixels that neighbouring windows share at least, less than `window_size`.
        batch_size: windows in one call of the prior.
        rounded_to: extents of windows are multiples of it, if it divides `window_size`: images of many sizes have few.
        on_windows: told, after each call of the prior, how many windows it held.
        dtype: what the prior computes in, if it is known: to look it up takes milliseconds.

    Raises:
        ValueError: for a window size or overlap that does not fit.
        FloatingPointError: where the prior says what is no number, such as weights that are none, or overflow.
    """
    multiple, dtype = _check(unet, window_size, overlap, rounded_to), dtype or unet.dtype
    groups: dict[tuple[int, int], list[_Window]] = {}
    for state in states:
        batch, _, *size = state.sample.shape
        state.output = state.sample.new_zeros(batch, unet.config.out_channels, *size)
        for i, view in enumerate(state.views or [0] * batch):
            seen, device = size[::-1] if view & 4 else size, state.output.device
            rows, columns = (_spans(n, window_size, overlap, multiple, device) for n in seen)
            for window in (_Window(state, i, view, *place) for place in product(rows, columns)):
                groups.setdefault((len(window.rows.weight), len(window.columns.weight)), []).append(window)
    calls = [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]

    def prior(windows: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return unet(windows.to(dtype), timesteps, class_labels=labels, return_dict=False)[0].float()

    call = partial(_Recomputed.apply, prior) if torch.is_grad_enabled() and len(calls) > 1 else prior
    for own in calls:
        windows = torch.stack([window.cut() for window in own])
        timesteps = torch.stack([torch.as_tensor(window.state.timestep) for window in own]).to(windows.device)
        labels = None if own[0].state.class_labels is None else torch.stack([window.label for window in own])
        outputs = call(windows, timesteps, labels)
        if not _is_finite(outputs[:, :3]):
            raise FloatingPointError(_not_finite(unet, dtype, own, windows))
        for window, output in zip(own, outputs, strict=True):
            window.add(output)
        if on_windows is not None:
            on_windows(len(own))


def _is_finite(values: torch.Tensor) -> bool:
    """Whether all are numbers: their sum is none otherwise, and takes no memory."""
    return math.isfinite(values.detach().sum(dtype=torch.float32))


def _not_finite(unet: torch.nn.Module, dtype: torch.dtype, own: Sequence[_Window], windows: torch.Tensor) -> str:
    origin, timesteps = origin_of(unet), sorted({int(window.state.timestep) for window in own})
    name = f"the prior {origin.repo_id or origin.folder.name}" if origin else "the prior"
    where = f"at timestep {', '.join(map(str, timesteps))}"
    if not _is_finite(windows):
        return f"the state {where} has values that are no numbers (NaN or infinite), which the step before it made"
    computes = str(dtype).removeprefix("torch.")
    hint = "its weights may be broken" if dtype == torch.float32 else "float32 may help, or its weights are broken"
    return f"{name}, computing in {computes}, gives values that are no numbers (NaN or infinite) {where}; {hint}"


class _Span(NamedTuple):
    """The extent of a window along one axis of what the prior sees."""

    start: int
    stop: int
    """At the latest the end of the image, which a padded window reaches beyond."""
    weight: torch.Tensor
    """Of each pixel, also of those beyond; all windows' weights of a pixel sum to one."""


class _Window(NamedTuple):
    """A window on one of some states as the prior sees it."""

    state: State
    number: int
    view: int
    rows: _Span
    columns: _Span

    def cut(self) -> torch.Tensor:
        """Its pixels, `[3, h, w]`."""
        seen = _turned(self._place(self.state.sample), self.view)
        return _mirror(seen, *(len(s.weight) - (s.stop - s.start) for s in (self.rows, self.columns)))

    def add(self, output: torch.Tensor) -> None:
        """Take over what the prior says of them, `[C, h, w]`."""
        rows, columns = (s.weight[: s.stop - s.start] for s in (self.rows, self.columns))
        weighted = output[:, : len(rows), : len(columns)] * (rows[:, None] * columns)
        self._place(self.state.output).add_(_turned(weighted, self.view, back=True))

    @property
    def label(self) -> torch.Tensor:
        """The class of its state."""
        return self.state.class_labels.expand(len(self.state.sample))[self.number]

    def _place(self, images: torch.Tensor) -> torch.Tensor:
        """Its place in an image that is not turned."""
        spans = (self.columns, self.rows) if self.view & 4 else (self.rows, self.columns)
        flips = (self.view & 2, self.view & 1)
        rows, columns = (
            slice(size - s.stop, size - s.start) if flip else slice(s.start, s.stop)
            for s, flip, size in zip(spans, flips, images.shape[-2:], strict=True)
        )
        return images[self.number, :, rows, columns]


@dataclass(frozen=True)
class Tiling:
    """How an image is cut into windows that the prior sees one by one; `None` is the default of each."""

    size: int | None = None
    """Largest height and width of a window in pixels; the prior's own, but at least 256, or 448 without attention."""
    overlap: int | None = None
    """Pixels that neighbouring windows share at least; 24, or a quarter of a smaller window."""
    batch_size: int | None = None
    """Windows in a call of the prior; one on a CPU, and as many as half of a CUDA device's free memory holds."""

    def options(self, unet: torch.nn.Module, device: torch.device) -> dict[str, int]:
        """The arguments of `predict` for a prior and a device.

        Raises:
            ValueError: for windows that the prior cannot have.
        """
        for name in ("size", "batch_size"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Integral) and value >= 1):
                raise ValueError(f"the {name} of tiling is {value!r}; it must be a whole number of at least 1")
        size = self.size or default_window_size(unet.config)
        overlap = min(_OVERLAP, size // 4) if self.overlap is None else self.overlap
        _check(unet, size, overlap)
        return {
            "window_size": size,
            "overlap": overlap,
            "batch_size": self.batch_size or windows_in_a_call(unet, size, device),
            # few shapes fill the calls of a GPU; a CPU, which sees windows one by one, computes no pixel more
            "rounded_to": 1 if device.type == "cpu" else 64,
        }


_WHOLE = Tiling(2**24, 0, 1)  # one window, however large the image is


class TiledPipeline:
    """Windows as a state of a pipeline, as diffusers' autoencoders have it."""

    _tiling = Tiling()

    @property
    def tiling(self) -> Tiling:
        """How images are cut into windows that the prior sees."""
        return self._tiling

    @property
    def windows_in_a_call(self) -> int:
        """Windows that a call of the prior may hold, of one image or several."""
        return self.tiling.options(self.unet, self._execution_device)["batch_size"]

    def enable_tiling(self, size: int | None = None, overlap: int | None = None, batch_size: int | None = None) -> None:
        """Show the prior an image in windows, as it is done by default; arguments as of `Tiling` change these.

        Windows are as few, then as small, as cover an image. Images that have a generator each share calls.

        Raises:
            ValueError: for windows that the prior cannot have.
        """
        tiling = Tiling(size, overlap, batch_size)
        tiling.options(self.unet, self._execution_device)
        self._tiling = tiling

    def disable_tiling(self) -> None:
        """Show the prior the whole image at once, which takes memory in proportion to its pixels."""
        self._tiling = _WHOLE


def views_at(numbers: Sequence[int], i: int, steps: int) -> list[int]:
    """The view that each state shows the prior in step `i` of `steps`, by the number of the sample it is of."""
    return [VIEWS[(number * steps + i) % len(VIEWS)] for number in numbers]


def labels_for(
    unet: torch.nn.Module, class_labels: int | Sequence[int] | None, images: int, device: torch.device
) -> torch.Tensor | None:
    """One class for each image, or none for a prior that knows no classes.

    Raises:
        ValueError: for classes that the prior does not have, or a number of them that is not 1 or that of images.
    """
    classes = unet.config.num_class_embeds
    if classes is None:
        if class_labels is not None:
            raise ValueError("class_labels are given, but this prior is not class-conditional")
        return None
    if class_labels is None:
        raise ValueError(f"this prior is class-conditional; give class_labels, each from 0 to {classes - 1}")
    labels = torch.as_tensor(class_labels, device=device, dtype=torch.long).reshape(-1)
    if len(labels) not in (1, images):
        raise ValueError(f"got {len(labels)} class_labels for {images} images")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"class_labels are {labels.tolist()}; each must be between 0 and {classes - 1}")
    return labels.expand(images)


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

    Without attention a window of 448 pixels costs a CPU no more for a pixel; those of 768 cost a tenth more.
    """
    attention = config.add_attention or any("Attn" in block for block in config.down_block_types)
    trained = config.sample_size if isinstance(config.sample_size, int) else max(config.sample_size or [256])
    return max(trained, 256 if attention else 448)


def _turned(image: torch.Tensor, view: int, back: bool = False) -> torch.Tensor:
    """A view of `[..., H, W]`, or what it is a view of."""
    dims = [dim for bit, dim in ((1, -1), (2, -2)) if view & bit]
    if back and view & 4:
        image = image.transpose(-1, -2)
    image = image.flip(dims) if dims else image
    return image.transpose(-1, -2) if view & 4 and not back else image


def _mirror(image: torch.Tensor, down: int, across: int) -> torch.Tensor:
    """Extend `[..., H, W]` at the bottom and the right by reflection, as often as it takes."""
    for dim, extra in ((-2, down), (-1, across)):
        if extra:
            size = image.shape[dim]
            there = torch.arange(size + extra, device=image.device) % (2 * size)
            image = image.index_select(dim, torch.where(there < size, there, 2 * size - 1 - there))
    return image


@lru_cache(maxsize=256)
def _spans(size: int, window_size: int, overlap: int, multiple: int, device: torch.device) -> tuple[_Span, ...]:
    """The windows along one axis of so many pixels."""
    starts, extent = spread(size, window_size, overlap, multiple)
    shared = extent - max((after - start for start, after in pairwise(starts)), default=extent)
    with torch.inference_mode(False):  # the cache outlives whatever mode it is filled in
        # rising at the borders within the image, over all that neighbours share, and flat at the image's own
        rise, flat = ((torch.arange(extent) + 0.5) / max(shared, 1)).clamp(max=1), torch.ones(extent)
        ramps = [
            torch.minimum(before, after)
            for before, after in zip(
                [flat] + [rise] * (len(starts) - 1), [rise.flip(0)] * (len(starts) - 1) + [flat], strict=True
            )
        ]
        total = torch.zeros(starts[-1] + extent)
        for start, ramp in zip(starts, ramps, strict=True):
            total[start : start + extent] += ramp
        weights = [(ramp / total[start : start + extent]).to(device) for start, ramp in zip(starts, ramps, strict=True)]
    return tuple(_Span(start, min(start + extent, size), weight) for start, weight in zip(starts, weights, strict=True))
