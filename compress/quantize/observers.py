"""From a histogram to a clipping range: the observers a recipe may choose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgepress.compress.quantize.histogram import BINS, Histogram
from edgepress.targets.errors import QuantizationError

#: Steps of an 8-bit grid over an asymmetric range, and over half of a symmetric one.
STEPS, HALF_STEPS = 255, 127
#: Candidates per end in the searches for the smallest squared error.
CANDIDATES = 256
#: Share of the values that the percentile observer keeps inside the range.
PERCENTILE = 0.9999

#: The observer that chooses ranges by what is left of their tensors' errors at the outputs of the model.
WEIGHTED = "auto"

Range = tuple[float, float]


def choose_range(histogram: Histogram, observer: str, symmetric: bool) -> Range:
    """The range (low <= 0 <= high) that 8-bit integers should cover.

    Args:
        histogram: what the tensor held.
        observer: a key of `OBSERVERS`.
        symmetric: whether the runtime's zero point is fixed in the middle.

    Returns:
        A range inside the extremes that were seen, widened to contain zero: all of it where no values were counted; (0, 0) for an all-zero
        or empty tensor.

    Raises:
        QuantizationError: unknown observer.
    """
    if observer not in OBSERVERS:
        raise QuantizationError(f"unknown observer {observer!r}", remedy=f"Use one of {', '.join(OBSERVERS)}.")
    if not histogram.seen:
        return 0.0, 0.0
    low, high = OBSERVERS[observer](histogram, symmetric) if histogram.total else minmax(histogram, symmetric)
    low, high = max(low, histogram.minimum), min(high, histogram.maximum)
    return min(low, 0.0), max(high, 0.0)


def minmax(histogram: Histogram, symmetric: bool) -> Range:
    """Everything that was seen (Jacob et al. 2018, "Quantization and Training of Neural Networks", section 3)."""
    return histogram.minimum, histogram.maximum


def moving_average(histogram: Histogram, symmetric: bool) -> Range:
    """Extremes averaged exponentially over batches (Jacob et al. 2018, section 3.1)."""
    return histogram.moving_minimum, histogram.moving_maximum


def percentile(histogram: Histogram, symmetric: bool) -> Range:
    """`PERCENTILE` of the values, the rest cut evenly from both tails (Wu et al. 2020, "Integer Quantization for DL Inference", 5.2)."""
    cumulated = np.cumsum(histogram.counts)
    tail = (1 - PERCENTILE) / 2 * histogram.total
    first = int(np.searchsorted(cumulated, tail, side="right"))
    last = int(np.searchsorted(cumulated, histogram.total - tail, side="left"))
    return (first - BINS) * histogram.width, (last + 1 - BINS) * histogram.width


def entropy(histogram: Histogram, symmetric: bool) -> Range:
    """The threshold with the smallest Kullback-Leibler divergence (Migacz, GTC 2017, "8-bit Inference with TensorRT").

    The threshold is searched on magnitudes, exact zeros left out, and applied to both ends. Levels may end inside a bin, so that
    thresholds are compared without the bias towards multiples of the number of levels.
    """
    magnitudes = (histogram.counts[BINS:] + histogram.counts[:BINS][::-1]).astype(np.float64)
    magnitudes[0] = max(magnitudes[0] - histogram.zeros, 0.0)
    if not magnitudes.any():
        return histogram.minimum, histogram.maximum
    levels = 2 * HALF_STEPS + 2 if histogram.minimum >= 0 and not symmetric else HALF_STEPS + 1
    last = int(np.flatnonzero(magnitudes)[-1]) + 1
    edges = np.unique(np.linspace(min(levels, last), last, CANDIDATES).astype(np.int64))
    divergences = [_divergence(magnitudes, int(edge), levels) for edge in edges]
    limit = int(edges[int(np.argmin(divergences))]) * histogram.width
    return -limit, limit


def _divergence(magnitudes: np.ndarray, edge: int, levels: int) -> float:
    """Kullback-Leibler divergence of the clipped distribution from what `levels` integers can express of it."""
    reference = magnitudes[:edge].copy()
    reference[-1] += magnitudes[edge:].sum()
    bins = np.arange(edge + 1)
    cumulated = np.append(0.0, np.cumsum(magnitudes[:edge]))
    borders = np.linspace(0, edge, levels + 1)
    expressed = np.diff(np.interp(bins, borders, np.interp(borders, bins, cumulated)))
    reference, expressed = reference / reference.sum(), expressed / max(expressed.sum(), 1e-300)
    present = reference > 0
    return float(np.sum(reference[present] * np.log(reference[present] / np.maximum(expressed[present], 1e-12))))


def mse(histogram: Histogram, symmetric: bool) -> Range:
    """Both ends shrunk by one factor, squared error smallest (Nagel et al. 2021, "A White Paper on Neural Network Quantization", 3.1)."""
    shrink = np.linspace(1 / CANDIDATES, 1.0, CANDIDATES)
    if symmetric:
        low, high = -histogram.largest * shrink, histogram.largest * shrink
    else:
        low, high = min(histogram.minimum, 0.0) * shrink, max(histogram.maximum, 0.0) * shrink
    error = _clipping(histogram, -low, -1) + _clipping(histogram, high, 1) + _rounding(histogram, low, high)
    best = int(np.argmin(error))
    return float(low[best]), float(high[best])


def least_squares(histogram: Histogram, symmetric: bool) -> Range:
    """The two ends searched apart for the smallest squared error (the aim of torch's HistogramObserver, by full search).

    A value inside the range errs by step**2 / 12 on average, a value outside by its squared distance to the range, a zero not at all.
    """
    if symmetric:
        return mse(histogram, True)
    ends = np.linspace(1 / CANDIDATES, 1.0, CANDIDATES)
    low = min(histogram.minimum, 0.0) * ends if histogram.minimum < 0 else np.zeros(1)
    high = max(histogram.maximum, 0.0) * ends if histogram.maximum > 0 else np.zeros(1)
    error = _clipping(histogram, -low, -1)[:, None] + _clipping(histogram, high, 1)[None, :]
    error = error + _rounding(histogram, low[:, None], high[None, :])
    row, column = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(low[row]), float(high[column])


def _rounding(histogram: Histogram, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Summed squared rounding error of all values but the zeros; the step covers [low, high]."""
    result: np.ndarray = (histogram.total - histogram.zeros) * ((high - low) / STEPS) ** 2 / 12
    return result


def _clipping(histogram: Histogram, limits: np.ndarray, sign: int) -> np.ndarray:
    """Summed squared distance to `limits` (magnitudes) of the values beyond them on one side of zero."""
    counts = (histogram.counts[BINS:] if sign > 0 else histogram.counts[:BINS][::-1]).astype(np.float64)
    centres = (np.arange(BINS) + 0.5) / BINS
    tails = [np.append(np.cumsum((counts * centres**power)[::-1])[::-1], 0.0) for power in range(3)]
    scaled = np.asarray(limits, dtype=np.float64) / (histogram.width * BINS)
    first = np.clip(np.ceil(scaled * BINS - 0.5).astype(np.int64), 0, BINS)
    distance = tails[2][first] - 2 * scaled * tails[1][first] + scaled**2 * tails[0][first]
    result: np.ndarray = np.maximum(distance, 0.0) * (histogram.width * BINS) ** 2
    return result


OBSERVERS: dict[str, Callable[[Histogram, bool], Range]] = {
    WEIGHTED: least_squares,
    "histogram": least_squares,
    "minmax": minmax,
    "moving-average": moving_average,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
