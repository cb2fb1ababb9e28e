"""What one node of a rendering answers, computed in float: activations and weights lie on their grids, nothing is stored in integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgepress.compress.quantize.graph import evaluate, is_float
from edgepress.compress.quantize.layer import WeightGrid
from edgepress.compress.quantize.placement import Placement, data_inputs
from edgepress.compress.quantize.quantizer import OUTPUT_AXIS
from edgepress.compress.quantize.sharing import TensorParameters
from edgepress.compress.quantize.weight_grid import weight_grid
from edgepress.targets.rules import QuantRules


class Arithmetic:
    """Computes single nodes as the runtime will.

    Args:
        placement: which ops compute in integers.
        parameters: scale and zero point of every activation.
        rules: of the runtime.
    """

    def __init__(self, placement: Placement, parameters: TensorParameters, rules: QuantRules) -> None:
        self._placement, self._parameters, self._rules = placement, parameters, rules
        self._weight_only = frozenset(placement.weight_only)
        self._roundings: Mapping[Node, Callable[[Tensor], Tensor]] = {}

    def rounding_by(self, roundings: Mapping[Node, Callable[[Tensor], Tensor]]) -> Arithmetic:
        """The same with other functions that round the values of some nodes."""
        other = Arithmetic(self._placement, self._parameters, self._rules)
        other._roundings = roundings
        return other

    def is_layer(self, node: Node) -> bool:
        """Does it compute with integer weights?"""
        return self._placement.kinds.get(node) in OUTPUT_AXIS

    def grid(self, node: Node, weight: Tensor) -> WeightGrid:
        """The grid of the weight of a layer."""
        rules = self._rules.unguarded if node in self._weight_only else self._rules
        return weight_grid(node, weight, rules, self._placement.bits.get(node, 8))

    def inputs(self, node: Node, values: Mapping[Node, Any]) -> dict[Node, Any]:
        """The values with what a node reads rounded to its grid."""
        found, kind = dict(values), self._placement.kinds.get(node)
        for item in data_inputs(node, kind) if kind else ():
            if is_float(item):
                found[item] = self.on_grid(item, found[item])
        return found

    def computed(self, node: Node, values: Mapping[Node, Any], weights: Mapping[Node, Tensor]) -> Any:
        """What a node answers before its output is rounded; differentiable, with a straight-through gradient where values are rounded.

        Args:
            node: not a constant and not an input.
            values: what it reads, not yet on the grids of its inputs.
            weights: layer -> its rounded weight; a layer that is not among them rounds its own to nearest.
        """
        inputs = self.inputs(node, values)
        if self.is_layer(node) or node in self._weight_only:
            inputs[node.args[1]] = weights[node] if node in weights else self.grid(node, inputs[node.args[1]]).nearest
        return evaluate(node, inputs)

    def output(self, node: Node, value: Any) -> Any:
        """What a node answers, on the grid of its output where it has one."""
        return self.on_grid(node, value) if node in self._placement.outputs else value

    def rounded(self, node: Node, values: Mapping[Node, Any], weights: Mapping[Node, Tensor]) -> Any:
        """What a node of the quantized model answers; see `computed`."""
        return self.output(node, self.computed(node, values, weights))

    def on_grid(self, node: Node, value: Tensor) -> Tensor:
        """A value of a node, clamped and rounded to the integers of that node."""
        if node in self._roundings:
            return self._roundings[node](value)
        pair, rules = self._parameters.of(node), self._rules
        return torch.fake_quantize_per_tensor_affine(value, pair.scale, pair.zero_point, rules.activation_min, rules.activation_max)
