"""Exported programs of graphs that came out of one: `torch.export` would run every operator through its dispatcher to get the same graph.

A rendering is a graph of ATen operators already. What a converter wants beyond it are the shapes of all values, and tensors as inputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.graph import _PyTreeCodeGen
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from edgepress.compress.quantize.graph import attribute, op_name
from edgepress.exporters.decompositions import described, value_in
from edgepress.targets.nouns import Signature


def program_of(
    module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], *, dynamic: bool, names: Signature | None = None
) -> ExportedProgram:
    """What `torch.export.export(module, arguments)` gives, up to names of nodes.

    Args:
        module: in eval mode; any module, but only the graph of an exported program's module goes the short way.
        arguments: positional inputs, each (n >= 2, ...) where the batch is dynamic.
        dynamic: leave dimension 0 of every input open; else all sizes are those of `arguments`.
        names: the program takes its inputs by these names, and returns a dictionary by the names of outputs.
    """
    found = _attempt(module, arguments, dynamic)
    if found is None:
        axes = tuple({0: Dim.DYNAMIC} for _ in arguments) if dynamic else None
        found = torch.export.export(module, arguments, dynamic_shapes=axes)
    if names is None:
        return found
    inputs = dict(zip([spec.name for spec in names.inputs], arguments, strict=True))
    outputs = {spec.name: 0 for spec in names.outputs}
    call = ModuleCallSignature([], [], tree_flatten(((), inputs))[1], tree_flatten(outputs)[1])
    return ExportedProgram(
        root=found.graph_module,
        graph=found.graph,
        graph_signature=found.graph_signature,
        state_dict=found.state_dict,
        range_constraints=found.range_constraints,
        module_call_graph=[ModuleCallEntry("", call)],
        example_inputs=((), inputs),
        constants=found.constants,
    )


@contextlib.contextmanager
def graphs_known() -> Iterator[None]:
    """While this lasts, `torch.export.export` traces no graph again that came out of it, where all sizes are fixed."""
    original = torch.export.export

    @wraps(original)
    def export(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, **more: Any) -> ExportedProgram:
        tensors = tree_leaves((args, dict(kwargs or {})))
        found = None if more.get("dynamic_shapes") else _attempt(module, tensors, dynamic=False)
        return original(module, args, kwargs, **more) if found is None else found

    torch.export.export = export
    try:
        yield
    finally:
        torch.export.export = original


def _attempt(module: torch.nn.Module, arguments: Sequence[torch.Tensor], dynamic: bool) -> ExportedProgram | None:
    if isinstance(module, GraphModule):
        with contextlib.suppress(Exception):  # whatever goes wrong here, torch knows what to do, or says what is wrong
            return _lifted(module, arguments, dynamic)
    return None


def _lifted(module: GraphModule, arguments: Sequence[torch.Tensor], dynamic: bool) -> ExportedProgram | None:
    """None where the graph is no plain function of tensors."""
    about = module.graph._codegen
    if not isinstance(about, _PyTreeCodeGen) or any(node.op in ("call_module", "call_method") for node in module.graph.nodes):
        return None
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    values = _open(inputs) if dynamic else _closed(arguments)
    if values is None or len(inputs) != len(arguments):
        return None
    mode = values[0].fake_mode
    ranges = {symbol: mode.shape_env.var_to_range[symbol] for symbol in _symbols(values)}
    graph, known = Graph(), dict[Node, Any]()
    tensors = {str(node.target): attribute(module, str(node.target)) for node in module.graph.nodes if node.op == "get_attr"}
    order = sorted(tensors, key=lambda name: not isinstance(tensors[name], torch.nn.Parameter))
    stored: dict[str, Node] = {}
    for name in order:
        kind = "p" if isinstance(tensors[name], torch.nn.Parameter) else "b"
        stored[name] = graph.placeholder(f"{kind}_{name.replace('.', '_')}")
        stored[name].meta = described(mode.from_tensor(tensors[name], static_shapes=True))
    for node, value in zip(inputs, values, strict=True):
        known[node] = graph.placeholder(node.name)
        known[node].meta = described(value)
    with mode, torch.no_grad(), enable_python_dispatcher():  # composites of symbolic sizes have Python implementations
        for node in module.graph.nodes:
            if node.op != "placeholder":
                known[node] = _copied(graph, node, known, stored)
    outputs = list(graph.output_node().args[0])
    if not all(isinstance(node, Node) for node in outputs) or any(map(mode.shape_env.replacements.__contains__, ranges)):
        return None  # an output is a number, or an operator has made the batch one
    graph.eliminate_dead_code()
    graph.lint()
    signature = ExportGraphSignature(
        [*(_stored_spec(name, stored[name], tensors[name]) for name in order), *(_input_spec(known[node]) for node in inputs)],
        [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in outputs],
    )
    tree = about.pytree_info
    call = ModuleCallSignature([], [], tree.in_spec, tree.out_spec)
    return ExportedProgram(
        root=GraphModule({}, graph),
        graph=graph,
        graph_signature=signature,
        state_dict={name: tensors[name] for name in order},
        range_constraints=ranges,
        module_call_graph=[ModuleCallEntry("", call)],
        example_inputs=tree_unflatten(arguments, tree.in_spec),
        constants={},
    )


def _open(inputs: Sequence[Node]) -> list[FakeTensor] | None:
    """The values that the program was traced with: their batch is a symbol."""
    values = [node.meta.get("val") for node in inputs]
    fake = [value for value in values if isinstance(value, FakeTensor) and isinstance(value.shape[0], torch.SymInt)]
    return fake if fake and len(fake) == len(values) else None


def _closed(arguments: Sequence[torch.Tensor]) -> list[FakeTensor]:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    return [mode.from_tensor(value, static_shapes=True) for value in arguments]


def _symbols(values: Sequence[FakeTensor]) -> set[Any]:
    sizes = (size for value in values for size in value.shape if isinstance(size, torch.SymInt))
    return {symbol for size in sizes for symbol in size.node.expr.free_symbols}


def _copied(graph: Graph, node: Node, known: Mapping[Node, Any], stored: Mapping[str, Node]) -> Any:
    """The node of the new graph, or the number that is known by now."""
    if node.op == "get_attr":
        return stored[str(node.target)]
    if node.op == "output":
        return graph.output(tuple(map_arg(node.args[0], known.__getitem__)))
    args, kwargs = map_arg(node.args, known.__getitem__), map_arg(node.kwargs, known.__getitem__)
    function: Callable[..., Any] = node.target
    value = function(*map_arg(args, value_in), **map_arg(kwargs, value_in))
    if isinstance(value, bool | int | float):
        return value
    made = graph.create_node("call_function", function, args, kwargs, op_name(node))
    made.meta = {key: node.meta[key] for key in _KEPT if key in node.meta} | described(value)
    return made


#: Where a node comes from, for the messages of a converter.
_KEPT = ("stack_trace", "nn_module_stack", "torch_fn")


def _stored_spec(name: str, node: Node, tensor: torch.Tensor) -> InputSpec:
    parameter = isinstance(tensor, torch.nn.Parameter)
    kind = InputKind.PARAMETER if parameter else InputKind.BUFFER
    return InputSpec(kind, TensorArgument(node.name), name, None if parameter else True)


def _input_spec(node: Node) -> InputSpec:
    return InputSpec(InputKind.USER_INPUT, TensorArgument(node.name), None)
