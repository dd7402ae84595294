"""The paper's protocol over folders of pictures (section 4, Table 1): degrade, restore, measure, tabulate."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import __version__, baselines
from .jpeg_operator import JPEGOperator
from .metrics import METRICS, psnr
from .presets import PRESETS
from .restoration import write_atomically

JPEG, SINGLE, AVERAGE = "JPEG", "Ours (S)", "Ours (A)"
_PACKAGES = ("torch", "diffusers", "accelerate", "jpeglib", "numpy", "pillow")
_PACKAGES += ("scikit-image", "torchmetrics", "ssimulacra2")


@dataclass(frozen=True)
class Protocol:
    """All that decides the numbers of an evaluation, but for the prior and the pictures.

    Args:
        quality_factors: 1..100 each.
        operator: `"libjpeg"`: real files, written by Pillow, are read back and restored; `"paper"`: the JPEG operator
            of the program released with the paper, without a file.
        chroma_subsampling: `"4:4:4"`, `"4:2:2"` or `"4:2:0"`.
        size: pictures are cropped to their central square and resized to this many pixels (bilinear), as in the
            paper; `None` leaves them as they are.
        settings: keyword arguments of the pipeline's call.
        metrics: names from `METRICS`, computed beside PSNR.
        baselines: names from `BASELINES`; they need files, and so the operator `"libjpeg"`.
        seed: from which, with the name of a picture and the quality factor, each restoration's own seed is made.

    Raises:
        ValueError: for values outside these.
    """

    quality_factors: tuple[int, ...] = (5, 10, 30)
    operator: str = "libjpeg"
    chroma_subsampling: str = "4:2:0"
    size: int | None = 256
    settings: Mapping[str, Any] = field(default_factory=lambda: PRESETS["paper-average"])
    metrics: tuple[str, ...] = tuple(METRICS)
    baselines: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for quality_factor in self.quality_factors:
            if not 1 <= quality_factor <= 100:
                raise ValueError(f"the quality factor is {quality_factor}; it must be between 1 and 100")
        if not self.quality_factors or len(set(self.quality_factors)) < len(self.quality_factors):
            raise ValueError("give every quality factor once, and at least one")
        if self.operator not in ("libjpeg", "paper"):
            raise ValueError(f'the operator is {self.operator!r}; it must be "libjpeg" or "paper"')
        if self.baselines and self.operator == "paper":
            raise ValueError("the baselines restore files, which the paper operator does not write; use libjpeg")
        if self.size is not None and self.size < 16:
            raise ValueError(f"the size is {self.size}; it must be at least 16 pixels")


@dataclass(frozen=True)
class Picture:
    """A picture to degrade and restore, and the set it counts for."""

    dataset: str
    path: Path


def find_pictures(inputs: Iterable[Path], limit: int | None = None) -> list[Picture]:
    """The pictures of folders, and of text files that name one a line, relative to themselves.

    Args:
        inputs: folders and text files; the name of each, without suffix, is that of its set.
        limit: at most so many of each set, spread evenly over it.

    Raises:
        FileNotFoundError: if one does not exist.
        ValueError: if a set has no pictures, or two have the same name.
    """
    pictures: list[Picture] = []
    for source in inputs:
        if not source.exists():
            raise FileNotFoundError(f"{source} does not exist")
        if source.is_dir():
            dataset, readable = source.resolve().name, Image.registered_extensions()
            paths = sorted(path for path in source.iterdir() if path.suffix.lower() in readable)
        elif source.suffix.lower() in Image.registered_extensions():
            raise ValueError(f"{source} is a picture; give its folder, or a text file that names it")
        else:
            dataset = source.stem
            lines = (line.strip() for line in source.read_text(encoding="utf-8").splitlines())
            paths = [source.parent / line for line in lines if line]
        if not paths:
            raise ValueError(f"{source} holds no pictures")
        if any(picture.dataset == dataset for picture in pictures):
            raise ValueError(f"two sets are called {dataset}; rename one")
        if limit is not None and limit < len(paths):
            paths = [paths[round(i)] for i in np.linspace(0, len(paths) - 1, limit)]
        twice = {path.name for path in paths if sum(other.name == path.name for other in paths) > 1}
        if twice:
            raise ValueError(f"{source} names {min(twice)} twice")
        pictures.extend(Picture(dataset, path) for path in paths)
    return pictures


def prepare(path: Path, size: int | None) -> Image.Image:
    """A picture as the paper uses it: 8-bit RGB, its central square, resized to `size` pixels (bilinear)."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    if size is None:
        return picture
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    return picture if side == size else picture.resize((size, size), Image.Resampling.BILINEAR)


