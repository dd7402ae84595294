"""Restores the images of an evaluation and keeps what is measured in a folder."""

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
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from .. import __version__
from ..degradations.jpeg import JPEGOperator
from ..files.formats import write_atomically
from .baselines import BASELINES
from .metrics import COLUMNS, METRICS, psnr
from .protocol import AVERAGE, JPEG, SINGLE, Picture, Protocol, prepare
from .tables import evaluation_tables, groups

_PACKAGES = ("torch", "diffusers", "accelerate", "jpeglib", "numpy", "pillow")
_PACKAGES += ("scikit-image", "torchmetrics", "ssimulacra2")


def evaluate_image(pipe: Any, image: Picture, protocol: Protocol) -> list[dict[str, Any]]:
    """Degrade and restore one image at every quality factor, with a `DDRMJPEGPipeline`.

    Gives a row for each quality factor and method: what it is, `bits_per_pixel` of the file (convention `"libjpeg"`),
    `psnr` over RGB in [0, 1] before rounding (the paper's), the other metrics on 8-bit RGB, `consistency` of the 8-bit
    image, `network_evaluations` (calls of the prior on one state), `seconds` and `seed`. A single sample is counted as
    its share of the seconds of all.

    Raises:
        OSError: if the image cannot be read.
        ValueError: if it is too small for a metric, or a setting does not fit the pipeline.
        RuntimeError: if a baseline fails.
    """
    reference = prepare(image.path, protocol.size)
    rows = []
    for quality_factor in protocol.quality_factors:
        seed = _seed(protocol.seed, image.path.name, quality_factor)
        degraded, source, operator = _degrade(reference, quality_factor, protocol)
        common = {
            "dataset": image.dataset,
            "image": image.path.name,
            "convention": protocol.convention,
            "chroma_subsampling": protocol.chroma_subsampling,
            "quality_factor": quality_factor,
            "bits_per_pixel": len(source) * 8 / (reference.width * reference.height) if operator is None else None,
        }

        def add(method: str, restored: np.ndarray, common: dict = common, **facts: Any) -> None:
            rows.append(common | {"method": method} | _measure(restored, reference, protocol) | facts)

        add(JPEG, degraded)
        for name in protocol.baselines:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "file.jpg")
                path.write_bytes(source)
                start = time.perf_counter()
                restored = BASELINES[name](path)
                add(name, restored / 255, seconds=time.perf_counter() - start)

        start = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        result = pipe(source, operator=operator, generator=generator, output_type="np", settings=protocol.settings)
        seconds = time.perf_counter() - start
        samples, steps = len(result.samples[0]), len(result.timesteps[0])
        facts = {"network_evaluations": steps, "seconds": seconds / samples, "seed": seed}
        kept = {"consistency": result.consistency_8bit[0]}
        if samples == 1:  # with `sharpness` the image is more than its sample
            add(SINGLE, result.images[0], **kept, **facts)
        else:
            add(SINGLE, result.samples[0][0], **facts)
            facts |= {"network_evaluations": samples * steps, "seconds": seconds}
            add(AVERAGE, result.images[0], **kept, **facts)
    return rows


def _measure(restored: np.ndarray, reference: Image.Image, protocol: Protocol) -> dict[str, float]:
    """PSNR of an image `[H, W, 3]` in [0, 1] as it is, and other metrics of it in 8 bits."""
    restored = np.clip(restored, 0, 1)
    rounded = VaeImageProcessor.numpy_to_pil(restored)[0]
    values = {"psnr": psnr(restored, np.asarray(reference) / 255, peak=1)}
    for name in protocol.metrics:
        options = {"weights": protocol.lpips_weights} if name == "lpips" else {}
        values[name] = METRICS[name].compute(rounded, reference, **options)
    return values


def _seed(seed: int, name: str, quality_factor: int) -> int:
    digest = hashlib.sha256(f"{seed} {name} {quality_factor}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def _degrade(
    reference: Image.Image, quality_factor: int, protocol: Protocol
) -> tuple[np.ndarray, bytes | torch.Tensor, JPEGOperator | None]:
    """The degraded image `[H, W, 3]` in [0, 1], what to give the pipeline, and the operator if that is no file."""
    if protocol.convention == "libjpeg":
        stream = io.BytesIO()
        reference.save(stream, "JPEG", quality=quality_factor, subsampling=protocol.chroma_subsampling)
        return np.asarray(Image.open(stream)) / 255, stream.getvalue(), None
    operator = JPEGOperator(quality_factor, protocol.chroma_subsampling, protocol.convention)
    x = torch.from_numpy(np.array(reference)).permute(2, 0, 1)[None].float() / 127.5 - 1
    padding = (0, -x.shape[-1] % operator.alignment[1], 0, -x.shape[-2] % operator.alignment[0])
    padded = torch.nn.functional.pad(x, padding, mode="replicate")
    degraded = operator.decode(operator.encode(padded))[0, :, : x.shape[-2], : x.shape[-1]]
    return (degraded.permute(1, 2, 0) / 2 + 0.5).numpy().clip(0, 1), x, operator


