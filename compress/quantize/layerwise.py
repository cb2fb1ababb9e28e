"""Layer by layer through a rendering: the float model and the quantized one side by side, each layer refined before the next is run.

A layer therefore meets the errors that all layers before it made, already refined (the asymmetric reconstruction of Nagel et al. 2020,
section 3.3), and the whole walk costs two forward passes. Tensors are freed after their last use, and only as many samples are run as
keep the living ones within `LIMIT_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from edgepress.compress.quantize.graph import constant, is_float, layer_of, op_name, value_of
from edgepress.compress.quantize.placement import Placement, data_inputs
from edgepress.compress.quantize.quantizer import OUTPUT_AXIS
from edgepress.compress.quantize.render import placed
from edgepress.compress.quantize.sharing import SMALLEST_SCALE, TensorParameters
from edgepress.compress.quantize.statistics import Statistics
from edgepress.targets.errors import QuantizationError
from edgepress.targets.nouns import Scheme
from edgepress.targets.progress import progress
from edgepress.targets.rules import QuantRules

#: Tensors of both models held at a time, for all samples together.
LIMIT_BYTES = 1024**3
#: Samples that are run even where they need more than that.
MIN_SAMPLES = 8


@dataclass(frozen=True)
class Layer:
    """A layer with integer weights, at its place in the quantized model.

    Attributes:
        node: the op.
        inputs: what it reads there: floats on the grid of its input's integers, (samples, ...).
        target: what the float model's layer answers, before an activation that is fused into it, (samples, ...).
        weight: float weight.
        scale: of the weight's integers, broadcastable to it.
        bounds: lowest and highest integer.
        rounded: the weight on that grid, as it will be stored.
        bias: (output channels,), None where it has none.
        tail: the activation fused into it, elementwise; the identity where there is none.
        channels: dimension of output channels in `target`.
    """

    node: Node
    inputs: Tensor
    target: Tensor
    weight: Tensor
    scale: Tensor
    bounds: tuple[int, int]
    rounded: Tensor
    bias: Tensor | None
    tail: Callable[[Tensor], Tensor]
    channels: int

    @property
    def name(self) -> str:
        """The module of the user's model that makes it."""
        return layer_of(self.node)

    def answer(self) -> Tensor:
        """What the quantized layer computes, before the activation."""
        rest = self.node.args[3:]
        result: Tensor = self.node.target(self.inputs, self.rounded, self.bias, *rest, **self.node.kwargs)
        return result


#: Chooses another `rounded` weight on the same grid, or another `bias`.
Refiner = Callable[[Layer], Layer]


def refine(
    program: torch.export.ExportedProgram,
    statistics: Statistics,
    rules: QuantRules,
    scheme: Scheme,
    batches: Iterable[Sequence[Any]],
    refiners: Sequence[Refiner],
) -> Statistics:
    """Refine weights and biases of a rendering.

    A layer whose weight or bias other layers share is left as it is.

    Args:
        program: float, eval mode.
        statistics: of the same program.
        rules: of one runtime; 4-bit weights have bounds of -7 and 7.
        scheme: kind `static` or `static-matmul`.
        batches: calibration samples, tuples of positional inputs; no more are read than fit into memory.
        refiners: applied to every layer one after the other.

    Returns:
        The statistics with `corrections` for this runtime and scheme: `render` applies them.

    Raises:
        QuantizationError: see `render`; no samples.
    """
    module, placement, parameters = placed(program, replace(statistics, corrections={}), rules, scheme)
    walk = _Walk(module, placement, parameters, rules, refiners)
    with torch.no_grad():
        walk.run(_samples(module, batches))
    return replace(statistics, corrections=walk.corrections)