def evaluate_picture(pipe: Any, picture: Picture, protocol: Protocol) -> list[dict[str, Any]]:
    """Degrade and restore one picture at every quality factor.

    Args:
        pipe: a `DDRMJPEGPipeline`.
        picture: what to restore.
        protocol: how.

    Returns:
        One row for each quality factor and method: what it is, `bits_per_pixel` of the file (operator `"libjpeg"`),
        `psnr` over RGB in [0, 1] before rounding (the paper's), the other metrics on 8-bit RGB, `consistency` of the
        8-bit picture, `network_evaluations` (calls of the prior on one state), `seconds` and `seed`. A single sample
        is counted as its share of the seconds of all.
    """
    reference = prepare(picture.path, protocol.size)
    rows = []
    for quality_factor in protocol.quality_factors:
        seed = _seed(protocol.seed, picture.path.name, quality_factor)
        degraded, source, operator = _degrade(reference, quality_factor, protocol)
        common = {
            "dataset": picture.dataset,
            "image": picture.path.name,
            "operator": protocol.operator,
            "quality_factor": quality_factor,
            "bits_per_pixel": len(source) * 8 / (reference.width * reference.height) if operator is None else None,
        }

        def row(method: str, restored: np.ndarray, common: dict = common, **facts: Any) -> dict[str, Any]:
            return common | {"method": method} | measure(restored, reference, protocol.metrics) | facts

        rows.append(row(JPEG, degraded))
        for name in protocol.baselines:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "file.jpg")
                path.write_bytes(source)
                start = time.perf_counter()
                restored = baselines.BASELINES[name](path)
                rows.append(row(name, restored / 255, seconds=time.perf_counter() - start))

        start = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        result = pipe(source, operator=operator, generator=generator, output_type="np", **protocol.settings)
        seconds = time.perf_counter() - start
        samples, steps = len(result.samples[0]), len(result.timesteps[0])
        facts = {"network_evaluations": steps, "seconds": seconds / samples, "seed": seed}
        rows.append(row(SINGLE, result.samples[0][0], **facts))
        if samples > 1:
            facts |= {"network_evaluations": samples * steps, "seconds": seconds}
            rows.append(row(AVERAGE, result.images[0], consistency=result.consistency_8bit[0], **facts))
        else:
            rows[-1]["consistency"] = result.consistency_8bit[0]
    return rows


def measure(restored: np.ndarray, reference: Image.Image, metrics: Iterable[str]) -> dict[str, float]:
    """PSNR of a picture `[H, W, 3]` in [0, 1] as it is, and other metrics of it in 8 bits."""
    restored = np.clip(restored, 0, 1)
    rounded = (restored * 255).round().astype(np.uint8)
    values = {"psnr": psnr(restored, np.asarray(reference) / 255, peak=1)}
    return values | {name: METRICS[name].compute(rounded, reference) for name in metrics}


def _seed(seed: int, name: str, quality_factor: int) -> int:
    digest = hashlib.sha256(f"{seed} {name} {quality_factor}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def _degrade(
    reference: Image.Image, quality_factor: int, protocol: Protocol
) -> tuple[np.ndarray, bytes | torch.Tensor, JPEGOperator | None]:
    """The degraded picture `[H, W, 3]` in [0, 1], what to give the pipeline, and the operator if that is no file."""
    if protocol.operator == "libjpeg":
        stream = io.BytesIO()
        reference.save(stream, "JPEG", quality=quality_factor, subsampling=protocol.chroma_subsampling)
        return np.asarray(Image.open(stream)) / 255, stream.getvalue(), None
    operator = JPEGOperator(quality_factor, protocol.chroma_subsampling, "released")
    x = torch.from_numpy(np.array(reference)).permute(2, 0, 1)[None].float() / 127.5 - 1
    padding = (0, -x.shape[-1] % operator.alignment[1], 0, -x.shape[-2] % operator.alignment[0])
    padded = torch.nn.functional.pad(x, padding, mode="replicate")
    degraded = operator.decode(operator.encode(padded))[0, :, : x.shape[-2], : x.shape[-1]]
    return (degraded.permute(1, 2, 0) / 2 + 0.5).numpy().clip(0, 1), x, operator


