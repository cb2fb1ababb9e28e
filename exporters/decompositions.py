"""Converters decompose a program before they write it, which traces it again, node by node; here nodes that stay as they are are kept.

`torch.export` runs every node of a program through its dispatcher twice to rewrite a few of them. A node that the table does not name,
that writes nowhere and that is no composite which torch always takes apart comes out of this as it went in.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from torch.utils._pytree import tree_map_only

from edgepress.exporters.antialiasing import ANTIALIASED

Table = Mapping[Any, Callable[..., Any]]
_ENDS = ("placeholder", "output")


@contextlib.contextmanager
def nodes_kept() -> Iterator[None]:
    """While this lasts, `ExportedProgram.run_decompositions` traces again only what it changes, where that can be told.

    An LSTM is decomposed to products and sums, not to the operator of this machine's kernels, which no converter knows.
    """
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
        with torch.backends.mkldnn.flags(enabled=False):
            yield
    finally:
        ExportedProgram.run_decompositions = original


def decomposed(program: ExportedProgram, table: Table) -> ExportedProgram | None:
    """What `program.run_decompositions(table)` gives, up to the names of nodes.

    Returns:
        None where that cannot be told without tracing the whole program: it writes to its inputs or buffers, an operator that reads no
        tensor is rewritten, one of several outputs is whose outputs are read as one, or a size that is open becomes a number.
    """
    return _decomposed(program, table, lambda node: not _kept(node, table))


def written_out(program: ExportedProgram, table: Table) -> ExportedProgram:
    """The program with the operators that a table names as their decompositions, and no other changed; as it is where that cannot be told.

    `run_decompositions` takes some composites apart that no table names.
    """
    if not any(node.target in table for node in program.graph.nodes):
        return program
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
    graph.eliminate_dead_code()  # an output that nobody reads may be one that a decomposition does not have
    if changed and not (all(map(_sized, graph.nodes)) and _rewrite(graph, changed, table)):
        return None
    tracings = _tracings(graph)
    if len(tracings) > 1 or _settled(tracings, program):
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
    if op is operator.getitem:  # an output of an operator that has several
        return True
    if isinstance(node.meta.get("val"), torch.SymInt):  # arithmetic of sizes
        return op is not torch.ops.aten.sym_numel.default
    if not isinstance(op, torch._ops.OpOverload) or op in table or _tensors(node) is None:
        return False
    return not _is_cia_op(op) or _check_valid_to_preserve(op)


def _tensors(node: Node) -> list[torch.Tensor] | None:
    """The values of a node's outputs; None where one is no tensor, or none is known."""
    value = node.meta.get("val")
    values = list(value) if isinstance(value, tuple | list) else [value]
    return values if all(isinstance(each, torch.Tensor) for each in values) else None


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _tracings(graph: Graph) -> list[Any]:
    """The modes that the values of a graph were traced in."""
    values = (value for node in graph.nodes for value in _tensors(node) or ())
    return list(dict.fromkeys(value.fake_mode for value in values if isinstance(value, FakeTensor)))


def _settled(tracings: Collection[Any], program: ExportedProgram) -> bool:
    """An operator has made a number of a size that the program leaves open."""
    known = [mode.shape_env.replacements for mode in tracings if mode.shape_env is not None]
    return any(symbol in replacements for symbol in program.range_constraints for replacements in known)


def _sized(node: Node) -> bool:
    """Its value is tensors or a size; a converter's pass leaves nodes without a value behind."""
    value = node.meta.get("val")
    return node.op == "output" or value is None or isinstance(value, int | torch.SymInt) or _tensors(node) is not None


def _rewrite(graph: Graph, changed: Collection[str], table: Table) -> bool:
    """Put in place of the named nodes what their decompositions compute; False where one is no function of tensors to tensors."""
    composites, others = _split_decomp_table_to_cia_and_python_decomp(dict(table))
    stale = any("val" not in node.meta for node in graph.nodes if node.op == "call_function")
    mode: Any = next(iter(_tracings(graph)), contextlib.nullcontext())  # tensors that an operator makes are of this tracing too
    with torch.no_grad(), mode, enable_python_dispatcher(), _override_composite_implicit_decomp(composites):
        for node in list(graph.nodes):
            if node.name in changed:
                try:
                    pieces = _pieces(node, table, others)
                except _StaysError:
                    continue
                if pieces is None:
                    return False
                _replace(node, pieces)
            elif stale and node.op == "call_function":
                node.meta.update(described(_call(node, node.target, value_in)))
    return True


def described(value: Any) -> dict[str, Any]:
    """What tracing writes on a node of this value, a tensor or several."""
    return {"val": value, "tensor_meta": tree_map_only(torch.Tensor, _extract_tensor_metadata, value)}