class _Walk:
    def __init__(
        self, module: GraphModule, placement: Placement, parameters: TensorParameters, rules: QuantRules, refiners: Sequence[Refiner]
    ) -> None:
        self.corrections: dict[str, np.ndarray] = {}
        self._module, self._placement, self._parameters, self._rules, self._refiners = module, placement, parameters, rules, refiners
        self._exact: dict[Node, Any] = {}
        self._rounded: dict[Node, Any] = {}

    def run(self, inputs: Sequence[Tensor]) -> None:
        """Run every node of both models, and refine the layers on the way."""
        last = last_uses(self._module)
        waiting = iter(inputs)
        layers = [node for node, kind in self._placement.kinds.items() if kind in OUTPUT_AXIS]
        for node in self._module.graph.nodes:
            if node.op == "output":
                break
            if node in self._placement.kinds and self._placement.kinds[node] in OUTPUT_AXIS:
                progress(f"refining {layer_of(node)}", layers.index(node), len(layers))
            if node.op == "placeholder":
                self._exact[node] = self._rounded[node] = next(waiting)
            elif node.op == "get_attr":
                held = constant(self._module, node)
                self._exact[node] = self._rounded[node] = None if held is None else held.detach()
            else:
                self._exact[node] = self._call(node, self._exact)
                self._rounded[node] = self._quantized(node)
            for dead in last.get(node, ()):
                del self._exact[dead], self._rounded[dead]

    def _call(self, node: Node, values: Mapping[Node, Any]) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), lambda item: values[item])
        return node.target(*args, **kwargs)

    def _quantized(self, node: Node) -> Any:
        kind = self._placement.kinds.get(node)
        values = dict(self._rounded)
        for item in data_inputs(node, kind) if kind else ():
            if is_float(item):
                values[item] = self._on_grid(item, values[item])
        result = self._layer(node, kind, values) if kind in OUTPUT_AXIS else self._call(node, values)
        return self._on_grid(node, result) if node in self._placement.outputs else result

    def _on_grid(self, node: Node, value: Tensor) -> Tensor:
        pair, rules = self._parameters.of(node), self._rules
        return torch.fake_quantize_per_tensor_affine(value, pair.scale, pair.zero_point, rules.activation_min, rules.activation_max)

    def _layer(self, node: Node, kind: str, values: Mapping[Node, Any]) -> Tensor:
        bias = node.args[2] if len(node.args) > 2 else None
        weight, axis = values[node.args[1]], OUTPUT_AXIS[kind] if kind in self._rules.per_channel else None
        scale = weight_scale(weight, axis, self._rules)
        bounds = (self._rules.weight_min, self._rules.weight_max)
        layer = Layer(
            node=node,
            inputs=values[node.args[0]],
            target=self._exact[node],
            weight=weight,
            scale=scale,
            bounds=bounds,
            rounded=torch.round(weight / scale).clamp(*bounds) * scale,
            bias=values[bias] if bias is not None else None,
            tail=_activation(self._placement.tails[node], node),
            channels=self._exact[node].dim() - 1 if kind == "linear" else 1,
        )
        if all(len(item.users) == 1 and item.op == "get_attr" for item in (node.args[1], bias) if item is not None):
            layer = self._refined(layer)
        return layer.answer()

    def _refined(self, layer: Layer) -> Layer:
        before = layer
        for refiner in self._refiners:
            layer = refiner(layer)
        if layer.rounded is not before.rounded:
            self.corrections[f"{layer.node.name}.weight"] = layer.rounded.numpy()
        if layer.bias is not before.bias and layer.bias is not None:
            self.corrections[f"{layer.node.name}.bias"] = layer.bias.numpy()
        return layer


def weight_scale(weight: Tensor, axis: int | None, rules: QuantRules) -> Tensor:
    """The scale that min-max observers find, broadcastable to the weight: one per index of `axis`, or one for the whole."""
    others = [dim for dim in range(weight.dim()) if dim != axis]
    largest = weight.detach().abs().amax(dim=others, keepdim=True)
    return (largest / ((rules.weight_max - rules.weight_min) / 2)).clamp_min(SMALLEST_SCALE)


def _activation(tail: Node, node: Node) -> Callable[[Tensor], Tensor]:
    if tail is node:
        return lambda tensor: tensor
    return lambda tensor: tail.target(tensor, *tail.args[1:], **tail.kwargs)


def last_uses(module: GraphModule) -> dict[Node, list[Node]]:
    """node -> the nodes whose values nobody reads after it."""
    found: dict[Node, list[Node]] = {}
    for node in module.graph.nodes:
        reader = max([node, *node.users])  # nodes compare by their place in the graph
        found.setdefault(reader, []).append(node)
    return found


def _samples(module: GraphModule, batches: Iterable[Sequence[Any]]) -> list[Tensor]:
    """As many calibration samples as may live at a time, joined into one batch."""
    limit = max(MIN_SAMPLES, LIMIT_BYTES // max(2 * _living_bytes(module), 1))
    pieces: list[list[Tensor]] = []
    for batch in batches:
        tensors = [torch.as_tensor(item) for item in batch]
        have = sum(len(piece[0]) for piece in pieces)
        pieces.append([tensor[: limit - have] for tensor in tensors])
        if have + len(tensors[0]) >= limit:
            break
    if not pieces:
        raise QuantizationError("layers got no calibration samples", remedy="Set data.calibration.samples to 1 or more.")
    return [torch.cat(column) for column in zip(*pieces, strict=True)]


def _living_bytes(module: GraphModule) -> int:
    """The most bytes of activations of one sample that live at a time."""
    last, living, most = last_uses(module), 0, 0
    for node in module.graph.nodes:
        living += bytes_of(node)
        most = max(most, living)
        living -= sum(bytes_of(dead) for dead in last.get(node, ()))
    return most


def bytes_of(node: Node) -> int:
    """Bytes of the activations a node makes of one sample."""
    if node.op not in ("placeholder", "call_function") or (node.op == "call_function" and op_name(node) == "getitem"):
        return 0
    tensors = [item for item in tree_leaves(value_of(node)) if isinstance(item, Tensor)]
    return sum(item.element_size() * int(np.prod([size for size in item.shape[1:] if isinstance(size, int)])) for item in tensors)
