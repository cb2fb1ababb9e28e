"""What no input changes is computed once: weights that a module normalises itself, looked-up positions, masks, shape arithmetic.

A weight that the graph computes from parameters (weight normalisation, Salimans & Kingma 2016; weight standardisation, Qiao et al. 2019)
is thereby a constant, which kernels take in integers.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tag, Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import constant, evaluate, set_attribute, value_of

#: Elements of a constant that may be larger than what it is computed from.
_SMALL = 4096


def fold_constants(module: GraphModule) -> None:
    """Put constants in the place of nodes that depend on constants alone; `prepare.finish` takes out what nothing reads then.

    A node stays where its value would take more bytes than the constants that it frees, and more than `_SMALL` elements: a mask that is
    spread over a batch, the transpose of a weight that others read as it is. So do random numbers and ops that write in place.
    """
    values = _values(module)
    folded = {node for node in values if node.op == "call_function"}
    for node in reversed(list(values)):
        if node in folded and not folded.issuperset(node.users) and not _small(node, values, folded):
            folded.discard(node)
    for node in [node for node in values if node in folded and not folded.issuperset(node.users)]:
        _replace(module, node, values[node])


def _values(module: GraphModule) -> dict[Node, Any]:
    """The constants of a graph and the values of all nodes that depend on nothing else, in the graph's order."""
    found: dict[Node, Any] = {}
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "get_attr":
                held = constant(module, node)
                if held is not None:
                    found[node] = held.detach()
            elif _computable(node) and all(item in found for item in node.all_input_nodes):
                found[node] = evaluate(node, found)
    return found


def _computable(node: Node) -> bool:
    """Does a node give the same for the same inputs, a tensor or several, and change none?"""
    if not isinstance(node.target, OpOverload):
        return node.op == "call_function" and node.target is operator.getitem
    return (
        isinstance(value_of(node), Tensor | list | tuple)
        and not node.target._schema.is_mutable
        and Tag.nondeterministic_seeded not in node.target.tags
    )


def _small(node: Node, values: Mapping[Node, Any], folded: set[Node]) -> bool:
    """May the value of a node be stored in the place of what it is computed from?"""
    value = values[node]
    if not isinstance(value, Tensor):
        return False
    reached, sources = [node], set()
    for item in reached:  # grows
        reached += [before for before in item.all_input_nodes if before not in reached]
        if item.op == "get_attr" and folded.issuperset(item.users):
            sources.add(item)
    return value.numel() <= _SMALL or _bytes(value) <= sum(_bytes(values[item]) for item in sources)


def _bytes(value: Tensor) -> int:
    return int(value.numel() * value.element_size())


def _replace(module: GraphModule, node: Node, value: Tensor) -> None:
    """Give the readers of a node that stay the constant in its place."""
    name = f"{node.name}_folded"
    set_attribute(module, name, value.contiguous())
    with module.graph.inserting_before(node):
        held = module.graph.create_node("get_attr", name, name=name)
    held.meta |= node.meta
    node.replace_all_uses_with(held)
