"""A chain of layers with the values between them divided by factors, and what its integers answer then."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.chains import FLATTENS, Pair, has_bias
from edgepress.compress.quantize.channels import Channels, channels_made
from edgepress.compress.quantize.graph import constant, evaluate, op_name, set_attribute
from edgepress.compress.quantize.histogram import Histogram
from edgepress.compress.quantize.observers import choose_range
from edgepress.compress.quantize.sharing import qparams
from edgepress.compress.quantize.weight_grid import weight_grid
from edgepress.targets.rules import QuantRules

#: A channel moves by at most this factor in all: a nearly dead channel would otherwise blow up an activation.
MAX_FACTOR = 2.0**12


@dataclass(frozen=True)
class ScaledChain:
    """The layers of a chain, the same function as the model's but for bounds that are given up.

    Attributes:
        pairs: of the chain.
        weights, biases: of its layers, float64; biases that are none are left out.
        factors: what the values between the layers of a pair are divided by, (channels,).
        unbounded: ops with an upper bound that are a ReLU instead.
    """

    pairs: tuple[Pair, ...]
    weights: Mapping[Node, Tensor]
    biases: Mapping[Node, Tensor]
    factors: Mapping[Pair, Tensor]
    unbounded: tuple[Node, ...] = ()

    @staticmethod
    def of(pairs: tuple[Pair, ...], module: GraphModule) -> ScaledChain:
        """A chain as a graph has it."""

        def held(node: Node) -> Tensor:
            tensor = constant(module, node)
            assert tensor is not None, "chains are made of layers with constant weights"
            return tensor.detach().double()

        layers = [pairs[0].first, *(pair.second for pair in pairs)]
        weights = {node: held(node.args[1]) for node in layers}
        biases = {node: held(node.args[2]) for node in layers if has_bias(node)}
        return ScaledChain(
            pairs, weights, biases, {pair: torch.ones(channels_made(pair.first, weights[pair.first])).double() for pair in pairs}
        )

    @property
    def layers(self) -> list[Node]:
        """In order."""
        return list(self.weights)

    @property
    def moved(self) -> list[Pair]:
        """Pairs with factors that are not 1."""
        return [pair for pair, factor in self.factors.items() if not torch.equal(factor, torch.ones_like(factor))]

    def divided(self, pair: Pair, factor: Tensor) -> ScaledChain:
        """The values between a pair divided by another factor as well, within what a channel may move in all."""
        total = (self.factors[pair] * factor).clamp(1 / MAX_FACTOR, MAX_FACTOR)
        factor = total / self.factors[pair]
        first, second = Channels(pair, self.weights).scaled(factor)
        biases = {node: bias / factor if node is pair.first else bias for node, bias in self.biases.items()}
        weights = {**self.weights, pair.first: first, pair.second: second}
        return replace(self, weights=weights, biases=biases, factors={**self.factors, pair: total})

    def read(self, value: Tensor, values: Mapping[Node, Any], rules: QuantRules | None) -> dict[Node, Tensor]:
        """What every layer reads.

        Args:
            value: what the first one reads.
            values: of everything else that ops between layers read.
            rules: whose integers compute; None in float.
        """
        found = {self.layers[0]: value}
        for pair in self.pairs:
            value = self._between(pair, self._answer(pair.first, value, rules), values)
            found[pair.second] = value = value if rules is None else _rounded(value, rules)
        return found

    def answer(self, value: Tensor, values: Mapping[Node, Any], rules: QuantRules | None) -> Tensor:
        """What the last layer answers; see `read`."""
        last = self.layers[-1]
        return self._answer(last, self.read(value, values, rules)[last], rules)

    def _answer(self, node: Node, value: Tensor, rules: QuantRules | None) -> Tensor:
        weight, bias = self.weights[node].float(), self.biases.get(node)
        weight = weight if rules is None else weight_grid(node, weight, rules, 8).nearest
        result: Tensor = node.target(value, weight, None if bias is None else bias.float(), *node.args[3:], **node.kwargs)
        return result

    def _between(self, pair: Pair, value: Tensor, values: Mapping[Node, Any]) -> Tensor:
        local = {pair.first: value}
        for node in pair.between:
            if node in self.unbounded:
                value = torch.relu(value)
            elif op_name(node) in FLATTENS:  # to the batch of the graph, which may be another one
                value = value.flatten(1)
            else:
                value = evaluate(node, ChainMap(local, dict(values)))
            local[node] = value
        return value

    def apply(self, module: GraphModule) -> None:
        """Put it into the graph it came from."""
        for node, weight in self.weights.items():
            set_attribute(module, str(node.args[1].target), weight.float())
        for node, bias in self.biases.items():
            set_attribute(module, str(node.args[2].target), bias.float())
        for node in self.unbounded:
            node.target, node.args, node.kwargs = torch.ops.aten.relu.default, (node.args[0],), {}


def _rounded(value: Tensor, rules: QuantRules) -> Tensor:
    """On the grid that calibration would choose for it."""
    histogram = Histogram()
    histogram.update(value)
    pair = qparams(choose_range(histogram, "histogram", rules.activation_symmetric), rules)
    return torch.fake_quantize_per_tensor_affine(value, pair.scale, pair.zero_point, rules.activation_min, rules.activation_max)
