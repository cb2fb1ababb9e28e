"""What goes in and out of integer .tflite files beside quantized tensors: inputs that are returned, integers that stand for themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("litert_torch")

from edgepress.compress.quantize import calibrate
from edgepress.exporters.base import ExportRequest
from edgepress.exporters.litert import LiteRtExporter
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec
from edgepress.validators.runtimes.litert import LiteRt

SIGNATURE = Signature(
    (TensorSpec("x", "float32", (None, 16)), TensorSpec("shift", "int8", (None, 4))),
    (TensorSpec("y", "float32", (None, 4)), TensorSpec("same", "float32", (None, 16)), TensorSpec("levels", "int8", (None, 4))),
)


class Ports(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.other = nn.Linear(16, 32), nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.relu(self.first(x))
        return self.last(hidden), x, (self.other(hidden) * 20 + shift).clamp(-100, 100).to(torch.int8)


@pytest.mark.parametrize("io", ["float", "int8"])
def test_inputs_come_back_as_they_were_and_integers_stay_integers(io: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x, shift = torch.randn(64, 16, generator=generator), torch.randint(-50, 50, (64, 4), generator=generator).to(torch.int8)
    model = Ports().eval()
    program = torch.export.export(model, (x, shift), dynamic_shapes=({0: torch.export.Dim("n")},) * 2)
    torch.export.save(program, tmp_path / "model.pt2")
    calibrate(program, [(x, shift)]).save(tmp_path / "statistics")
    target, scheme = Target("phone", "litert", "CPU", "int8", {"io": io}), Scheme("int8", "static")
    asked = ExportRequest(tmp_path / "model.pt2", SIGNATURE, tmp_path / "statistics", target, scheme, (x[:4].numpy(), shift[:4].numpy()))
    artifact = LiteRtExporter().export(asked, tmp_path / "out")
    assert [spec.dtype for spec in artifact.signature.inputs] == ["float32", "int8"]  # what is returned is no integer
    assert [spec.dtype for spec in artifact.signature.outputs] == ["int8" if io == "int8" else "float32", "float32", "int8"]
    assert set(artifact.facts.get("quantization", {})) == ({"y"} if io == "int8" else set())
    with LiteRt().open(artifact, tmp_path / "out") as session:
        found = session.run({"x": x.numpy(), "shift": shift.numpy()})
    assert np.array_equal(found["same"], x.numpy())
    assert found["levels"].dtype == np.int8
    assert np.abs(found["levels"].astype(int) - model(x, shift)[2].numpy()).max() <= 2
