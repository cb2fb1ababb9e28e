"""Products and sums per channel behind a layer become its weight and bias."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.quantize.graph import op_name
from edgepress.compress.quantize.prepare import float_module


class Behind(nn.Module):
    """A layer of 6 channels and what is computed from its output with constants of as many."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], behind: Callable[[Tensor, Tensor, Tensor], Tensor], least: float) -> None:
        super().__init__()
        self.layer, self.behind = layer, behind
        self.scale = nn.Parameter(torch.linspace(least, 2, 6).reshape(shape))
        self.register_buffer("shift", torch.linspace(-1, 1, 6).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.layer(x), self.scale, self.shift)


def operators(layer: nn.Module, shape: tuple[int, ...], behind: Callable[[Tensor, Tensor, Tensor], Tensor], least: float) -> list[str]:
    """Of the float module, which computes the same."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 4 if isinstance(layer, nn.Linear) else 6)
    net = Behind(layer, shape, behind, least).eval()
    module = float_module(torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)))
    torch.testing.assert_close(module(x[:1]), net(x[:1]), rtol=1e-5, atol=1e-5)
    return [op_name(node) for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("least", [1e-5, 0.5])
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1)])
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, bias=False), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, 2, groups=2)])
def test_frozen_batch_norms(layer: nn.Module, shape: tuple[int, ...], least: float) -> None:
    names = operators(layer, shape, lambda y, scale, shift: shift + y * scale, least)
    assert len(names) == 1


@pytest.mark.parametrize(("least", "left"), [(1e-5, ["linear", "mul", "relu"]), (0.5, ["linear", "relu"])])
def test_layer_scale_that_is_not_too_small(least: float, left: list[str]) -> None:
    assert operators(nn.Linear(4, 6), (6,), lambda y, scale, _: (y * scale).relu(), least) == left


def test_a_bias_that_is_added_afterwards() -> None:
    assert operators(nn.Conv2d(4, 6, 3), (6, 1, 1), lambda y, _, shift: y + shift, 1.0) == ["conv2d"]


def test_a_weight_that_layers_share_is_stored_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(4, 4), nn.Parameter(torch.linspace(0.5, 2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).relu()) * self.scale + 3

    module = float_module(torch.export.export(Shared(), (torch.randn(2, 4),)))
    assert len([node for node in module.graph.nodes if node.op == "get_attr" and str(node.target).endswith("weight")]) == 1


def test_a_layer_that_others_read_too_and_what_is_not_per_channel_stay() -> None:
    assert operators(nn.Conv2d(4, 6, 3), (6, 1, 1), lambda y, scale, shift: y * scale + y.relu() * shift, 1.0).count("mul") == 2
    assert "mul" in operators(nn.Conv2d(4, 6, 1), (6,), lambda y, scale, _: y * scale, 1.0)  # 6 columns
    assert operators(nn.Conv2d(4, 6, 3), (6, 1, 1), lambda y, scale, shift: (y * scale + shift) + y.mean(), 0.1).count("mul") == 1


def test_a_sum_behind_a_convolution_of_one_sample_without_its_dimension() -> None:
    """Channels are dimension 0 there; as many rows as channels look like a constant per channel."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.shift = nn.Conv2d(6, 6, 3, padding=1), nn.Parameter(torch.randn(1, 6, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x[0]) + self.shift)[None]

    model, x = One().eval(), torch.randn(1, 6, 6, 6)
    torch.testing.assert_close(float_module(torch.export.export(model, (x,)))(x), model(x), atol=1e-5, rtol=1e-4)
