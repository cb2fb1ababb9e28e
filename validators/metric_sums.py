"""Metrics whose state is a sum over samples: a resample's is the sum of its samples' states, without going over their outputs again.

Confusion matrices and sums of squares are such. A bootstrap asks for thousands of resamples, and of segmentation maps each would be
counted pixel by pixel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Outputs and labels below which going over them again takes no longer.
_FEW = 100_000
#: Numbers that are kept, samples times those of one state: 8 bytes each.
_MOST = 20_000_000
#: How far a sum may be from what the metric makes of all samples at once.
_TOLERANCE = 1e-5

Value = Callable[[NDArray[np.int64]], Any]


def of_sums(metric: Any, predicted: Any, wanted: Any, direct: Value) -> Value:
    """A faster way to the same values, where there is one.

    Args:
        metric: a torchmetrics metric.
        predicted, wanted: tensors of shape (n, ...), what `update` takes.
        direct: indices of shape (m,) -> what `compute` gives for these samples, a tensor.

    Returns:
        The like of `direct`; `direct` itself where the state is no sum, is large, or gives something else, and for few outputs.
    """
    found = direct
    if predicted.numel() + wanted.numel() < _FEW:
        return found
    with contextlib.suppress(Exception):  # the names below are torchmetrics' own: without them nothing is lost but time
        sums = _Sums(metric, predicted, wanted)
        every = np.arange(len(wanted))
        if all(_same(sums(index), direct(index)) for index in (every, every[::2], np.repeat(every[:1], 2))):
            found = sums
    return found


def _same(one: Any, other: Any) -> bool:
    a, b = (np.asarray(value, dtype=np.float64) for value in (one, other))
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True))


class _Sums:
    """Indices -> what a metric computes of the sum of these samples' states.

    Raises:
        ValueError: the state is no sum, or has too many numbers.
    """

    def __init__(self, metric: Any, predicted: Any, wanted: Any) -> None:
        from torchmetrics.utilities.data import dim_zero_sum

        self._metric, self._names = metric, sorted(metric._defaults)
        if not self._names or any(reduction is not dim_zero_sum for reduction in metric._reductions.values()):
            raise ValueError("the state is no sum")
        rows: list[NDArray[np.float64]] = []
        for index in range(len(wanted)):
            metric.reset()
            metric.update(predicted[index : index + 1], wanted[index : index + 1])
            states = [getattr(metric, name) for name in self._names]
            if not rows:
                self._like = states
                if sum(state.numel() for state in states) * len(wanted) > _MOST:
                    raise ValueError("the states are too large to keep")
            rows.append(np.concatenate([state.numpy().ravel() for state in states]).astype(np.float64))
        self._states = np.stack(rows)

    def __call__(self, index: NDArray[np.int64]) -> Any:
        import torch

        total = np.bincount(index, minlength=len(self._states)).astype(np.float64) @ self._states
        self._metric.reset()
        start = 0
        for name, like in zip(self._names, self._like, strict=True):
            part = torch.from_numpy(total[start : start + like.numel()]).reshape(like.shape).to(like.dtype)
            setattr(self._metric, name, part)
            start += like.numel()
        self._metric._update_count, self._metric._computed = len(index), None
        return self._metric.compute()
