"""Layer by layer through a rendering: the float model and the quantized one side by side, each layer refined before the next is run.

A layer therefore meets the errors that all layers before it made, already refined (the asymmetric reconstruction of Nagel et al. 2020,
section 3.3). The whole walk costs two forward passes, after one with gradients that weighs positions (`position_weights.py`). Tensors
are freed after their last use, and only as many samples are run as keep the living ones within a limit (`living.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.arithmetic import Arithmetic
from edgepress.compress.quantize.batches import joined
from edgepress.compress.quantize.blocks import BlockRefiner, Values, block_of, split
from edgepress.compress.quantize.graph import constant, evaluate, kind_of, layer_of, value_of
from edgepress.compress.quantize.integer_gptq import enough, gptq
from edgepress.compress.quantize.layer import Layer, Refiner
from edgepress.compress.quantize.learnt_ranges import RangeLearning
from edgepress.compress.quantize.living import batches_that_fit, last_uses
from edgepress.compress.quantize.placement import Placement
from edgepress.compress.quantize.position_weights import weigh_positions
from edgepress.compress.quantize.render import placed
from edgepress.compress.quantize.sharing import RANGE_PART, TensorParameters
from edgepress.compress.quantize.statistics import Statistics
from edgepress.targets.nouns import Scheme
from edgepress.targets.progress import progress
from edgepress.targets.rules import QuantRules


def refine(
    program: torch.export.ExportedProgram,
    statistics: Statistics,
    rules: QuantRules,
    scheme: Scheme,
    batches: Iterable[Sequence[Any]],
    refiners: Sequence[Refiner | RangeLearning],
) -> Statistics:
    """Refine weights, biases and ranges of a rendering.

    A layer whose weight or bias other layers share is left as it is.

    Args:
        program: float, eval mode.
        statistics: of the same program.
        rules: of one runtime; 4-bit weights have bounds of -7 and 7.
        scheme: kind `static` or `static-matmul`.
        batches: calibration samples, tuples of positional inputs; no more are read than fit into memory, or than GPTQ by itself needs.
        refiners: applied to every layer one after the other. Beforehand, in each block, `RangeLearning` among them learns the ranges
            of what is rounded there and nowhere else, and a `BlockRefiner` then rounds the layers together.

    Returns:
        The statistics with `corrections` for this runtime and scheme: `render` applies them.

    Raises:
        QuantizationError: see `render`; no samples.
    """
    module, placement, parameters = placed(program, replace(statistics, corrections={}), rules, scheme)
    walk = _Walk(module, placement, parameters, rules, refiners)
    with torch.no_grad():
        walk.run(batches)
    return replace(statistics, corrections=walk.corrections)


class _Walk:
    def __init__(
        self,
        module: GraphModule,
        placement: Placement,
        parameters: TensorParameters,
        rules: QuantRules,
        refiners: Sequence[Refiner | RangeLearning],
    ) -> None:
        self.corrections: dict[str, np.ndarray] = {}
        self._module, self._placement, self._parameters, self._rules = module, placement, parameters, rules
        self._arithmetic = Arithmetic(placement, parameters, rules)
        self._of_ranges = next((item for item in refiners if isinstance(item, RangeLearning)), None)
        self._refiners = [item for item in refiners if not isinstance(item, RangeLearning)]
        self._of_blocks = next((item for item in self._refiners if isinstance(item, BlockRefiner)), None)
        self._layers = [node for node in placement.kinds if self._arithmetic.is_layer(node) and _has_samples(node)]
        self._exact: list[dict[Node, Any]] = []  # one of each batch
        self._rounded: list[dict[Node, Any]] = []
        self._weights: Mapping[str, Tensor] = {}

    def run(self, batches: Iterable[Sequence[Any]]) -> None:
        """Run every node of both models, and refine blocks and layers on the way."""
        nodes = [node for node in self._module.graph.nodes if node.op != "output"]
        whole = self._of_blocks is not None or self._of_ranges is not None
        pieces = split(self._module, self._layers, self._placement.tails) if whole else [[node] for node in nodes]
        found = batches_that_fit(self._module, pieces, batches, enough(self._layers) if self._refiners == [gptq] and not whole else None)
        inputs = joined(found)
        self._weights = weigh_positions(self._module, inputs, {node.name: _channels(node) for node in self._layers})
        self._exact, self._rounded = [{} for _ in found], [{} for _ in found]
        last, waiting = last_uses(self._module), [iter(batch) for batch in found]
        for piece in pieces:
            for node in piece:
                for exact, given in zip(self._exact, waiting, strict=True):
                    exact[node] = self._float(node, exact, given)
            chosen = self._block(piece, len(inputs[0]))
            for node in piece:
                for rounded, answer in zip(self._rounded, self._quantized(node, chosen), strict=True):
                    rounded[node] = answer
            for dead in (dead for node in piece for dead in last.get(node, ())):
                for values in (*self._exact, *self._rounded):
                    del values[dead]

    def _float(self, node: Node, values: Mapping[Node, Any], inputs: Iterator[Tensor]) -> Any:
        if node.op == "placeholder":
            return next(inputs)
        if node.op == "get_attr":
            held = constant(self._module, node)
            return None if held is None else held.detach()
        return evaluate(node, values)

    def _block(self, piece: Sequence[Node], samples: int) -> Mapping[Node, Tensor]:
        """The weights that are rounded together, once ranges are learnt; none where the piece cannot be taken as a whole."""
        if self._of_blocks is None and self._of_ranges is None:
            return {}
        exact, rounded = self._exact[0], self._rounded[0]  # there is one batch, or the graph tells no samples apart
        grids = {node: self._arithmetic.grid(node, exact[node.args[1]]) for node in piece if node in self._layers and _free(node)}
        block = block_of(piece, grids, self._arithmetic, Values(exact, rounded, samples))
        if block is None:
            return {}
        if self._of_ranges is not None:  # first, so that weights are rounded for the ranges they will meet
            learnt = self._of_ranges.ranges(block, list(self._parameters.rounded_within(piece)), self._rules)
            for group, interval in learnt.items():
                self._parameters.set_range(group, interval)
                self.corrections |= {f"{node.name}.{RANGE_PART}": np.array(interval) for node in group.nodes}
        return self._of_blocks.block(block) if self._of_blocks is not None and grids else {}

    def _quantized(self, node: Node, chosen: Mapping[Node, Tensor]) -> Iterable[Any]:
        """Of every batch; a layer is refined on all of them."""
        if node.op != "call_function":
            return [exact[node] for exact in self._exact]
        if node not in self._layers:
            return [self._arithmetic.rounded(node, rounded, {}) for rounded in self._rounded]
        progress(f"refining {layer_of(node)}", self._layers.index(node), len(self._layers))
        layer = self._layer(node, chosen)
        answer = self._arithmetic.output(node, (self._refined(layer, chosen) if _free(node) else layer).answer)
        return list(answer.chunk(len(self._exact)))

    def _layer(self, node: Node, chosen: Mapping[Node, Tensor]) -> Layer:
        bias = node.args[2] if len(node.args) > 2 else None
        read = [self._arithmetic.inputs(node, rounded) for rounded in self._rounded]
        inputs, target = joined([(held[node.args[0]], exact[node]) for held, exact in zip(read, self._exact, strict=True)])
        values = read[0]
        grid = self._arithmetic.grid(node, values[node.args[1]])
        return Layer(
            node=node,
            inputs=inputs,
            target=target,
            grid=grid,
            rounded=chosen.get(node, grid.nearest),
            bias=values[bias] if bias is not None else None,
            tail=_activation(self._placement.tails[node], node),
            channels=_channels(node),
            weights=self._weights_of(node, target),
        )

    def _weights_of(self, node: Node, target: Tensor) -> Tensor | None:
        """None where what the layer answers has another shape than with gradients, so that positions are not the same."""
        found, shape = self._weights.get(node.name), list(target.shape)
        del shape[_channels(node)]
        return found if found is not None and list(found.shape) == shape else None

    def _refined(self, before: Layer, chosen: Mapping[Node, Tensor]) -> Layer:
        layer = before
        for refiner in self._refiners:
            if refiner is not self._of_blocks or layer.node not in chosen:
                layer = refiner(layer)
        if not torch.equal(layer.rounded, layer.grid.nearest):
            self.corrections[f"{layer.node.name}.weight"] = layer.rounded.numpy()
            self.corrections[f"{layer.node.name}.scale"] = layer.grid.scale.numpy()
        if layer.bias is not before.bias and layer.bias is not None:
            self.corrections[f"{layer.node.name}.bias"] = layer.bias.numpy()
        return layer


def _has_samples(node: Node) -> bool:
    """Has what a layer answers a dimension beside those of its channels and of positions?"""
    return bool(value_of(node).dim() >= value_of(node.args[1]).dim())


def _channels(node: Node) -> int:
    """The dimension of channels in what a layer answers."""
    return value_of(node).dim() - 1 if kind_of(node) == "linear" else 1


def _free(node: Node) -> bool:
    """Are weight and bias constants that no other layer reads?"""
    held = [item for item in node.args[1:3] if isinstance(item, Node)]
    return all(len(item.users) == 1 and item.op == "get_attr" for item in held)


def _activation(tail: Node, node: Node) -> Callable[[Tensor], Tensor]:
    if tail is node:
        return lambda tensor: tensor
    return lambda tensor: tail.target(tensor, *tail.args[1:], **tail.kwargs)