class Evaluation:
    """A folder with the results of an evaluation, which grows picture by picture.

    `images/SET/NAME.json` holds the rows of a finished picture, so a run that was stopped, or one of several
    processes that was killed, costs only what was under way. `evaluation.json` holds all settings and, in the end, the
    means; `images.csv` all rows; `table.md` the tables. All processes of a run must see the same folder.

    Args:
        folder: made if need be.
        protocol: how pictures are degraded, restored and measured.
        facts: what else decides the numbers (the prior, the precision), for the record.

    Raises:
        ValueError: if the folder holds results of something else.
    """

    def __init__(self, folder: Path, protocol: Protocol, facts: Mapping[str, Any]) -> None:
        self.folder = folder
        self.protocol = protocol
        self.facts = dict(facts)
        # As JSON gives them back, for comparison.
        self._decisive = json.loads(json.dumps({"protocol": asdict(protocol), **facts}))
        record = folder / "evaluation.json"
        if record.exists():
            earlier = json.loads(record.read_text())
            for key, value in self._decisive.items():
                if earlier.get(key) != value:
                    name, was, now = _first_difference(key, earlier.get(key), value)
                    raise ValueError(f"{folder} holds an evaluation with {name} {was}, not {now}; use another folder")

    def _place(self, picture: Picture) -> Path:
        return self.folder / "images" / picture.dataset / f"{picture.path.name}.json"

    def pending(self, pictures: Iterable[Picture]) -> list[Picture]:
        """The pictures without results."""
        return [picture for picture in pictures if not self._place(picture).exists()]

    def begin(self) -> None:
        """Write down the settings; of several processes, one does so."""
        if not (self.folder / "evaluation.json").exists():
            self._write("evaluation.json", json.dumps({**self._decisive, **_environment()}, indent=2) + "\n")

    def run(
        self, pipe: Any, pictures: Iterable[Picture], on_picture: Callable[[], None] | None = None
    ) -> list[tuple[str, str]]:
        """Evaluate pictures, one after the other, going on after one that fails.

        Returns:
            For each picture that failed, its path and the reason in one sentence.
        """
        failures = []
        for picture in pictures:
            try:
                rows = evaluate_picture(pipe, picture, self.protocol)
            except (OSError, ValueError, RuntimeError) as error:
                reason = str(error).partition("\n")[0] or type(error).__name__
                failures.append((str(picture.path), reason))
            else:
                self._write(self._place(picture).relative_to(self.folder), json.dumps(rows) + "\n")
            if on_picture is not None:
                on_picture()
        return failures

    def finish(self, pictures: Sequence[Picture], notes: Mapping[str, str] | None = None) -> str:
        """Write the means, all rows and the tables of the pictures that have results.

        Args:
            pictures: what the evaluation is of.
            notes: metric to the reason why it was not computed.

        Returns:
            The tables, Markdown.
        """
        places = [place for place in map(self._place, pictures) if place.exists()]
        rows = [row for place in places for row in json.loads(place.read_text())]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        stream = io.StringIO()
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write("images.csv", stream.getvalue())
        means = summarize(rows)
        text = tables(means, notes or {})
        self._write("table.md", text)
        record = {**self._decisive, **_environment(), "notes": dict(notes or {}), "rows": means}
        self._write("evaluation.json", json.dumps(record, indent=2) + "\n")
        return text

    def _write(self, name: str | Path, text: str) -> None:
        write_atomically(self.folder / name, lambda stream: stream.write(text.encode()))


def _first_difference(name: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*now, *was]:
            if was.get(key) != now.get(key):
                return _first_difference(key, was.get(key), now.get(key))
    return name, was, now


