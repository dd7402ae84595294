"""An independent forward pass of guided-diffusion's UNet, straight from its state dict: the reference for conversion.

Written from the description of the architecture (Dhariwal and Nichol, 2021, appendix A), and itself checked against
numbers of the original program in tests/data/guided_diffusion_w32.npz.
"""

from __future__ import annotations

import math
import zlib

import torch
import torch.nn.functional as F


def seeded_state(shapes: dict[str, list[int]], salt: str) -> dict[str, torch.Tensor]:
    """Weights by the rule of the reference: each tensor from a generator seeded with its name."""
    state = {}
    for key, shape in shapes.items():
        normal = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{salt}:{key}".encode())))
        if len(shape) == 1:
            state[key] = 1 + 0.2 * normal if key.endswith("weight") else 0.1 * normal
        else:
            state[key] = normal / math.sqrt(normal[0].numel())
    return state


def forward(state, x, t, head_channels, res_blocks=2, new_order=False, scale_shift=True, labels=None):
    """Output `[B, 3 or 6, H, W]` of the model with these weights."""

    def has(name):
        return f"{name}.weight" in state

    def linear(name, v):
        return F.linear(v, state[f"{name}.weight"], state[f"{name}.bias"])

    def conv(name, v, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(v, weight, state[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)

    def norm(name, v):
        return F.group_norm(v, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    def resample(v, how):
        return F.avg_pool2d(v, 2) if how == "down" else F.interpolate(v, scale_factor=2) if how == "up" else v

    def resnet(name, v, how=None):
        h = resample(F.silu(norm(f"{name}.in_layers.0", v)), how)
        h = conv(f"{name}.in_layers.2", h)
        v = resample(v, how)
        e = linear(f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
        if scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = norm(f"{name}.out_layers.0", h + e)
        h = conv(f"{name}.out_layers.3", F.silu(h))
        return h + (conv(f"{name}.skip_connection", v) if has(f"{name}.skip_connection") else v)

    def attention(name, v):
        b, c, height, width = v.shape
        heads = c // head_channels
        flat = norm(f"{name}.norm", v).flatten(2)
        qkv = F.conv1d(flat, state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"])
        if new_order:
            q, k, u = (part.reshape(b * heads, head_channels, -1) for part in qkv.chunk(3, dim=1))
        else:
            q, k, u = qkv.reshape(b * heads, 3 * head_channels, -1).split(head_channels, dim=1)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(head_channels), dim=-1)
        mixed = (u @ weights.transpose(1, 2)).reshape(b, c, -1)
        out = F.conv1d(mixed, state[f"{name}.proj_out.weight"], state[f"{name}.proj_out.bias"])
        return v + out.reshape(b, c, height, width)

    half = state["time_embed.0.weight"].shape[1] // 2
    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
    emb = linear("time_embed.2", F.silu(linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1))))
    if labels is not None:
        emb = emb + state["label_emb.weight"][labels]

    def block(name, v, position):
        """One entry of a ModuleList: resnet, attention or resampling, told apart by its tensors and its place."""
        if has(f"{name}.qkv"):
            return attention(name, v)
        if has(f"{name}.op"):
            return conv(f"{name}.op", v, stride=2)
        if has(f"{name}.conv"):
            return conv(f"{name}.conv", resample(v, "up"))
        return resnet(name, v, position)

    def entries(name):
        return [f"{name}.{i}" for i in range(3) if any(key.startswith(f"{name}.{i}.") for key in state)]

    inputs, outputs = (
        1 + max(int(key.split(".")[1]) for key in state if key.startswith(kind)) for kind in ("input_", "output_")
    )
    strided = any(key.endswith(".op.weight") for key in state)
    h, skips = conv("input_blocks.0.0", x), []
    skips.append(h)
    for i in range(1, inputs):
        down = not strided and i % (res_blocks + 1) == 0
        for name in entries(f"input_blocks.{i}"):
            h = block(name, h, "down" if down else None)
        skips.append(h)
    for name in entries("middle_block"):
        h = block(name, h, None)
    for i in range(outputs):
        h = torch.cat([h, skips.pop()], dim=1)
        for j, name in enumerate(entries(f"output_blocks.{i}")):
            h = block(name, h, "up" if j > 0 else None)
    return conv("out.2", F.silu(norm("out.0", h)))
