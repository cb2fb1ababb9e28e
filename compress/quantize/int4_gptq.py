"""GPTQ: rounding column by column, each error made good by the columns still to come (Frantar et al. 2022, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepress.compress.quantize.int4_grid import Grid
from edgepress.compress.quantize.int4_op import Int4Weight
from edgepress.targets.errors import QuantizationError

#: Columns whose errors are propagated to the rest at once.
BLOCK = 128
#: Shares of the mean diagonal that are added to the diagonal, until the matrix can be factored.
DAMPING = (0.01, 0.1, 1.0)


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
    inverse = _inverse_factor(moments[order][:, order])
    left, result = weight[:, order].clone(), torch.empty_like(weight)
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        errors = torch.empty_like(left[:, start:stop])
        for i in range(start, stop):
            column = left[:, i : i + 1]
            integers = grid.integers(column, group_of[i : i + 1])
            rounded = (integers - grid.zero[:, group_of[i : i + 1]]) * grid.scale[:, group_of[i : i + 1]]
            error = (column - rounded) / inverse[i, i]
            left[:, i:stop] -= error * inverse[i, i:stop]
            errors[:, i - start : i - start + 1] = error
            result[:, order[i]] = integers[:, 0]
        left[:, stop:] -= errors @ inverse[start:stop, stop:]
    return grid.weight(result)


def _inverse_factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, float32; the work is done in float64."""
    matrix = moments.double()
    diagonal = matrix.diagonal()
    seen = diagonal > 0
    mean = float(diagonal[seen].mean()) if bool(seen.any()) else 1.0
    diagonal[~seen] = mean  # an input that is always zero: its error costs nothing, and reaches no other column
    for share in DAMPING:
        damped = matrix + torch.eye(len(matrix), dtype=matrix.dtype) * (share * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
        if not failed:
            return inverse.float()
    raise QuantizationError("the second moments of a layer's inputs cannot be factored", "they are not finite", "Use method: rtn.")
