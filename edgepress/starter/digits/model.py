"""A small convolutional network for 8x8 handwritten digits: a stem, a residual block and a depthwise-separable block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(c_in: int, c_out: int, kernel: int, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps height and width, and its batch norm."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out))


class Residual(nn.Module):
    """Two 3x3 convolutions with a skip connection."""

    def __init__(self, width: int):
        super().__init__()
        self.first = conv_norm(width, width, 3)
        self.second = conv_norm(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return F.relu(x + self.second(F.relu(self.first(x))))


class Separable(nn.Module):
    """A depthwise 3x3 and a pointwise 1x1 convolution."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.depthwise = conv_norm(c_in, c_in, 3, groups=c_in)
        self.pointwise = conv_norm(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c_in, h, w) -> (batch, c_out, h, w)."""
        return F.relu(self.pointwise(F.relu(self.depthwise(x))))


class DigitNet(nn.Module):
    """Images (batch, 1, 16, 16) -> logits (batch, 10)."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.stem = conv_norm(1, width, 3)
        self.residual = Residual(width)
        self.separable = Separable(width, 2 * width)
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Images -> logits."""
        x = F.relu(self.stem(image))
        x = F.max_pool2d(self.residual(x), 2)
        x = F.max_pool2d(self.separable(x), 2)
        return self.classifier(torch.mean(x, dim=(2, 3)))


def digit_net(width: int = 24) -> nn.Module:
    """What `model.factory` names in edgepress.yaml; `model.args` may set the width."""
    return DigitNet(width)
