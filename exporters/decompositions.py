"""Converters decompose a program before they write it, which traces it again, node by node; here nodes that stay as they are are kept.

`torch.export` runs every node of a program through its dispatcher twice to rewrite a few of them. A node that the table does not name,
that writes nowhere and that is no composite which torch always takes apart comes out of this as it went in.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import wraps
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._export.utils import _check_valid_to_preserve, _is_cia_op
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.exported_program import _override_composite_implicit_decomp, _split_decomp_table_to_cia_and_python_decomp
from torch.export.graph_signature import OutputKind
from torch.func import functionalize
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.fx.passes.shape_prop import _extract_tensor_metadata

Table = Mapping[Any, Callable[..., Any]]
_ENDS = ("placeholder", "output")


@contextlib.contextmanager
def nodes_kept() -> Iterator[None]:
    """While this lasts, `ExportedProgram.run_decompositions` traces again only what it changes, where that can be told."""
    original = ExportedProgram.run_decompositions

    @wraps(original)
    def run(program: ExportedProgram, decomp_table: Table | None = None, *args: Any, **kwargs: Any) -> Any:
        found = None
        if decomp_table is not None and not args and not kwargs:
            with contextlib.suppress(Exception):  # whatever goes wrong here, torch knows what to do
                found = decomposed(program, decomp_table)
        return original(program, decomp_table, *args, **kwargs) if found is None else found

    ExportedProgram.run_decompositions = run
    try:
        yield
    finally:
        ExportedProgram.run_decompositions = original


def decomposed(program: ExportedProgram, table: Table) -> ExportedProgram | None:
    """What `program.run_decompositions(table)` gives, up to the names of nodes.

    Returns:
        None where that cannot be told without tracing the whole program: it writes to its inputs or buffers, an operator that reads no
        tensor is rewritten, or a node is rewritten while sizes are not all numbers.
    """
    return _decomposed(program, table, lambda node: not _kept(node, table))


def written_out(program: ExportedProgram, table: Table) -> ExportedProgram:
    """The program with the operators that a table names as their decompositions, and no other changed; as it is where that cannot be told.

    `run_decompositions` takes some composites apart that no table names.
    """
    return _decomposed(program, table, lambda node: node.target in table) or program


def _decomposed(program: ExportedProgram, table: Table, changes: Callable[[Node], bool]) -> ExportedProgram | None:
    calls = [node for node in program.graph.nodes if node.op not in _ENDS]
    changed = {node.name for node in calls if changes(node)}
    written = any(spec.kind != OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs)
    if written or not all(node.op == "call_function" and not _writes(node) for node in calls):
        return None
    graph = copy.deepcopy(program.graph)
    for node, source in zip(graph.nodes, program.graph.nodes, strict=True):
        node.name = source.name  # copying renames what is called like a builtin; the signature knows inputs and outputs by name
    if changed and not (all(map(_fixed, graph.nodes)) and _rewrite(graph, changed, table)):
        return None
    if _tracings(graph) > 1:
        return None
    graph.eliminate_dead_code()
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=program.graph_signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
    )


def _kept(node: Node, table: Table) -> bool:
    """Decomposing leaves this call as it is."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or op in table or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    return not _is_cia_op(op) or _check_valid_to_preserve(op)


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _tracings(graph: Graph) -> int:
    values = (node.meta.get("val") for node in graph.nodes)
    return len({id(value.fake_mode) for value in values if isinstance(value, FakeTensor)})


def _fixed(node: Node) -> bool:
    """All sizes are numbers; a converter's pass leaves nodes without a value behind."""
    value = node.meta.get("val") if node.op != "output" else None
    return value is None or (isinstance(value, torch.Tensor) and all(isinstance(size, int) for size in value.shape))


def _rewrite(graph: Graph, changed: Collection[str], table: Table) -> bool:
    """Put in place of the named nodes what their decompositions compute; False where one is no function of tensors to one tensor."""
    composites, others = _split_decomp_table_to_cia_and_python_decomp(dict(table))
    stale = any("val" not in node.meta for node in graph.nodes if node.op == "call_function")
    with torch.no_grad(), enable_python_dispatcher(), _override_composite_implicit_decomp(composites):
        for node in list(graph.nodes):
            if node.name in changed:
                pieces = _pieces(node, table, others)
                if pieces is None:
                    return False
                _replace(node, pieces)
            elif stale and node.op == "call_function":
                node.meta.update(described(_call(node, node.target, value_in)))
    return True


def described(value: Any) -> dict[str, Any]:
    """What tracing writes on a node of this value."""
    return {"val": value} | ({"tensor_meta": _extract_tensor_metadata(value)} if isinstance(value, torch.Tensor) else {})


def value_in(node: Node) -> Any:
    """What tracing wrote there."""
    return node.meta["val"]


def _call(node: Node, function: Callable[..., Any], value: Callable[[Node], Any]) -> Any:
    return function(*map_arg(node.args, value), **map_arg(node.kwargs, value))


def _pieces(node: Node, table: Table, others: Table) -> Graph | None:
    """The graph of a node's decomposition: one placeholder for each of its input nodes, and one tensor as its output."""
    sources = node.all_input_nodes

    def call(*tensors: torch.Tensor) -> Any:
        return _call(node, table.get(node.target, node.target), dict(zip(sources, tensors, strict=True)).__getitem__)

    try:
        values = [value_in(source) for source in sources]
        graph: Graph = make_fx(call, decomposition_table=others)(*values).graph
        if any(map(_writes, graph.nodes)):
            graph = make_fx(functionalize(call), decomposition_table=others)(*values).graph
    except Exception:  # it needs more than its inputs: whoever traces the whole program says what
        return None
    plain = all(piece.op in _ENDS or (_kept(piece, {}) and not _writes(piece)) for piece in graph.nodes)
    return graph if plain and isinstance(graph.output_node().args[0], Node) else None


def _replace(node: Node, pieces: Graph) -> None:
    placeholders = [piece for piece in pieces.nodes if piece.op == "placeholder"]
    at: dict[Node, Node] = dict(zip(placeholders, node.all_input_nodes, strict=True))
    about = dict(node.meta)
    with node.graph.inserting_before(node):
        for piece in pieces.nodes:
            if piece.op == "call_function":
                at[piece] = node.graph.node_copy(piece, at.__getitem__)
                at[piece].meta = about | described(piece.meta["val"])
    result = pieces.output_node().args[0]
    assert isinstance(result, Node)
    made = at[result] if result.op == "call_function" else None
    node.replace_all_uses_with(at[result])
    node.graph.erase_node(node)
    if made is not None:
        made.name = node.name  # the program's signature names its outputs
