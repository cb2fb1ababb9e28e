"""Clips and averages between integers, which LiteRT's built-in kernels are slow at, as what XNNPACK takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("litert_torch")

from edgepress.compress.quantize import Statistics, render
from edgepress.exporters.litert import FILE, LiteRtExporter
from edgepress.exporters.litert_flatbuffer import TfliteFile
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for
from edgepress.validators.runtimes import RUNTIMES
from tests.exporters.requests import request_of

STATIC = Scheme("int8", "static")
BETWEEN = {
    "relu": lambda x: F.relu(x),
    "relu6": lambda x: F.relu6(x * 4),
    "clamp": lambda x: x.clamp(-0.5, 1.0),
    "least": lambda x: x.clamp(min=-0.25),
    "hardtanh": lambda x: F.hardtanh(x),
    "half": lambda x: torch.cat([F.relu(x[:, :4]), x[:, 4:]], 1),
    "abs": torch.abs,
    "average": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "halves": lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0),
    "row": lambda x: F.avg_pool1d(x.flatten(2), 3, 1, 1).reshape(x.shape),
}
#: Kernels for integers that XNNPACK does not take.
SLOW = {"ABS", "RELU", "RELU6", "RELU_N1_TO_1", "MINIMUM", "MAXIMUM", "AVERAGE_POOL_2D"}


class Before(nn.Module):
    """A layer that is read twice, so that what stands between is computed by itself."""

    def __init__(self, between: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        return x + self.second(BETWEEN[self.between](x))


@pytest.mark.parametrize("between", BETWEEN)
def test_no_built_in_kernel_cuts_the_delegated_graph(between: str, tmp_path: Path) -> None:
    net, images = Before(between).eval(), torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    request = request_of(net, images, "litert", STATIC, tmp_path)
    artifact = LiteRtExporter().export(request, tmp_path / "out")
    program, statistics = torch.export.load(request.program), Statistics.load(request.statistics)

    file = TfliteFile((tmp_path / "out" / FILE).read_bytes())
    kinds = {(file.name(op), int(file.graph.tensors[op.outputs[0]].type)) for op in file.graph.operators}
    assert not {name for name, kind in kinds if kind == 9} & SLOW
    assert (between != "average") or ("DEPTHWISE_CONV_2D", 9) in kinds
    with torch.no_grad():
        want, rendered = net(images).numpy(), render(program, statistics, rules_for("litert"), STATIC).module(images).numpy()
    with RUNTIMES.get("litert")().open(artifact, tmp_path / "out") as session:
        found = session.run({"x": images.numpy()})["y"]
    assert np.square(found - rendered).mean() < 2e-4 * np.square(want).mean()
    assert np.square(found - want).mean() < 2e-3 * np.square(want).mean()