def value_in(node: Node) -> Any:
    """What tracing wrote there."""
    return node.meta["val"]


def _call(node: Node, function: Callable[..., Any], value: Callable[[Node], Any]) -> Any:
    return function(*map_arg(node.args, value), **map_arg(node.kwargs, value))


class _StaysError(Exception):
    """A decomposition leaves this call as it is, by `NotImplemented`."""


def _pieces(node: Node, table: Table, others: Table) -> Graph | None:
    """The graph of a node's decomposition: one placeholder for each of its input nodes, and a tensor for each of its outputs."""
    sources = node.all_input_nodes

    def call(*tensors: torch.Tensor) -> Any:
        made = _call(node, table.get(node.target, node.target), dict(zip(sources, tensors, strict=True)).__getitem__)
        if made is NotImplemented:
            raise _StaysError
        return made

    try:
        values = [value_in(source) for source in sources]
        graph: Graph = make_fx(call, decomposition_table=others)(*values).graph
        if any(map(_writes, graph.nodes)):
            values = [value.contiguous() for value in values]  # an operator may write to keep the order of dimensions in memory
            graph = make_fx(functionalize(call), decomposition_table=others)(*values).graph
    except _StaysError:
        raise
    except Exception:  # it needs more than its inputs: whoever traces the whole program says what
        return None
    _infer_sizes(graph)
    plain = all(piece.op in _ENDS or (_kept(piece, {}) and not _writes(piece)) for piece in graph.nodes)
    made = graph.output_node().args[0]
    if isinstance(made, tuple | list):  # each output is read by itself, and is a node of its own; one that nobody reads may be none
        plain &= all(user.target is operator.getitem for user in node.users)
        read = [made[place] for place in {user.args[1] for user in node.users}] if plain else []
        plain &= len({id(each) for each in read if isinstance(each, Node) and each.op == "call_function"}) == len(read)
    return graph if plain and isinstance(made, Node | tuple | list) else None


def _infer_sizes(graph: Graph) -> None:
    """Say -1 again in views for the size that was told from the number of elements: no converter knows how to count these."""
    for node in graph.nodes:
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            sizes = [_number(size) for size in node.args[1]]
            told = [index for index, size in enumerate(sizes) if isinstance(size, Node) and size.target is operator.floordiv]
            if len(told) == 1 and -1 not in sizes:
                sizes[told[0]] = -1
            node.args = (node.args[0], sizes)
    graph.eliminate_dead_code()


def _number(size: int | Node) -> int | Node:
    """Sizes that are the same for every batch, as numbers."""
    value = size.meta["val"] if isinstance(size, Node) else size
    known = value.node.maybe_as_int() if isinstance(value, torch.SymInt) else value
    return size if known is None else known


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
    readers = [node] if isinstance(result, Node) else list(node.users)
    for reader in readers:
        source = result if isinstance(result, Node) else result[reader.args[1]]
        reader.replace_all_uses_with(at[source])
        node.graph.erase_node(reader)
        if source.op == "call_function":
            at[source].name = reader.name  # the program's signature names its outputs
    if readers != [node]:
        node.graph.erase_node(node)


def _adaptive_max_pool(x: torch.Tensor, size: Sequence[int]) -> tuple[torch.Tensor, None]:
    """Maxima of the windows of `torch.nn.AdaptiveMaxPool1d` and `2d`, over rows first; without the second result, where they stood."""
    dims = range(-len(size), 0)
    if all(isinstance(x.shape[dim], int) and x.shape[dim] % count == 0 for dim, count in zip(dims, size, strict=True)):
        pool: Callable[..., torch.Tensor] = (torch.nn.functional.max_pool1d, torch.nn.functional.max_pool2d)[len(size) - 1]
        return pool(x, [x.shape[dim] // count for dim, count in zip(dims, size, strict=True)]), None
    for dim, count in zip(dims, size, strict=True):
        extent = x.shape[dim]
        windows = [x.narrow(dim, at * extent // count, -(-(at + 1) * extent // count) - at * extent // count) for at in range(count)]
        x = torch.cat([window.amax(dim, keepdim=True) for window in windows], dim)
    return x, None


#: Operators that converters have no rules for -> what to compute in their place.
PLAIN: Table = {
    **ANTIALIASED,
    torch.ops.aten.adaptive_max_pool1d.default: _adaptive_max_pool,
    torch.ops.aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    torch.ops.aten.fmax.default: torch.maximum,
    torch.ops.aten.fmin.default: torch.minimum,
    torch.ops.aten.hypot.default: lambda x, y: torch.sqrt(x * x + y * y),
}
