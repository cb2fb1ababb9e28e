"""A histogram of bounded size whose range doubles without error, so that one pass over any number of samples is enough."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

#: Bins on each side of zero.
BINS = 2048
#: Smallest exponent of a range: values below 2**-100 share the bins next to zero.
LOWEST_EXPONENT = -100
#: Weight of a new batch in the moving average of its extremes (torch's MovingAverageMinMaxObserver uses the same).
MOVING_WEIGHT = 0.01
#: Values that are counted at a time: what is computed on the way stays in the cache of a core.
_PIECE = 1 << 17


@dataclass
class Histogram:
    """Extremes and counts of everything one tensor held.

    The range is always (-2**exponent, 2**exponent), cut into 2 * `BINS` bins of equal width; bin `BINS` starts at zero. Bin edges are
    powers of two times an integer and a range that is too small is doubled by adding neighbouring bins, so the counts depend neither
    on the order nor on the batching of the values (as long as magnitudes do not differ by more than 2**126).

    Attributes:
        counts: int64, shape (2 * BINS,); float64 where values are weighted.
        exponent: None until the first value arrives.
        minimum, maximum: finite extremes.
        moving_minimum, moving_maximum: exponential moving averages over batches.
        zeros: how many values in the bins are exactly zero (a ReLU makes many; quantization represents them without error).
        infinities: how many values are infinite or NaN (masks, and what a mask leaves out); they are in no bin.
        total: how many finite values are in the bins; 0 where extremes alone were kept.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(2 * BINS, dtype=np.int64))
    exponent: int | None = None
    minimum: float = math.inf
    maximum: float = -math.inf
    moving_minimum: float = 0.0
    moving_maximum: float = 0.0
    zeros: int = 0
    infinities: int = 0
    total: float = 0

    def update(self, tensor: torch.Tensor, counted: bool = True) -> None:
        """Add every value of a float tensor of any shape.

        Args:
            tensor: floats.
            counted: whether values are counted in bins; extremes are kept anyway.
        """
        values = tensor.detach()
        if values.dtype not in (torch.float32, torch.float64):
            values = values.float()
        values = values.reshape(-1)
        if not values.numel():
            return
        low, high = (float(v) for v in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = values[torch.isfinite(values)]
            self.infinities += values.numel() - finite.numel()
            if not finite.numel():
                return
            values, (low, high) = finite, (float(v) for v in torch.aminmax(finite))
        self._extremes(low, high)
        if not counted:
            return
        self.cover(max(-low, high))
        assert self.exponent is not None
        scale = 2.0 ** (BINS.bit_length() - 1 - self.exponent)
        for piece in values.split(_PIECE):
            places = (piece * scale).floor_().to(torch.int32).add_(BINS)
            self.counts += torch.bincount(places, minlength=2 * BINS).numpy()
            self.zeros += int(np.count_nonzero(piece.numpy() == 0))  # torch takes 20 times as long to count
        self.total += values.numel()

    def _extremes(self, low: float, high: float) -> None:
        if not self.seen:
            self.moving_minimum, self.moving_maximum = low, high
        else:
            self.moving_minimum += MOVING_WEIGHT * (low - self.moving_minimum)
            self.moving_maximum += MOVING_WEIGHT * (high - self.moving_maximum)
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)

    def cover(self, magnitude: float) -> None:
        """Double the range until it holds `magnitude`."""
        needed = max(math.frexp(magnitude)[1], LOWEST_EXPONENT) if magnitude > 0 else LOWEST_EXPONENT
        if self.exponent is None:
            self.exponent = needed
        while self.exponent < needed:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[BINS // 2 : BINS // 2 + BINS] = merged
            self.exponent += 1

    def weighted(self, counts: np.ndarray) -> Histogram:
        """The same bins and extremes with sums of weights, float64; zeros and infinities weigh nothing."""
        return Histogram(counts, self.exponent, self.minimum, self.maximum, total=float(counts.sum()))

    @property
    def seen(self) -> bool:
        """Has any finite value arrived?"""
        return self.minimum <= self.maximum

    @property
    def width(self) -> float:
        """Width of one bin, in units of the tensor."""
        return math.ldexp(1.0 / BINS, self.exponent if self.exponent is not None else 0)

    @property
    def largest(self) -> float:
        """The largest magnitude that was seen; infinite where infinities or NaN were seen; 0 where nothing was."""
        if self.infinities:
            return math.inf
        return max(-self.minimum, self.maximum, 0.0) if self.seen else 0.0
