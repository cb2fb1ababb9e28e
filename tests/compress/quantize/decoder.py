"""A small decoder with grouped queries and SwiGLU; the channels of its norms differ as those of a trained one do."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, LENGTH = 64, 16


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.exp(torch.randn(width)))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    """Attention in which two query heads share a key and a value head, and a gated feed-forward layer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.norm1, self.norm2 = RmsNorm(width), RmsNorm(width)
        self.q, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, width // 2, bias=False) for _ in range(2))
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        y = self.norm1(x)
        q, k, v = (layer(y).view(batch, length, -1, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Token ids (batch, 16) in, logits of the last token (batch, 64) out."""

    def __init__(self, width: int = 64, heads: int = 4, hidden: int = 128, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(blocks))
        self.norm, self.head = RmsNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, -1])


def exported(module: nn.Module, *inputs: Tensor) -> torch.export.ExportedProgram:
    """A program with a dynamic batch."""
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(module.eval(), inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))


@cache
def decoder(blocks: int = 2) -> torch.export.ExportedProgram:
    """The seeded decoder."""
    torch.manual_seed(0)
    return exported(Decoder(blocks=blocks), tokens(2, 0))


def tokens(count: int, seed: int) -> Tensor:
    """Sentences; the same for the same seed."""
    return torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
