"""What coremltools' torch.export front end does not know, taught to it: once per process, and idempotent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._export.utils import _get_decomp_for_cia, _is_cia_op
from torch.export import ExportedProgram

from edgepress.exporters import coreml_int4
from edgepress.exporters.programs import program_of

_ATEN = torch.ops.aten


def decompose(program: ExportedProgram) -> ExportedProgram:
    """Bring a program into ops the converter has rules for, touching nothing it already understands.

    Decomposing to core ATen wholesale would tear GELU, layer norm or attention into pieces; so only the op kinds without
    a converter rule are replaced, by torch's own decomposition of exactly these, until none with one is left.
    """
    program = program.run_decompositions({})
    for _ in range(8):  # a decomposition may bring in further unknown ops; real ones need at most two rounds
        table = _rules(unknown_ops(program))
        if not table:
            break
        program = program.run_decompositions(table)
    return _with_pool_strides(program)


def _with_pool_strides(program: ExportedProgram) -> ExportedProgram:
    """Write out the stride of pooling, which torch leaves away where it is the window: the converter demands it."""
    pools = {getattr(_ATEN, f"{kind}_pool{rank}d").default for kind in ("max", "avg") for rank in (1, 2, 3)}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in pools:
            x, window, *rest = node.args
            if not rest or not rest[0]:
                node.args = (x, window, window, *rest[1:])
    return program


def unknown_ops(program: ExportedProgram) -> set[Any]:
    """Op overloads of a program for which coremltools has no rule."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as known
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind

    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    return {t for t in targets if isinstance(t, torch._ops.OpOverload) and sanitize_op_kind(t.name()) not in known.name_to_func_mapping}


def _rules(unknown: set[Any]) -> dict[Any, Callable[..., Any]]:
    own: dict[Any, Callable[..., Any]] = {
        _ATEN.__and__.Tensor: _ATEN.bitwise_and.Tensor,
        _ATEN.__or__.Tensor: _on_booleans(torch.logical_or),
        _ATEN.__xor__.Tensor: _on_booleans(torch.logical_xor),
        _ATEN.bitwise_or.Tensor: _on_booleans(torch.logical_or),
        _ATEN.bitwise_xor.Tensor: _on_booleans(torch.logical_xor),
        torch.ops.prims.where.default: _where,  # what torch makes of `where` with a number
        _ATEN.new_ones.default: _new_filled(1),
        _ATEN.new_zeros.default: _new_filled(0),
    }
    torch_rules = torch._decomp.get_decompositions(list(unknown - own.keys()))
    torch_rules |= {op: _get_decomp_for_cia(op) for op in unknown - own.keys() - torch_rules.keys() if _is_cia_op(op)}
    return {**torch_rules, **{op: rule for op, rule in own.items() if op in unknown}}


def _on_booleans(logical: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """The bitwise op that Core ML has for booleans alone."""
    return lambda x, y: logical(x, y) if x.dtype == y.dtype == torch.bool else NotImplemented


def _new_filled(value: int) -> Callable[..., torch.Tensor]:
    def filled(x: torch.Tensor, size: list[int], *, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
        return torch.full(size, value, dtype=dtype or x.dtype)

    return filled


def _where(condition: torch.Tensor, *choices: torch.Tensor | float) -> torch.Tensor:
    dtype = next(choice.dtype for choice in choices if isinstance(choice, torch.Tensor))
    tensors = [choice if isinstance(choice, torch.Tensor) else torch.full([1], choice, dtype=dtype) for choice in choices]
    return torch.where(condition, *tensors)


def register() -> None:
    """Add converter rules for 4-bit layers, and for `alias` and `lstm` (known from TorchScript, unknown from an ExportedProgram)."""
    from coremltools.converters.mil.frontend.torch import register_torch_op
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as known

    def alias(context: Any, node: Any) -> None:
        context.add(context[node.inputs[0]], torch_name=node.name)

    def lstm(context: Any, node: Any) -> None:
        """The TorchScript rule names three outputs; an exported node has one name for the tuple."""
        single = node.outputs
        node.outputs = [f"{node.name}_{part}" for part in ("sequence", "hidden", "cell")]
        try:
            known.get_func("lstm")(context, node)
            result = tuple(context[name] for name in node.outputs)
        finally:
            node.outputs = single
        context.add(result, torch_name=node.name)

    for name, rule in (("alias", alias), ("lstm.input", lstm)):
        if name not in known.name_to_func_mapping:
            rule.__name__ = name
            register_torch_op(rule)
    coreml_int4.register()


def fixed_batch(module: torch.nn.Module, examples: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """Re-export at the batch of `examples` and decompose for the converter.

    A module that came out of an ExportedProgram asserts the batches it was traced for; at another fixed batch these
    asserts are the only thing that would refuse, so they are dropped.
    """
    graph = getattr(module, "graph", None)
    if graph is not None:
        for node in list(graph.nodes):
            if node.op == "call_module" and node.target == "_guards_fn":
                graph.erase_node(node)
        module.recompile()
    return decompose(program_of(module, examples, dynamic=False))