class Evaluation:
    """A folder with the results of an evaluation, which grows image by image.

    `images/SET/NAME.json` holds the rows of a finished image, so a run that was stopped, or one of several
    processes that was killed, costs only what was under way. `evaluation.json` holds all settings and, in the end, the
    means; `images.csv` all rows; `table.md` the tables. All processes of a run must see the same folder, which is made
    if need be. `facts` are what else decides the numbers (the prior, the precision, the weights of LPIPS).

    Raises `ValueError` if the folder holds results of something else, or a file that is broken.
    """

    def __init__(self, folder: Path, protocol: Protocol, facts: Mapping[str, Any]) -> None:
        self.folder, self.protocol = folder, protocol
        decisive = asdict(protocol)
        del decisive["lpips_weights"]  # a place; what lies there is among the facts
        self._decisive = json.loads(json.dumps({"protocol": decisive, **facts}))  # as JSON gives it back, to compare
        record = folder / "evaluation.json"
        earlier = _read(record, dict) if record.exists() else self._decisive
        for key, value in self._decisive.items():
            if earlier.get(key) != value:
                name, was, now = _first_difference(key, earlier.get(key), value)
                raise ValueError(f"{folder} holds an evaluation with {name} {was}, not {now}; use another folder")

    def _place(self, image: Picture) -> Path:
        return self.folder / "images" / image.dataset / f"{image.path.name}.json"

    def pending(self, images: Iterable[Picture]) -> list[Picture]:
        """The images without results."""
        return [image for image in images if not self._place(image).exists()]

    def begin(self) -> None:
        """Write down the settings; of several processes, one does so."""
        if not (self.folder / "evaluation.json").exists():
            self._write("evaluation.json", json.dumps({**self._decisive, **_environment()}, indent=2) + "\n")

    def run(
        self, pipe: Any, images: Iterable[Picture], on_picture: Callable[[], None] | None = None
    ) -> list[tuple[str, str]]:
        """Evaluate images, one after the other; gives path and reason, in one sentence, of each that failed."""
        failures = []
        for image in images:
            try:
                rows = evaluate_image(pipe, image, self.protocol)
            except (OSError, ValueError, RuntimeError, ArithmeticError) as error:
                failures.append((str(image.path), str(error).partition("\n")[0] or type(error).__name__))
            else:
                self._write(self._place(image).relative_to(self.folder), json.dumps(rows) + "\n")
            if on_picture is not None:
                on_picture()
        return failures

    def finish(self, images: Sequence[Picture], notes: Mapping[str, str] | None = None) -> str:
        """Write the means, all rows and the tables of the images that have results; gives the tables, Markdown.

        `notes` are, by metric, the reasons why one was not computed. Raises `ValueError` if a file is broken.
        """
        rows = [row for place in map(self._place, images) if place.exists() for row in _rows(place)]
        stream = io.StringIO()
        writer = csv.DictWriter(stream, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write("images.csv", stream.getvalue())
        means, notes = summarize(rows), dict(notes or {})
        text = evaluation_tables(means, notes)
        self._write("table.md", text)
        record = {**self._decisive, **_environment(), "notes": notes, "rows": means}
        self._write("evaluation.json", json.dumps(record, indent=2) + "\n")
        return text

    def _write(self, name: str | Path, text: str) -> None:
        write_atomically(self.folder / name, lambda stream: stream.write(text.encode()))


def _read(place: Path, kind: type) -> Any:
    """What a file of an evaluation holds, or a sentence that names it."""
    try:
        value = json.loads(place.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _broken(place, f"is broken ({error})") from None
    if not isinstance(value, kind):
        raise _broken(place, "holds something else than results")
    return value


def _rows(place: Path) -> list[dict[str, Any]]:
    rows = _read(place, list)
    for row in rows:
        if not isinstance(row, dict) or not {"dataset", "image", "psnr", *_KEY} <= row.keys():
            raise _broken(place, "holds a row that is none")
        if not all(isinstance(row[name], (int, float)) for name in COLUMNS if name in row):
            raise _broken(place, "holds a row without numbers")
    return rows


def _broken(place: Path, what: str) -> ValueError:
    return ValueError(f"{place} {what}; delete it, and the same command makes it anew")


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
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # not a checkout, or no git
    return {"versions": versions, "commit": commit, "machine": f"{platform.system()} {platform.machine()}"}


def fingerprint(network: torch.nn.Module) -> str:
    """SHA-256 of the weights of a network, by which results name the prior they were made with.

    Rounded to bfloat16 first, so that they have one name in float32 and bfloat16, and in float16 if that is exact.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().bfloat16().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


_KEY = ("convention", "chroma_subsampling", "quality_factor", "method")


def summarize(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the images of each set, by convention, subsampling, quality factor and method, as they first appear.

    A mean that is not finite (equal images have no PSNR) is `None`. What restores has, beside them, the least gain in
    PSNR over the JPEG that an image has, the name of that image, and how many images are worse than their JPEG.
    """
    means, rows = [], list(rows)
    jpeg = {_place_of(row): row["psnr"] for row in rows if row["method"] == JPEG}
    for (dataset, *key), group in groups(rows, "dataset", *_KEY).items():
        entry = {"dataset": dataset, "images": len(group), **dict(zip(_KEY, key, strict=True))}
        entry["metrics"] = {name: _mean(group, name) for name in COLUMNS if name in group[0]}
        others = ("bits_per_pixel", "consistency", "network_evaluations", "seconds")
        entry |= {name: _mean(group, name) for name in others if group[0].get(name) is not None}
        gains = ((row["psnr"] - jpeg[_place_of(row)], row["image"]) for row in group if _place_of(row) in jpeg)
        gains = [gain for gain in gains if math.isfinite(gain[0])]
        if gains and entry["method"] != JPEG:
            least, name = min(gains)
            entry |= {"least_gain": least, "least_gain_image": name, "made_worse": sum(gain < 0 for gain, _ in gains)}
        means.append(entry)
    return means


def _place_of(row: Mapping[str, Any]) -> tuple:
    """The degraded image that a row is about."""
    return tuple(row[name] for name in ("dataset", "image", *_KEY[:-1]))


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    value = math.fsum(row[name] for row in rows) / len(rows)
    return value if math.isfinite(value) else None
