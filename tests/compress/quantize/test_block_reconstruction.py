"""Block reconstruction (BRECQ): layers of a block learn to round together, and blocks are found whatever the net."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from edgepress.compress.quantize import Statistics, calibrate, render
from edgepress.compress.quantize.adaround import AdaRound
from edgepress.compress.quantize.block_reconstruction import BlockReconstruction
from edgepress.compress.quantize.blocks import Block, BlockRefiner
from edgepress.compress.quantize.layer import Layer, Refiner
from edgepress.compress.quantize.layerwise import refine
from edgepress.compress.quantize.learnt_rounding import RoundingOptions
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import QuantRules, rules_for
from tests.compress.quantize.nets import NETS, outputs_of, program_of, samples_of

STATIC = Scheme("int8", "static")
RULES = replace(rules_for("onnxruntime"), weight_min=-7, weight_max=7, float_groups={})
QUICK = RoundingOptions(steps=200, lr=0.05)


@dataclass(frozen=True)
class Look(BlockRefiner):
    """Leaves everything rounded to nearest, and writes down what it was asked."""

    blocks: list[Block] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    def __call__(self, layer: Layer) -> Layer:
        self.layers.append(layer)
        return layer

    def block(self, block: Block) -> Mapping[Node, Tensor]:
        self.blocks.append(block)
        return {node: grid.nearest for node, grid in block.grids.items()}


def looked(program: torch.export.ExportedProgram, inputs: tuple[Tensor, ...], rules: QuantRules = RULES) -> Look:
    look = Look()
    assert not refine(program, calibrate(program, [inputs]), rules, STATIC, [inputs], [look]).corrections
    return look


def refined(name: str, refiners: list[Refiner]) -> Statistics:
    program, seen = program_of(name), samples_of(name, 128)
    return refine(program, calibrate(program, [seen]), RULES, STATIC, [seen], refiners)


class Bottleneck(nn.Module):
    """One residual block; what the layer before it lost comes in by the shortcut too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(12, 12, 1)
        self.a, self.b, self.c = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 12, height, width) -> the same."""
        x = torch.relu(self.stem(x))
        return torch.relu(x + self.c(torch.relu(self.b(torch.relu(self.a(x))))))


def smooth(count: int, seed: int) -> tuple[Tensor, ...]:
    """Images whose neighbouring pixels and channels are alike, as those of a net are."""
    random = torch.Generator().manual_seed(seed)
    channels = torch.randn(count, 4, 4, 4, generator=random)
    mixed = torch.einsum("nchw,cd->ndhw", channels, torch.randn(4, 12, generator=torch.Generator().manual_seed(0)))
    return (torch.nn.functional.interpolate(mixed, scale_factor=2.0, mode="bilinear").relu(),)


def error(program: torch.export.ExportedProgram, statistics: Statistics, inputs: tuple[Tensor, ...]) -> float:
    """Mean squared error of the rendering's outputs."""
    rendered, exact = (outputs_of(m, inputs)[0] for m in (render(program, statistics, RULES, STATIC).module, program.module()))
    return float((rendered - exact).square().mean())


def test_four_bits_of_a_residual_block_lose_at_most_half_of_rounding_to_nearest_and_no_more_than_adaround() -> None:
    torch.manual_seed(0)
    seen, judged = smooth(128, 1), smooth(64, 2)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(Bottleneck().eval(), (seen[0][:2],), dynamic_shapes=({0: batch},))
    nearest = calibrate(program, [seen])

    def loses(refiner: Refiner) -> float:
        return error(program, refine(program, nearest, RULES, STATIC, [seen], [refiner]), judged)

    together = loses(BlockReconstruction(0, QUICK))
    assert together < 0.5 * error(program, nearest, judged)
    assert together <= loses(AdaRound(0, QUICK))


def test_residual_blocks_are_taken_whole() -> None:
    look = looked(program_of("residual"), samples_of("residual", 8))
    assert [block.name for block in look.blocks] == ["stem.0.0", "a.0 to b.0", "c.0 to short.0", "head"]
    assert [len(block.grids) for block in look.blocks] == [1, 2, 3, 1] and not look.layers


def test_blocks_of_a_transformer_end_at_its_residual_sums() -> None:
    look = looked(program_of("vision-explicit"), samples_of("vision-explicit", 8))
    assert [len(block.grids) for block in look.blocks] == [1, 2, 2, 2, 2, 1] and not look.layers


@pytest.mark.parametrize("name", sorted(NETS))
def test_the_error_of_a_block_is_the_mean_of_its_samples_whichever_are_drawn(name: str) -> None:
    inputs = samples_of(name, 12)
    look = looked(program_of(name), inputs)
    for block in look.blocks:
        nearest = {node: grid.nearest for node, grid in block.grids.items()}
        whole = float(block.error(nearest, torch.arange(12)))
        thirds = [float(block.error(nearest, index)) for index in torch.arange(12).split(4)]
        assert whole > 0 and sum(thirds) / 3 == pytest.approx(whole, rel=1e-3)


class Folded(nn.Module):
    """Hands on two rows per sample, so that rows do not say which sample they are of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(16, 16), nn.Linear(8, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 16) -> (batch, 3)."""
        x = torch.relu(self.b(torch.relu(self.a(x)).reshape(-1, 8)))
        return self.head(x.reshape(-1, 16))


def test_where_samples_are_not_told_apart_layers_are_rounded_one_by_one() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(64, 4) @ torch.randn(4, 16),)
    program = torch.export.export(Folded().eval(), inputs, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    look = looked(program, inputs)
    assert "b" in {layer.name for layer in look.layers}
    assert {layer.name for layer in look.layers} | {block.name for block in look.blocks} == {"a", "b", "head"}
    alone = {layer.node.name for layer in look.layers}
    learnt = refine(program, calibrate(program, [inputs]), RULES, STATIC, [inputs], [BlockReconstruction(0, QUICK)])
    assert {f"{name}.weight" for name in alone} <= learnt.corrections.keys()


def test_layers_that_share_their_weights_are_in_no_block() -> None:
    look = looked(program_of("shared"), samples_of("shared", 8))
    assert not look.layers and not [node for block in look.blocks for node in block.grids]


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    short = RoundingOptions(steps=20, lr=0.1)
    for index, seed in enumerate((0, 0, 1)):
        refined("shuffle", [BlockReconstruction(seed, short)]).save(tmp_path / str(index))
    a, b, c = ((tmp_path / str(index)).read_bytes() for index in range(3))
    assert a == b != c


def test_a_block_that_learning_does_not_help_keeps_its_rounding() -> None:
    wild = BlockReconstruction(0, RoundingOptions(steps=5, lr=50.0))  # throws every weight to a side at random
    assert not refined("residual", [wild]).corrections
