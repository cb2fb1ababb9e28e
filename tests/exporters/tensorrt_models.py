"""Two small models with the shapes TensorRT has to cope with, exported and calibrated once per test session."""

from __future__ import annotations

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


class SmallCnn(nn.Module):
    """Convolution, depthwise convolution, residual add, concat, both poolings, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16)
        self.depthwise, self.pointwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 16, 1)
        self.last, self.head = nn.Conv2d(16, 16, 3, 1, 1), nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(image)))
        x = F.relu(x + self.pointwise(F.relu(self.depthwise(x))))
        return self.head(torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(self.last(x), 2)], 1).mean((2, 3)))


class SmallTransformer(nn.Module):
    """Token ids and a mask, both int64; one block with the attention written out."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.qkv, self.out = nn.Embedding(100, width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.up, self.down, self.head = nn.LayerNorm(width), nn.Linear(width, 64), nn.Linear(64, width), nn.Linear(width, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids)
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5 + (1 - mask[:, None, None, :].float()) * -1e9
        x = self.norm(x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)))
        return self.head((x + self.down(F.gelu(self.up(x))))[:, 0])


@dataclass(frozen=True)
class Case:
    """An exported model on disk, with samples and calibration statistics."""

    program: Path
    statistics: Path
    signature: Signature
    samples: tuple[np.ndarray, ...]

    def request(self, precision: str, kind: str, **options: object) -> ExportRequest:
        """A request for the tensorrt target."""
        target = Target("tensorrt", "tensorrt", "NVIDIA GPU", precision, {"compute_capability": ["8.6"], **options})
        scheme = Scheme(precision, kind)
        statistics = self.statistics if scheme.calibrated else None
        return ExportRequest(self.program, self.signature, statistics, target, scheme, self.samples)

    def feeds(self) -> dict[str, np.ndarray]:
        """The samples by input name."""
        return {spec.name: value for spec, value in zip(self.signature.inputs, self.samples, strict=True)}

    def torch_outputs(self) -> np.ndarray:
        """The float model's only output on the samples."""
        module = torch.export.load(self.program).module()
        with torch.no_grad():
            return np.asarray(module(*map(torch.from_numpy, self.samples)))


@cache
def case(name: str) -> Case:
    """`cnn` or `transformer`."""
    from edgepress.compress.quantize import calibrate

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    if name == "cnn":
        model: nn.Module = SmallCnn().eval()
        inputs, classes = (TensorSpec("image", "float32", (None, 3, 16, 16)),), 10
        samples: tuple[np.ndarray, ...] = (random.standard_normal((8, 3, 16, 16)).astype(np.float32),)
    else:
        model, classes = SmallTransformer().eval(), 2
        inputs = (TensorSpec("ids", "int64", (None, 8)), TensorSpec("mask", "int64", (None, 8)))
        samples = (random.integers(0, 100, (8, 8)), (np.arange(8) < random.integers(3, 9, (8, 1))).astype(np.int64))
    folder = Path(mkdtemp(prefix="edgepress-test-"))
    tensors = tuple(map(torch.from_numpy, samples))
    program = torch.export.export(model, tensors, dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in tensors))
    torch.export.save(program, folder / "model.pt2")
    calibrate(program, [tensors]).save(folder / "statistics")
    signature = Signature(inputs, (TensorSpec("logits", "float32", (None, classes)),))
    return Case(folder / "model.pt2", folder / "statistics", signature, samples)
