"""Numbers beyond half precision in Core ML files that compute in it: factors keep their value, what hides does hide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools")

from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec
from edgepress.validators.runtimes import RUNTIMES
from tests.exporters.litert_cases import sqnr_db

EVERY_OTHER = torch.tensor([True, False] * 4)
LOWEST = torch.finfo(torch.float32).min


def turned(x: Tensor) -> Tensor:
    """Rotary angles of a base beyond half precision."""
    angles = torch.arange(6.0)[:, None] / 500000.0 ** (torch.arange(8.0) / 8)
    return x * angles.cos() + x.flip(-1) * angles.sin()


def attention(hidden: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda x, mask, _: (x @ x.mT + hidden(mask)).softmax(-1) @ x


#: Of tokens (n, 6, 8), a mask (n, 6) of floats and a constant (8,) of 1e5.
CASES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "multiplied": lambda x, *_: x * 1e-3 * 100000.0,
    "multiplied by an integer": lambda x, *_: x * 1e-3 * 100000,
    "divided": lambda x, *_: x / 1e7 * 1e7,
    "multiplied by constants": lambda x, _, many: x * 1e-3 * many,
    "divided by constants": lambda x, _, many: x * 1e3 / many,
    "chosen by booleans": lambda x, _, many: torch.where(EVERY_OTHER, x, x * 1e-3 * many),
    "a power": lambda x, *_: 500000.0 ** torch.tanh(x * 0.5),
    "rotary positions": lambda x, *_: turned(x),
    "the lowest number": attention(lambda m: (1.0 - m)[:, None] * LOWEST),
    "a large number": attention(lambda m: (1.0 - m)[:, None] * -1e9),
    "two masks": attention(lambda m: (1 - torch.tril(torch.ones(6, 6))) * LOWEST + (1.0 - m)[:, None] * -1e9),
    "filled": attention(lambda m: torch.zeros_like(m).masked_fill(m == 0, -1e9)[:, None]),
}


class Case(nn.Module):
    def __init__(self, compute: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.compute, self.first = compute, nn.Linear(8, 8)
        self.many: Tensor
        self.register_buffer("many", torch.full((8,), 1e5))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.compute(self.first(tokens) + 0.0 * mask[..., None], mask, self.many)


@pytest.mark.parametrize("name", CASES)
def test_numbers_beyond_half_precision(name: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(6)[None] < torch.randint(1, 7, (8, 1), generator=generator)).float()
    samples = (torch.randn(8, 6, 8, generator=generator), mask)
    model = Case(CASES[name]).eval()
    torch.export.save(torch.export.export(model, samples, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) * 2), tmp_path / "model.pt2")
    signature = Signature(
        (TensorSpec("tokens", "float32", (None, 6, 8)), TensorSpec("mask", "float32", (None, 6))),
        (TensorSpec("result", "float32", (None, 6, 8)),),
    )
    feeds = {"tokens": samples[0].numpy(), "mask": samples[1].numpy()}
    target = Target("coreml", "coreml", "Apple device", "fp16")
    request = ExportRequest(tmp_path / "model.pt2", signature, None, target, Scheme("fp16", "float"), tuple(feeds.values()))
    artifact = EXPORTERS.get("coreml")().export(request, tmp_path / "out")
    with RUNTIMES.get("coreml")().open(artifact, tmp_path / "out") as session, torch.no_grad():
        found = session.run(feeds)["result"]
        assert np.isfinite(found).all() and sqnr_db(found, model(*samples).numpy()) > 45
