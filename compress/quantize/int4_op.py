"""4-bit weights in a graph: the op `edgepress::int4_linear`, which every exporter turns into its runtime's own kernel.

A row of a weight is cut into groups of consecutive inputs; each group has a scale and a zero point of its own. Importing this module
registers the op, which a program that holds it needs to be loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.attention import call
from edgepress.compress.quantize.graph import constant, layer_of, set_attribute, value_of

#: Integers of 4 bits are 0 to 15; a symmetric weight has the zero point 8.
LEVELS = 15
MIDDLE = 8


@torch.library.custom_op("edgepress::int4_linear", mutates_args=())  # type: ignore[untyped-decorator]
def int4_linear(x: Tensor, integers: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None) -> Tensor:
    """x @ W^T + bias with W = scale * (integers - zero), group by group.

    Args:
        x: (..., inputs), float.
        integers: (outputs, inputs), uint8 of 0 to 15.
        scale: (outputs, groups), float32; each holds for inputs / groups consecutive inputs.
        zero: (outputs, groups), uint8 of 0 to 15.
        bias: (outputs,) or None.

    Returns:
        (..., outputs).
    """
    return F.linear(x, dequantized(integers, scale, zero).to(x.dtype), bias)


@int4_linear.register_fake  # type: ignore[untyped-decorator]
def _shape(x: Tensor, integers: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], integers.shape[0]))


OP = torch.ops.edgepress.int4_linear.default


def dequantized(integers: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The float32 weight (outputs, inputs) that integers, scales and zero points of groups stand for."""
    outputs, groups = scale.shape
    steps = integers.reshape(outputs, groups, -1).to(torch.float32) - zero[:, :, None].to(torch.float32)
    return (steps * scale[:, :, None]).reshape(outputs, -1)


@dataclass(frozen=True)
class Int4Weight:
    """A weight in 4 bits; see `int4_linear` for shapes and types."""

    integers: Tensor
    scale: Tensor
    zero: Tensor

    @property
    def group(self) -> int:
        """How many consecutive inputs share a scale."""
        return int(self.integers.shape[1] // self.scale.shape[1])

    def dequantized(self) -> Tensor:
        """The float32 weight it stands for."""
        return dequantized(self.integers, self.scale, self.zero)


def int4_layers(module: GraphModule) -> Iterator[tuple[Node, Int4Weight]]:
    """Every 4-bit layer of a graph, in order."""
    for node in module.graph.nodes:
        if node.target is OP:
            parts = [constant(module, item) for item in node.args[1:4]]
            yield node, Int4Weight(*(part for part in parts if part is not None))


def replace_layer(module: GraphModule, node: Node, weight: Int4Weight, bias: Node | None) -> Node:
    """Put a 4-bit layer in the place of a float one; its tensors get names of their own."""
    stem = f"{layer_of(node).replace('.', '_')}_{node.name}_int4"
    with module.graph.inserting_before(node):
        tensors = [constant_node(module, node, f"{stem}_{part}", getattr(weight, part)) for part in ("integers", "scale", "zero")]
        made = call(module, node, "int4", OP, node.args[0], *tensors, bias)
    node.replace_all_uses_with(made)
    module.graph.erase_node(node)
    return made


def constant_node(module: GraphModule, like: Node, name: str, tensor: Tensor) -> Node:
    """A `get_attr` node for a new tensor, at the graph's insertion point; `like` is any node with a fake value."""
    set_attribute(module, name, tensor.contiguous())
    made = module.graph.create_node("get_attr", name)
    made.meta["val"] = value_of(like).fake_mode.from_tensor(tensor, static_shapes=True)
    return made
