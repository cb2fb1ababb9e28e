"""How much an error of each value of a tensor changes the outputs of the model, to first order.

A range that leaves the smallest squared error of its tensor counts all values alike. What follows does not: the many small values of one
token may matter less than a few large ones of another. The weight of a value is the square of the outputs' gradient with respect to it,
see `gradients.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from edgepress.compress.quantize.gradients import NoDerivativeError, OutputGradients, pieces
from edgepress.compress.quantize.histogram import BINS, Histogram

#: Samples whose gradients are taken.
SAMPLES = 32
#: Bins on each side of zero, per channel.
CHANNEL_BINS = 32
#: Neighbouring values whose weights are averaged: one alone says little.
_ENOUGH = 16


@dataclass(frozen=True)
class OutputWeights:
    """What the values that calibration saw weigh.

    Attributes:
        tensors: node name -> histogram whose counts are sums of weights; exact zeros, which integers hold without error, have none.
        channels: name of a tensor that linear layers read -> float32 (channels, 2 * CHANNEL_BINS): sums of weights by value, in bins of
            equal width over (-m, m), where m is the channel's largest magnitude.
    """

    tensors: Mapping[str, Histogram]
    channels: Mapping[str, np.ndarray]


def weigh(
    module: GraphModule,
    inputs: Sequence[Tensor],
    histograms: Mapping[str, Histogram],
    channels: Mapping[str, np.ndarray],
    samples: int,
) -> OutputWeights:
    """Weigh what calibration saw by the gradients on some of its samples.

    Args:
        module: the canonical graph.
        inputs: positional inputs, some of the samples.
        histograms: of all samples, by node name.
        channels: see `Statistics.channels`.
        samples: how many calibration saw.

    Returns:
        Weights for the tensors that the outputs depend on by gradients; none, and a warning, where an operator has no derivative.
    """
    weigher = _Weigher(module, histograms, channels)
    for batch in pieces(module, inputs):
        try:
            weigher.add(batch)
        except NoDerivativeError as error:
            warnings.warn(f"ranges are chosen by the error of each tensor, as `observer: histogram` does: {error}", stacklevel=2)
            return OutputWeights({}, {})
    return OutputWeights(weigher.tensors(), weigher.channels(samples / len(inputs[0])))


def scaled_histogram(weights: np.ndarray, channels: np.ndarray, scale: np.ndarray) -> Histogram:
    """The weighted histogram of a tensor after division of its channels.

    Args:
        weights: float32 (channels, 2 * CHANNEL_BINS), see `OutputWeights.channels`.
        channels: float64 (3, channels), see `Statistics.channels`.
        scale: float64 (channels,), the divisors; an error then weighs their square as much.
    """
    largest = np.abs(channels[:2]).max(axis=0) / scale
    low, high = float((channels[0] / scale).min()), float((channels[1] / scale).max())
    centres = (np.arange(2 * CHANNEL_BINS) + 0.5 - CHANNEL_BINS) / CHANNEL_BINS * largest[:, None]
    result = Histogram(np.zeros(2 * BINS), minimum=min(low, 0.0), maximum=max(high, 0.0))
    result.cover(max(-low, high, 0.0))
    places = np.floor(centres / result.width).astype(np.int64) + BINS
    result.counts = np.bincount(places.ravel(), (weights * np.square(scale)[:, None]).ravel(), 2 * BINS)
    result.total = float(result.counts.sum())
    return result


class _Weigher(OutputGradients):
    """Runs a graph with gradients and sums their squares up by value."""

    def __init__(self, module: GraphModule, histograms: Mapping[str, Histogram], channels: Mapping[str, np.ndarray]) -> None:
        names = [name for name, held in histograms.items() if held.total and not held.infinities]  # others are never rounded
        super().__init__(module, names)
        self._histograms, self._columns = histograms, channels
        self._sums = {name: torch.zeros(2, 2 * BINS, dtype=torch.float64) for name in names}
        self._by_channel = {name: torch.zeros(2, value.shape[1] * 2 * CHANNEL_BINS) for name, value in channels.items()}

    def tensors(self) -> dict[str, Histogram]:
        """Weighted histograms: counts of all samples times the mean weight of such values."""
        found = {}
        for name, pair in self._sums.items():
            weights, counts = pair.numpy()
            if weights.any():
                held = self._histograms[name]
                others = held.counts.astype(np.float64)
                others[BINS] -= min(held.zeros, others[BINS])
                found[name] = held.weighted(others * _mean(weights[None], counts[None])[0])
        return found

    def channels(self, share: float) -> dict[str, np.ndarray]:
        """Sums per channel for `share` times as many samples; the extremes of all samples are one value more."""
        found = {}
        for name, sums in self._by_channel.items():
            weights, counts = sums.double().reshape(2, -1, 2 * CHANNEL_BINS).numpy()
            if weights.any():
                columns, mean = self._columns[name], _mean(weights, counts)
                counts *= share
                for values in columns[:2]:
                    places = _places(torch.from_numpy(values), torch.from_numpy(_channel_width(columns)), CHANNEL_BINS).numpy()
                    counts[np.arange(len(counts)), places] += values != 0
                found[name] = (counts * mean).astype(np.float32)
        return found

    def take(self, name: str, values: Tensor, gradient: Tensor) -> None:
        """Add the squared gradients of a tensor to the bins of its values."""
        held, weights = self._histograms[name], gradient.float().square()
        if not bool(torch.isfinite(weights.sum())):
            weights = torch.where(torch.isfinite(weights), weights, 0)
        zero = values == 0 if held.zeros else None
        if zero is not None:
            weights = weights.masked_fill_(zero, 0)
        self._sums[name] += _sums(_places(values, held.width, BINS), weights, zero, 2 * BINS)
        if name in self._by_channel:
            columns, bins = self._columns[name], 2 * CHANNEL_BINS
            rows = values.reshape(-1, columns.shape[1])
            places = _places(rows, torch.from_numpy(_channel_width(columns)).float(), CHANNEL_BINS)
            places += torch.arange(columns.shape[1], dtype=torch.int32) * bins
            self._by_channel[name] += _sums(places, weights, zero, columns.shape[1] * bins)


def _sums(places: Tensor, weights: Tensor, zero: Tensor | None, bins: int) -> Tensor:
    """Sums of weights, and numbers of values other than zero, per bin: float32 (2, bins)."""
    places = places.flatten()
    counts = torch.bincount(places, minlength=bins)
    if zero is not None:
        counts -= torch.bincount(places[zero.flatten()], minlength=bins)
    return torch.stack([torch.bincount(places, weights.flatten(), bins), counts])


def _mean(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean weight of the values in each bin and in so many next to it that there are enough: (rows, bins)."""
    sums = counts.cumsum(axis=1)
    pools = np.maximum(sums[:, -1:] // _ENOUGH, 1)
    index = np.clip((sums - 1) // _ENOUGH, 0, pools - 1).astype(np.int64) + np.arange(len(counts))[:, None] * int(pools.max())
    totals, numbers = (np.bincount(index.ravel(), part.ravel()) for part in (weights, counts))
    result: np.ndarray = (totals / np.maximum(numbers, 1))[index]
    return result


def _places(values: Tensor, width: float | Tensor, bins: int) -> Tensor:
    """Bins of values, int32, `bins` on each side of zero; values beyond lie in the outermost."""
    return (values / width).floor_().clamp_(-bins, bins - 1).to(torch.int32).add_(bins)


def _channel_width(columns: np.ndarray) -> np.ndarray:
    largest = np.abs(columns[:2]).max(axis=0)
    result: np.ndarray = np.where(largest > 0, largest, 1.0) / CHANNEL_BINS
    return result
