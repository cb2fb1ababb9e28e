"""Outlier channels moved from activations into weights before rounding (Xiao et al. 2023, "SmoothQuant", section 4).

A transformer's norms and activations have a few channels many times larger than the others; one scale per tensor then leaves the
others a handful of integers. Dividing channel c by s_c and multiplying column c of the weights by s_c changes nothing in float.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.attention import call
from edgepress.compress.quantize.graph import HEAVY, RANGE, constant, is_float, kind_of, op_name, root_of, set_attribute, value_of
from edgepress.compress.quantize.statistics import Statistics
from edgepress.targets.rules import QuantRules

#: Exponents tried for s_c = max|x_c|**a / max|W_c|**(1 - a).
EXPONENTS = tuple(step / 20 for step in range(2, 19))
#: A multiplication is added only where the predicted squared error falls below this share of what it was.
WORTH = 0.9


@dataclass(frozen=True)
class _Choice:
    scale: np.ndarray
    interval: tuple[float, float]


def smooth(module: GraphModule, statistics: Statistics, rules: QuantRules, float_layers: Collection[str] = ()) -> None:
    """Rescale what linear layers read from float ops, in place.

    A layer norm that nothing else reads takes the factors into its own weights; any other tensor gets one multiplication, which all
    the linear layers that read it share. What `float_layers` alone read is left as it is.
    """
    for tensor, layers in readers(module).items():
        if all(layer.name in float_layers for layer in layers):
            continue
        # Batch norms have integer kernels in one runtime alone, and only between integers, which a layer that is smoothed leaves.
        if kind_of(root_of(tensor)) in (None, "batch_norm") and tensor.op == "call_function" and tensor.name in statistics.channels:
            choice = _choose(module, tensor, layers, statistics, rules)
            if choice is not None:
                _apply(module, tensor, layers, choice)


def readers(module: GraphModule) -> dict[Node, list[Node]]:
    """Float tensors -> the linear layers that read them with a constant weight of their own."""
    found: dict[Node, list[Node]] = {}
    for node in module.graph.nodes:
        if op_name(node) == "linear" and is_float(node.args[0]) and _free(module, node):
            found.setdefault(node.args[0], []).append(node)
    return found


def _free(module: GraphModule, layer: Node) -> bool:
    """Is the weight constant, and this layer's alone?"""
    return kind_of(layer) in HEAVY and constant(module, layer.args[1]) is not None and len(layer.args[1].users) == 1


def _choose(module: GraphModule, tensor: Node, layers: list[Node], statistics: Statistics, rules: QuantRules) -> _Choice | None:
    """The factors with the smallest predicted error, None where plain rounding is nearly as good."""
    weights, channels = weights_of(module, layers), statistics.channels[tensor.name]
    scale, error = best_scale(weights, channels, rules)
    if error >= _error(weights, channels, np.ones(channels.shape[1]), rules) * WORTH:
        return None
    return _Choice(scale, statistics.scaled_range(tensor.name, scale, rules.activation_symmetric))


def best_scale(weights: np.ndarray, channels: np.ndarray, rules: QuantRules) -> tuple[np.ndarray, float]:
    """The factors with the smallest predicted error of the outputs, and that error.

    Args:
        weights: float64 (outputs, channels).
        channels: float64 (3, channels), see `Statistics.channels`.
        rules: bounds of the integers.

    Returns:
        float64 (channels,), all ones where no factor helps; and the squared error of all outputs at one position.
    """
    largest = np.maximum(np.abs(channels[:2]).max(axis=0), 1e-5)
    strongest = np.maximum(np.abs(weights).max(axis=0), 1e-5)
    scales = [(largest**a / strongest ** (1 - a)).astype(np.float32).astype(np.float64) for a in EXPONENTS]
    tried = [(scale, _error(weights, channels, scale, rules)) for scale in (np.ones(channels.shape[1]), *scales)]
    return min(tried, key=lambda pair: pair[1])


def weights_of(module: GraphModule, layers: Sequence[Node]) -> np.ndarray:
    """The weights of linear layers one below the other: float64 (outputs of all, inputs)."""
    return np.concatenate([_weight(module, layer) for layer in layers])


def _weight(module: GraphModule, layer: Node) -> np.ndarray:
    tensor = constant(module, layer.args[1])
    assert tensor is not None
    result: np.ndarray = tensor.detach().double().numpy()
    return result


def _error(weights: np.ndarray, channels: np.ndarray, scale: np.ndarray, rules: QuantRules) -> float:
    """Expected squared error of the outputs: rounding of activations through the weights, plus rounding of weights through activations."""
    low, high = min(float((channels[0] / scale).min()), 0.0), max(float((channels[1] / scale).max()), 0.0)
    steps = rules.activation_max - rules.activation_min
    width = 2 * max(-low, high) if rules.activation_symmetric else high - low
    scaled = weights * scale
    per_row = 2 * np.abs(scaled).max(axis=1) / (rules.weight_max - rules.weight_min)
    from_activations = (width / steps) ** 2 / 12 * float(np.square(scaled).sum())
    from_weights = float(np.square(per_row).sum()) / 12 * float((channels[2] / np.square(scale)).sum())
    return from_activations + from_weights


def _apply(module: GraphModule, tensor: Node, layers: list[Node], choice: _Choice) -> None:
    inverse = torch.from_numpy(1.0 / choice.scale).to(value_of(tensor).dtype)
    for layer in layers:
        weight = constant(module, layer.args[1])
        assert weight is not None
        set_attribute(module, str(layer.args[1].target), weight.detach() * torch.from_numpy(choice.scale).to(weight.dtype))
    if op_name(tensor) == "layer_norm" and set(tensor.users) == set(layers) and _scale_norm(module, tensor, inverse):
        tensor.meta[RANGE] = choice.interval
        return
    name = f"{tensor.name}_smoothing"
    set_attribute(module, name, inverse)
    with module.graph.inserting_after(tensor):
        factor = module.graph.create_node("get_attr", name)
    factor.meta["val"] = value_of(tensor).fake_mode.from_tensor(inverse, static_shapes=True)
    with module.graph.inserting_after(factor):
        smoothed = call(module, tensor, "smoothed", torch.ops.aten.mul.Tensor, tensor, factor)
    smoothed.meta[RANGE] = choice.interval
    for layer in layers:
        layer.args = (smoothed, *layer.args[1:])


def _scale_norm(module: GraphModule, norm: Node, inverse: torch.Tensor) -> bool:
    """Multiply the norm's own weight and bias where they are constants it does not share."""
    tensors = norm.args[2:4]
    if len(tensors) < 1 or tensors[0] is None:
        return False
    if any(item is not None and (constant(module, item) is None or len(item.users) != 1) for item in tensors):
        return False
    for item in tensors:
        value = constant(module, item)
        if value is not None:
            set_attribute(module, str(item.target), value.detach() * inverse)
    return True
