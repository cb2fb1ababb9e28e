"""Labels through a whole graph: every tensor of a program gets its dimensions, in the order of the graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node

from edgepress.compress.prune.axes import Dim, Dims, Misfit, opaque, size_of
from edgepress.compress.prune.flow import Flow, Tensors, held
from edgepress.compress.prune.rules import RULES
from edgepress.compress.prune.rules.elementwise import is_pointwise, pointwise
from edgepress.compress.quantize.graph import op_name, value_of

#: Operators whose result may be the memory of their input.
_VIEWS = frozenset(
    [
        *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "slice", "select"),
        *("narrow", "getitem", "alias", "detach", "movedim", "swapaxes", "contiguous", "chunk", "split", "split_with_sizes", "unbind"),
        *("tensor_split", "expand_as", "view_as", "to", "dropout", "feature_dropout"),
    ]
)


def propagate(program: ExportedProgram) -> Flow:
    """Label every tensor of an exported program.

    Parameters and buffers start with free indices, except in dimensions of size 1; inputs and outputs of the user are pinned.
    """
    flow = Flow()
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    same = Tensors.of(program).same
    used = {same.get(node.name) for node in program.graph.nodes if node.op == "placeholder" and node.users}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = kinds[node.name]
            free = spec.kind != InputKind.USER_INPUT and same.get(node.name, "") in used
            fresh = tuple(flow.space.fresh(size) if free else opaque(size) for size in flow.shape(node))
            flow.dims[node.name] = flow.dims.get(same.get(node.name, ""), fresh)
            if spec.kind in (InputKind.CONSTANT_TENSOR, InputKind.BUFFER) and isinstance(value_of(node), Tensor):
                flow.constants[node.name] = held(program, spec.target)
        elif node.op == "call_function":
            flow.dims[node.name] = _call(flow, node)
        elif node.op == "output":
            _outputs(flow, node, program)
    live = _live(program)
    flow.costs[:] = [cost for cost in flow.costs if cost[0] in live]
    return flow


def _live(program: ExportedProgram) -> set[str]:
    """Names of the nodes that an output needs."""
    found = set[str]()
    for node in reversed(program.graph.nodes):
        if node.op == "output" or node.name in found:
            found |= {source.name for source in node.all_input_nodes}
    return found


def _call(flow: Flow, node: Node) -> Any:
    """The dimensions of one call's result; everything it touches is pinned where no rule can say more."""
    if not _has_tensors(node):
        return ()
    name = op_name(node)
    if _writes_into_a_view(node):
        return _pin_all(flow, node, "it writes into a part of another tensor")
    rule = RULES.get(name) or (pointwise if is_pointwise(node) else None) or RULES.get(name.rstrip("_"))
    if rule is None:
        return _pin_all(flow, node, "no rule is known for this operator")
    try:
        result = rule(flow, node)
    except Misfit as misfit:
        return _pin_all(flow, node, str(misfit))
    if not _fits(flow, node, result):
        return _pin_all(flow, node, "its result has another shape than its rule says")
    return result


def _has_tensors(node: Node) -> bool:
    value = value_of(node)
    values = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(v, Tensor) for v in (*values, *(value_of(i) for i in node.all_input_nodes)))


def _writes_into_a_view(node: Node) -> bool:
    """Operators in place on a view change its base too, which no label tells; it does not matter where nobody reads the base again."""
    name = op_name(node)
    if not name.endswith("_") or name.endswith("__") or not node.args or not isinstance(node.args[0], Node):
        return False
    view = node.args[0]
    while op_name(view) in _VIEWS and isinstance(view.args[0], Node):
        view = view.args[0]
        if len(view.users) > 1 or view.op == "placeholder":
            return True
    return False


def _pin_all(flow: Flow, node: Node, reason: str) -> Any:
    touched: list[Dim] = []
    sources = list(node.all_input_nodes)
    for source in sources:
        dims = flow.dims.get(source.name, ())
        touched += [dim for each in (dims if isinstance(dims, list) else [dims]) for dim in each]
        if op_name(source) in _VIEWS and op_name(node).endswith("_"):
            sources += source.all_input_nodes
    flow.pin(node, touched, reason)
    flow.edits[:] = [edit for edit in flow.edits if edit.node != node.name]
    return flow.pinned_like(node)


def _fits(flow: Flow, node: Node, result: Any) -> bool:
    value = value_of(node)
    if isinstance(value, (list, tuple)):
        return isinstance(result, list) and all(_sized(r) == flow.shape(node, i) for i, r in enumerate(result))
    return not isinstance(value, Tensor) or _sized(result) == flow.shape(node)


def _sized(dims: Dims) -> tuple[int, ...]:
    return tuple(size_of(dim) for dim in dims)


def _outputs(flow: Flow, node: Node, program: ExportedProgram) -> None:
    kinds = {spec.arg.name: spec.kind for spec in program.graph_signature.output_specs if hasattr(spec.arg, "name")}
    for source in node.all_input_nodes:
        if kinds.get(source.name, OutputKind.USER_OUTPUT) == OutputKind.USER_OUTPUT:
            flow.pin(node, flow.of(source), "the user reads every index of an output")
        else:
            flow.pin(node, flow.of(source), "it is written back to a buffer")
