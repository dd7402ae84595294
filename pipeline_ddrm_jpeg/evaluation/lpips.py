"""The network of LPIPS, and where its weights are found."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

_ADDRESS = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
_CHANNELS = (64, 192, 384, 256, 256)  # of the five activations that are compared


class LPIPS(torch.nn.Module):
    """Distance of two images (Zhang, Isola, Efros, Shechtman and Wang, 2018, eq. 1; version 0.1 with AlexNet).

    The weights have torchvision's names, `features.N.weight` and `features.N.bias`, and the linear heads are
    `lin0.weight` to `lin4.weight`, `[1, C, 1, 1]`.
    """

    def __init__(self) -> None:
        super().__init__()
        conv, relu, pool = torch.nn.Conv2d, torch.nn.ReLU, torch.nn.MaxPool2d
        self.features = torch.nn.Sequential(
            *(conv(3, 64, 11, stride=4, padding=2), relu(), pool(3, 2)),
            *(conv(64, 192, 5, padding=2), relu(), pool(3, 2)),
            *(conv(192, 384, 3, padding=1), relu()),
            *(conv(384, 256, 3, padding=1), relu()),
            *(conv(256, 256, 3, padding=1), relu()),
        )
        for i, channels in enumerate(_CHANNELS):
            self.add_module(f"lin{i}", conv(channels, 1, 1, bias=False))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Distances `[B]` of images `[B, 3, H, W]`, RGB in [-1, 1], of 31 pixels or more on each side."""
        both, distance, compared = torch.cat([x, y]).sub(self.shift).div(self.scale), 0.0, 0
        for layer in self.features:
            both = layer(both)
            if isinstance(layer, torch.nn.ReLU):
                first, second = (both / (both.norm(dim=1, keepdim=True) + 1e-10)).chunk(2)
                distance = distance + getattr(self, f"lin{compared}")((first - second) ** 2).mean((1, 2, 3))
                compared += 1
        return distance


def obstacle(weights: Path | None) -> str | None:
    """What keeps the network from being loaded, in a few words; arguments as of `load`."""
    path = weights or _cached()
    if path.is_file():
        return None
    if path.is_dir():
        return f"{path} is a folder; give the file with AlexNet's weights"
    return f"AlexNet's weights are not in {path}" + ("" if weights else f"; fetch them from {_ADDRESS}")


@lru_cache(maxsize=1)
def load(weights: Path | None) -> LPIPS:
    """The network with the weights of a safetensors file; `None`: the file in which torchvision keeps its AlexNet.

    Without linear heads in it, those that torchmetrics carries are taken. Raises `OSError` if the file cannot be read,
    `ValueError` if it does not hold these weights.
    """
    import torchmetrics

    network = LPIPS().eval().requires_grad_(False)
    heads = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    path = weights or _cached()
    try:
        state = {name.replace(".model.1", ""): value for name, value in _read(heads).items()}
        state |= load_file(path) if weights else _read(path)
        network.load_state_dict({name: state[name] for name in network.state_dict()})
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} does not hold AlexNet's weights: {str(error).splitlines()[0]}") from error
    return network


def _cached() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", _ADDRESS.rpartition("/")[2])


def _read(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)
