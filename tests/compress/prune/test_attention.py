from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from edgepress.compress.prune import analyse, check, remove

from .nets import conv, image
from .proof import kinds, prove, removals

WIDTH, HEADS, FEATURES, LENGTH = 12, 4, 6, 5


def tokens(width: int = WIDTH) -> Tensor:
    return torch.randn(2, LENGTH, width, generator=torch.Generator().manual_seed(1))


class Attention(nn.Module):
    """Projections of their own, or one for all three; the products fused, spelled out, or as einsum."""

    def __init__(self, how: str = "sdpa", fused: bool = False) -> None:
        super().__init__()
        inner = HEADS * FEATURES
        self.how, self.fused = how, fused
        if fused:
            self.qkv = nn.Linear(WIDTH, 3 * inner)
        else:
            self.q, self.k, self.v = (nn.Linear(WIDTH, inner) for _ in range(3))
        self.out = nn.Linear(inner, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        if self.fused:
            q, k, v = self.qkv(x).reshape(batch, length, 3, HEADS, FEATURES).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (layer(x).view(batch, length, HEADS, FEATURES).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.how == "sdpa":
            mixed = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "eager":
            mixed = (q @ k.transpose(-2, -1) / math.sqrt(FEATURES)).softmax(-1) @ v
        else:
            scores = torch.einsum("bhid,bhjd->bhij", q, k) * FEATURES**-0.5
            mixed = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class Layer(nn.Module):
    def __init__(self, attention: nn.Module, hidden: int = 10) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(WIDTH), attention, nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class VisionTransformer(nn.Module):
    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.first, self.positions = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.zeros(1, 5, WIDTH))
        self.layers = nn.Sequential(*(Layer(attention()) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("how", ["sdpa", "eager", "einsum"])
def test_vision_transformers_lose_heads_head_dims_and_neurons(how: str, fused: bool) -> None:
    structure = prove(VisionTransformer(lambda: Attention(how, fused)), image())
    if fused:  # q, k and v are indices 0, 1, 2 of one axis, with the same features in each
        assert kinds(structure) == {"heads": 2 * HEADS, "head_dims": 2 * FEATURES, "neurons": 2 * 10}
    else:
        assert kinds(structure) == {"heads": 2 * HEADS, "head_dims": 2 * 2 * FEATURES, "neurons": 2 * 10}


def test_the_scale_of_attention_stays_that_of_the_original() -> None:
    structure = prove(Layer(Attention()), tokens())
    assert kinds(structure)["head_dims"] == 2 * FEATURES


def test_multi_head_attention_of_torch() -> None:
    structure = prove(VisionTransformer(MultiHead), image())
    assert kinds(structure)["heads"] == 2 * HEADS
    assert kinds(structure)["neurons"] == 2 * 10


class Grouped(nn.Module):
    """8 query heads share 4 key and value heads."""

    def __init__(self, how: str, shared: int = 4) -> None:
        super().__init__()
        self.how, self.shared = how, shared
        self.q, self.k, self.v = nn.Linear(WIDTH, 8 * 4), nn.Linear(WIDTH, shared * 4), nn.Linear(WIDTH, shared * 4)
        self.out = nn.Linear(32, WIDTH)

    def repeated(self, x: Tensor) -> Tensor:
        batch, heads, length, features = x.shape
        if self.how == "repeat_interleave":
            return x.repeat_interleave(8 // heads, 1)
        if self.how == "expand":
            return x[:, :, None].expand(batch, heads, 8 // heads, length, features).reshape(batch, 8, length, features)
        return x

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (layer(x).view(batch, length, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, self.repeated(k), self.repeated(v), enable_gqa=self.how == "enable_gqa")
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("how", ["expand", "repeat_interleave", "enable_gqa"])
def test_grouped_queries_lose_shared_heads_and_queries_of_each(how: str) -> None:
    structure = prove(Layer(Grouped(how)), tokens())
    heads = sorted(len(f.units) for f in structure.families if f.kind == "heads")
    assert heads == [2, 4]


def test_one_shared_head_for_all_queries() -> None:
    structure = prove(Layer(Grouped("enable_gqa", shared=1)), tokens())
    assert kinds(structure)["heads"] == 8


class WindowAttention(nn.Module):
    """Attention within 2 x 2 windows of a 4 x 4 grid, shifted by one, with a learned bias per relative position."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift, self.qkv, self.out = shift, nn.Linear(WIDTH, 3 * HEADS * FEATURES), nn.Linear(HEADS * FEATURES, WIDTH)
        self.table = nn.Parameter(torch.zeros(9, HEADS))
        self.register_buffer("places", torch.arange(16).reshape(4, 4) % 9)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        windows = x.view(batch, 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, WIDTH)
        q, k, v = self.qkv(windows).reshape(-1, 4, 3, HEADS, FEATURES).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.places.view(-1)].view(4, 4, HEADS).permute(2, 0, 1)
        scores = q * FEATURES**-0.5 @ k.transpose(-2, -1) + bias.unsqueeze(0)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, HEADS * FEATURES)
        x = self.out(mixed).view(batch, 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(batch, 4, 4, WIDTH)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


def test_shifted_windows_with_relative_position_bias() -> None:
    class Swin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, WIDTH, 2, 2), nn.Linear(WIDTH, 3)
            self.layers = nn.Sequential(Layer(WindowAttention(0)), Layer(WindowAttention(1)))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers(self.patches(x).permute(0, 2, 3, 1)).mean((1, 2)))

    structure = prove(Swin(), image())
    assert kinds(structure) == {"heads": 2 * HEADS, "head_dims": 2 * FEATURES, "neurons": 20}
    assert any(f.tensor.endswith("table") for f in structure.footprints)


def test_attention_over_unfolded_patches_of_a_convolution() -> None:
    class MobileVit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.local, self.inner = conv(3, 6), nn.Conv2d(6, WIDTH, 1), Layer(Attention())
            self.project, self.fuse, self.head = conv(WIDTH, 6, 1), conv(12, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.local(x)
            batch, channels, height, width = y.shape
            y = y.reshape(batch * channels, height // 2, 2, width // 2, 2).transpose(2, 3)
            y = y.reshape(batch, channels, height * width // 4, 4).transpose(1, 3).reshape(batch * 4, -1, channels)
            y = self.inner(y).view(batch, 4, height * width // 4, channels).transpose(1, 3)
            y = y.reshape(batch * channels * (height // 2), width // 2, 2, 2).transpose(1, 2).reshape(batch, channels, height, width)
            return self.head(self.fuse(torch.cat([x, self.project(y)], 1)).mean((2, 3)))

    structure = prove(MobileVit(), image())
    assert kinds(structure) == {"channels": 6 + 6 + 5, "heads": HEADS, "head_dims": 2 * FEATURES, "neurons": 10}


class Rotary(nn.Module):
    """Rotary positions, grouped queries, root-mean-square norms and a gated feed-forward, causal, with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 11, bias=False)
        self.out.weight = self.embedding.weight
        self.q, self.k, self.v, self.o = nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 12), nn.Linear(24, WIDTH)
        self.gate, self.up, self.down = nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)
        self.norm1, self.norm2 = nn.Parameter(torch.ones(WIDTH)), nn.RMSNorm(WIDTH)
        self.register_buffer("frequencies", torch.rand(3))

    def rotated(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[2]).to(x.dtype), self.frequencies)
        angles = torch.cat([angles, angles], -1)
        one, other = x[..., :3], x[..., 3:]
        return x * angles.cos() + torch.cat([-other, one], -1) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        batch, length, _ = x.shape
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.norm1
        q, k, v = (layer(y).view(batch, length, -1, 6).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k, v = self.rotated(q), self.rotated(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, -1))
        y = self.norm2(x)
        return self.out(x + self.down(F.silu(self.gate(y)) * self.up(y)))


def test_rotary_grouped_gated_language_model() -> None:
    structure = prove(Rotary(), torch.randint(11, (2, LENGTH)))
    assert sorted((f.kind, len(f.units)) for f in structure.families) == [
        ("head_dims", 3),  # pairs that rotate together
        ("head_dims", 6),
        ("heads", 2),
        ("heads", 2),
        ("neurons", 10),
    ]


@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_transformer_layers_of_torch(layer: type[nn.Module]) -> None:
    inputs = [tokens()] if layer is nn.TransformerEncoderLayer else [tokens(), tokens()]
    structure = prove(layer(WIDTH, HEADS, 10, batch_first=True), *inputs)  # type: ignore[call-arg]
    assert kinds(structure)["heads"] == HEADS * len(inputs)
    assert kinds(structure)["neurons"] == 10


def bert_config(implementation: str) -> object:
    transformers = pytest.importorskip("transformers")
    return transformers.BertConfig(
        vocab_size=30,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=10,
        max_position_embeddings=16,
        attn_implementation=implementation,
    )


class BertClassifier(nn.Module):
    def __init__(self, config: object) -> None:
        super().__init__()
        self.bert = pytest.importorskip("transformers").BertForSequenceClassification(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.bert(input_ids=input_ids, attention_mask=attention_mask).logits


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bert(implementation: str) -> None:
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    structure = prove(BertClassifier(bert_config(implementation)), torch.randint(30, (2, 6)), mask)
    assert kinds(structure) == {"heads": 2 * 3, "head_dims": 2 * 2 * 4, "neurons": 2 * 10 + 12}


def test_a_dynamic_length_stays_dynamic() -> None:
    shapes = {0: Dim("batch", min=1), 1: Dim("length", min=2, max=16)}
    inputs = (torch.randint(30, (2, 6)), torch.ones(2, 6, dtype=torch.int64))
    program = torch.export.export(BertClassifier(bert_config("sdpa")).eval(), inputs, dynamic_shapes=(shapes, shapes))
    structure = analyse(program)
    assert kinds(structure)["heads"] == 2 * 3
    for removed in removals(structure):
        smaller = remove(program, structure, removed)
        for length in (3, 11):
            check(program, smaller, structure, removed, [torch.randint(30, (3, length)), torch.ones(3, length, dtype=torch.int64)])
