"""Outlier channels split into copies (Zhao et al. 2019, "Improving Neural Network Quantization without Retraining using Outlier Channel
Splitting", section 3).

The feed-forward layers of transformers have single neurons whose value at one token and whose weight to one output are both far larger
than all others (Sun et al. 2024, "Massive Activations in Large Language Models", section 2). Scaling moves such a product from one factor
to the other and leaves one of them too large. n copies of the neuron, each with an n-th of its outgoing weights, make the product smaller.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import constant, is_float, op_name, set_attribute, value_of
from edgepress.compress.quantize.smooth import best_scale, readers, smooth, weights_of
from edgepress.compress.quantize.statistics import Statistics
from edgepress.compress.quantize.weight_grid import Rounding
from edgepress.targets.rules import QuantRules

#: Copies that are added, as a share of a layer's inputs, and what their number is a multiple of.
SHARE, MULTIPLE = 1 / 48, 16
#: Copies are added only where the predicted squared error falls below this share of what scaling alone leaves.
WORTH = 0.5
#: Copies are moved apart so often by the step that follows: the step depends on the outermost copy.
ROUNDS = 3
#: Ops that work on each value alone, whatever its channel.
_ELEMENTWISE = frozenset(
    {"gelu", "relu", "relu6", "silu", "hardswish", "hardtanh", "leaky_relu", "elu", "tanh", "sigmoid", "mish", "softplus", "clone"}
)


def spread_outliers(module: GraphModule, statistics: Statistics, rules: QuantRules, float_layers: Collection[str] = ()) -> None:
    """Split outlier channels of what linear layers read where that pays, and scale what is left of them down (`smooth`), in place.

    Split are the neurons between two linear layers with nothing but elementwise ops between them; the first layer computes the copies, so
    that no op is added. A layer whose weights are mostly zeros keeps its pattern, and what one of `float_layers` reads stays as it is.
    """
    channels, split = dict(statistics.channels), {}
    weights = dict(statistics.weights.channels) if statistics.weights else {}
    for tensor, layers in readers(module).items():
        path = _path_to(module, tensor, layers)
        if path and tensor.name in channels and not any(layer.name in float_layers for layer in layers):
            index = _chosen(weights_of(module, layers), channels[tensor.name], rules)
            if index is not None:
                _widen(module, path, layers, index)
                channels[tensor.name] = _of_copies(channels[tensor.name], index)
                if tensor.name in weights:
                    weights[tensor.name] = weights[tensor.name][index] / np.bincount(index)[index, None].astype(np.float32)
                split.update(dict.fromkeys(layers, index))
    held = statistics.weights and replace(statistics.weights, channels=weights)
    smooth(module, replace(statistics, channels=channels, weights=held), rules, float_layers)
    for layer, index in split.items():
        weight = _held(module, layer.args[1])
        _set(module, layer.args[1], _round_apart(weight, index, Rounding.of(layer, weight.shape, rules)))


def _path_to(module: GraphModule, tensor: Node, layers: list[Node]) -> list[Node]:
    """From a tensor that `layers` alone read back to the linear layer it comes from; empty where there is none."""
    path, only = [tensor], set(tensor.users) == set(layers)
    while only and op_name(path[-1]) in _ELEMENTWISE and is_float(path[-1].args[0]):
        path.append(path[-1].args[0])
        only = len(path[-1].users) == 1
    first = path[-1]
    if not only or op_name(first) != "linear":
        return []
    own = all(constant(module, item) is not None and len(item.users) == 1 for item in first.args[1:] if item is not None)
    return path if own else []


def _chosen(weights: np.ndarray, channels: np.ndarray, rules: QuantRules) -> np.ndarray | None:
    """Channels in their new order, each as often as it is copied; None where copies do not pay."""
    if 2 * np.count_nonzero(weights) <= weights.size:
        return None
    products = np.abs(channels[:2]).max(axis=0) * np.abs(weights).max(axis=0)
    copies = np.ones(len(products), dtype=np.int64)
    for _ in range(max(round(len(products) * SHARE / MULTIPLE), 1) * MULTIPLE):
        copies[np.argmax(products / copies)] += 1
    every = np.arange(len(products))
    index = np.concatenate([every[copies > n] for n in range(copies.max())])  # two copies are neighbours only where one channel has many
    error = best_scale(weights[:, index] / copies[index], _of_copies(channels, index), rules)[1]
    return index if error < WORTH * best_scale(weights, channels, rules)[1] else None


def _of_copies(channels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Statistics of the copies; errors of their weights come to that of one weight (`_round_apart`), so their squares are shared out."""
    result: np.ndarray = channels[:, index]
    result[2] /= np.bincount(index)[index]
    return result


def _widen(module: GraphModule, path: list[Node], layers: list[Node], index: np.ndarray) -> None:
    """Copy rows of the first layer and columns of the last, whose values the copies share."""
    where, copies = torch.from_numpy(index), torch.from_numpy(np.bincount(index)[index])
    for item in path[-1].args[1:]:
        if item is not None:
            _set(module, item, _held(module, item)[where])
    for layer in layers:
        _set(module, layer.args[1], _held(module, layer.args[1])[:, where] / copies)
    for node in path:
        value = value_of(node)
        with value.fake_mode:
            node.meta["val"] = value.new_empty((*value.shape[:-1], len(index)))


def _round_apart(weight: Tensor, index: np.ndarray, rounding: Rounding) -> Tensor:
    """Move the copies of a weight apart by fractions of a step that sum to zero, so that their integers sum to the rounded sum.

    Equal copies would all err alike, n times as much. The numbers w + k / n, k = 0 to n - 1, rounded down sum to n w rounded down
    (Hermite's identity); for n = 2 this is the quantization-aware splitting of section 3.3.
    """
    n = torch.from_numpy(np.bincount(index)[index])
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], index[order])
    place = torch.empty(len(index), dtype=torch.float64)
    place[torch.from_numpy(order)] = torch.from_numpy(np.arange(len(index)) - starts).double()
    wide = apart = weight.double()
    for _ in range(ROUNDS):
        apart = torch.where(wide == 0, wide, wide + rounding.grid(apart).scale * (place - (n - 1) / 2) / n)
    return apart.to(weight.dtype)


def _held(module: GraphModule, node: Node) -> Tensor:
    tensor = constant(module, node)
    assert tensor is not None
    return tensor.detach()


def _set(module: GraphModule, node: Node, tensor: Tensor) -> None:
    set_attribute(module, str(node.target), tensor.contiguous())
    node.meta["val"] = value_of(node).fake_mode.from_tensor(tensor, static_shapes=True)
