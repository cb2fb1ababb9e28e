"""Indexing that needs no new kernel: tensors of bool are not gathered, and gathers that only reshape become reshapes.

A boolean GATHER_ND is version 5 of that op, which runtimes before 2.15 do not have. Transformers make one out of a padding mask that
is indexed with `arange` of its own dimensions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
_GATHERS = frozenset([aten.index.Tensor, aten.gather.default, aten.index_select.default])


def lower_indexing(program: torch.export.ExportedProgram) -> GraphModule:
    """Rewrite the gathers of a program of fixed shapes.

    Args:
        program: exported without a dynamic dimension.

    Returns:
        Its module: the same inputs, and the same outputs bit for bit.
    """
    module: GraphModule = program.module(check_guards=False)
    known: dict[Node, torch.Tensor | None] = {}
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _GATHERS and not _reshaped(module, node, known) and _is_bool(node.args[0]):
            _through_int32(module, node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    module.training = False
    return module


def _is_bool(node: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool


def _reshaped(module: GraphModule, node: Node, known: dict[Node, torch.Tensor | None]) -> bool:
    """x[i, j, ...] with constant indices that name every element of the leading dimensions in order is x.reshape(...)."""
    if node.target is not aten.index.Tensor or any(index is None for index in node.args[1]):
        return False
    source: Node = node.args[0]
    indices = [_constant(module, index, known) for index in node.args[1]]
    if any(index is None or index.dtype == torch.bool for index in indices):
        return False
    sizes = source.meta["val"].shape[: len(indices)]
    flat = torch.zeros((), dtype=torch.int64)
    for index, size in zip(indices, sizes, strict=True):
        flat = flat * size + index % size
    if not torch.equal(flat.flatten(), torch.arange(math.prod(sizes))):
        return False
    with module.graph.inserting_before(node):
        shaped = module.graph.call_function(aten.reshape.default, (source, list(node.meta["val"].shape)))
    shaped.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(shaped)
    module.graph.erase_node(node)
    return True


def _through_int32(module: GraphModule, node: Node) -> None:
    """Gather 0 and 1 instead of false and true."""
    source: Node = node.args[0]
    with module.graph.inserting_before(node):
        number = module.graph.call_function(aten.to.dtype, (source, torch.int32))
    number.meta["val"] = source.meta["val"].to(torch.int32)
    node.replace_input_with(source, number)
    with module.graph.inserting_after(node):
        answer = module.graph.call_function(aten.to.dtype, (node, torch.bool))
    answer.meta["val"] = node.meta["val"]
    node.meta["val"] = node.meta["val"].to(torch.int32)
    node.replace_all_uses_with(answer, delete_user_cb=lambda user: user is not answer)


def _constant(module: GraphModule, node: Any, known: dict[Node, torch.Tensor | None]) -> torch.Tensor | None:
    """The value of a node that depends on no input, else None."""
    if node not in known:
        known[node] = _evaluate(module, node, known)
    return known[node]


def _evaluate(module: GraphModule, node: Node, known: dict[Node, torch.Tensor | None]) -> torch.Tensor | None:
    if node.op == "get_attr":
        value = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value if isinstance(value, torch.Tensor) else None
    if node.op != "call_function" or any(_constant(module, item, known) is None for item in node.all_input_nodes):
        return None
    values: tuple[Any, dict[str, Any]] = torch.fx.node.map_arg((node.args, node.kwargs), lambda item: known[item])
    result = node.target(*values[0], **values[1])
    return result if isinstance(result, torch.Tensor) else None
