"""The integers that the weight of a layer is rounded to: 8 bits by the rules of its runtime, or 4 or 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize import int2
from edgepress.compress.quantize.graph import WEIGHT_SCALE, constant, kind_of, new_constant, set_attribute
from edgepress.compress.quantize.int4_grid import search_grid
from edgepress.compress.quantize.layer import WeightGrid
from edgepress.compress.quantize.placement import Placement
from edgepress.compress.quantize.quantizer import NARROW_END, OUTPUT_AXIS
from edgepress.compress.quantize.saturation import Guard, guard_of
from edgepress.targets.rules import QuantRules

#: A scale is at least so much of a layer's bias: kernels take biases as 32-bit multiples of it and of the activation's scale.
_BESIDE_A_BIAS = 2.0**-16


@dataclass(frozen=True)
class Rounding:
    """How the 8-bit weight of one layer is rounded, whatever its values.

    Attributes:
        axis: of output channels with a scale each; None for one scale.
        bounds: lowest and highest integer.
        guard: keeps sums exact; None where they are.
        smallest: the smallest scales, broadcastable to the weight.
    """

    axis: int | None
    bounds: tuple[int, int]
    guard: Guard | None
    smallest: Tensor

    @staticmethod
    def of(node: Node, weight: torch.Size, rules: QuantRules) -> Rounding:
        """That of a layer with a weight of this shape."""
        kind = str(kind_of(node))
        axis = OUTPUT_AXIS[kind] if kind in rules.per_channel else None
        return Rounding(axis, (rules.weight_min, rules.weight_max), guard_of(node, weight, rules), _smallest(node, axis, weight, rules))

    def grid(self, weight: Tensor) -> WeightGrid:
        """Over the whole range, as min-max observers find it, or the best within the guard."""
        if self.guard is not None:
            return self.guard.grid(weight, self.axis, self.smallest)
        largest = weight.detach().abs().amax(dim=[dim for dim in range(weight.dim()) if dim != self.axis], keepdim=True)
        return WeightGrid(weight, (largest / ((self.bounds[1] - self.bounds[0]) / 2)).clamp_min(self.smallest), self.bounds)


def weight_grid(node: Node, weight: Tensor, rules: QuantRules, bits: int) -> WeightGrid:
    """The grid of the weight of a layer, symmetric, with one scale per channel or tensor as the rules say.

    8 bits are those of `Rounding`; 4 and 2 bits cover the range that leaves the smallest squared error. A weight that an algorithm chose
    keeps the scale it was chosen with.
    """
    rounding, known = Rounding.of(node, weight.shape, rules), node.meta.get(WEIGHT_SCALE)
    if bits == 8:
        return rounding.grid(weight) if known is None else WeightGrid(weight, known, rounding.bounds)
    scale = _narrow_scale(weight, rounding, bits) if known is None else known
    if bits == 4:
        return WeightGrid(weight, scale, (-NARROW_END[4], NARROW_END[4]))
    return WeightGrid(weight, scale, int2.BOUNDS, int2.OFFSET)


def round_weights(module: GraphModule, placement: Placement, rules: QuantRules) -> dict[Node, Tensor]:
    """Round the weights of layers where more than a scale says how, in place and in floats.

    Returns:
        Layer -> scale of the integers that are stored, broadcastable to its weight.
    """
    layers = {node: rules for node, kind in placement.kinds.items() if kind in OUTPUT_AXIS} | dict.fromkeys(
        placement.weight_only, rules.unguarded
    )
    grids: dict[Node, WeightGrid] = {}
    for node, of in layers.items():
        weight = constant(module, node.args[1])
        assert weight is not None, "layers with weights computed at run time are not placed"
        grids[node] = weight_grid(node, weight.detach(), of, placement.bits.get(node, 8))
    moved = [node for node, of in layers.items() if node in placement.bits or guard_of(node, grids[node].weight.shape, of)]
    for weight in dict.fromkeys(node.args[1] for node in moved):
        readers = [node for node in grids if node.args[1] is weight]
        _replace(module, weight, readers, grids[readers[0]].nearest)
    # In the integers of 8 bits two levels of 2 bits are two apart.
    return {node: grid.scale / 2 if grid.offset else grid.scale for node, grid in grids.items()}


def _replace(module: GraphModule, weight: Node, readers: list[Node], tensor: Tensor) -> None:
    """What else reads it keeps the weight as it was."""
    if set(weight.users) == set(readers):
        set_attribute(module, str(weight.target), tensor)
        return
    with module.graph.inserting_before(weight):
        own = new_constant(module, f"{readers[0].name}_rounded_weight", tensor, readers[0])
    for node in readers:
        node.update_arg(1, own)


def _smallest(node: Node, axis: int | None, weight: torch.Size, rules: QuantRules) -> Tensor:
    """The smallest scales of a layer's weight, of each output channel or of all."""
    bias = constant(node.graph.owning_module, node.args[2]) if len(node.args) > 2 else None
    if bias is None or rules.smallest_scale >= _BESIDE_A_BIAS:
        return torch.tensor(rules.smallest_scale)
    steps = bias.detach().abs().float() * _BESIDE_A_BIAS
    if axis is None or len(steps) != weight[axis]:
        return steps.amax().clamp(rules.smallest_scale, _BESIDE_A_BIAS)
    rows = steps.reshape([-1 if dim == axis else 1 for dim in range(len(weight))])
    return rows.clamp(rules.smallest_scale, _BESIDE_A_BIAS)


def _narrow_scale(weight: Tensor, rounding: Rounding, bits: int) -> Tensor:
    axis = rounding.axis
    rows = weight.reshape(1, -1) if axis is None else weight.movedim(axis, 0).reshape(weight.shape[axis], -1)
    found = search_grid(rows, rows.shape[1], symmetric=True).scale if bits == 4 else int2.int2_grid(rows).scale
    shaped = found.reshape([-1 if dim == axis else 1 for dim in range(weight.dim())])
    return torch.maximum(shaped, rounding.smallest * ((8 // bits) / 2))
