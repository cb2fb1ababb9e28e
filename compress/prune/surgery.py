"""The smaller program: tensors sliced, shape constants rewritten, shapes inferred again."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node, map_arg

from edgepress.compress.prune.flow import Edit, call_of, held
from edgepress.compress.prune.kept import Kept, Scaled
from edgepress.compress.prune.structure import Structure
from edgepress.compress.quantize.graph import layer_of, op_name, value_of
from edgepress.targets.errors import PruneError


def remove(program: ExportedProgram, structure: Structure, removed: np.ndarray) -> ExportedProgram:
    """A smaller program without the removed units; it computes what the program does with zeros in their place.

    Names of inputs, outputs, parameters and nodes, the dynamic batch, and every operator that knows a training mode stay as they are.
    No tensor is shared with the program.

    Args:
        program: the analysed program, or one with the same graph and other weights.
        structure: `analyse(program)`.
        removed: bool (unit_count,).

    Raises:
        PruneError: nothing would be left of an axis, or the program is not the analysed one.
    """
    kept = structure.kept(removed)
    if structure.smallest(removed) == 0:
        raise PruneError("the removal leaves nothing of a layer", "every unit along one of its axes would go", "Keep one of each.")
    graph = _copied(program.graph)
    edited = _edit(graph, structure.flow.edits, kept)
    tensors = _sliced(program, structure, removed, kept)
    signature = copy.deepcopy(program.graph_signature)
    _infer(graph, {placeholder: tensors[name] for placeholder, name in structure.tensors.names.items()}, edited)
    return ExportedProgram(
        root=GraphModule(program.graph_module, graph),
        graph=graph,
        graph_signature=signature,
        state_dict={name: tensors[name] for name in program.state_dict},
        range_constraints=copy.deepcopy(program.range_constraints),
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants={name: tensors.get(name, value) for name, value in program.constants.items()},
        verifiers=program.verifiers,
    )


def _copied(source: Graph) -> Graph:
    """A graph with the same node names, also those that the copy of a graph avoids ("input", "len")."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    result = graph.graph_copy(source, copies)
    for old, new in copies.items():
        new.name = old.name
    output = graph.output(result)
    output.meta = copy.copy(next(n for n in reversed(source.nodes) if n.op == "output").meta)
    return graph


def _sliced(program: ExportedProgram, structure: Structure, removed: np.ndarray, kept: Kept) -> dict[str, Tensor]:
    """Every tensor of the program, copied, without the removed indices; tensors that were one object stay one."""
    keeps = structure.keeps(removed)
    result: dict[str, Tensor] = {n: t.clone() for n, t in {**program.constants, **program.state_dict}.items() if isinstance(t, Tensor)}
    for placeholder, name in structure.tensors.names.items():
        first = structure.tensors.same[placeholder]
        tensor = held(program, name)
        if first != placeholder:
            result[name] = result[structure.tensors.names[first]]
            continue
        renumber = structure.flow.revalued.get(placeholder)
        data = _slice(tensor.detach(), keeps.get(name, ()))
        data = renumber(kept, data) if renumber else data
        result[name] = nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    return result


def _slice(tensor: Tensor, keeps: tuple[np.ndarray | None, ...]) -> Tensor:
    for dim, index in enumerate(keeps):
        if index is not None:
            tensor = tensor.index_select(dim, torch.from_numpy(index).to(tensor.device))
    return tensor.clone()


def _edit(graph: Graph, edits: list[Edit], kept: Kept) -> set[Node]:
    """Rewrite the calls whose arguments change; returns every node that is new or rewritten."""
    before = set(graph.nodes)
    edited = set[Node]()
    nodes = {node.name: node for node in graph.nodes}
    for edit in edits:
        node = nodes.get(edit.node)
        if node is None:
            raise PruneError(f"the program has no node {edit.node!r}", "it is not the program that was analysed", "Analyse this one.")
        call = call_of(node)
        changes = edit.change(kept, call)
        if all(_same(call.get(name), value) for name, value in changes.items()):
            continue
        _apply(graph, node, changes, edit.target)
        edited.add(node)
    return edited | (set(graph.nodes) - before)


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return len(old) == len(new) and all(_same(a, b) for a, b in zip(old, new, strict=True))
    return old is new or (type(old) is type(new) and not isinstance(old, Node) and bool(old == new))


def _apply(graph: Graph, node: Node, changes: Mapping[str, Any], target: Any) -> None:
    """Rewrite one call; sizes that are computed from the batch are scaled by nodes before it."""
    with graph.inserting_before(node):
        changes = {name: _materialised(graph, value) for name, value in changes.items()}
    if target is not None and target is not node.target:
        node.args, node.kwargs, node.target = (node.args[0],), {}, target
    schema = node.target._schema.arguments
    positions = {a.name: i for i, a in enumerate(schema) if not a.kwarg_only}
    for name, value in changes.items():
        if positions.get(name, len(node.args)) < len(node.args):
            node.update_arg(positions[name], value)
        else:
            node.update_kwarg(name, value)


def _materialised(graph: Graph, value: Any) -> Any:
    if isinstance(value, Scaled):
        base = graph.call_function(operator.floordiv, (value.size, value.before))
        return graph.call_function(operator.mul, (base, value.after))
    return [_materialised(graph, item) for item in value] if isinstance(value, list) else value


def _infer(graph: Graph, tensors: Mapping[str, Tensor], edited: set[Node]) -> None:
    """Shapes of everything that depends on a tensor of another shape or on a rewritten call."""
    mode = detect_fake_mode([value_of(node) for node in graph.nodes]) or FakeTensorMode()
    changed = set[Node]()
    # What kernels ask about strides must not become a condition on the batch.
    with mode.shape_env.suppress_guards() if mode.shape_env else nullcontext():
        for node in graph.nodes:
            if node.op == "placeholder":
                tensor = tensors.get(node.name)
                if tensor is not None and tuple(tensor.shape) != tuple(value_of(node).shape):
                    node.meta["val"] = mode.from_tensor(tensor, static_shapes=True)
                    changed.add(node)
            elif node.op == "call_function" and (node in edited or any(source in changed for source in node.all_input_nodes)):
                node.meta["val"] = _run(mode, node)
                changed.add(node)
            node.meta.pop("tensor_meta", None)


def _run(mode: FakeTensorMode, node: Node) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), value_of)
    try:
        with mode, enable_python_dispatcher(), torch.no_grad():
            return node.target(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise PruneError(
            f"the smaller model fails at {op_name(node)} of {layer_of(node)}",
            str(error).splitlines()[0],
            "This is a defect of a pruning rule: protect the layer, and report the model.",
        ) from error
