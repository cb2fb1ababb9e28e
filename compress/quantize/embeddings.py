"""Embedding tables in 8, 4 or 2 bits: rows are looked up as integers, and those that were found become floats.

A row has one scale, the finest that costs nothing at a lookup. What is computed with the rows is not rounded a second time. A byte holds
two integers of 4 bits, of the first and of the second half of a row, which plain arithmetic takes apart in every runtime; or four
neighbours in 2 bits, which are looked up too, in a table of what each byte stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgepress.compress.quantize.graph import constant, new_constant, op_name, value_of
from edgepress.compress.quantize.int2 import LEVELS, int2_grid, pack
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
        bits: 8; 4, and they lie between -8 and 7; or 2, and they are -3, -1, 1 and 3.
    """

    integers: Tensor
    scale: Tensor
    bits: int

    @staticmethod
    def of(table: Tensor, bits: int) -> Rows:
        """Round a float table: over the whole range of a row in 8 bits, over the one that leaves the smallest squared error in fewer."""
        if bits == 2:
            grid = int2_grid(table)
            return Rows((2 * (grid.integers + grid.offset)).to(torch.int8), grid.scale / 2, bits)
        if bits == 4:
            found = search_grid(table, table.shape[1], symmetric=True).rounded(table)
            return Rows(found.integers.to(torch.int8) - MIDDLE, found.scale, bits)
        scale = (table.abs().amax(dim=1, keepdim=True) / _LIMIT).clamp_min(torch.finfo(torch.float32).tiny)  # a row of zeros
        return Rows(torch.round(table / scale).clamp(-_LIMIT, _LIMIT).to(torch.int8), scale, bits)

    def dequantized(self) -> Tensor:
        """The float32 table it stands for."""
        return self.integers.to(torch.float32) * self.scale

    def stored(self) -> Tensor:
        """What the file holds: the integers, or bytes: (rows, features / 2) whose low half is of the first half of a row, or four
        neighbours each (rows, features / 4)."""
        if self.bits == 8:
            return self.integers
        if self.bits == 2:
            return pack(self.integers)
        first, second = (self.integers + MIDDLE).to(torch.uint8).chunk(2, dim=1)
        return first + 16 * second


def fills_bytes(node: Node, bits: int) -> bool:
    """Can the table of an embedding op have 4 or 2 bits: do its rows divide into whole bytes?"""
    return int(value_of(node.args[0]).shape[1]) * bits % 8 == 0


def store_in_integers(module: GraphModule, nodes: Sequence[Node], narrow: Mapping[str, int] = MappingProxyType({})) -> None:
    """Replace the tables of these embedding ops by integers and scales, in place; `narrow` says whose have 4 or 2 bits."""
    bits = {node.args[0]: narrow[node.name] for node in nodes if node.name in narrow and fills_bytes(node, narrow[node.name])}
    made: dict[Node, tuple[Node, Node]] = {}
    for node in nodes:
        table, indices = node.args[:2]
        if table not in made:
            made[table] = _table(module, table, bits.get(table, 8))
        with module.graph.inserting_before(node):
            found, scale = (_called(module, torch.ops.aten.embedding.default, (part, indices), node) for part in made[table])
            integers = _UNPACKED[bits.get(table, 8)](module, found, node)
            result = _called(module, torch.ops.aten.mul.Tensor, (integers, scale), node)
        node.replace_all_uses_with(result)
        module.graph.erase_node(node)
    for table in made:
        if not table.users:
            module.graph.erase_node(table)
    module.graph.lint()
    module.recompile()


def _floats(module: GraphModule, held: Node, like: Node) -> Node:
    return _called(module, torch.ops.aten.to.dtype, (held, torch.float32), like)


def _halves(module: GraphModule, found: Node, like: Node) -> Node:
    """The integers of 4 bits that bytes hold: both halves of their rows, one after the other."""
    aten, held = torch.ops.aten, _floats(module, found, like)
    shifted = _called(module, aten.mul.Tensor, (held, 1 / 16), like)
    second = _called(module, aten.floor.default, (shifted,), like)
    above = _called(module, aten.mul.Tensor, (second, 16.0), like)
    first = _called(module, aten.sub.Tensor, (held, above), like)
    whole = _called(module, aten.cat.default, ([first, second], -1), like)
    return _called(module, aten.sub.Tensor, (whole, float(MIDDLE)), like)


def _quarters(module: GraphModule, found: Node, like: Node) -> Node:
    """The integers of 2 bits that bytes hold, four neighbours each."""
    levels = new_constant(module, "integers_of_bytes", LEVELS.to(torch.float32), like)
    indices = _called(module, torch.ops.aten.to.dtype, (found, torch.int32), like)
    four = _called(module, torch.ops.aten.embedding.default, (levels, indices), like)
    return _called(module, torch.ops.aten.flatten.using_ints, (four, -2, -1), like)


#: Bits -> what makes floats of the rows that were found.
_UNPACKED = {8: _floats, 4: _halves, 2: _quarters}


def _table(module: GraphModule, table: Node, bits: int) -> tuple[Node, Node]:
    weight = constant(module, table)
    assert weight is not None, "lookups() names constants alone"
    rows = Rows.of(weight.detach(), bits)
    with module.graph.inserting_before(table):
        integers, scales = (
            new_constant(module, f"{table.name}_{suffix}", tensor, table)
            for suffix, tensor in (("integers", rows.stored()), ("scales", rows.scale))
        )
    return integers, scales


def _called(module: GraphModule, target: torch._ops.OpOverload, arguments: tuple[Any, ...], like: Node) -> Node:
    """A new op that keeps the module path of the one it stands for."""
    node = module.graph.call_function(target, arguments)
    node.meta = {key: value for key, value in like.meta.items() if key != "val"}
    mode = value_of(like).fake_mode
    with mode:
        node.meta["val"] = target(*map_arg(arguments, value_of))
    return node
