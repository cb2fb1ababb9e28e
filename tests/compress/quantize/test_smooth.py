import dataclasses

import pytest
import torch
from torch import nn

from edgepress.compress.quantize import calibrate, canonical_module, render
from edgepress.compress.quantize.graph import RANGE
from edgepress.compress.quantize.smooth import smooth
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for


class Outliers(nn.Module):
    """A norm with one channel sixty times larger than the others; the linear layers read it alone, or a residual sum does too."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.residual, self.norm, self.a, self.b = residual, nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)
        with torch.no_grad():
            self.norm.weight[3] = 60.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        y = self.a(x) + torch.tanh(self.b(x))
        return y + x if self.residual else y


def case(residual: bool) -> tuple[torch.export.ExportedProgram, torch.Tensor]:
    torch.manual_seed(0)
    example = (torch.randn(2, 16),)
    program = torch.export.export(Outliers(residual).eval(), example, dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=512)},))
    return program, torch.randn(256, 16)


@pytest.mark.parametrize("residual", [False, True])
def test_smoothing_changes_nothing_in_float(residual: bool) -> None:
    program, inputs = case(residual)
    module = canonical_module(program)
    smooth(module, calibrate(program, [(inputs,)]), rules_for("tensorrt"))
    module.recompile()
    assert any(RANGE in node.meta for node in module.graph.nodes)
    assert any("smoothed" in node.name for node in module.graph.nodes) == residual
    with torch.no_grad():
        torch.testing.assert_close(module(inputs), program.module()(inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_smoothing_lowers_the_error_of_outlier_channels(residual: bool) -> None:
    program, inputs = case(residual)
    statistics = calibrate(program, [(inputs,)])
    with torch.no_grad():
        expected = program.module()(inputs)
        errors = []
        for wanted in (True, False):
            rules = dataclasses.replace(rules_for("tensorrt"), smooth=wanted)
            rendered = render(program, statistics, rules, Scheme("int8", "static-matmul"))
            errors.append(float((rendered.module(inputs) - expected).square().mean()))
    assert errors[0] < errors[1] / 2


def test_a_tensor_without_outliers_is_left_alone() -> None:
    program, inputs = case(True)
    with torch.no_grad():
        program.state_dict["norm.weight"][3] = 1.0
    module = canonical_module(program)
    before = len(module.graph.nodes)
    smooth(module, calibrate(program, [(inputs,)]), rules_for("tensorrt"))
    assert len(module.graph.nodes) == before
