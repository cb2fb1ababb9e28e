"""Small students and teachers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram


class Conv(nn.Module):
    """Three stages of one resolution each."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width]
        for i in range(1, 4):
            block = nn.Sequential(nn.Conv2d(widths[i - 1], widths[i], 3, 2, 1), nn.BatchNorm2d(widths[i]), nn.ReLU())
            setattr(self, f"layer{i}", block)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Transformer(nn.Module):
    """Blocks of one size; classes from the mean token."""

    def __init__(self, depth: int = 6, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.blocks = nn.Sequential(*[nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(depth)])
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)).mean(1))


class Skips(nn.Module):
    """A layer that runs in training alone, never in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x if self.training else F.relu(self.a(x)))


def conv(width: int = 8, classes: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Conv(width, classes).eval()


def transformer(depth: int = 6, width: int = 16, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Transformer(depth, width).eval()


def exported(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
    return torch.export.export(module, inputs, dynamic_shapes=tuple({0: Dim("batch", min=1)} for _ in inputs))


def images(count: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
