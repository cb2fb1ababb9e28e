"""Small models with what coremltools stumbles over, exported and calibrated once per test session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepress.exporters.base import ExportRequest
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec


class Residual(nn.Module):
    """Convolutions with batch norm, a depthwise one, a residual sum, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.pointwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(image)))
        x = F.relu(x + self.pointwise(F.hardswish(self.depthwise(x))))
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


class Attention(nn.Module):
    """Token ids and a mask in int64, `new_ones`, a boolean `&`, fused attention with a mask, layer norm, GELU."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.qkv, self.out = nn.Embedding(50, width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.up, self.down, self.head = nn.LayerNorm(width), nn.Linear(width, 32), nn.Linear(32, width), nn.Linear(width, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids)
        batch, tokens, width = x.shape
        allowed = mask.bool()[:, None, None, :] & mask.new_ones((batch, 1, tokens, tokens)).bool()
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x = self.norm(x + self.out(y.transpose(1, 2).reshape(batch, tokens, width)))
        return self.head((x + self.down(F.gelu(self.up(x))))[:, 0])


class Windows(nn.Module):
    """Swin's habits: roll, six-dimensional reshapes, a gathered position bias, strided slices."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 24), nn.Linear(32, 4)
        self.table = nn.Parameter(torch.randn(49, 2))
        self.index: Tensor
        self.register_buffer("index", torch.randint(0, 49, (256,)))

    def forward(self, image: Tensor) -> Tensor:
        x = torch.roll(self.patch(image).permute(0, 2, 3, 1), (-2, -2), (1, 2))
        batch, height, width, channels = x.shape
        x = x.view(batch, height // 4, 4, width // 4, 4, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels)
        q, k, v = self.qkv(x).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].view(16, 16, 2).permute(2, 0, 1).unsqueeze(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(-1, 16, channels)
        x = x.view(batch, height // 4, width // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)
        x = torch.cat([x[:, i::2, j::2] for i in range(2) for j in range(2)], -1)
        return self.head(x.mean((1, 2)))


class Recurrent(nn.Module):
    """A bidirectional LSTM and a GRU, which coremltools knows from TorchScript alone."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(10, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, steps: Tensor) -> Tensor:
        return self.head(self.gru(self.lstm(steps)[0])[0][:, -1])


class Decoder(nn.Module):
    """Group norm, a transposed convolution, bilinear upsampling, a second output."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm, self.up, self.mask = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.GroupNorm(2, 8),
            nn.ConvTranspose2d(8, 4, 2, 2),
            nn.Conv2d(12, 2, 1),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = F.silu(self.norm(self.down(image)))
        wide = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        return self.mask(torch.cat([self.up(x), wide], 1)), F.leaky_relu(x).mean((2, 3))


class Pixels(nn.Module):
    """Images of bytes, normalized by the model; one tensor in two outputs, and an input in a third."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(10, 5)

    def forward(self, image: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.relu(self.stem(image.float() / 255 - 0.5)).mean((2, 3))
        scores = self.head(torch.cat([x, place], 1))
        return scores, place, scores.detach()


def _images(random: np.random.Generator) -> tuple[np.ndarray, ...]:
    return (random.standard_normal((6, 3, 16, 16)).astype(np.float32),)


def _tokens(random: np.random.Generator) -> tuple[np.ndarray, ...]:
    return random.integers(0, 50, (6, 8)), (np.arange(8) < random.integers(3, 9, (6, 1))).astype(np.int64)


def _steps(random: np.random.Generator) -> tuple[np.ndarray, ...]:
    return (random.standard_normal((6, 5, 6)).astype(np.float32),)


def _pixels(random: np.random.Generator) -> tuple[np.ndarray, ...]:
    return random.integers(0, 256, (6, 3, 16, 16)).astype(np.uint8), random.standard_normal((6, 2)).astype(np.float32)


MODELS: dict[str, tuple[type[nn.Module], Callable[[np.random.Generator], tuple[np.ndarray, ...]], tuple[str, ...]]] = {
    "residual": (Residual, _images, ("image",)),
    "attention": (Attention, _tokens, ("ids", "mask")),
    "windows": (Windows, _images, ("image",)),
    "recurrent": (Recurrent, _steps, ("steps",)),
    "decoder": (Decoder, _images, ("image",)),
    "pixels": (Pixels, _pixels, ("image", "place")),
}


@dataclass(frozen=True)
class Case:
    """An exported model on disk, with its signature, samples and calibration statistics."""

    program: Path
    statistics: Path
    signature: Signature
    samples: tuple[np.ndarray, ...]

    def request(self, precision: str, kind: str = "float", batch: int = 1, **options: object) -> ExportRequest:
        """A request for the coreml target."""
        target = Target("coreml", "coreml", "Apple device", precision, options, batch=batch)
        statistics = self.statistics if kind.startswith("static") else None
        return ExportRequest(self.program, self.signature, statistics, target, Scheme(precision, kind), self.samples)

    def feeds(self) -> dict[str, np.ndarray]:
        """The samples by input name."""
        return {spec.name: value for spec, value in zip(self.signature.inputs, self.samples, strict=True)}

    def expected(self) -> list[np.ndarray]:
        """The float model's outputs on the samples."""
        with torch.no_grad():
            found = torch.export.load(self.program).module()(*map(torch.from_numpy, self.samples))
        return [value.numpy() for value in (found if isinstance(found, tuple) else (found,))]


@cache
def case(name: str) -> Case:
    """One of `MODELS`, exported with a dynamic batch."""
    from edgepress.compress.quantize import calibrate

    torch.manual_seed(0)
    build, draw, names = MODELS[name]
    samples = draw(np.random.default_rng(0))
    tensors = tuple(map(torch.from_numpy, samples))
    program = torch.export.export(build().eval(), tensors, dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in tensors))
    folder = Path(mkdtemp(prefix="edgepress-test-"))
    torch.export.save(program, folder / "model.pt2")
    calibrate(program, [tensors]).save(folder / "statistics")
    with torch.no_grad():
        found = program.module()(*tensors)
    outputs = found if isinstance(found, tuple) else (found,)
    signature = Signature(
        tuple(TensorSpec(n, a.dtype.name, (None, *a.shape[1:])) for n, a in zip(names, samples, strict=True)),
        tuple(TensorSpec(f"output_{i}", "float32", (None, *value.shape[1:])) for i, value in enumerate(outputs)),
    )
    return Case(folder / "model.pt2", folder / "statistics", signature, samples)
