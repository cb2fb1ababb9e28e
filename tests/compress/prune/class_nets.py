"""Models as users write them: sizes in attributes, in layers, or as numbers in forward()."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride) if stride > 1 else nn.Identity()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.drop(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))))


class ResidualNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.stages = nn.Sequential(Residual(width, width, 1), Residual(width, 2 * width, 2))
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(F.relu(self.stem(x))).mean((2, 3)))


class Shuffled(nn.Module):
    """Grouped convolutions with a channel shuffle between them; group norm, depthwise and transposed convolutions."""

    def __init__(self, channels: int = 16, groups: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.first = nn.Conv2d(channels, channels, 1, groups=groups)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
        self.norm = nn.GroupNorm(groups, channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, groups=channels)
        self.up = nn.ConvTranspose2d(channels, 8, 2, 2, groups=groups)
        self.act = nn.PReLU(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.relu(self.stem(x)))
        b, c, h, w = x.shape
        x = x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        x = self.depthwise(self.norm(self.second(x)))
        return self.head(self.act(self.up(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = dim // heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = ((q * self.scale) @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim))


class WrittenAttention(Attention):
    """The same, with the sizes as numbers in the code."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 8, 4).permute(2, 0, 3, 1, 4)
        mixed = ((q * self.scale) @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(b, n, -1))


class Ladder(nn.Module):
    """A transformer of `attention`s with as many classes as heads."""

    def __init__(self, attention: type[nn.Module] = Attention, dim: int = 32, heads: int = 8) -> None:
        super().__init__()
        self.classes = 8
        self.embed = nn.Linear(6, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.blocks = nn.ModuleList(attention(dim, heads) for _ in range(2))
        self.head = nn.Linear(dim, self.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x.mean(1))


class GroupedQueries(nn.Module):
    """8 query heads read 4 key and value heads; the heads of queries are a product of two counts."""

    def __init__(self, dim: int = 64, heads: int = 8, kv_heads: int = 4) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.repeats, self.size = heads, kv_heads, heads // kv_heads, dim // heads
        self.embed = nn.Linear(6, dim)
        self.q, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k, self.v = (nn.Linear(dim, kv_heads * self.size) for _ in range(2))
        self.head = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.size).transpose(1, 2)
        k, v = (f(x).view(b, n, self.kv_heads, self.size).transpose(1, 2).repeat_interleave(self.repeats, 1) for f in (self.k, self.v))
        mixed = (q @ k.transpose(-1, -2) / 8).softmax(-1) @ v
        return self.head((x + self.out(mixed.transpose(1, 2).flatten(2))).mean(1))


class Gated(nn.Module):
    """Sizes of pieces in a tuple; a constant that is neither parameter nor buffer; a buffer outside the state dict; an unflattening."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (12, 20)
        self.wide, self.fold, self.narrow = nn.Linear(6, 32), nn.Linear(12, 24), nn.Linear(20, 24)
        self.unfold = nn.Unflatten(1, (6, 2, 2))
        self.conv = nn.Conv2d(6, 5, 2)
        self.factors = torch.linspace(0.5, 1.5, 12)
        self.register_buffer("shift", torch.linspace(-1, 1, 20), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.gelu(self.wide(x)).split(self.sizes, -1)
        return self.conv(self.unfold(self.fold(one * self.factors) + self.narrow(other + self.shift))).flatten(1)


class Tied(nn.Module):
    """Word vectors that are read and written with one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.mix = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.out = nn.Linear(16, 30, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.mix(self.embed(x))).mean(1))


class Encoder(nn.Module):
    """torch's own transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.head(self.layer(self.embed(x)).mean(1))}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


written = partial(Ladder, WrittenAttention)
