"""What a logarithm or a root reads stays float: 8 bits over the range of a sound's energies leave the loud ones alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.quantize import calibrate, float_module, render
from edgepress.compress.quantize.graph import FLOAT
from edgepress.compress.quantize.magnified import REASON
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for

RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "coreml", "litert")


class Bands(nn.Module):
    """Energies of bands, and layers that read a function of them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bands, self.function, self.hidden, self.head = nn.Linear(32, 16, bias=False), function, nn.Linear(16, 32), nn.Linear(32, 4)
        nn.init.uniform_(self.bands.weight, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.function(self.bands(x.square()))).relu())


def sounds() -> Tensor:
    """(256, 32), loud and quiet ones."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(256, 32, generator=generator) * torch.logspace(-3, 1, 256)[:, None]


def program_of(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.log(x + 1e-6),
        lambda x: 10 * torch.log10(x.clamp(min=1e-7)),
        lambda x: torch.log1p(x * 1e4),
        lambda x: torch.log2(x.unsqueeze(1).flip(2).abs().squeeze(1) + 1e-6),
    ],
    ids=["log", "decibels", "log1p", "log2"],
)
def test_the_layer_before_a_logarithm_is_float_and_the_net_keeps_its_answers(function: Callable[[Tensor], Tensor], runtime: str) -> None:
    model, x = Bands(function), sounds()
    program = program_of(model, x)
    rendered = render(program, calibrate(program, [(x,)]), rules_for(runtime), Scheme("int8", "static"))
    assert {"op": "aten.linear", "count": 1, "reason": REASON} in rendered.float_ops
    with torch.no_grad():
        expected, found = model(x), rendered.module(x)
    assert float((found - expected).square().sum() / (expected - expected.mean(0)).square().sum()) < 1e-2


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda x: x.sqrt(), True),
        (lambda x: x.pow(0.3), True),
        (lambda x: x.pow(2), False),
        (lambda x: torch.log(torch.softmax(x, -1)), False),
        (lambda x: torch.log_softmax(x, -1), False),
        (lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6), False),
        (lambda x: x / x.square().mean(-1, keepdim=True).sqrt(), False),
        (lambda x: x + torch.log(torch.full((), 3.0)), False),
    ],
    ids=["root", "power below 1", "square", "log of softmax", "log-softmax", "normalization", "division by a norm", "a constant"],
)
def test_other_functions(function: Callable[[Tensor], Tensor], kept: bool) -> None:
    module = float_module(program_of(Bands(function), sounds()))
    found = [node.name for node in module.graph.nodes if node.meta.get(FLOAT) and "linear" in node.name]
    assert found == (["linear"] if kept else [])
