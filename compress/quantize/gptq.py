"""The column loop of GPTQ (Frantar et al. 2022, algorithm 1): each rounding error is made good by the columns still to come.

`int4_gptq.py` rounds weights alone with it, `integer_gptq.py` layers whose inputs are integers too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Columns whose errors are propagated to the rest at once.
BLOCK = 128
#: Shares of the mean diagonal that are added to the diagonal, until the matrix can be factored.
DAMPING = (0.01, 0.1, 1.0)


def rounded_columns(weight: Tensor, factor: Tensor, rounded: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Round a weight column by column.

    Args:
        weight: (outputs, inputs), columns in the order in which they are rounded.
        factor: of `inverse_factor`, its columns in the same order.
        rounded: (index of a column, what it holds by then, (outputs,)) -> the column on the grid.

    Returns:
        The rounded weight, columns in the same order.
    """
    left, result = weight.clone(), torch.empty_like(weight)
    for start in range(0, weight.shape[1], BLOCK):
        stop = min(start + BLOCK, weight.shape[1])
        errors = torch.empty_like(left[:, start:stop])
        for i in range(start, stop):
            result[:, i] = rounded(i, left[:, i])
            error = (left[:, i] - result[:, i]) / factor[i, i]
            left[:, i:stop].addr_(error, factor[i, i:stop], alpha=-1)
            errors[:, i - start] = error
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return result


def inverse_factor(moments: Tensor, order: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor] | None:
    """The order of the columns, and the upper Cholesky factor of the inverse of damped second moments in that order.

    Args:
        moments: (inputs, inputs), mean of x x^T; half of the paper's Hessian, which only scales it. The work is done in float64.
        order: the inverse of the damped moments -> indices of the columns.

    Returns:
        Indices and factor (float32); None where the moments cannot be factored.
    """
    matrix = moments.double()
    diagonal = matrix.diagonal()
    seen = diagonal > 0
    mean = float(diagonal[seen].mean()) if bool(seen.any()) else 1.0
    diagonal[~seen] = mean  # an input that is always zero: its error costs nothing, and reaches no other column
    for share in DAMPING:
        damped = matrix + torch.eye(len(matrix), dtype=matrix.dtype) * (share * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            continue
        inverse = torch.cholesky_inverse(factor)
        columns = order(inverse)
        upper, failed = torch.linalg.cholesky_ex(inverse[columns][:, columns], upper=True)
        if not failed and bool(torch.isfinite(upper).all()):
            return columns, upper.float()
    return None
