"""What a model computes twice from the same tensors is computed once: a head that is called for scores and again for probabilities."""

from __future__ import annotations

import operator

from torch import Tag
from torch._ops import OpOverload
from torch.fx import GraphModule, Node


def merge_repeats(module: GraphModule) -> None:
    """Let the readers of a node that repeats an earlier one read that; in place, random numbers and ops that write in place aside.

    A runtime may not even take the second: LiteRT's converter gives the one its float output as the integers of the other.
    """
    first: dict[tuple[object, ...], Node] = {}
    for node in list(module.graph.nodes):
        if _repeatable(node):
            earlier = first.setdefault((node.op, node.target, repr(node.args), repr(node.kwargs)), node)  # tells 1 from 1.0 and True
            if earlier is not node:
                node.replace_all_uses_with(earlier)
                module.graph.erase_node(node)


def _repeatable(node: Node) -> bool:
    if node.op != "call_function":
        return bool(node.op == "get_attr")
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem
    return bool(node.users) and not node.target._schema.is_mutable and Tag.nondeterministic_seeded not in node.target.tags
