"""Embedding tables in int8: rows are looked up as integers, and those that were found become floats.

A row has one scale, the finest that costs nothing at a lookup. What is computed with the rows is not rounded a second time.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import constant, op_name, set_attribute, value_of
from edgepress.targets.rules import QuantRules

#: Tables with fewer elements stay float: they weigh little.
SMALLEST_TABLE = 2**18
_LIMIT = 127


def lookups(module: GraphModule, rules: QuantRules) -> list[Node]:
    """The embedding ops whose table is stored in int8: where the rules place `embedding`, on large tables that nothing else reads."""
    if "embedding" not in rules.placement:
        return []
    return [node for node in module.graph.nodes if op_name(node) == "embedding" and _worth_it(module, node.args[0])]


def _worth_it(module: GraphModule, table: Node) -> bool:
    tensor = constant(module, table)
    if tensor is None or tensor.dtype != torch.float32 or tensor.numel() < SMALLEST_TABLE:
        return False
    return all(op_name(user) == "embedding" and user.args[0] is table for user in table.users)


def store_in_integers(module: GraphModule, nodes: list[Node]) -> None:
    """Replace the tables of these embedding ops by integers (rows, features) and scales (rows, 1), in place."""
    made: dict[Node, tuple[Node, Node]] = {}
    for node in nodes:
        table, indices = node.args[:2]
        if table not in made:
            made[table] = _table(module, table)
        integers, scales = made[table]
        with module.graph.inserting_before(node):
            found = [_called(module, torch.ops.aten.embedding.default, (part, indices), node) for part in (integers, scales)]
            floats = _called(module, torch.ops.aten.to.dtype, (found[0], torch.float32), node)
            result = _called(module, torch.ops.aten.mul.Tensor, (floats, found[1]), node)
        node.replace_all_uses_with(result)
        module.graph.erase_node(node)
    for table in made:
        if not table.users:
            module.graph.erase_node(table)
    module.graph.lint()
    module.recompile()


def _table(module: GraphModule, table: Node) -> tuple[Node, Node]:
    weight = constant(module, table)
    assert weight is not None, "lookups() names constants alone"
    scale = (weight.detach().abs().amax(dim=1, keepdim=True) / _LIMIT).clamp_min(torch.finfo(torch.float32).tiny)  # a row of zeros
    integers = torch.round(weight.detach() / scale).clamp(-_LIMIT, _LIMIT).to(torch.int8)
    nodes = []
    for suffix, tensor in (("integers", integers), ("scales", scale)):
        name = f"{table.name}_{suffix}"
        set_attribute(module, name, tensor)
        with module.graph.inserting_before(table):
            node = module.graph.create_node("get_attr", name, name=name)
        node.meta["val"] = value_of(table).fake_mode.from_tensor(tensor, static_shapes=True)
        nodes.append(node)
    return nodes[0], nodes[1]


def _called(module: GraphModule, target: torch._ops.OpOverload, arguments: tuple[object, ...], like: Node) -> Node:
    """A new op that keeps the module path of the one it stands for."""
    node = module.graph.call_function(target, arguments)
    node.meta = {key: value for key, value in like.meta.items() if key != "val"}
    mode = value_of(like).fake_mode
    with mode:
        node.meta["val"] = target(*(value_of(item) if isinstance(item, Node) else item for item in arguments))
    return node
