"""What makes a small prior better, at equal time: batch, crops, normalisation, and networks of another kind.

python scripts/training/what_pays.py TRAINING FOLDER... --output build/what_pays [--minutes 5] [--only NAME ...]

Every run trains for the same time of one processor core (compiling is not counted) on crops of TRAINING, with AdamW, a
rate that rises over the first twentieth and falls to zero over the last two fifths, and is then judged as
measure_prior.py does it: residual of whole pictures of each FOLDER, and of the same middle through windows of 64, 128
and 256. Time is that of the process, so that other work costs patience, and accuracy only as far as cores slow each
other: keep that alike for all runs. A run is a file in the output folder; what is there already is not run again, and
the table shows all that is there: several processes may share the work by --only.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin, UNet2DModel
from diffusers.utils import logging
from measure_denoiser_error import crops
from measure_prior import SIZE, WINDOWS, residuals
from PIL import Image
from torch import nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from torch.utils.flop_counter import FlopCounterMode
from train_prior import Crops, compile_for_training, read

from pipeline_ddrm_jpeg import DDRMScheduler
from pipeline_ddrm_jpeg.evaluation.tables import markdown
from pipeline_ddrm_jpeg.files import write_atomically
from pipeline_ddrm_jpeg.priors import EMBEDDED

TIMESTEPS, WEIGHT_POWER = (1, 299), 0.8  # as train_prior.yaml has them


class Plain(ModelMixin):
    """Convolutions at half resolution and nothing else, as small denoisers are built (FFDNet, Zhang et al., 2018).

    Args:
        layers: number of 3 x 3 convolutions.
        channels: of all but the first and the last.
    """

    def __init__(self, layers: int, channels: int) -> None:
        super().__init__()
        widths = [12 + 1, *[channels] * (layers - 1), 12]
        self.layers = nn.ModuleList(nn.Conv2d(near, far, 3, padding=1) for near, far in itertools.pairwise(widths))
        _start(self)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | int, return_dict: bool = True) -> Any:
        x = torch.cat([pixel_unshuffle(sample, 2), _level(sample, timestep, 2)], dim=1)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        noise = pixel_shuffle(self.layers[-1](x), 2)
        return SimpleNamespace(sample=noise) if return_dict else (noise,)


class PlainUNet(ModelMixin):
    """A residual U-Net without normalisation (DRUNet, Zhang et al., 2021, made small).

    Args:
        channels: of each resolution.
        blocks: residual blocks on each side of a resolution.
    """

    def __init__(self, channels: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, channels[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.ModuleList([*(PlainBlock(near) for _ in range(blocks)), nn.Conv2d(near, far, 2, stride=2)])
            for near, far in itertools.pairwise(channels)
        )
        self.body = nn.Sequential(*(PlainBlock(channels[-1]) for _ in range(blocks)))
        self.up = nn.ModuleList(
            nn.ModuleList([nn.ConvTranspose2d(far, near, 2, stride=2), *(PlainBlock(near) for _ in range(blocks))])
            for near, far in reversed([*itertools.pairwise(channels)])
        )
        self.tail = nn.Conv2d(channels[0], 3, 3, padding=1)
        _start(self)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | int, return_dict: bool = True) -> Any:
        x = self.head(torch.cat([sample, _level(sample, timestep, 1)], dim=1))
        skipped = []
        for part in self.down:
            for block in part[:-1]:
                x = block(x)
            skipped.append(x)
            x = part[-1](x)
        x = self.body(x)
        for part in self.up:
            x = part[0](x) + skipped.pop()
            for block in part[1:]:
                x = block(x)
        noise = self.tail(x)
        return SimpleNamespace(sample=noise) if return_dict else (noise,)


class PlainBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x).relu())


def _start(network: nn.Module) -> None:
    """Weights that keep the variance from layer to layer; of a block's second convolution, small ones."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.weight.data *= 0.2 if name.endswith("second") else 1
            nn.init.zeros_(layer.bias)


