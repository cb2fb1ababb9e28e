"""Your network: `build` returns it untrained, edgepress fills it from the checkpoint."""

from torch import nn


def build() -> nn.Module:
    """Return the network whose state dict the checkpoint holds."""
    raise NotImplementedError("return your network from build() in model.py")
