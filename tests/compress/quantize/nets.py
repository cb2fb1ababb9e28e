"""Small nets, one per graph shape the quantizer must know, each with seeded weights and inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from edgepress.compress.quantize.graph import op_name
from edgepress.compress.quantize.macs import macs_of


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, activation: nn.Module | None = None) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([activation] if activation else []))


class Residual(nn.Module):
    """Two residual blocks, one with a strided shortcut; in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 8, activation=nn.ReLU(inplace=True)), nn.MaxPool2d(2))
        self.a, self.b = _conv(8, 8, activation=nn.ReLU(inplace=True)), _conv(8, 8)
        self.c, self.d, self.short = _conv(8, 16, stride=2, activation=nn.ReLU()), _conv(16, 16), _conv(8, 16, 1, 2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.b(self.a(x)) + x)
        x = F.relu(self.d(self.c(x)) + self.short(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Inverted(nn.Module):
    """Inverted residual with depthwise convolution, ReLU6, squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth = _conv(3, 12, 1, activation=nn.ReLU6()), _conv(12, 12, groups=12, activation=nn.ReLU6())
        self.squeeze, self.excite, self.project = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1), _conv(12, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        start = self.expand(x)
        x = self.depth(start)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head((start + self.project(x * gate)).mean((2, 3)))


class Dense(nn.Module):
    """Concatenation of tensors that are read again, average pooling, padding with zeros, nearest upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = _conv(3, 6, activation=nn.ReLU()), _conv(6, 6, activation=nn.ReLU()), _conv(12, 6, activation=nn.ReLU())
        self.head = nn.Conv2d(18, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = torch.cat([x, self.b(x)], 1)
        z = torch.cat([y, self.c(y)], 1)
        z = F.interpolate(F.avg_pool2d(F.pad(z, (1, 1, 1, 1)), 2), scale_factor=2.0, mode="nearest")
        return self.head(z)


class Shuffle(nn.Module):
    """Channel split, grouped convolution, channel shuffle, transposed convolution with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = _conv(3, 8, activation=nn.ReLU()), _conv(4, 4, groups=2, activation=nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, 2, groups=2), nn.BatchNorm2d(6), nn.ReLU())
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.last(self.up(x))


class Vision(nn.Module):
    """Two pre-norm transformer blocks over patches, class token and position embeddings; fused or explicit attention."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.patch = fused, nn.Conv2d(3, 16, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)]) for _ in range(2)
        )
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def attention(self, x: Tensor, qkv: nn.Module) -> Tensor:
        n, length, _ = x.shape
        q, k, v = qkv(x).reshape(n, length, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) / 8**0.5
        y = F.scaled_dot_product_attention(q, k, v) if self.fused else torch.softmax(scores, dim=-1) @ v
        return y.transpose(1, 2).reshape(n, length, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for (first, qkv, project, second), mlp in zip(self.blocks, self.mlps, strict=True):  # type: ignore[misc]
            x = x + project(self.attention(first(x), qkv))
            x = x + mlp(second(x))
        return self.head(self.norm(x)[:, 0])


class Sentence(nn.Module):
    """A two-layer BERT from transformers: token ids and padding mask in, logits and pooled state out."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
        self.bert = BertModel._from_config(config, attn_implementation=attention)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.bert(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return self.head(pooled), pooled


class Shared(nn.Module):
    """One linear module called twice, one weight in two layers, a constant that is added and one that is multiplied, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.b.weight = self.a.weight
        self.offset, self.gain = nn.Parameter(torch.randn(12)), nn.Parameter(torch.rand(12))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        x, y = self.twice(x), self.twice(y)
        both = F.relu(self.a(x) + self.offset) * self.gain
        return {"sum": self.b(both) + self.a(y), "product": torch.matmul(x.unsqueeze(1), y.unsqueeze(2)).flatten(1)}


def _images(count: int, size: int = 16) -> tuple[Tensor, ...]:
    return (torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count)),)


def _sentences(count: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(3, 13, (count, 1), generator=generator)
    return torch.randint(1, 50, (count, 12), generator=generator), (torch.arange(12)[None, :] < lengths).long()


def _pairs(count: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 12, generator=generator), torch.randn(count, 12, generator=generator)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "residual": (Residual, _images),
    "inverted": (Inverted, _images),
    "dense": (Dense, _images),
    "shuffle": (Shuffle, _images),
    "vision-fused": (lambda: Vision(True), _images),
    "vision-explicit": (lambda: Vision(False), _images),
    "sentence-sdpa": (lambda: Sentence("sdpa"), _sentences),
    "sentence-eager": (lambda: Sentence("eager"), _sentences),
    "shared": (Shared, _pairs),
}


def _settle(module: nn.Module) -> None:
    """Batch norms of an untrained net get statistics that differ from channel to channel."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.3, 1.5)
            nn.init.normal_(layer.running_mean, 0, 0.2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)


@cache
def program_of(name: str) -> torch.export.ExportedProgram:
    """The net `name`, exported with a dynamic batch."""
    torch.manual_seed(0)
    build, inputs = NETS[name]
    module = build().eval()
    _settle(module)
    example = inputs(2)
    batch = torch.export.Dim("batch", min=1, max=1024)
    return torch.export.export(module, example, dynamic_shapes=tuple({0: batch} for _ in example), strict=False)


def samples_of(name: str, count: int) -> tuple[Tensor, ...]:
    """Inputs of the net `name`; the same for the same count."""
    return NETS[name][1](count)


def outputs_of(module: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Every output tensor of a module, flat."""
    with torch.no_grad():
        return [item for item in torch.utils._pytree.tree_leaves(module(*inputs)) if isinstance(item, Tensor)]


def share_of_macs(module: GraphModule) -> float:
    """The share of multiply-accumulates whose two factors are both read from integers: a dequantize node stands before them."""
    macs = macs_of(module)
    integer = sum(count for node, count in macs.items() if all(op_name(item).startswith("dequantize_per_") for item in node.args[:2]))
    return integer / sum(macs.values())
