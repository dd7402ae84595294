"""Train an unconditional diffusion prior on a folder of photographs, and perhaps one of graphics.

python scripts/training/train_prior.py PHOTOGRAPHS OUTPUT [--graphics FOLDER] [--set run.steps=20000 ...]
torchrun --nproc-per-node 8 scripts/training/train_prior.py PHOTOGRAPHS OUTPUT                # GPUs; not yet run
OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 scripts/training/train_prior.py PHOTOGRAPHS OUTPUT     # processor cores

PHOTOGRAPHS are without JPEG's traces (prepare_data.py makes such a folder), and so are graphics: screens, diagrams,
drawings, pages of text, at their own resolution. The network predicts the noise of clean crops (Ho et al., 2020,
equation 14) and never sees a JPEG. Run again, the command goes on where it was stopped (Ctrl-C saves first): crop,
timestep and noise of every training sample follow from the seed and the sample's number, so a resumed run is the run
that was not stopped. The run may end with a phase of other crops (`last`), and begin with a network that is grown first
(`grow_to`).

To judge a long run on the way, copy a checkpoint into a folder of its own and let the rate fall there:

    cp -r OUTPUT/checkpoint-00008000 BRANCH/
    python scripts/training/train_prior.py PHOTOGRAPHS BRANCH --set run.steps=8600 --set run.decay=600

A GPU is fast enough to wait for its crops, so give it processes that cut them (not yet run; at most one a core):

    python scripts/training/train_prior.py PHOTOGRAPHS OUTPUT --set run.precision=bf16 --set run.workers=14
        --set "data.crops=[[64,256],[128,64]]" --set run.checkpoint_every=2000 --set run.validate_every=4000

OUTPUT receives

  checkpoint-N/    everything needed to go on: weights, average, optimizer, schedule
  prior/           the averaged weights that restored best so far, as a pipeline for from_prior, --prior, push
  training.csv, validation.csv, training.png, pictures/N.png (validation images, JPEG and restored)
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import io
import json
import math
import shutil
import signal
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from diffusers.training_utils import EMAModel
from grow import grow
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from pipeline_ddrm_jpeg import DDRMJPEGPipeline, DDRMScheduler
from pipeline_ddrm_jpeg.evaluation.metrics import psnr
from pipeline_ddrm_jpeg.extras import needs
from pipeline_ddrm_jpeg.files.formats import write_atomically

with needs("train"):
    import matplotlib.pyplot as plt
    import yaml

VALIDATION_TIMESTEPS = (5, 15, 30, 60, 100, 150, 200, 285)
VALIDATION_QUALITIES = (5, 10, 30)
VALIDATION_CROP = 128
LOGGED_STEPS = 100
KEPT_CHECKPOINTS = 2


def from_nothing(model: dict[str, Any]) -> UNet2DModel:
    """A network whose residual blocks begin as their shortcuts: their last convolutions are zero.

    Guided diffusion begins so, diffusers does not. In one run of 1,000 steps each with the config here, the validation
    images gained 0.97 dB so and 0.87 dB otherwise.
    """
    unet = UNet2DModel(**model)
    for block in (module for module in unet.modules() if isinstance(module, ResnetBlock2D)):
        torch.nn.init.zeros_(block.conv2.weight)
        torch.nn.init.zeros_(block.conv2.bias)
    return unet


class Photographs:
    """Crops of photographs, shrunk by a random factor: what is sharp at one scale is soft at another.

    Args:
        images: RGB.
        scales: least and greatest factor.
        grey: share of the crops that are made grey.
    """

    def __init__(self, images: list[Image.Image], scales: tuple[float, float], grey: float = 0.0) -> None:
        self.pictures, self.scales, self.grey = images, scales, grey
        self.areas = np.array([image.width * image.height for image in images], dtype=np.float64)

    def crop(self, rng: np.random.Generator, side: int) -> np.ndarray:
        """A random crop `[side, side, 3]`, uint8. Images smaller than it are not used.

        Raises:
            SystemExit: if all are smaller.
        """
        areas = np.array([min(image.size) >= side for image in self.pictures]) * self.areas
        if not areas.any():
            raise SystemExit(f"None of the {len(self.pictures)} images to train on has {side} x {side} pixels.")
        image = self.pictures[np.searchsorted(areas.cumsum() / areas.sum(), rng.random())]
        return self.varied(rng, self.cut(rng, image, side))

    def cut(self, rng: np.random.Generator, image: Image.Image, side: int) -> np.ndarray:
        scale = max(rng.uniform(*self.scales), side / min(image.size))
        extent = min(side / scale, *image.size)  # rounding may lift it above
        left, top = rng.uniform(0, image.width - extent), rng.uniform(0, image.height - extent)
        box = (left, top, left + extent, top + extent)
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box))

    def varied(self, rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
        pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
        if rng.random() < self.grey:
            pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L").convert("RGB"))
        return pixels


class Graphics(Photographs):
    """Crops of screens, drawings and text: half of them unscaled, as sharp as they were drawn, in varied colours."""

    def cut(self, rng: np.random.Generator, image: Image.Image, side: int) -> np.ndarray:
        if rng.random() < 0.5:
            return super().cut(rng, image, side)
        left, top = (int(rng.integers(extent - side + 1)) for extent in image.size)
        return np.asarray(image.crop((left, top, left + side, top + side)))

    def varied(self, rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
        pixels = super().varied(rng, pixels)[..., rng.permutation(3)]
        return 255 - pixels if rng.random() < 0.25 else pixels


class Crops(Dataset):
    """Training samples by number and size: a crop in [-1, 1], a timestep and noise, which follow from these and a seed.

    Args:
        kinds: where crops come from, and the share of each.
        levels: noise level of each timestep, `[T]`.
        timesteps: first and last timestep, both drawn.
        sampling: "uniform" in t; "root": uniform in the root of t; "log": uniform in the logarithm of the noise level.
        seed: of everything.
    """

    def __init__(
        self,
        kinds: list[tuple[Photographs, float]],
        *,
        levels: np.ndarray,
        timesteps: tuple[int, int],
        sampling: str,
        seed: int,
    ) -> None:
        self.kinds, self.seed = kinds, seed
        steps = np.arange(timesteps[0], timesteps[1] + 1)
        density = {"uniform": np.ones(len(steps)), "root": steps**-0.5, "log": np.gradient(np.log(levels))[steps]}
        self.timesteps, self.cumulative = steps, np.cumsum(density[sampling]) / density[sampling].sum()

    def __getitem__(self, sample: tuple[int, int]) -> dict[str, Any]:
        number, side = sample
        rng = np.random.default_rng((self.seed, number))
        kind = self.kinds[np.searchsorted(np.cumsum([share for _, share in self.kinds]), rng.random(), "right")][0]
        pixels = kind.crop(rng, side)
        # successive samples spread evenly over the timesteps (golden ratio), which lowers the gradient's variance
        position = (number * 0.6180339887498949 + rng.random() * 1e-3) % 1
        return {
            "clean": np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32) / 127.5 - 1,
            "noise": rng.standard_normal((3, side, side), dtype=np.float32),
            "timestep": self.timesteps[np.searchsorted(self.cumulative, position)],
        }


def read(path: Path) -> Image.Image:
    """An image in RGB.

    Raises:
        SystemExit: if it cannot be read.
    """
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except OSError as error:
        raise SystemExit(f"{path}: {error}. Remove it from the folder.") from None


def compile_for_training(unet: UNet2DModel) -> None:
    """`torch.compile` in place, but for the upsampling.

    With it, torch 2.13 for processors gives every level below the first a gradient of zero (channels-last, forward
    right, no message).
    """
    for module in unet.modules():
        if isinstance(module, Upsample2D):
            module.forward = torch.compiler.disable(module.forward)
    unet.compile()


class Validation:
    """How well a network denoises and restores images it was not trained on: always the same crops and noises."""

    def __init__(self, images: list[Path], scheduler: DDRMScheduler) -> None:
        self.scheduler = scheduler
        self.crops = []
        for path in images:
            image = read(path)
            if min(image.size) < VALIDATION_CROP:
                raise SystemExit(f"{path}: {image.width} x {image.height} pixels are too few to validate with.")
            image.thumbnail((320, 320), Image.Resampling.BICUBIC)
            box = ((image.width - VALIDATION_CROP) // 2, (image.height - VALIDATION_CROP) // 2)
            self.crops.append(image.crop((*box, box[0] + VALIDATION_CROP, box[1] + VALIDATION_CROP)))
        stacked = torch.from_numpy(np.stack([np.asarray(crop) for crop in self.crops]))
        self.clean = stacked.permute(0, 3, 1, 2).float() / 127.5 - 1
        self.noise = torch.randn(self.clean.shape, generator=torch.Generator().manual_seed(0))

    def __call__(self, unet: UNet2DModel) -> tuple[dict[str, float], Image.Image]:
        """Residual over noise variance by timestep, PSNR gains over JPEG in dB by quality factor, and an image."""
        found = {}
        for timestep in VALIDATION_TIMESTEPS:
            t = torch.full((len(self.clean),), timestep)
            noisy = self.scheduler.add_noise(self.clean, self.noise, t).to(unet.device, unet.dtype)
            predicted = unet(noisy, t.to(unet.device)).sample.float().cpu()
            found[f"residual {timestep}"] = (predicted - self.noise).square().mean().item()
        pipe = DDRMJPEGPipeline(unet=unet, scheduler=self.scheduler)
        pipe.set_progress_bar_config(disable=True)
        rows = []
        for quality in VALIDATION_QUALITIES:
            gains = []
            for crop in self.crops:
                stream = io.BytesIO()
                crop.save(stream, "JPEG", quality=quality)
                restored = pipe(stream.getvalue(), generator=torch.Generator().manual_seed(0)).images[0]
                jpeg = Image.open(stream).convert("RGB")
                gains.append(psnr(restored, crop) - psnr(jpeg, crop))
                if quality == 10:
                    rows.append(np.concatenate([np.asarray(part) for part in (crop, jpeg, restored)], axis=1))
            found[f"gain {quality}"] = float(np.mean(gains))
        found["gain"] = float(np.mean([found[f"gain {quality}"] for quality in VALIDATION_QUALITIES]))
        return found, Image.fromarray(np.concatenate(rows))


def split(folder: Path, validation: int, exclude: list[str]) -> tuple[list[Path], list[Path]]:
    """Images to train on and to validate with; which is which depends on the names alone."""
    suffixes = set(Image.registered_extensions())
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    images = [path for path in images if not any(fnmatch(path.name, pattern) for pattern in exclude)]
    if len(images) <= validation:
        raise SystemExit(f"{folder}: {len(images)} images, and {validation} are kept for validation. Add some.")
    by_hash = sorted(images, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    return sorted(by_hash[validation:]), sorted(by_hash[:validation])


def load_config(path: Path, changes: list[str]) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text())
    for change in changes:
        key, _, value = change.partition("=")
        *tables, name = key.split(".")
        table = config
        for each in tables:
            table = table.get(each, {})
        if name not in table:
            raise SystemExit(f"--set {change}: {path} has no {key!r}.")
        table[name] = yaml.safe_load(value)
    return config


class Table:
    """A CSV file that grows by a row at a time, and forgets what a resumed run will write again."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rows = []
        if path.exists():
            self.rows = [row for row in csv.DictReader(path.open(newline="")) if int(row["step"]) <= step]

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        stream = io.StringIO()
        writer = csv.DictWriter(stream, row, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, lambda out: out.write(stream.getvalue().encode()))


