"""What coremltools' torch.export front end does not know, taught to it: once per process, and idempotent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch._export.utils import _get_decomp_for_cia, _is_cia_op
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.fx import Node

from edgepress.compress.quantize.graph import root_of
from edgepress.exporters import coreml_int4
from edgepress.exporters.coreml_decompositions import MENDED, WRITTEN_OUT
from edgepress.exporters.coreml_half import within_half
from edgepress.exporters.decompositions import described
from edgepress.exporters.programs import program_of

_ATEN = torch.ops.aten


def decompose(program: ExportedProgram) -> ExportedProgram:
    """Bring a program into ops the converter has rules for, touching nothing it already understands.

    Decomposing to core ATen wholesale would tear GELU, layer norm or attention into pieces; so only the op kinds without
    a converter rule are replaced, by torch's own decomposition of exactly these, until none with one is left.
    """
    program = program.run_decompositions({})
    before, unknown = set[Any](), unknown_ops(program)
    while unknown - before:  # a decomposition may bring in further unknown ops; real ones need at most two rounds
        program = program.run_decompositions(_rules(unknown))
        before, unknown = unknown, unknown_ops(program)
    return _with_own_outputs(_with_flat_groups(_with_defaults(program)))


def _with_defaults(program: ExportedProgram) -> ExportedProgram:
    """Write out what torch leaves away and the converter demands: the stride of pooling, which is the window, and some norms' settings."""
    pools = {getattr(_ATEN, f"{kind}_pool{rank}d").default for kind in ("max", "avg") for rank in (1, 2, 3)}
    for node in program.graph.nodes:
        if node.target in pools:
            x, window, *rest = node.args
            if not rest or not rest[0]:
                node.args = (x, window, window, *rest[1:])
        elif node.target is _ATEN.cosine_similarity.default:
            node.args = (*node.args, *(1, 1e-8)[len(node.args) - 2 :])  # the dimension and epsilon
        elif node.target is _ATEN.rms_norm.default:
            x, shape, weight, eps = (*node.args, None, None)[:4]
            node.args = (x, shape, weight, torch.finfo(node.meta["val"].dtype).eps if eps is None else eps)
    return program


def _with_flat_groups(program: ExportedProgram) -> ExportedProgram:
    """Lay volumes flat for group normalization: the converter's rule gives them a dimension more, and Core ML has five."""
    for node in list(program.graph.nodes):
        if node.target is _ATEN.group_norm.default and node.meta["val"].dim() > 4:
            volumes, about, name = node.args[0], dict(node.meta), node.name
            with program.graph.inserting_before(node):
                flat = program.graph.call_function(_ATEN.reshape.default, (volumes, [*volumes.meta["val"].shape[:2], -1]))
            with program.graph.inserting_after(node):
                whole = program.graph.call_function(_ATEN.reshape.default, (node, list(volumes.meta["val"].shape)))
            node.replace_all_uses_with(whole, delete_user_cb=lambda user, whole=whole: user is not whole)
            node.update_arg(0, flat)
            flat.meta = node.meta = about | described(volumes.meta["val"].flatten(2))
            whole.meta = about
            node.name, whole.name = f"{name}_flat", name  # the program's signature names its outputs
    return program


def _with_own_outputs(program: ExportedProgram) -> ExportedProgram:
    """Give every output a tensor of its own, which has one name in the file: an input, or what another output holds too, is copied."""
    output, seen = program.graph.output_node(), set[Node]()
    specs = program.graph_signature.output_specs
    returned = list(output.args[0])
    for place, node in enumerate(returned):
        root = root_of(node)
        if root in seen or root.op == "placeholder":
            with program.graph.inserting_before(output):
                returned[place] = program.graph.call_function(_ATEN.alias.default, (node,))
            returned[place].meta = dict(node.meta)
            specs[place] = replace(specs[place], arg=TensorArgument(returned[place].name))
        seen.add(root)
    output.args = (tuple(returned),)
    return program


def unknown_ops(program: ExportedProgram) -> set[Any]:
    """Op overloads of a program for which coremltools has no rule, or one that fails."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as known
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind

    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    ops = {target for target in targets if isinstance(target, torch._ops.OpOverload)}
    return {op for op in ops if op in MENDED or sanitize_op_kind(op.name()) not in known.name_to_func_mapping}


def _rules(unknown: set[Any]) -> dict[Any, Callable[..., Any]]:
    own = MENDED | WRITTEN_OUT
    torch_rules = torch._decomp.get_decompositions(list(unknown - own.keys()))
    torch_rules |= {op: _get_decomp_for_cia(op) for op in unknown - own.keys() - torch_rules.keys() if _is_cia_op(op)}
    return {**torch_rules, **{op: rule for op, rule in own.items() if op in unknown}}


def register() -> None:
    """Add converter rules for 4-bit layers, and for `alias` and `lstm` (known from TorchScript, unknown from an ExportedProgram)."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch import register_torch_op
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as known

    def alias(context: Any, node: Any) -> None:
        context.add(mb.identity(x=context[node.inputs[0]], name=node.name))

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


def fixed_batch(module: torch.nn.Module, examples: tuple[torch.Tensor, ...], *, half: bool) -> ExportedProgram:
    """Re-export at the batch of `examples` and decompose for the converter; with `half`, for numbers of half precision.

    A module that came out of an ExportedProgram asserts the batches, and types, it was traced for; at another fixed batch, and with
    integers of 32 bits for those of 8, these asserts are the only thing that would refuse, so they are dropped.
    """
    graph = getattr(module, "graph", None)
    if graph is not None:
        for node in list(graph.nodes):
            if node.target in ("_guards_fn", _ATEN._assert_tensor_metadata.default):
                graph.erase_node(node)
        module.recompile()
    program = decompose(program_of(module, examples, dynamic=False))
    return within_half(program) if half else program
