"""What a model computes twice from the same tensors is computed once: a head that is called for scores and again for probabilities."""

from __future__ import annotations

import operator

import torch
from torch import Tag, Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgepress.compress.quantize.graph import constant


class _Name(str):
    """That of a tensor, which no argument of the same letters is taken for."""

    def __repr__(self) -> str:
        return f"<{self}>"


def merge_repeats(module: GraphModule) -> None:
    """Let the readers of a node that repeats an earlier one read that; in place, random numbers and ops that write in place aside.

    A runtime may not even take the second: LiteRT's converter gives the one its float output as the integers of the other. Constants of
    the same values count as one, as converters have it, and stay apart.
    """
    names, first, held = dict[Node, _Name](), dict[tuple[object, ...], Node](), dict[tuple[object, ...], list[tuple[Tensor, Node]]]()
    for node in list(module.graph.nodes):
        names[node] = _Name(node.name)
        tensor = constant(module, node) if node.op == "get_attr" else None
        if tensor is not None:
            names[node] = _Name(_equal(tensor.detach(), node, held).name)
        elif _repeatable(node):
            args, kwargs = map_arg((node.args, node.kwargs), names.__getitem__)
            earlier = first.setdefault((node.target, repr(args), repr(kwargs)), node)  # tells 1 from 1.0 and True
            if earlier is not node:
                node.replace_all_uses_with(earlier)
                module.graph.erase_node(node)


def _equal(tensor: Tensor, node: Node, held: dict[tuple[object, ...], list[tuple[Tensor, Node]]]) -> Node:
    """The first constant with these values, the node itself where there is none."""
    ends = tensor.reshape(-1)[[0, -1]].tolist() if tensor.numel() else []
    alike = held.setdefault((tensor.shape, tensor.dtype, *ends), [])
    found = next((earlier for values, earlier in alike if torch.equal(values, tensor)), None)
    if found is None:
        alike.append((tensor, node))
    return found or node


def _repeatable(node: Node) -> bool:
    if node.op != "call_function":
        return False
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem
    return bool(node.users) and not node.target._schema.is_mutable and Tag.nondeterministic_seeded not in node.target.tags
