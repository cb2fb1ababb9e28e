"""What has no integer kernel, or no 4-bit one, weighs a byte an element all the same in every file with integer weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.portable import portable
from edgepress.compress.quantize import calibrate, quantize_int4
from edgepress.compress.quantize.int4 import Int4Options
from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec
from edgepress.targets.rules import rules_for
from edgepress.validators.runtimes import RUNTIMES
from tests.exporters.sizes import size_of

TOKENS, WIDTH, HIDDEN, HEADS = 16, 64, 256, 4


class Mixed(nn.Module):
    """Tokens are mixed by a matrix on the left, and features by a stack of matrices, one for each head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Parameter(torch.randn(HIDDEN, TOKENS) / 4)
        self.features = nn.Parameter(torch.randn(HEADS, WIDTH, HIDDEN) / 8)
        self.head = nn.Linear(HIDDEN, 4)

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.relu(self.tokens @ x)
        return self.head((mixed.unsqueeze(1) @ self.features).relu().mean((1, 2)))


RUNTIMES_HERE = [("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("litert", "litert_torch"), ("coreml", "coremltools")]


@pytest.mark.parametrize("scheme", [Scheme("int8", "static"), Scheme("int8-weights", "weights")], ids=["static", "weights"])
@pytest.mark.parametrize(("runtime", "package"), RUNTIMES_HERE)
def test_a_stack_of_matrices_and_one_on_the_left_are_stored_in_integers(runtime: str, package: str, scheme: Scheme, tmp_path: Path) -> None:
    pytest.importorskip(package)
    model = Mixed().eval()
    x = torch.randn(16, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.export.save(program, tmp_path / "model.pt2")
    calibrate(program, [(x,)]).save(tmp_path / "statistics")
    signature = Signature((TensorSpec("x", "float32", (None, TOKENS, WIDTH)),), (TensorSpec("y", "float32", (None, 4)),))
    statistics = tmp_path / "statistics" if scheme.calibrated else None
    wanted = ExportRequest(
        tmp_path / "model.pt2", signature, statistics, Target("cpu", runtime, "CPU", scheme.precision), scheme, (x[:4].numpy(),)
    )
    artifact = EXPORTERS.get(runtime)().export(wanted, tmp_path / "out")
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert size_of(tmp_path / "out", artifact) < 1.1 * weights + 20000  # nodes take room too
    with RUNTIMES.get(runtime)().open(artifact, tmp_path / "out") as session, torch.no_grad():
        found, expected = session.run({"x": x[:8].numpy()})["y"], model(x[:8]).numpy()
    assert 10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum()) > (25 if scheme.calibrated else 35)
    reasons = {op["reason"] for op in artifact.float_ops if op["op"] == "aten.matmul"}
    assert scheme.kind == "weights" or runtime == "coreml" or all("weights alone" in reason for reason in reasons)


class Reader(nn.Module):
    """A large table, a recurrent layer and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.steps, self.head = nn.Embedding(4096, 64), nn.LSTM(64, 128, batch_first=True), nn.Linear(128, 32)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.steps(self.table(ids))[0].mean(1))


@pytest.mark.parametrize(("runtime", "package"), RUNTIMES_HERE)
def test_files_with_4_bit_weights_store_everything_else_that_is_large_in_8(runtime: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    model, ids = Reader().eval(), torch.randint(0, 4096, (8, 6), generator=torch.Generator().manual_seed(0))
    program = portable(torch.export.export(model, (ids,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)))
    int4 = rules_for(runtime).int4
    assert int4 is not None
    torch.export.save(quantize_int4(program, Int4Options(int4, "rtn", 32)).program, tmp_path / "model.pt2")
    signature = Signature((TensorSpec("ids", "int64", (None, 6)),), (TensorSpec("y", "float32", (None, 32)),))
    target, scheme = Target("cpu", runtime, "CPU", "int4-weights"), Scheme("int4-weights", "weights")
    exporter = EXPORTERS.get(runtime)()
    wanted = ExportRequest(tmp_path / "model.pt2", signature, None, target, scheme, (ids[:4].numpy(),))
    artifact = exporter.export(wanted, tmp_path / "out")
    weights = sum(parameter.numel() for parameter in model.parameters())
    most = 1.15 if runtime == "coreml" else 1.4  # whose floats are of 16 bits; nodes take room too
    assert size_of(tmp_path / "out", artifact) < most * weights
    with RUNTIMES.get(runtime)().open(artifact, tmp_path / "out") as session:
        found = session.run({"ids": ids.numpy()})["y"]
    (expected,), _ = exporter.compressed_outputs(wanted, (ids.numpy(),))
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    assert "aten.embedding" not in {op["op"] for op in artifact.float_ops}
