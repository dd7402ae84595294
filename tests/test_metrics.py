"""Metrics against independent implementations and values known in closed form."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as reference_lpips
from conftest import jpeg_bytes
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.ndimage import convolve1d, gaussian_filter1d
from ssimulacra2 import ssimulacra2 as weights_of

from pipeline_ddrm_jpeg.evaluation.lpips import LPIPS, load
from pipeline_ddrm_jpeg.evaluation.metrics import METRICS, lpips, psnr, psnr_b, ssim, ssimulacra2, unavailable


@pytest.fixture(scope="module", params=[5, 30, 90])
def pair(request, photo) -> tuple[np.ndarray, np.ndarray]:
    """A JPEG image and its original, `[H, W, 3]` uint8."""
    restored = Image.open(io.BytesIO(jpeg_bytes(photo, quality=request.param)))
    return np.asarray(restored), np.asarray(photo)


def test_psnr_of_a_constant_difference_is_known():
    zero = np.zeros((4, 4, 3), dtype=np.uint8)
    assert psnr(zero, zero + 16) == pytest.approx(20 * np.log10(255 / 16))
    assert psnr(zero / 255, (zero + 16) / 255, peak=1) == pytest.approx(20 * np.log10(255 / 16))
    assert psnr(zero, zero) == float("inf")


@pytest.mark.parametrize("name", [name for name in METRICS if unavailable(name) is None])
def test_equal_pictures_have_the_best_value_and_a_worse_one_a_worse_value(name, photo):
    metric = METRICS[name]
    good, bad = (Image.open(io.BytesIO(jpeg_bytes(photo, quality=quality))) for quality in (80, 10))
    values = [metric.compute(picture, photo) for picture in (photo, good, bad)]
    assert values == sorted(values, reverse=metric.better is max)
    assert len(set(values)) == 3
    assert values[0] == {"ssim": 1, "ssimulacra2": 100, "lpips": 0}.get(name, float("inf"))


@pytest.mark.parametrize("name", [name for name in METRICS if unavailable(name) is None])
def test_pictures_of_different_sizes_are_refused(name):
    with pytest.raises(ValueError, match=r"\(24, 24, 3\) and \(24, 25, 3\)"):
        METRICS[name].compute(np.zeros((24, 24, 3)), np.zeros((24, 25, 3)))


@pytest.mark.parametrize("compute", [ssim, psnr_b, ssimulacra2, lpips])
def test_pictures_smaller_than_the_window_are_refused(compute):
    with pytest.raises(ValueError, match=r"or more, got 7 x 9"):
        compute(np.zeros((9, 7, 3)), np.zeros((9, 7, 3)))


def test_ssim_is_that_of_its_paper(pair):
    """Eq. 13 of Wang et al. with its window written out."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def blurred(plane):
        return convolve1d(convolve1d(plane, window, axis=0), window, axis=1)[5:-5, 5:-5]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    channels = []
    for a, b in zip(*(np.moveaxis(pixels.astype(np.float64), -1, 0) for pixels in pair), strict=True):
        mean_a, mean_b = blurred(a), blurred(b)
        var_a, var_b, cov = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2, blurred(a * b) - mean_a * mean_b
        numerator = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
        channels.append((numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())
    assert ssim(*pair) == pytest.approx(np.mean(channels), abs=1e-6)


def test_psnr_b_is_that_of_its_paper(pair):
    """Yim and Bovik, eq. 21 to 27, with loops for sums."""
    ours, theirs = (pixels.astype(np.float64) @ (0.299, 0.587, 0.114) / 255 for pixels in pair)
    height, width = ours.shape
    across, down = np.diff(ours, axis=1) ** 2, np.diff(ours, axis=0) ** 2
    on_border = across[:, 7::8].sum() + down[7::8].sum()
    inside = across.sum() + down.sum() - on_border
    border_pairs = (height * (width / 8) - 1) + (width * (height / 8) - 1)
    inside_pairs = height * (width - 1) + width * (height - 1) - border_pairs
    excess = on_border / border_pairs - inside / inside_pairs
    effect = max(excess, 0) * np.log2(8) / np.log2(min(height, width))
    expected = -10 * np.log10(((ours - theirs) ** 2).mean() + effect)
    assert psnr_b(*pair) == pytest.approx(expected, abs=1e-4)
    assert psnr_b(*pair) <= psnr(ours, theirs, peak=1)


def independent_ssimulacra2(picture: np.ndarray, reference: np.ndarray, beyond: str) -> float:
    """SSIMULACRA2 2.1 written anew; the trained weights alone are shared. `beyond`: what is above and below."""

    def linear(pixels):
        values = pixels / 255
        return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)

    def positive_xyb(pixels):
        mixing = np.array(
            [[0.3, 0.622, 0.078], [0.23, 0.692, 0.078], [0.24342268924547819, 0.20476744424496821, 0.5518098665095535]]
        )
        bias = 0.0037930732552754493
        long, medium, short = np.moveaxis(np.cbrt(pixels @ mixing.T + bias) - np.cbrt(bias), -1, 0)
        x, y = (long - medium) / 2, (long + medium) / 2
        return np.stack([14 * x + 0.42, y + 0.01, short - y + 0.55])

    def blur(planes):
        planes = gaussian_filter1d(planes, 1.5, axis=1, mode=beyond, truncate=3.33)
        return gaussian_filter1d(planes, 1.5, axis=2, mode="constant", truncate=3.33)

    def halve(pixels):
        rows, columns = (np.arange(0, size, 2) for size in pixels.shape[:2])
        edge = np.pad(pixels, ((0, 1), (0, 1), (0, 0)), mode="edge")
        return sum(edge[rows + i][:, columns + j] for i in (0, 1) for j in (0, 1)) / 4

    def norms(plane_stack):
        return plane_stack.mean((1, 2)), (plane_stack**4).mean((1, 2)) ** 0.25

    ours, theirs = linear(picture), linear(reference)
    features = []  # [scale][channel] -> ssim (2 norms), artifacts (2), lost detail (2)
    for _ in range(6):
        if min(ours.shape[:2]) < 8:
            break
        a, b = positive_xyb(theirs), positive_xyb(ours)
        mean_a, mean_b = blur(a), blur(b)
        numerator = (1 - (mean_a - mean_b) ** 2) * (2 * (blur(a * b) - mean_a * mean_b) + 0.0009)
        denominator = (blur(a * a) - mean_a**2) + (blur(b * b) - mean_b**2) + 0.0009
        edges = (1 + abs(b - mean_b)) / (1 + abs(a - mean_a)) - 1
        maps = (np.maximum(1 - numerator / denominator, 0), np.maximum(edges, 0), np.maximum(-edges, 0))
        features.append(np.stack([norm for plane in maps for norm in norms(plane)]).T)
        ours, theirs = halve(ours), halve(theirs)
    ordered = [
        features[scale][channel][[0, 2, 4][kind] + norm]
        for channel in range(3)
        for scale in range(len(features))
        for norm in range(2)
        for kind in range(3)
    ]
    total = 0.9562382616834844 * np.dot(ordered, np.asarray(weights_of.weights)[: len(ordered)])
    total = 2.326765642916932 * total - 0.020884521182843837 * total**2 + 6.248496625763138e-05 * total**3
    return 100 - 10 * max(total, 0) ** 0.6276336467831387


