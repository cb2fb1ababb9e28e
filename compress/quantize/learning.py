"""What algorithms that learn by reconstruction share: how many samples a step takes, and the error over all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def samples_per_step(positions: int, samples: int, batch: int, most: int) -> int:
    """How many samples a step takes: `batch`, fewer where there are fewer or where they have more than `most` positions, one at least.

    Args:
        positions: output positions (pixels, tokens) of one sample.
        samples: how many there are.
        batch: most samples of a step.
        most: positions of a step.
    """
    return max(min(batch, most // max(positions, 1), samples), 1)


def mean_error(error: Callable[[Tensor], Tensor], samples: int, size: int) -> float:
    """The mean over all samples of what `error` gives for the indices of some, `size` at a time."""
    with torch.no_grad():
        return float(sum(error(index) * len(index) for index in torch.arange(samples).split(size))) / samples
