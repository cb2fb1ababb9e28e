"""Nets of common structures, small and with random weights: what matters is which ops compute in integers, and how fast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolution(a: int, b: int, k: int, s: int = 1, groups: int = 1, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, k, s, k // 2, groups=groups, bias=False), nn.BatchNorm2d(b), act())


class UNet(nn.Module):
    """Ronneberger et al. 2015, section 2, with margins kept and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64)
        self.down = nn.ModuleList(
            nn.Sequential(convolution(a, b, 3), convolution(b, b, 3)) for a, b in zip((3, 16, 32), widths, strict=True)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in ((32, 64), (16, 32)))
        self.join = nn.ModuleList(nn.Sequential(convolution(2 * a, a, 3), convolution(a, a, 3)) for a in (32, 16))
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        beside: list[Tensor] = []
        for down in self.down:
            x = down(F.max_pool2d(beside[-1], 2) if beside else x)
            beside.append(x)
        for up, join, skipped in zip(self.up, self.join, beside[-2::-1], strict=True):
            x = join(torch.cat([up(x), skipped], 1))
        return self.last(x)


class Detector(nn.Module):
    """SiLU, pooling in a pyramid, maps of two sizes joined, boxes by sigmoids, as in YOLO's fifth version."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(convolution(3, 16, 3, 2, act=nn.SiLU), convolution(16, 32, 3, 2, act=nn.SiLU))
        self.second, self.narrow = convolution(32, 64, 3, 2, act=nn.SiLU), convolution(64, 32, 1, act=nn.SiLU)
        self.pooled, self.joined = convolution(128, 64, 1, act=nn.SiLU), convolution(96, 32, 1, act=nn.SiLU)
        self.heads = nn.ModuleList([nn.Conv2d(32, 20, 1), nn.Conv2d(64, 20, 1)])

    def forward(self, x: Tensor) -> Tensor:
        fine = self.first(x)
        coarse = self.second(fine)
        pools = [self.narrow(coarse)]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        coarse = self.pooled(torch.cat(pools, 1))
        fine = self.joined(torch.cat([F.interpolate(coarse, scale_factor=2.0), fine], 1))
        answers = []
        for head, maps in zip(self.heads, (fine, coarse), strict=True):
            y = head(maps).unflatten(1, (2, 10)).permute(0, 1, 3, 4, 2).sigmoid()
            answers.append(torch.cat([y[..., :2] * 2 - 0.5, (y[..., 2:4] * 2) ** 2, y[..., 4:]], -1).flatten(1, 3))
        return torch.cat(answers, 1)


class Excited(nn.Module):
    """Inverted bottlenecks with SiLU, squeeze and excitation, as in EfficientNet (Tan and Le 2019, table 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = convolution(3, 16, 3, 2, act=nn.SiLU), nn.Linear(96, 10)
        self.wide, self.deep, self.squeeze, self.excite, self.thin = (nn.ModuleList() for _ in range(5))
        for a, b, stride in ((16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 96, 2)):
            self.wide.append(convolution(a, 4 * a, 1, act=nn.SiLU))
            self.deep.append(convolution(4 * a, 4 * a, 3, stride, 4 * a, act=nn.SiLU))
            self.squeeze.append(nn.Conv2d(4 * a, a // 4, 1))
            self.excite.append(nn.Conv2d(a // 4, 4 * a, 1))
            self.thin.append(convolution(4 * a, b, 1, act=nn.Identity))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for wide, deep, squeeze, excite, thin in zip(self.wide, self.deep, self.squeeze, self.excite, self.thin, strict=True):
            y = deep(wide(x))
            y = thin(y * torch.sigmoid(excite(F.silu(squeeze(y.mean((2, 3), keepdim=True))))))
            x = x + y if x.shape == y.shape else y
        return self.head(x.mean((2, 3)))


class ConvNeXt(nn.Module):
    """Liu et al. 2022, figure 4: depthwise, a layer norm, two linear layers and GELU; 2 by 2 patches between stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.between, self.head = nn.Conv2d(3, 40, 4, 4), nn.Conv2d(40, 80, 2, 2), nn.Linear(80, 10)
        self.deep, self.norm, self.up, self.down = (nn.ModuleList() for _ in range(4))
        for width in (40, 40, 80, 80):
            self.deep.append(nn.Conv2d(width, width, 7, padding=3, groups=width))
            self.norm.append(nn.LayerNorm(width))
            self.up.append(nn.Linear(width, 4 * width))
            self.down.append(nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for place, (deep, norm, up, down) in enumerate(zip(self.deep, self.norm, self.up, self.down, strict=True)):
            x = self.between(x) if place == 2 else x
            x = x + down(F.gelu(up(norm(deep(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class Generator(nn.Module):
    """Transposed convolutions alone (Radford et al. 2016, figure 1)."""

    def __init__(self) -> None:
        super().__init__()
        layers = [(64, 64, 4, 1, 0), (64, 32, 4, 2, 1), (32, 16, 4, 2, 1), (16, 3, 4, 2, 1)]
        self.layers = nn.ModuleList(nn.ConvTranspose2d(*layer) for layer in layers)
        self.norms = nn.ModuleList(nn.BatchNorm2d(layer[1]) for layer in layers[:-1])

    def forward(self, z: Tensor) -> Tensor:
        x = z[:, :, None, None]
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = F.relu(norm(layer(x)))
        return torch.tanh(self.layers[-1](x))


class Decoder(nn.Module):
    """RMS norms written out, grouped queries, SwiGLU, a causal mask."""

    def __init__(self, width: int = 384, heads: int = 6, groups: int = 3, blocks: int = 2) -> None:
        super().__init__()
        self.size = width // heads
        self.embed, self.head = nn.Embedding(500, width), nn.Linear(width, 10)
        wide, narrow = (width, groups * self.size), ((width, 3 * width), (width, 3 * width), (3 * width, width))
        shapes = ((width, width), wide, wide, (width, width), *narrow)
        self.blocks = nn.ModuleList(nn.ModuleList(nn.Linear(*shape, bias=False) for shape in shapes) for _ in range(blocks))
        self.scales = nn.ParameterList(torch.ones(width) for _ in range(2 * blocks + 1))

    def norm(self, x: Tensor, place: int) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scales[place]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for place, (q, k, v, out, gate, up, down) in enumerate(self.blocks):  # type: ignore[misc]
            y = self.norm(x, 2 * place)
            a, b, c = (layer(y).unflatten(-1, (-1, self.size)).transpose(1, 2) for layer in (q, k, v))
            b, c = (t.repeat_interleave(a.shape[1] // t.shape[1], 1) for t in (b, c))
            x = x + out(F.scaled_dot_product_attention(a, b, c, is_causal=True).transpose(1, 2).flatten(2))
            y = self.norm(x, 2 * place + 1)
            x = x + down(F.silu(gate(y)) * up(y))
        return self.head(self.norm(x, -1)[:, -1])


class Upsampler(nn.Module):
    """Leaky ReLUs, and transposed convolutions with a convolution behind each, as in decoders of images."""

    def __init__(self) -> None:
        super().__init__()
        leaky = partial(nn.LeakyReLU, 0.2)
        self.first, self.last = nn.Conv2d(8, 64, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.up, self.after = nn.ModuleList(), nn.ModuleList()
        for a, b in ((64, 64), (64, 32), (32, 16)):
            self.up.append(nn.Sequential(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), leaky()))
            self.after.append(convolution(b, b, 3, act=leaky))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for up, after in zip(self.up, self.after, strict=True):
            x = after(up(x))
        return self.last(x)


class GroupNormalized(nn.Module):
    """Residual blocks with group normalizations (Wu and He 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 3, 2, 1), nn.Linear(32, 10)
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(8, 32)) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = F.relu(x + second(F.relu(first(x))))
        return self.head(x.mean((2, 3)))


class Pyramid(nn.Module):
    """Maps of three sizes, enlarged and added from the coarsest on (Lin et al. 2017, figure 3), then joined."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64)
        self.down = nn.ModuleList(convolution(a, b, 3, 2) for a, b in zip((3, 16, 32), widths, strict=True))
        self.lateral = nn.ModuleList(nn.Conv2d(width, 32, 1) for width in widths)
        self.smooth, self.head = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in widths), nn.Conv2d(96, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for down, lateral in zip(self.down, self.lateral, strict=True):
            x = down(x)
            found.append(lateral(x))
        for place in (1, 0):
            found[place] = found[place] + F.interpolate(found[place + 1], scale_factor=2.0)
        maps = [smooth(each) for smooth, each in zip(self.smooth, found, strict=True)]
        return self.head(
            torch.cat([maps[0], *(F.interpolate(each, scale_factor=2.0**place) for place, each in enumerate(maps) if place)], 1)
        )


class Dense(nn.Module):
    """All earlier maps joined, normalized and convolved (Huang et al. 2017, section 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 3, 2, 1), nn.Linear(96, 10)
        self.norms = nn.ModuleList(nn.BatchNorm2d(32 + 16 * place) for place in range(5))
        self.layers = nn.ModuleList(nn.Conv2d(32 + 16 * place, 16, 3, padding=1, bias=False) for place in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return self.head(F.relu(self.norms[-1](x)).mean((2, 3)))


class Temporal(nn.Module):
    """Dilated convolutions over time, gated, with residual sums (van den Oord et al. 2016, figure 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(16, 32, 1), nn.Conv1d(32, 10, 1)
        self.gates = nn.ModuleList(nn.Conv1d(32, 64, 3, padding=2**place, dilation=2**place) for place in range(4))
        self.mixed = nn.ModuleList(nn.Conv1d(32, 32, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for gates, mixed in zip(self.gates, self.mixed, strict=True):
            a, b = gates(x).chunk(2, 1)
            x = x + mixed(torch.tanh(a) * torch.sigmoid(b))
        return self.last(F.relu(x))


#: Name -> the net, and what draws samples for it.
NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, torch.Generator], Tensor]]] = {
    "U-Net": (UNet, lambda n, g: torch.randn(n, 3, 64, 64, generator=g)),
    "detector": (Detector, lambda n, g: torch.randn(n, 3, 96, 96, generator=g)),
    "squeeze-excite": (Excited, lambda n, g: torch.randn(n, 3, 96, 96, generator=g)),
    "ConvNeXt": (ConvNeXt, lambda n, g: torch.randn(n, 3, 96, 96, generator=g)),
    "generator": (Generator, lambda n, g: torch.randn(n, 64, generator=g)),
    "upsampler": (Upsampler, lambda n, g: torch.randn(n, 8, 12, 12, generator=g)),
    "group norm": (GroupNormalized, lambda n, g: torch.randn(n, 3, 64, 64, generator=g)),
    "pyramid": (Pyramid, lambda n, g: torch.randn(n, 3, 64, 64, generator=g)),
    "dense": (Dense, lambda n, g: torch.randn(n, 3, 64, 64, generator=g)),
    "temporal": (Temporal, lambda n, g: torch.randn(n, 16, 128, generator=g)),
    "decoder": (Decoder, lambda n, g: torch.randint(0, 500, (n, 64), generator=g)),
}


def net(name: str, count: int) -> tuple[nn.Module, Tensor]:
    """A net in eval mode, whose batch norms have seen something, and samples."""
    build, draw = NETS[name]
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model, draw(count, torch.Generator().manual_seed(0))