def plot(training: Table, validation: Table, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot([float(row["hours"]) for row in training.rows], [float(row["loss"]) for row in training.rows], lw=0.8)
    left.set(xlabel="hours", ylabel="loss", yscale="log")
    for quality in VALIDATION_QUALITIES:
        values = [float(row[f"gain {quality}"]) for row in validation.rows]
        right.plot([float(row["hours"]) for row in validation.rows], values, marker=".", label=f"QF {quality}")
    right.set(xlabel="hours", ylabel="validation: PSNR gain over JPEG (dB)")
    right.legend()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    plt.close(figure)
    write_atomically(path, lambda out: out.write(stream.getvalue()))


def latest_checkpoint(output: Path) -> Path | None:
    found = [path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def save_checkpoint(accelerator: Accelerator, output: Path, step: int, hours: float, kept: int) -> None:
    """A folder that appears under its name only when it is whole; older ones but that of step `kept` are removed."""
    partial, final = output / "checkpoint.partial", output / f"checkpoint-{step:08d}"
    if final.exists():
        return
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / "progress.json").write_text(json.dumps({"step": step, "hours": hours}))
        partial.rename(final)
        for old in sorted(output.glob("checkpoint-[0-9]*"))[:-KEPT_CHECKPOINTS]:
            if not old.name.endswith(f"{kept:08d}"):
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def save_prior(unet: UNet2DModel, scheduler: DDRMScheduler, output: Path) -> None:
    partial = output / "prior.partial"
    shutil.rmtree(partial, ignore_errors=True)
    half = UNet2DModel.from_config(unet.config)
    half.load_state_dict(unet.state_dict())
    half.half().save_pretrained(partial / "unet", safe_serialization=True)
    scheduler.save_pretrained(partial / "scheduler")
    shutil.rmtree(output / "prior", ignore_errors=True)
    partial.rename(output / "prior")


class Trainer:
    """Network, average, optimizer, schedule and tables of one run, which may go on from a checkpoint.

    Args:
        photographs: folder.
        graphics: folder, or None.
        output: folder of the run; begun if it has no checkpoint, continued if it has.
        config: as `load_config` returns it.
    """

    def __init__(self, photographs: Path, graphics: Path | None, output: Path, config: dict[str, Any]) -> None:
        self.output, self.config, self.run = output, config, config["run"]
        run, noise = config["run"], config["noise"]
        self.accelerator = Accelerator(
            mixed_precision={"fp32": "no"}.get(run["precision"], run["precision"]),
            # Without this, several processes on a machine without a GPU would each take itself for the only one.
            cpu=not any(each.is_available() for each in (torch.cuda, torch.backends.mps, torch.xpu)),
        )
        last = config["last"]
        for name, crops in (("data.crops", config["data"]["crops"]), ("last.crops", last["crops"])):
            for side, batch in crops:
                if batch % (processes := self.accelerator.num_processes):
                    raise SystemExit(f"{name}: {batch} of {side} pixels do not divide among {processes} processes.")
        if not 0 <= last["steps"] <= run["steps"]:
            raise SystemExit(f"last.steps = {last['steps']} is not among the {run['steps']} of run.steps.")
        set_seed(run["seed"])
        output.mkdir(parents=True, exist_ok=True)

        device = self.accelerator.device
        self.scheduler = DDRMScheduler(init_timestep=noise["timesteps"][1] + 1)
        self.levels = ((1 - self.scheduler.alphas_cumprod) / self.scheduler.alphas_cumprod).sqrt()
        weights = self.levels ** noise["weight_power"]
        self.weights = (weights / weights[noise["timesteps"][0] : noise["timesteps"][1] + 1].mean()).to(device)

        self.unet = (
            UNet2DModel.from_pretrained(config["initial"], subfolder="unet", torch_dtype=torch.float32)
            if config["initial"]
            else from_nothing(config["model"])
        )
        if config["grow_to"]:
            try:
                self.unet = grow(self.unet, config["grow_to"])
            except ValueError as error:
                raise SystemExit(f"grow_to: {error}.") from None
        self.unet.to(memory_format=torch.channels_last)
        self.average = EMAModel(self.unet.parameters(), decay=run["ema"], use_ema_warmup=True, power=0.75, foreach=True)
        self.averaged = UNet2DModel.from_config(self.unet.config).to(device, memory_format=torch.channels_last).eval()
        optimizer = torch.optim.AdamW(self.unet.parameters(), fused=True, **config["optimizer"])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        data = config["data"]
        train_on, validate_on = split(photographs, data["validation"], data["exclude"])
        self.validation = Validation(validate_on, self.scheduler)
        scales, share = tuple(data["scales"]), data["graphics"] if graphics else 0.0
        kinds = [(Photographs([read(path) for path in train_on], scales, data["grey"]), 1 - share)]
        if graphics:
            train_on, _ = split(graphics, 0, data["exclude"])
            kinds.append((Graphics([read(path) for path in train_on], scales, data["grey"]), share))
        self.crops = Crops(
            kinds,
            levels=self.levels.double().numpy(),
            timesteps=tuple(noise["timesteps"]),
            sampling=noise["sampling"],
            seed=run["seed"],
        )
        if run["compile"]:
            compile_for_training(self.unet)
        self.model, self.optimizer = self.accelerator.prepare(self.unet, optimizer)
        self.accelerator.register_for_checkpointing(self.schedule, self.average)
        self.average.to(device)

        self.step, self.hours = 0, 0.0
        if checkpoint := latest_checkpoint(output):
            self.accelerator.load_state(str(checkpoint))
            progress = json.loads((checkpoint / "progress.json").read_text())
            self.step, self.hours = progress["step"], progress["hours"]
            self.accelerator.print(f"Going on from {checkpoint}")
        self.began_at = self.step
        self.training, self.validations = (
            Table(output / name, self.step) for name in ("training.csv", "validation.csv")
        )

    def rate(self, step: int) -> float:
        """Learning rate of a step over the config's: a linear rise, a plateau, a linear fall to zero."""
        rise, fall = (step + 1) / max(self.run["warmup"], 1), (self.run["steps"] - step) / max(self.run["decay"], 1)
        return min(1.0, rise, fall)

    def batches(self) -> DataLoader:
        """What is left of the run, the last phase included; of each batch, the share of this process."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = (batch[rank * len(batch) // processes :][: len(batch) // processes] for batch in self.samples())
        on_gpu, workers = self.accelerator.device.type == "cuda", self.run["workers"]
        return DataLoader(self.crops, batch_sampler=mine, num_workers=workers, pin_memory=on_gpu)

    def samples(self) -> Iterator[list[tuple[int, int]]]:
        """Number and pixels a side of the samples of each step from here on: sizes take turns."""
        number, last = 0, self.config["last"]
        for step in range(self.run["steps"]):
            crops = last["crops"] if step >= self.run["steps"] - last["steps"] else self.config["data"]["crops"]
            side, batch = crops[step % len(crops)]
            if step >= self.step:
                yield [(number + k, side) for k in range(batch)]
            number += batch

    def learn(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of the optimizer. Returns the loss and the gradient's norm before clipping."""
        clean, noise, t = (batch[name].to(self.accelerator.device) for name in ("clean", "noise", "timestep"))
        noisy = self.scheduler.add_noise(clean, noise, t).contiguous(memory_format=torch.channels_last)
        with self.accelerator.autocast():
            predicted = self.model(noisy, t).sample
        error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        loss = (error * self.weights[t]).mean()
        self.accelerator.backward(loss)
        if self.step == self.began_at + 2:  # blocks that began at zero have moved by then
            self.check_gradients()
        norm = self.accelerator.clip_grad_norm_(self.unet.parameters(), self.run["clip"])
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.step(self.unet.parameters())
        self.step += 1
        return loss.detach(), norm

    def check_gradients(self) -> None:
        """Say so if weights will not learn, as it happens where a network is not compiled as it should be."""
        dead = [name for name, weight in self.unet.named_parameters() if weight.grad is None or not weight.grad.any()]
        if dead:
            self.accelerator.print(
                f"No gradient reaches {len(dead)} tensors of weights ({dead[0]}, ...), which will not learn."
                + (" Use --set run.compile=false." if self.run["compile"] else "")
            )

    def validate(self) -> None:
        """Write a row, a plot, the images, and the averaged weights if none restored better (main process only)."""
        best = max((float(row["gain"]) for row in self.validations.rows), default=-math.inf)
        self.average.copy_to(self.averaged.parameters())
        precision = torch.bfloat16 if self.run["precision"] == "bf16" else torch.float32
        with torch.inference_mode():
            found, image = self.validation(copy.deepcopy(self.averaged).to(precision))
        row = {"step": self.step, "hours": f"{self.hours:.4f}"} | {name: f"{each:.4f}" for name, each in found.items()}
        self.validations.add(row)
        self.accelerator.print(f"step {self.step}: " + ", ".join(f"{name} {each:.3f}" for name, each in found.items()))
        (self.output / "pictures").mkdir(exist_ok=True)
        image.save(self.output / "pictures" / f"{self.step:08d}.png")
        plot(self.training, self.validations, self.output / "training.png")
        if found["gain"] > best:
            save_prior(self.averaged, self.scheduler, self.output)

    def log(self, loss: float, norm: float) -> None:
        self.training.add(
            {
                "step": self.step,
                "hours": f"{self.hours:.4f}",
                "loss": f"{loss:.5f}",
                "gradient": f"{norm:.4f}",
                "rate": f"{self.schedule.get_last_lr()[0]:.3e}",
            }
        )

    def __call__(self) -> None:
        """Train to the config's last step, or until SIGINT or SIGTERM, after which the state is saved.

        Raises:
            SystemExit: 130, stopped.
        """
        run, accelerator, main = self.run, self.accelerator, self.accelerator.is_main_process
        for stop in (signal.SIGINT, signal.SIGTERM):  # seen between steps, by all processes at the same one
            signal.signal(stop, lambda *_: accelerator.set_trigger())
        if main and not self.validations.rows:
            self.validate()
        accelerator.wait_for_everyone()
        losses: list[torch.Tensor] = []
        stopped, begun = False, time.perf_counter()
        with tqdm(total=run["steps"], initial=self.step, disable=not main, unit="step") as progress_bar:
            for batch in self.batches():
                loss, norm = self.learn(batch)
                losses.append(loss)
                now = time.perf_counter()
                self.hours, begun = self.hours + (now - begun) / 3600, now
                progress_bar.update()
                if self.step % LOGGED_STEPS == 0:
                    mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                    losses.clear()
                    progress_bar.set_postfix(loss=f"{mean:.4f}")
                    if main:
                        self.log(mean, float(norm))
                last = self.step == run["steps"]
                if last or self.step % run["validate_every"] == 0:
                    if main:
                        self.validate()
                    accelerator.wait_for_everyone()
                    begun = time.perf_counter()  # hours of training alone
                stopped = accelerator.check_trigger()
                if stopped or last or self.step % run["checkpoint_every"] == 0:
                    kept = run["steps"] - run["decay"]
                    save_checkpoint(accelerator, self.output, self.step, self.hours, kept=kept)
                if stopped:
                    accelerator.print(f"\nStopped and saved at step {self.step}. The same command goes on.")
                    break
        accelerator.end_training()
        if stopped:
            raise SystemExit(130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder, read with its subfolders")
    parser.add_argument("output", type=Path, help="folder for checkpoints, logs and the prior")
    parser.add_argument("--graphics", type=Path, metavar="FOLDER", help="screens, drawings, pages of text")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the config")
    arguments = parser.parse_args()
    for folder in filter(None, (arguments.photographs, arguments.graphics)):
        if not folder.is_dir():
            raise SystemExit(f"{folder}: no such folder.")
    config = load_config(arguments.config, arguments.set)
    Trainer(arguments.photographs, arguments.graphics, arguments.output, config)()


if __name__ == "__main__":
    main()
