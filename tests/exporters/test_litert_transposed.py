"""Transposed convolutions between integers compute in integers in LiteRT, as the rendering does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("litert_torch")

from edgepress.compress.quantize import calibrate, render
from edgepress.exporters.base import ExportRequest
from edgepress.exporters.litert import LiteRtExporter
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec
from edgepress.targets.rules import rules_for
from edgepress.validators.runtimes import RUNTIMES

STATIC = Scheme("int8", "static")
LAYERS = {
    "stride 2, margins": lambda: nn.ConvTranspose2d(8, 6, 4, 2, 1),
    "stride 2, no margins": lambda: nn.ConvTranspose2d(8, 6, 2, 2),
    "stride 2, more on one side": lambda: nn.ConvTranspose2d(8, 6, 3, 2, 1, 1),
    "stride 1": lambda: nn.ConvTranspose2d(8, 6, 3),
    "no bias": lambda: nn.ConvTranspose2d(8, 6, 2, 2, bias=False),
}


class Decoder(nn.Module):
    """A convolution, a transposed one with or without a ReLU behind it, a convolution."""

    def __init__(self, layer: str, clipped: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.up, self.last = nn.Conv2d(3, 8, 3, padding=1), LAYERS[layer](), nn.Conv2d(6, 4, 3)
        self.between = nn.ReLU() if clipped else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.between(self.up(torch.relu(self.first(image)))))


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_it_computes_in_integers_what_the_rendering_does(layer: str, clipped: bool, tmp_path: Path) -> None:
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Decoder(layer, clipped).eval()
    program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "model.pt2")
    statistics = calibrate(program, [(images,)])
    statistics.save(tmp_path / "statistics")
    signature = Signature(
        (TensorSpec("image", "float32", (None, 3, 8, 8)),), (TensorSpec("map", "float32", (None, *model(images).shape[1:])),)
    )
    target = Target("phone", "litert", "CPU", "int8")
    asked = ExportRequest(tmp_path / "model.pt2", signature, tmp_path / "statistics", target, STATIC, (images[:1].numpy(),))
    artifact = LiteRtExporter().export(asked, tmp_path / "out")
    with torch.no_grad():
        expected = render(program, statistics, rules_for("litert"), STATIC).module(images).numpy()
    with RUNTIMES.get("litert")().open(artifact, tmp_path / "out") as session:
        found, kernels = session.run({"image": images.numpy()})["map"], session.kernels()
    assert np.square(found - expected).mean() < 1e-4 * np.square(expected).mean()
    assert (kernels.int8_macs_share, kernels.fp32) == (1.0, 0)
    assert (tmp_path / "out" / artifact.path).stat().st_size < 8000  # integers once: the weights are 1 kB, as floats they were 4 kB
