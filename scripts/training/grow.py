"""More residual blocks a level for a trained network, which computes at first what it did before."""

import torch
from diffusers import UNet2DModel
from torch import nn


@torch.no_grad()
def grow(unet: UNet2DModel, layers_per_block: int) -> UNet2DModel:
    """A network of `layers_per_block` residual blocks a level with the weights, and the output, of one that has fewer.

    What a new block adds begins at zero (as in Goyal et al., 2017, 5.1). On the way down new blocks follow the old
    ones; on the way up, where every block takes in one more image of the way down, they stand before the last.

    Args:
        unet: a network of blocks without attention.
        layers_per_block: not below that of `unet`.

    Returns:
        A new network, in float32 on the CPU. Of as many blocks as before: a copy.

    Raises:
        ValueError: if `unet` has more blocks, or blocks of another kind.
    """
    before = unet.config.layers_per_block
    kinds = {*unet.config.down_block_types, *unet.config.up_block_types}
    if layers_per_block < before:
        raise ValueError(f"the network has {before} blocks a level already; it cannot be grown to {layers_per_block}")
    if kinds != {"DownBlock2D", "UpBlock2D"}:
        raise ValueError(f"only DownBlock2D and UpBlock2D can be grown, this network has {', '.join(sorted(kinds))}")
    grown = UNet2DModel.from_config({**unet.config, "layers_per_block": layers_per_block})
    weights = {name: value for name, value in unet.state_dict().items() if ".resnets." not in name}
    grown.load_state_dict(weights, strict=False)
    grown.mid_block.load_state_dict(unet.mid_block.state_dict())
    for ours, theirs in zip(grown.down_blocks, unet.down_blocks, strict=True):
        ours.resnets[:before].load_state_dict(theirs.resnets.state_dict())
        for block in ours.resnets[before:]:
            _change_nothing(block)
    for ours, theirs in zip(grown.up_blocks, unet.up_blocks, strict=True):
        old = [*ours.resnets[:before], ours.resnets[-1]]
        nn.ModuleList(old).load_state_dict(theirs.resnets.state_dict())
        for block in ours.resnets[before:-1]:
            _change_nothing(block)
    return grown


def _change_nothing(block: nn.Module) -> None:
    """Make a residual block hand on the first of its inputs' channels, as many as it has outputs."""
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    if block.conv_shortcut is not None:
        nn.init.dirac_(block.conv_shortcut.weight)
        nn.init.zeros_(block.conv_shortcut.bias)
