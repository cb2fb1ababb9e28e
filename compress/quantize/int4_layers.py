"""Which layers can have 4-bit weights: linear layers and matrix products with a constant, whose inputs divide into groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import FLOAT, constant, kind_of, layer_of
from edgepress.targets.errors import QuantizationError
from edgepress.targets.rules import Int4Rules

_PLAIN = "float arithmetic; only weights are integers"


@dataclass(frozen=True)
class Layer:
    """One layer to be rounded.

    Attributes:
        node: the op in the float graph.
        source: the tensor it reads, channels last.
        weight: (outputs, inputs), float32.
        bias: the node of its bias, or None.
        group: consecutive inputs that share a scale; the whole row where no group divides it.
    """

    node: Node
    source: Node
    weight: Tensor
    bias: Node | None
    group: int

    @property
    def name(self) -> str:
        """The module of the user's model that makes it."""
        return layer_of(self.node)


def find_layers(module: GraphModule, rules: Int4Rules, group: int) -> list[Layer]:
    """Every layer that can have 4-bit weights, in graph order.

    A row that `group` does not divide gets the largest smaller group that does.

    Args:
        module: float graph.
        rules: the groups a runtime's kernel takes.
        group: how many inputs should share a scale.

    Raises:
        QuantizationError: a weight is not finite (the layer is named).
    """
    found = []
    for node in module.graph.nodes:
        parts = _parts(module, node)
        if parts is None:
            continue
        weight, bias = parts
        fitting = fitting_group(weight.shape[1], rules, group)
        if not bool(torch.isfinite(weight).all()):
            raise QuantizationError(f"the weight of layer {layer_of(node)!r} is not finite", "", "Check the checkpoint.")
        if fitting is not None:
            found.append(Layer(node, node.args[0], weight, bias, fitting))
    return found


def fitting_group(inputs: int, rules: Int4Rules, group: int) -> int | None:
    """The largest group up to `group` that divides a row of `inputs`; the whole row, or None, where none does."""
    sizes = [size for size in rules.groups if size <= group and inputs % size == 0]
    if sizes:
        return max(sizes)
    return inputs if rules.rows else None


def _parts(module: GraphModule, node: Node) -> tuple[Tensor, Node | None] | None:
    """Weight (outputs, inputs) and bias of a layer with a constant float32 matrix, None for any other node."""
    if kind_of(node) != "linear" or not isinstance(node.args[0], Node) or node.args[0].op == "get_attr":
        return None
    weight = constant(module, node.args[1])
    if weight is None or weight.ndim != 2 or weight.dtype != torch.float32:
        return None
    return weight.detach(), node.args[2] if len(node.args) > 2 else None


def float_reason(module: GraphModule, node: Node, groups: Sequence[int]) -> str:
    """Why a node of a graph with 4-bit layers is not one of them."""
    if FLOAT in node.meta:
        return str(node.meta[FLOAT])
    parts = _parts(module, node)
    if parts is not None:
        return f"its {parts[0].shape[1]} inputs do not divide into groups of {', '.join(map(str, groups))}"
    kind = kind_of(node)
    if kind in ("conv", "conv_transpose"):
        return "the runtimes have no kernel for convolutions with 4-bit weights"
    if kind == "embedding":
        return "a small table that is looked up: it weighs little"
    return _PLAIN
