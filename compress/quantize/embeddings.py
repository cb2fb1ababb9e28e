"""Embedding tables in 8 or 4 bits: rows are looked up as integers, and those that were found become floats.

A row has one scale, the finest that costs nothing at a lookup. What is computed with the rows is not rounded a second time. A byte holds
two integers of 4 bits, of the first and of the second half of a row, which plain arithmetic takes apart in every runtime.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgepress.compress.quantize.graph import constant, op_name, set_attribute, value_of
from edgepress.compress.quantize.int4_grid import search_grid
from edgepress.compress.quantize.int4_op import MIDDLE
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


@dataclass(frozen=True)
class Rows:
    """A table in integers.

    Attributes:
        integers: (rows, features), int8.
        scale: (rows, 1), float32.
        int4: they lie between -8 and 7.
    """

    integers: Tensor
    scale: Tensor
    int4: bool

    @staticmethod
    def of(table: Tensor, int4: bool) -> Rows:
        """Round a float table: over the whole range of a row in 8 bits, over the one that leaves the smallest squared error in 4."""
        if int4:
            found = search_grid(table, table.shape[1], symmetric=True).rounded(table)
            return Rows(found.integers.to(torch.int8) - MIDDLE, found.scale, True)
        scale = (table.abs().amax(dim=1, keepdim=True) / _LIMIT).clamp_min(torch.finfo(torch.float32).tiny)  # a row of zeros
        return Rows(torch.round(table / scale).clamp(-_LIMIT, _LIMIT).to(torch.int8), scale, False)

    def dequantized(self) -> Tensor:
        """The float32 table it stands for."""
        return self.integers.to(torch.float32) * self.scale

    def stored(self) -> Tensor:
        """What the file holds: the integers, or bytes (rows, features / 2) whose low half is of the first half of a row."""
        if not self.int4:
            return self.integers
        first, second = (self.integers + MIDDLE).to(torch.uint8).chunk(2, dim=1)
        return first + 16 * second


def halves(node: Node) -> bool:
    """Can the table of an embedding op have 4 bits: do its rows divide into halves?"""
    return int(value_of(node.args[0]).shape[1]) % 2 == 0


def store_in_integers(module: GraphModule, nodes: Sequence[Node], int4: Collection[str] = ()) -> None:
    """Replace the tables of these embedding ops by integers and scales, in place; those whose op `int4` names have 4 bits."""
    narrow = {node.args[0] for node in nodes if node.name in int4 and halves(node)}
    made: dict[Node, tuple[Node, Node]] = {}
    for node in nodes:
        table, indices = node.args[:2]
        if table not in made:
            made[table] = _table(module, table, table in narrow)
        with module.graph.inserting_before(node):
            found, scale = (_called(module, torch.ops.aten.embedding.default, (part, indices), node) for part in made[table])
            floats = _called(module, torch.ops.aten.to.dtype, (found, torch.float32), node)
            integers = _taken_apart(module, floats, node) if table in narrow else floats
            result = _called(module, torch.ops.aten.mul.Tensor, (integers, scale), node)
        node.replace_all_uses_with(result)
        module.graph.erase_node(node)
    for table in made:
        if not table.users:
            module.graph.erase_node(table)
    module.graph.lint()
    module.recompile()


def _taken_apart(module: GraphModule, held: Node, like: Node) -> Node:
    """The integers of 4 bits that bytes, as floats, hold: both halves of their rows, one after the other."""
    aten = torch.ops.aten
    shifted = _called(module, aten.mul.Tensor, (held, 1 / 16), like)
    second = _called(module, aten.floor.default, (shifted,), like)
    above = _called(module, aten.mul.Tensor, (second, 16.0), like)
    first = _called(module, aten.sub.Tensor, (held, above), like)
    whole = _called(module, aten.cat.default, ([first, second], -1), like)
    return _called(module, aten.sub.Tensor, (whole, float(MIDDLE)), like)


def _table(module: GraphModule, table: Node, int4: bool) -> tuple[Node, Node]:
    weight = constant(module, table)
    assert weight is not None, "lookups() names constants alone"
    rows = Rows.of(weight.detach(), int4)
    nodes = []
    for suffix, tensor in (("integers", rows.stored()), ("scales", rows.scale)):
        name = f"{table.name}_{suffix}"
        set_attribute(module, name, tensor)
        with module.graph.inserting_before(table):
            node = module.graph.create_node("get_attr", name, name=name)
        node.meta["val"] = value_of(table).fake_mode.from_tensor(tensor, static_shapes=True)
        nodes.append(node)
    return nodes[0], nodes[1]


def _called(module: GraphModule, target: torch._ops.OpOverload, arguments: tuple[Any, ...], like: Node) -> Node:
    """A new op that keeps the module path of the one it stands for."""
    node = module.graph.call_function(target, arguments)
    node.meta = {key: value for key, value in like.meta.items() if key != "val"}
    mode = value_of(like).fake_mode
    with mode:
        node.meta["val"] = target(*map_arg(arguments, value_of))
    return node
