"""The integers that the weight of a layer is rounded to: 8 bits by the rules of its runtime, or 4 or 2."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize import int2
from edgepress.compress.quantize.graph import constant, kind_of, set_attribute
from edgepress.compress.quantize.int4_grid import search_grid
from edgepress.compress.quantize.layer import WeightGrid
from edgepress.compress.quantize.quantizer import NARROW_END, OUTPUT_AXIS
from edgepress.compress.quantize.sharing import SMALLEST_SCALE
from edgepress.targets.rules import QuantRules


def weight_grid(node: Node, weight: Tensor, rules: QuantRules, bits: int) -> WeightGrid:
    """The grid of the weight of a layer, symmetric, with one scale per channel or tensor as the rules say.

    8 bits cover the whole range, as min-max observers do; 4 and 2 bits the range that leaves the smallest squared error.
    """
    kind = str(kind_of(node))
    axis = OUTPUT_AXIS[kind] if kind in rules.per_channel else None
    if bits == 8:
        return WeightGrid(weight, _whole_scale(weight, axis, rules), (rules.weight_min, rules.weight_max))
    rows = weight.reshape(1, -1) if axis is None else weight.movedim(axis, 0).reshape(weight.shape[axis], -1)
    found = search_grid(rows, rows.shape[1], symmetric=True).scale if bits == 4 else int2.int2_grid(rows).scale
    # In the integers of 8 bits two levels of 2 bits are two apart: half of this scale is stored.
    scale = found.clamp_min(SMALLEST_SCALE * (8 // bits) / 2).reshape([-1 if dim == axis else 1 for dim in range(weight.dim())])
    if bits == 4:
        return WeightGrid(weight, scale, (-NARROW_END[4], NARROW_END[4]))
    return WeightGrid(weight, scale, int2.BOUNDS, int2.OFFSET)


def round_narrow(module: GraphModule, bits: Mapping[Node, int], rules: QuantRules) -> None:
    """Round the weights of layers to the bits they have, 4 or 2, in place and in floats.

    Observers then find the scale of the grid again, because a weight of every channel lies at its end. A weight that is on it stays.
    """
    for node, count in bits.items():
        weight = constant(module, node.args[1])
        assert weight is not None, "layers with weights computed at run time are not placed"
        set_attribute(module, str(node.args[1].target), weight_grid(node, weight.detach(), rules, count).nearest)


def _whole_scale(weight: Tensor, axis: int | None, rules: QuantRules) -> Tensor:
    """The scale that min-max observers find, broadcastable to the weight: one per index of `axis`, or one for the whole."""
    others = [dim for dim in range(weight.dim()) if dim != axis]
    largest = weight.detach().abs().amax(dim=others, keepdim=True)
    return (largest / ((rules.weight_max - rules.weight_min) / 2)).clamp_min(SMALLEST_SCALE)
