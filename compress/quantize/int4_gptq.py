"""GPTQ for 4-bit weights in groups (`gptq.py` has the algorithm)."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepress.compress.quantize.gptq import inverse_factor, rounded_columns
from edgepress.compress.quantize.int4_grid import Grid
from edgepress.compress.quantize.int4_op import Int4Weight
from edgepress.targets.errors import QuantizationError


def gptq(weight: Tensor, moments: Tensor, grid: Grid, act_order: bool = True) -> Int4Weight:
    """Round a weight so that the squared error of its outputs on calibration inputs is small.

    The grid is fixed beforehand, so that columns may be taken in any order while groups stay consecutive.

    Args:
        weight: (outputs, inputs), float32.
        moments: (inputs, inputs), mean of x x^T over calibration inputs (half of the paper's Hessian, which only scales it).
        grid: scales and zero points of the groups.
        act_order: begin with the inputs of the largest mean square, while most columns are left to make their errors good.

    Raises:
        QuantizationError: the moments cannot be factored.
    """
    inputs, groups = weight.shape[1], grid.scale.shape[1]
    diagonal = moments.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(inputs)
    group_of = order // (inputs // groups)
    found = inverse_factor(moments, lambda _: order)
    if found is None:
        raise QuantizationError("the second moments of a layer's inputs cannot be factored", "they are not finite", "Use method: rtn.")
    _, factor = found
    result = torch.empty_like(weight)

    def column(i: int, left: Tensor) -> Tensor:
        group = group_of[i : i + 1]
        integers = grid.integers(left[:, None], group)
        result[:, order[i]] = integers[:, 0]
        return ((integers - grid.zero[:, group]) * grid.scale[:, group])[:, 0]

    rounded_columns(weight[:, order], factor, column)
    return grid.weight(result)
