"""Whole residual blocks: x + f(x) becomes x where f matters least."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature
from torch.fx import Graph, GraphModule, Node

from edgepress.compress.prune.importance import Batch, Loss
from edgepress.compress.quantize.graph import is_float, layer_of, op_name, value_of
from edgepress.targets.errors import PruneError


@dataclass(frozen=True)
class Block:
    """A residual branch that can go without a change of any shape.

    Attributes:
        name: dotted path of the layer that adds, or the name of the adding node.
        add: name of the adding node.
        shortcut: name of the node x whose value the sum becomes.
        tensors: names of the parameters and buffers that only this branch reads.
    """

    name: str
    add: str
    shortcut: str
    tensors: tuple[str, ...]


def residual_blocks(program: ExportedProgram) -> tuple[Block, ...]:
    """Every sum x + f(x) of equal shapes whose branch f is read by nothing else.

    A branch may read other values (a mask, a position bias); blocks within blocks are listed one by one. Sums of two branches (a shortcut
    with a layer in it) are no such blocks.

    Returns:
        Blocks in the order of execution.
    """
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    found = []
    for node in order:
        for shortcut, branch in _sides(node):
            inside = _between(shortcut, branch, order)
            if inside and _stands_alone(inside, node):
                own = sorted(_only_for(inside), key=order.__getitem__)
                tensors = tuple(names[member.name] for member in own if member.name in names)
                found.append(Block(layer_of(node), node.name, shortcut.name, tensors))
                break
    return tuple(found)


def _stands_alone(inside: set[Node], add: Node) -> bool:
    """Is a branch read by its sum alone, and does it write over nothing but its own values?"""
    for member in inside:
        if any(user is not add and user not in inside and not _checks(user) for user in member.users):
            return False
        if _writes(member) and _owner(member.args[0]) not in inside:
            return False
    return True


def _checks(node: Node) -> bool:
    return op_name(node).startswith("_assert_")


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


def _owner(value: Any) -> Any:
    """The node that made the memory which a node shows: views and in-place ops hand on that of their first argument."""
    while isinstance(value, Node) and isinstance(value.target, torch._ops.OpOverload):
        returns = value.target._schema.returns
        if not returns or returns[0].alias_info is None or not value.args:
            break
        value = value.args[0]
    return value


def _sides(node: Node) -> list[tuple[Node, Node]]:
    """(x, f(x)) and the other way round, for a sum of two tensors of one shape."""
    if op_name(node) not in ("add", "add_") or node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        return []
    left, right = node.args
    if not is_float(left) or not is_float(right) or tuple(value_of(left).shape) != tuple(value_of(right).shape):
        return []
    return [(left, right), (right, left)]


def _between(start: Node, end: Node, order: dict[Node, int]) -> set[Node]:
    """The nodes on the ways from `start` to `end`, `end` included; empty where there is none."""
    back: set[Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node not in back and node is not start and order[node] > order[start]:
            back.add(node)
            waiting += node.all_input_nodes
    reached = {start}
    for node in sorted(back, key=order.__getitem__):
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    return (reached - {start}) if end in reached else set()


def _only_for(inside: set[Node]) -> set[Node]:
    """What feeds these nodes and nothing else: their parameters, and what is computed from those alone."""
    own: set[Node] = set()
    waiting = [source for node in inside for source in node.all_input_nodes if source not in inside]
    while waiting:
        node = waiting.pop()
        if node not in own and all(user in inside or user in own for user in node.users):
            own.add(node)
            waiting += node.all_input_nodes
    return own


def block_importance(program: ExportedProgram, blocks: Sequence[Block], batches: Iterable[Batch], loss: Loss) -> np.ndarray:
    """By how much the loss grows when a block is bypassed, each alone (Veit et al. 2016, section 4.1).

    Args:
        program: eval mode; it is not changed.
        blocks: of `residual_blocks(program)`.
        batches: training data; read once.
        loss: the task's, a mean over the batch.

    Returns:
        float64 (len(blocks),): mean loss without the block minus mean loss with it; may be negative.

    Raises:
        PruneError: no samples, or a block is not the program's.
    """
    _check_known(program, blocks)
    modules = [each.module(check_guards=False) for each in (program, *(_bypassed(program, [block]) for block in blocks))]
    totals, samples = np.zeros(len(modules)), 0
    with torch.no_grad():
        for inputs, labels in batches:
            samples += len(inputs[0])
            totals += [float(loss(module(*inputs), labels)) * len(inputs[0]) for module in modules]
    if not samples:
        raise PruneError("importance of blocks got no samples", "", "Give at least one batch of training data.")
    return np.asarray((totals[1:] - totals[0]) / samples)


def remove_blocks(program: ExportedProgram, blocks: Sequence[Block]) -> ExportedProgram:
    """A program in which every one of these blocks' sums is its shortcut; tensors that nothing reads any more are gone.

    Args:
        program: left as it was.
        blocks: of `residual_blocks(program)`.

    Returns:
        A program with the same inputs, outputs, dynamic batch, and names of what is left; it shares no tensor with the program.

    Raises:
        PruneError: a block is not the program's.
    """
    _check_known(program, blocks)
    shorter = _bypassed(program, blocks)
    return _rebuilt(program, shorter.graph, shorter.graph_signature, copy.deepcopy({**shorter.constants, **shorter.state_dict}))


def shorten(
    program: ExportedProgram, count: int, batches: Sequence[Batch], loss: Loss
) -> tuple[ExportedProgram, tuple[tuple[Block, float], ...]]:
    """Remove the `count` least important blocks one after the other, each time measured on what is left.

    Args:
        program: left as it was.
        count: 0 or more.
        batches: training data, read once per block that is removed.
        loss: the task's, a mean over the batch.

    Returns:
        The shorter program, and each removed block with the growth of the loss that it caused.

    Raises:
        PruneError: there are fewer blocks (says how many).
    """
    available = len(residual_blocks(program))
    if not 0 <= count <= available:
        raise PruneError(f"{count} residual blocks cannot be removed", f"the model has {available} that can go", "Ask for no more.")
    removed = []
    for _ in range(count):
        blocks = residual_blocks(program)
        growth = block_importance(program, blocks, batches, loss)
        least = int(np.argmin(growth))
        removed.append((blocks[least], float(growth[least])))
        program = remove_blocks(program, [blocks[least]])
    return program, tuple(removed)


def _check_known(program: ExportedProgram, blocks: Sequence[Block]) -> None:
    """Names of nodes alone would also fit another program, with another meaning."""
    known = set(residual_blocks(program))
    strangers = [block for block in blocks if block not in known]
    if strangers:
        raise PruneError(f"block {strangers[0].name!r} is not in this program", "", "Find the blocks of this program first.")


def _bypassed(program: ExportedProgram, blocks: Sequence[Block]) -> ExportedProgram:
    """A program whose sums of these blocks are their shortcuts; its tensors are the program's own."""
    graph = Graph()
    graph.output(graph.graph_copy(program.graph, {})).meta = copy.copy(program.graph.output_node().meta)
    for node in list(graph.nodes):
        if _checks(node):
            graph.erase_node(node)
    places = {node.name: node for node in graph.nodes}
    unread = {node for node in graph.nodes if not node.users}
    replaced: dict[Node, Node] = {}
    for block in blocks:
        add, shortcut = places[block.add], places[block.shortcut]
        shortcut = replaced.get(shortcut, shortcut)  # the shortcut of a block right behind a bypassed one
        add.replace_all_uses_with(shortcut)
        replaced[add] = shortcut
    for node in reversed(list(graph.nodes)):  # not `eliminate_dead_code`, which keeps what writes in place
        if node.op == "call_function" and not node.users and node not in unread:
            graph.erase_node(node)
    return _without_unread(program, graph, {node.name for node in unread})


