"""Small nets for 32x32 images whose parts are known to break naive quantization: depthwise convolutions, gates, hard-swish, attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolution(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = None) -> nn.Sequential:
    """Convolution, batch norm and the activation, if any."""
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, *([act()] if act else []))


class SqueezeExcite(nn.Module):
    """A gate per channel from the mean of all pixels (Howard et al. 2019, section 5.3)."""

    def __init__(self, channels: int):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project, with a shortcut where the shapes allow (Sandler et al. 2018, section 3.3)."""

    def __init__(self, c_in: int, c_out: int, expand: int, kernel: int, stride: int, act: type[nn.Module], gated: bool):
        super().__init__()
        inner = c_in * expand
        layers: list[nn.Module] = [convolution(c_in, inner, 1, act=act)] if expand > 1 else []
        layers += [convolution(inner, inner, kernel, stride, groups=inner, act=act)]
        layers += [SqueezeExcite(inner)] if gated else []
        self.layers = nn.Sequential(*layers, convolution(inner, c_out, 1))
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


class MobileNet(nn.Module):
    """Inverted residuals by rows of (width, expansion, kernel, stride, activation, gated)."""

    def __init__(self, rows: list[tuple[int, int, int, int, type[nn.Module], bool]], head: int, act: type[nn.Module], classes: int = 10):
        super().__init__()
        width, blocks = 16, []
        for c_out, expand, kernel, stride, inner_act, gated in rows:
            blocks.append(InvertedResidual(width, c_out, expand, kernel, stride, inner_act, gated))
            width = c_out
        self.features = nn.Sequential(convolution(3, 16, 3, act=act), *blocks, convolution(width, head, 1, act=act))
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenetv2() -> nn.Module:
    """After MobileNetV2 (Sandler et al. 2018): ReLU6, linear bottlenecks."""
    rows = [(16, 1, 1), (24, 4, 2), (24, 4, 1), (40, 4, 2), (40, 4, 1), (40, 4, 1), (64, 4, 1), (64, 4, 1)]
    return MobileNet([(width, expand, 3, stride, nn.ReLU6, False) for width, expand, stride in rows], 192, nn.ReLU6)


def mobilenetv3() -> nn.Module:
    """After MobileNetV3 (Howard et al. 2019): hard-swish, squeeze-excite, 5x5 depthwise convolutions."""
    relu, swish = nn.ReLU, nn.Hardswish
    rows = [
        (16, 1, 3, 1, relu, False),
        (24, 4, 3, 2, relu, False),
        (24, 3, 3, 1, relu, False),
        (40, 3, 5, 2, relu, True),
        (40, 3, 5, 1, swish, True),
        (40, 3, 5, 1, swish, True),
        (64, 4, 5, 1, swish, True),
        (64, 4, 5, 1, swish, True),
    ]
    return MobileNet(rows, 192, swish)


class Layer(nn.Module):
    """Attention and feed-forward, each after a layer norm (Dosovitskiy et al. 2021, section 3.1)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    """64 tokens from two strided convolutions (Xiao et al. 2021: a stem of convolutions), a class token, learnt positions."""

    def __init__(self, width: int = 96, depth: int = 6, heads: int = 3, classes: int = 10):
        super().__init__()
        self.stem = nn.Sequential(convolution(3, width // 2, 3, 2, act=nn.ReLU), nn.Conv2d(width // 2, width, 3, 2, 1))
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


def vit() -> nn.Module:
    """A vision transformer (Dosovitskiy et al. 2021), 0.5 M parameters."""
    return VisionTransformer()