def _environment() -> dict[str, Any]:
    """What made the numbers: versions, the commit of a checkout, the machine."""
    versions = {"pipeline-ddrm-jpeg": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # not a checkout, or no git
    return {"versions": versions, "commit": commit, "machine": f"{platform.system()} {platform.machine()}"}


def fingerprint(network: torch.nn.Module) -> str:
    """SHA-256 of the weights of a network in float32, so that results name the prior they were made with."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def summarize(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the pictures of each set, operator, quality factor and method, in the order they first appear.

    A mean that is not finite (equal pictures have no PSNR) is `None`.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in ("dataset", "operator", "quality_factor", "method")), []).append(row)
    names = ["psnr", *METRICS]
    means = []
    for (dataset, operator, quality_factor, method), group in groups.items():
        entry = {"dataset": dataset, "images": len(group), "operator": operator}
        entry |= {"quality_factor": quality_factor, "method": method}
        entry["metrics"] = {name: _mean(group, name) for name in names if name in group[0]}
        others = ("bits_per_pixel", "consistency", "network_evaluations", "seconds")
        means.append(entry | {name: _mean(group, name) for name in others if group[0].get(name) is not None})
    return means


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    value = math.fsum(row[name] for row in rows) / len(rows)
    return value if math.isfinite(value) else None


_LABELS = {"psnr": "PSNR"} | {name: metric.label for name, metric in METRICS.items()}
_DECIMALS = {"psnr": 2} | {name: metric.decimals for name, metric in METRICS.items()}


def tables(means: Sequence[Mapping[str, Any]], notes: Mapping[str, str]) -> str:
    """For every set a table in the shape of the paper's Table 1, the best value of a column in bold, and the rest.

    Args:
        means: of `summarize`.
        notes: metric to the reason why it was not computed.
    """
    parts = []
    for dataset, operator in dict.fromkeys((mean["dataset"], mean["operator"]) for mean in means):
        group = [mean for mean in means if (mean["dataset"], mean["operator"]) == (dataset, operator)]
        count = max(mean["images"] for mean in group)
        pictures = f"{count} picture{'s' if count > 1 else ''}"
        parts.append(f"### {dataset}: {pictures}, operator `{operator}`\n\n{_table_1(group)}\n\n{_details(group)}\n")
    named = [f"{_LABELS[name]} is n/a: {reason}." for name, reason in notes.items()]
    return "\n".join([*parts, *named]) + ("\n" if named else "")


def _table_1(means: Sequence[Mapping[str, Any]]) -> str:
    factors = list(dict.fromkeys(mean["quality_factor"] for mean in means))
    methods = list(dict.fromkeys(mean["method"] for mean in means))
    names = ("psnr", "ssim", "lpips")
    columns = [(factor, name) for factor in factors for name in names]
    values = {
        (mean["method"], mean["quality_factor"], name): mean["metrics"].get(name) for mean in means for name in names
    }
    best = {}
    for factor, name in columns:
        shown = [_shown(name, values.get((method, factor, name))) for method in methods]
        numbers = [float(text) for text in shown if text != "n/a"]
        if numbers:
            best[factor, name] = (min if name in METRICS and METRICS[name].better == "lower" else max)(numbers)
    lines = ["| Method | " + " | ".join(f"QF {factor} {_LABELS[name]}" for factor, name in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for method in methods:
        cells = []
        for factor, name in columns:
            text = _shown(name, values.get((method, factor, name)))
            cells.append(f"**{text}**" if text != "n/a" and float(text) == best[factor, name] else text)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _details(means: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in ("psnr_8bit", "psnr_b", "ssimulacra2") if name in means[0]["metrics"]]
    head = ["QF", "Method", "gain in PSNR", *(_LABELS[name] for name in names), "bits a pixel"]
    head += ["coefficients kept", "network evaluations", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|---:|---|" + "---:|" * (len(head) - 2)]
    jpeg = {mean["quality_factor"]: mean["metrics"]["psnr"] for mean in means if mean["method"] == JPEG}
    for mean in means:
        factor, value = mean["quality_factor"], mean["metrics"]["psnr"]
        known = mean["method"] != JPEG and None not in (value, jpeg[factor])
        cells = [str(factor), mean["method"], f"{value - jpeg[factor]:+.2f}" if known else ""]
        cells += [_shown(name, mean["metrics"][name]) for name in names]
        kept, evaluations = mean.get("consistency"), mean.get("network_evaluations")
        cells.append(f"{mean['bits_per_pixel']:.3f}" if "bits_per_pixel" in mean else "")
        cells.append("" if kept is None else f"{100 * kept:.2f} %")
        cells.append("" if evaluations is None else f"{evaluations:.0f}")
        cells.append(f"{mean['seconds']:.2f}" if "seconds" in mean else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(name: str, value: float | None) -> str:
    return "n/a" if value is None else f"{value:.{_DECIMALS[name]}f}"