def _without_unread(program: ExportedProgram, graph: Graph, before: set[str]) -> ExportedProgram:
    """Drop the tensors that are not read any more, and with the last one of a layer all of that layer (a batch norm's counter, say).

    `before` names the nodes that nothing read in the first place.
    """
    places = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    signature = copy.deepcopy(program.graph_signature)
    tensors = {spec.arg.name: str(spec.target) for spec in signature.input_specs if spec.target is not None}
    lost = {name for name in tensors if not places[name].users and name not in before}
    living = {tensors[name].rpartition(".")[0] for name in tensors if places[name].users}
    layers = {tensors[name].rpartition(".")[0] for name in lost} - living
    lost |= {name for name in tensors if tensors[name].rpartition(".")[0] in layers}
    for name in lost:
        graph.erase_node(places[name])
    signature.input_specs = [spec for spec in signature.input_specs if spec.arg.name not in lost]
    gone = {tensors[name] for name in lost}
    values = {**program.constants, **program.state_dict}
    return _rebuilt(program, graph, signature, {name: value for name, value in values.items() if name not in gone})


def _rebuilt(program: ExportedProgram, graph: Graph, signature: ExportGraphSignature, values: dict[str, Any]) -> ExportedProgram:
    """The program with another graph and signature, and these tensors and constants by name."""
    return ExportedProgram(
        root=GraphModule(program.graph_module, graph),
        graph=graph,
        graph_signature=signature,
        state_dict={name: values[name] for name in program.state_dict if name in values},
        range_constraints=copy.deepcopy(program.range_constraints),
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants={name: values[name] for name in program.constants if name in values},
        verifiers=program.verifiers,
    )
