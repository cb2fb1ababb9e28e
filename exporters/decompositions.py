"""Converters decompose a program before they write it, which traces it again; here that is skipped where it would change nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import wraps
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node

#: Nodes that pass values on, in every program alike.
_PLUMBING = frozenset(["placeholder", "output"])


@contextlib.contextmanager
def idle_decompositions_skipped() -> Iterator[None]:
    """While this lasts, `ExportedProgram.run_decompositions` does not trace programs that it would leave as they are."""
    original = ExportedProgram.run_decompositions

    @wraps(original)
    def run(program: ExportedProgram, decomp_table: Mapping[Any, Callable[..., Any]] | None = None, *args: Any, **kwargs: Any) -> Any:
        if decomp_table is None or args or kwargs or not is_decomposed(program, decomp_table):
            return original(program, decomp_table, *args, **kwargs)
        return _decomposed(program)

    ExportedProgram.run_decompositions = run
    try:
        yield
    finally:
        ExportedProgram.run_decompositions = original


def is_decomposed(program: ExportedProgram, table: Collection[Any]) -> bool:
    """Would decomposing by `table` keep every node of a program?

    True only where that is certain: all nodes call operators outside the table that give one tensor and write to none, each result is
    used, and nothing is written but the outputs.
    """
    outputs = program.graph_signature.output_specs
    return all(spec.kind == OutputKind.USER_OUTPUT for spec in outputs) and all(_kept(node, table) for node in program.graph.nodes)


def _kept(node: Node, table: Collection[Any]) -> bool:
    if node.op in _PLUMBING:
        return True
    op = node.target
    if node.op != "call_function" or not node.users or not isinstance(op, torch._ops.OpOverload) or op in table:
        return False
    return (
        not op._schema.is_mutable and torch.Tag.maybe_aliasing_or_mutating not in op.tags and isinstance(node.meta.get("val"), torch.Tensor)
    )


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """A copy that counts as decomposed."""
    return ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=program.graph_signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
    )
