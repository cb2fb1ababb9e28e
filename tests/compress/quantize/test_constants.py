"""What no input changes is computed once, and the model still computes the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from edgepress.compress.quantize import calibrate, float_module, render
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for
from tests.compress.quantize.nets import share_of_macs


class Standardized(nn.Conv2d):
    """A convolution that standardises its weight, Qiao et al. 2019."""

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias, padding=1)


class Positions(nn.Module):
    """Looks up the positions 0 .. 7 in a table that is longer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(4096, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.table(torch.arange(x.shape[1])))


class Tied(nn.Module):
    """Multiplies by the transpose of a weight that it reads as it is too, 96 * 96 values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(96, 96) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) @ self.weight.transpose(0, 1).contiguous()


class Spread(nn.Module):
    """Adds a row that it spreads over 100 rows of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(64))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.row * 2).repeat(100, 1)


class Noisy(nn.Module):
    """Adds noise to what it computes from constants."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(8) * (self.row + 1)


def _program(model: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    dynamic = {0: torch.export.Dim("batch")}
    return torch.export.export(model.eval(), (torch.randn(shape),), dynamic_shapes=(dynamic,))


def _ops(module: torch.fx.GraphModule) -> list[str]:
    return [node.target.overloadpacket.__name__ for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "weight normalisation": (lambda: weight_norm(nn.Linear(64, 32)), (2, 64), ["linear"]),
    "weight standardisation": (lambda: Standardized(3, 8, 3), (2, 3, 8, 8), ["conv2d"]),
    "positions": (Positions, (2, 8, 6), ["add", "linear"]),
    "a weight read twice": (Tied, (2, 96), ["linear", "transpose", "contiguous", "matmul"]),
    "a row spread over many": (Spread, (2, 100, 64), ["repeat", "add"]),
    "random numbers": (Noisy, (2, 8), ["rand", "mul", "add"]),
}


@pytest.mark.parametrize("name", NETS)
def test_only_what_inputs_change_is_computed(name: str) -> None:
    torch.manual_seed(0)
    make, shape, ops = NETS[name]
    program = _program(make(), shape)
    module = float_module(program)
    assert _ops(module) == ops
    x = torch.randn(shape)
    torch.manual_seed(1)
    expected = program.module()(x)
    torch.manual_seed(1)
    torch.testing.assert_close(module(x), expected)


def test_a_lookup_leaves_the_rows_that_are_read() -> None:
    module = float_module(_program(Positions(), (2, 8, 6)))
    assert sum(item.numel() for item in module.state_dict().values()) == 8 * 6 + 6 * 3 + 3


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "tensorrt", "coreml", "litert"])
@pytest.mark.parametrize("name", ["weight normalisation", "weight standardisation"])
def test_weights_that_a_module_computes_are_integers(name: str, runtime: str) -> None:
    torch.manual_seed(0)
    make, shape, _ = NETS[name]
    program = _program(make(), shape)
    statistics = calibrate(program, [(torch.randn(shape),) for _ in range(4)])
    rendered = render(program, statistics, rules_for(runtime), Scheme("int8", "static"))
    assert share_of_macs(rendered.module) == 1.0
    assert not {"_weight_norm", "div"} & set(_ops(rendered.module))