def test_ssimulacra2_agrees_with_an_implementation_of_our_own_up_to_what_lies_beyond_the_border(pair):
    """The library mirrors there; libjxl has zeros, which score small images higher."""
    assert ssimulacra2(*pair) == pytest.approx(independent_ssimulacra2(*pair, beyond="reflect"), abs=1e-6)
    assert 0 < independent_ssimulacra2(*pair, beyond="constant") - ssimulacra2(*pair) < 10


@pytest.fixture
def lpips_weights(tmp_path) -> Path:
    """A file of seeded weights of AlexNet's shapes and, as trained ones, heads of no negative weight."""
    torch.manual_seed(0)
    state = LPIPS().state_dict()
    save_file(
        {name: 10 * value.abs() if name.startswith("lin") else value for name, value in state.items()}, tmp_path / "w"
    )
    return tmp_path / "w"


def test_lpips_agrees_with_torchmetrics(pair, lpips_weights, monkeypatch):
    """Its module takes AlexNet's layers from torchvision; here they are built from the published architecture."""
    monkeypatch.setattr(reference_lpips, "_get_tv_model_features", lambda *_: torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(64, 192, kernel_size=5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(192, 384, kernel_size=3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(384, 256, kernel_size=3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(256, 256, kernel_size=3, padding=1), torch.nn.ReLU(),
    ))  # fmt: skip
    module = reference_lpips._LPIPS(pretrained=False, pnet_rand=True)
    state = load_file(lpips_weights)
    for number, i in enumerate((0, 3, 6, 8, 10), 1):
        for kind in ("weight", "bias"):
            state[f"net.slice{number}.{i}.{kind}"] = state.pop(f"features.{i}.{kind}")
    for i in range(5):
        state[f"lin{i}.model.1.weight"] = state[f"lins.{i}.model.1.weight"] = state.pop(f"lin{i}.weight")
    module.load_state_dict(state)
    pictures = (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1 for pixels in pair)
    expected = module(*pictures).item()
    assert expected > 1e-3
    assert lpips(*pair, lpips_weights) == pytest.approx(expected, abs=1e-5)
    assert lpips(pair[0], pair[0], lpips_weights) == 0


def test_lpips_takes_the_weights_of_torchvision_or_says_where_they_belong(pair, lpips_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    load.cache_clear()
    cached = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    assert f"weights are not in {cached}; fetch them from https://" in unavailable("lpips")
    cached.parent.mkdir(parents=True)
    features = {name: value for name, value in load_file(lpips_weights).items() if name.startswith("features")}
    torch.save(features | {"classifier.6.bias": torch.zeros(1000)}, cached)
    save_file(features, tmp_path / "features")  # without heads, as the other
    assert unavailable("lpips") is None
    assert METRICS["lpips"].compute(*pair) == lpips(*pair, tmp_path / "features") > 0
    load.cache_clear()


def test_what_is_no_weights_of_lpips_is_refused(pair, tmp_path):
    assert unavailable("lpips", tmp_path / "none") == f"AlexNet's weights are not in {tmp_path / 'none'}"
    assert unavailable("lpips", tmp_path) == f"{tmp_path} is a folder; give the file with AlexNet's weights"
    save_file({"features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "part")
    (tmp_path / "text").write_text("no weights")
    for name in ("part", "text"):
        with pytest.raises(ValueError, match=f"{name} does not hold AlexNet's weights: "):
            lpips(*pair, tmp_path / name)