def _level(sample: torch.Tensor, timestep: torch.Tensor | int, stride: int) -> torch.Tensor:
    """The timestep over 1000 as a plane `[B, 1, H / stride, W / stride]`."""
    plane = torch.as_tensor(timestep, device=sample.device).to(sample.dtype).expand(len(sample)) / 1000
    return plane[:, None, None, None].expand(-1, 1, sample.shape[2] // stride, sample.shape[3] // stride)


class FrozenNorm(nn.GroupNorm):
    """GroupNorm that can be told to go by the statistics of all samples seen so far, whatever it is shown."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.frozen = False
        self.load_state_dict(norm.state_dict())
        self.register_buffer("statistics", torch.stack([torch.zeros(norm.num_groups), torch.ones(norm.num_groups)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.frozen:
            if self.training:
                grouped = x.detach().float().unflatten(1, (self.num_groups, -1))
                variance, mean = torch.var_mean(grouped, dim=(0, 2, 3, 4), correction=0)
                self.statistics.lerp_(torch.stack([mean, variance]), 0.01)
            return super().forward(x)
        mean, variance = self.statistics.repeat_interleave(self.num_channels // self.num_groups, dim=1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return x * scale[:, None, None].to(x.dtype) + (self.bias - mean * scale)[:, None, None].to(x.dtype)


def unet(groups: int | None = 16, blocks: int = 1, channels: tuple[int, ...] | None = None) -> UNet2DModel:
    """The embedded prior's network from nothing, perhaps of other channels.

    `groups=None`: normalisation that changes as good as nothing.
    """
    config = dict(UNet2DModel.load_config(EMBEDDED, subfolder="unet"))
    config |= {"layers_per_block": blocks, "norm_num_groups": groups or 1, "norm_eps": 1e-5 if groups else 1e4}
    if channels:
        kinds = {f"{way}_block_types": [f"{way.capitalize()}Block2D"] * len(channels) for way in ("down", "up")}
        config |= {"block_out_channels": channels, **kinds}
    network = UNet2DModel.from_config(config)
    for module in network.modules():
        if isinstance(module, nn.GroupNorm) and not groups:
            nn.init.constant_(module.weight, 100)  # the root of norm_eps
    return network


def embedded() -> UNet2DModel:
    return UNet2DModel.from_pretrained(EMBEDDED, subfolder="unet", torch_dtype=torch.float32)


def freezing() -> UNet2DModel:
    network = embedded()
    for module in [*network.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, FrozenNorm(child))
    return network


@dataclass(frozen=True)
class Run:
    """A network and how it is trained: crops of `crop` pixels, `batch` a step, the last quarter perhaps otherwise."""

    network: Callable[[], ModelMixin]
    rate: float
    batch: int = 8
    crop: int = 64
    last: tuple[int, int] | None = None  # crop and batch of the last quarter
    freeze: bool = False  # statistics, after half the time
    trained: bool = True


RUNS = {
    "from nothing: U-Net, 16 groups": Run(unet, 1e-3),
    "from nothing: U-Net, 4 groups": Run(lambda: unet(4), 1e-3),
    "from nothing: U-Net, 1 group": Run(lambda: unet(1), 1e-3),
    "from nothing: U-Net, no normalisation": Run(lambda: unet(None), 2e-4),  # 1e-3 diverges
    "from nothing: U-Net, 16 groups, 2 blocks a level": Run(lambda: unet(blocks=2), 1e-3),
    "from nothing: U-Net, channels 32 64 96 128": Run(lambda: unet(channels=(32, 64, 96, 128)), 1e-3),
    "from nothing: U-Net, channels 16 32 64 128": Run(lambda: unet(channels=(16, 32, 64, 128)), 1e-3),
    "from nothing: U-Net, channels 32 32 64 128 192": Run(lambda: unet(channels=(32, 32, 64, 128, 192)), 1e-3),
    "from nothing: plain, 12 layers of 96": Run(lambda: Plain(12, 96), 1e-3),
    "from nothing: plain residual U-Net": Run(lambda: PlainUNet((32, 64, 128, 192), 1), 1e-3),
    "embedded: as it is": Run(embedded, 0.0, trained=False),
    "embedded: batch 4": Run(embedded, 4e-4, batch=4),
    "embedded: batch 8": Run(embedded, 4e-4),
    "embedded: batch 16": Run(embedded, 4e-4, batch=16),
    "embedded: crops of 128, batch 4": Run(embedded, 4e-4, batch=4, crop=128),
    "embedded: batch 8, last on 192, batch 4": Run(embedded, 4e-4, last=(192, 4)),
    "embedded: batch 8, statistics frozen": Run(freezing, 4e-4, freeze=True),
}


def train(
    run: Run, pictures: list[Image.Image], minutes: float, compiled: bool, precision: torch.dtype
) -> tuple[ModelMixin, int]:
    """The trained network, and how many crops it has seen."""
    torch.manual_seed(0)
    network = run.network().to(memory_format=torch.channels_last)
    scheduler = DDRMScheduler(init_timestep=TIMESTEPS[1] + 1)
    levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    weights = levels**WEIGHT_POWER / (levels[TIMESTEPS[0] : TIMESTEPS[1] + 1] ** WEIGHT_POWER).mean()
    optimizer = torch.optim.AdamW(network.parameters(), run.rate, betas=(0.9, 0.99), weight_decay=0, fused=True)
    if compiled:
        compile_for_training(network)

    def batches(crop: int, batch: int) -> Iterator[dict[str, torch.Tensor]]:
        samples = Crops(
            pictures,
            crop=crop,
            scales=(0.35, 1.0),
            levels=levels.double().numpy(),
            timesteps=TIMESTEPS,
            sampling="uniform",
            count=10**9,
            seed=crop,
        )
        for first in itertools.count(step=batch):
            yield torch.utils.data.default_collate([samples[first + k] for k in range(batch)])

    def freeze(statistics: bool) -> None:
        for module in network.modules():
            if isinstance(module, FrozenNorm):
                module.frozen = statistics

    def gradient(batch: dict[str, torch.Tensor]) -> None:
        noisy = scheduler.add_noise(batch["clean"], batch["noise"], batch["timestep"])
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            predicted = network(noisy.contiguous(memory_format=torch.channels_last), batch["timestep"]).sample
        error = (predicted.float() - batch["noise"]).square().mean(dim=(1, 2, 3))
        (error * weights[batch["timestep"]]).mean().backward()

    # Everything is compiled before the clock starts.
    phases = [batches(crop, batch) for crop, batch in filter(None, ((run.crop, run.batch), run.last))]
    for frozen, phase in itertools.product((True, False) if run.freeze else (False,), phases):
        freeze(frozen)
        gradient(next(phase))
        optimizer.zero_grad(set_to_none=True)

    seen, begun = 0, time.process_time()
    while minutes and (done := (time.process_time() - begun) / (60 * minutes)) < 1:
        freeze(run.freeze and done > 0.5)
        batch = next(phases[-1 if done > 0.75 else 0])
        optimizer.param_groups[0]["lr"] = run.rate * min(1.0, done / 0.05, (1 - done) / 0.4)
        gradient(batch)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += len(batch["clean"])
    return network, seen


def table(output: Path) -> str:
    """The runs whose files are there, in the order of `RUNS`."""
    heads = ["network and training", "GFLOP", "rate", "crops seen", "whole pictures"]
    rows = [[*heads, *(f"window {size}" for size in WINDOWS), "t = 30"]]
    for name, run in RUNS.items():
        if (path := output / f"{_file_name(name)}.json").exists():
            found = json.loads(path.read_text())
            means = [f"{np.log(values).mean():.4f}" for values in found["residual"].values()]
            counts = [f"{operations(run.network()) / 1e9:.2f}", f"{run.rate:g}", f"{found['crops']:,}"]
            rows.append([name, *counts, *means, f"{found['residual']['whole'][2]:.4f}"])
    return markdown(rows)


@torch.no_grad()
def operations(network: ModelMixin) -> int:
    """Of an evaluation of 64 x 64 pixels, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 64, 64), 0)
    return counter.get_total_flops()


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", type=Path, help="folder of pictures to train on")
    parser.add_argument("folders", type=Path, nargs="+", help="pictures to judge by, one folder for each set")
    parser.add_argument("--output", type=Path, required=True, help="folder for what was found, one file a run")
    parser.add_argument("--minutes", type=float, default=5, help="time of a core for each run (5)")
    parser.add_argument("--count", type=int, default=4, help="pictures of each set (4)")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), metavar="NAME", help="these runs, of: %(choices)s")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--no-compile", action="store_true", help="for want of a C++ compiler")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    logging.set_verbosity_error()  # of the change of precision before judging
    precision = getattr(torch, arguments.precision)
    largest = max(run.last[0] if run.last else run.crop for run in RUNS.values())
    found = sorted(path for path in arguments.training.rglob("*") if path.suffix.lower() in (".png", ".webp"))
    pictures = [picture for picture in map(read, found) if min(picture.size) >= largest]
    if not pictures:
        raise SystemExit(f"{arguments.training}: no PNG or WebP pictures of {largest} pixels or more to train on.")
    judged_by = torch.cat([crops(folder, arguments.count, SIZE) for folder in arguments.folders])
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.only or RUNS:
        path = arguments.output / f"{_file_name(name)}.json"
        if path.exists():
            continue
        minutes = arguments.minutes if RUNS[name].trained else 0.0
        network, seen = train(RUNS[name], pictures, minutes, not arguments.no_compile, precision)
        judged = SimpleNamespace(unet=network.eval().to(precision), scheduler=DDRMScheduler())
        found = {"crops": seen, "minutes": minutes, "residual": residuals(judged, judged_by)}
        text = json.dumps(found, indent=1) + "\n"
        write_atomically(path, lambda stream, text=text: stream.write(text.encode()))
        print(f"{name}: {seen:,} crops, mean log {np.log(found['residual']['whole']).mean():.4f}", flush=True)
    print(f"\n{table(arguments.output)}")


if __name__ == "__main__":
    main()
