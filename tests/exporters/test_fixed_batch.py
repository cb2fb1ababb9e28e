"""A model that was traced with a fixed batch becomes files of that batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.quantize import calibrate
from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.exporters.tensorrt_build import BatchRange
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec
from edgepress.validators.runtimes import RUNTIMES

SHAPE = (2, 6, 6)
SIGNATURE = Signature((TensorSpec("x", "float32", (1, *SHAPE)),), (TensorSpec("y", "float32", (1, 3)),))


class Flat(nn.Module):
    """Its batch is a number in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 2, 6, 6) -> (1, 3)."""
        return self.head(torch.relu(self.conv(x)).view(int(x.shape[0]), -1))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("precision", "kind"), [("fp32", "float"), ("int8", "static")])
def test_files_take_the_only_batch_of_the_model_and_answer_sample_by_sample(
    runtime: str, precision: str, kind: str, tmp_path: Path
) -> None:
    pytest.importorskip(runtime)
    torch.manual_seed(0)
    net, samples = Flat().eval(), torch.randn(5, *SHAPE)
    program = torch.export.export(net, (samples[:1],))
    torch.export.save(program, tmp_path / "model.pt2")
    calibrate(program, [[samples]]).save(tmp_path / "statistics")
    target, scheme, arrays = Target(runtime, runtime, "CPU", precision, batch=4), Scheme(precision, kind), (samples.numpy(),)
    exporter = EXPORTERS.get(runtime)()
    request = ExportRequest(tmp_path / "model.pt2", SIGNATURE, tmp_path / "statistics", target, scheme, arrays)
    artifact = exporter.export(request, tmp_path / "artifact")
    with RUNTIMES.get(runtime)().open(artifact, tmp_path / "artifact", 1) as session:
        got = session.run({"x": arrays[0]})["y"]
    (expected,), _ = exporter.compressed_outputs(request, arrays)
    with torch.no_grad():
        exact = torch.cat([net(sample) for sample in samples.split(1)]).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5 if precision == "fp32" else 0.05)
    np.testing.assert_allclose(expected, exact, atol=1e-5 if precision == "fp32" else 0.05)


def test_engines_take_the_only_batch_of_the_model() -> None:
    assert BatchRange.of(1, 8) == BatchRange(1, 1, 1) and BatchRange.of(None, 8) == BatchRange.around(8)
