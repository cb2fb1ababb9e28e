"""New nodes in a traced program, with the values that tracing records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._dispatch.python import enable_python_dispatcher
from torch.fx import Graph, Node
from torch.fx.node import map_arg


def call(graph: Graph, op: Callable[..., Any], *arguments: Any) -> Node:
    """A node with its value, where the graph inserts."""
    node = graph.call_function(op, arguments)
    with enable_python_dispatcher():  # kernels in C++ would make a number of a size that is open
        node.meta["val"] = op(*map_arg(arguments, lambda argument: argument.meta["val"]))
    return node


def arguments_of(node: Node) -> list[Any]:
    """Those of an operator, in its order, with the defaults of what is not given."""
    given = {argument.name: value for argument, value in zip(node.target._schema.arguments, node.args, strict=False)} | node.kwargs
    return [given.get(argument.name, argument.default_value) for argument in node.target._schema.arguments]


def take_place(result: Node, node: Node) -> None:
    """Put a new node where another was, under its name: the program's signature names its outputs."""
    name = node.name
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)
    result.name = name
