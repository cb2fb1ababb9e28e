"""Views of six dimensions that are moved around become views of at most five, and compute the same."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgepress.compress.quantize.prepare import float_module


class Moved(nn.Module):
    """(n, 8, 6, 4) cut into (n, 2, 4, 3, 2, 4), moved, and cut anew; in one permutation or as many exchanges."""

    def __init__(self, order: tuple[int, ...], exchanged: bool = False) -> None:
        super().__init__()
        self.order, self.exchanged = order, exchanged

    def forward(self, x: Tensor) -> Tensor:
        moved = x.view(x.shape[0], 2, 4, 3, 2, 4)
        if self.exchanged:
            for first, second in zip(self.order[::2], self.order[1::2], strict=True):
                moved = moved.transpose(first, second)
            return moved.reshape(moved.shape[0], moved.shape[1], -1) * 2
        return moved.permute(self.order).flatten(1) * 2


class Pieces(nn.Module):
    """The same cut, moved, and read piece by piece along one dimension, by one operator or one for each piece."""

    def __init__(self, order: tuple[int, ...], axis: int, unbound: bool) -> None:
        super().__init__()
        self.order, self.axis, self.unbound = order, axis, unbound

    def forward(self, x: Tensor) -> Tensor:
        moved = x.view(x.shape[0], 2, 4, 3, 2, 4).permute(self.order)
        if self.unbound:
            first, *_, last = moved.unbind(self.axis)
        else:
            first, last = moved.select(self.axis, 0), moved.select(self.axis - 6, -1)
        return first * 2 + last


def most_dimensions(net: nn.Module) -> int:
    """Of any value of its float module, which computes the same."""
    x = torch.randn(3, 8, 6, 4)
    module = float_module(torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)))
    for some in (x, torch.randn(1, 8, 6, 4)):
        torch.testing.assert_close(module(some), net(some), rtol=0, atol=0)
    return max(node.meta["val"].dim() for node in module.graph.nodes if isinstance(node.meta.get("val"), Tensor))


@pytest.mark.parametrize("order", [(0, 1, 3, 2, 4, 5), (0, 2, 4, 3, 5, 1), (0, 2, 1, 4, 3, 5), (0, 5, 4, 3, 2, 1)])
def test_windows_patches_and_exchanged_rows(order: tuple[int, ...]) -> None:
    assert most_dimensions(Moved(order)) <= 5


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(list(permutations(range(6)))))
def test_any_order(order: tuple[int, ...]) -> None:
    assert most_dimensions(Moved(order)) <= 5


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(list(permutations(range(6)))), st.integers(1, 5), st.booleans())
def test_pieces_of_any_dimension_of_any_order(order: tuple[int, ...], axis: int, unbound: bool) -> None:
    assert most_dimensions(Pieces(order, order.index(axis), unbound)) <= 6


@pytest.mark.parametrize("unbound", [True, False])
def test_heads_in_blocks(unbound: bool) -> None:
    assert most_dimensions(Pieces((3, 0, 4, 1, 2, 5), 0, unbound)) <= 5


def test_a_linear_layer_over_windows() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            heads = self.layer(x.reshape(x.shape[0], 2, 4, 3, 2, 4).transpose(2, 3)).reshape(x.shape[0], 6, 8, 3, 1, 2)
            query, key, value = heads.permute(3, 0, 1, 4, 2, 5)
            return query + key * value

    assert most_dimensions(Layer()) <= 5


def test_exchanges_of_two() -> None:
    assert most_dimensions(Moved((2, 3, 1, 5), exchanged=True)) <= 5


def test_what_is_read_on_the_way_stays() -> None:
    class Read(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            moved = x.view(x.shape[0], 2, 4, 3, 2, 4).transpose(2, 3)
            return moved.reshape(-1, 24) + moved.mean()

    net, x = Read(), torch.randn(3, 8, 6, 4)
    torch.testing.assert_close(float_module(torch.export.export(net, (x,)))(x), net(x))
