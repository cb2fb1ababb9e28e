"""Sums before a softmax: what may bring a mask in stays float, what layers compute alone does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.quantize import canonical_module
from edgepress.compress.quantize.graph import op_name
from edgepress.compress.quantize.masks import masked_nodes


class Scores(nn.Module):
    """Scores of two layers, of which one or a bias is added to the other."""

    def __init__(self, other: Callable[[Scores, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 12), nn.Linear(6, 6)
        self.bias, self.table = nn.Parameter(torch.randn(3, 6)), nn.Embedding(4, 6)
        self.other = other

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, 6) and (batch, 6) -> (batch, 6)."""
        return self.third(torch.softmax(self.first(x) + self.other(self, x, mask), -1))


def of_an_outer_product(net: Scores, x: Tensor, mask: Tensor) -> Tensor:
    return (1 - (mask[:, :, None] @ mask[:, None, :])[:, 0]) * -1e9


CASES: dict[str, tuple[bool, Callable[[Scores, Tensor, Tensor], Tensor]]] = {
    "another layer": (False, lambda net, x, mask: torch.relu(net.second(x)).chunk(2, -1)[0]),
    "the same layer": (False, lambda net, x, mask: net.second(x)[:, :6] * 0.5),
    "an input": (True, lambda net, x, mask: mask),
    "computed from an input": (True, lambda net, x, mask: (1 - mask) * -1e4),
    "an outer product of an input": (True, of_an_outer_product),
    "a constant": (True, lambda net, x, mask: net.bias),
    "looked up": (True, lambda net, x, mask: net.table((mask > 0).long()).mean(1)),
    "a comparison of what a layer computes": (True, lambda net, x, mask: (net.second(x)[:, :6] > 0).float() * -1e4),
    "filled in": (True, lambda net, x, mask: net.second(x)[:, :6].masked_fill(mask > 0, -1e4)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_sum_is_a_mask_unless_layers_compute_both_sides(name: str) -> None:
    masks, other = CASES[name]
    program = torch.export.export(Scores(other).eval(), (torch.randn(3, 6), torch.ones(3, 6)))
    found = {op_name(node) for node in masked_nodes(canonical_module(program))}
    assert ("softmax" in found and "add" in found) if masks else not found
