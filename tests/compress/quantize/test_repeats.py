"""What a model computes twice is computed once; what only looks alike is not merged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgepress.compress.quantize import canonical_module
from edgepress.compress.quantize.repeats import merge_repeats
from tests.compress.quantize.decoder import exported


class CalledTwice(nn.Module):
    """Scores and probabilities of one head, each by a call of its own, and of another head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.other = nn.Linear(8, 8), nn.Linear(8, 4)
        self.head = nn.Sequential(nn.Linear(8, 4), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.relu(self.first(x))
        return self.head(hidden), torch.sigmoid(self.head(hidden)), self.other(hidden)


class Alike(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x + 1, x + 1.0, x - 1, torch.rand_like(x), torch.rand_like(x)


def test_a_head_that_is_called_twice_is_one() -> None:
    model, x = CalledTwice().eval(), torch.randn(3, 8)
    program = exported(model, x)
    names = [node.name for node in program.graph.nodes if node.target is torch.ops.aten.linear.default]
    module = canonical_module(program)
    kept = [node.name for node in module.graph.nodes if node.target is torch.ops.aten.linear.default]
    assert kept == [names[0], names[1], names[3]]
    for found, wanted in zip(module(x), model(x), strict=True):
        torch.testing.assert_close(found, wanted)


def test_other_types_of_a_number_and_random_numbers_stay() -> None:
    x = torch.arange(4).reshape(2, 2).to(torch.float32)
    module = exported(Alike().eval(), x).module(check_guards=False)
    merge_repeats(module)
    assert sum("aten" in str(node.target) for node in module.graph.nodes) == 5
