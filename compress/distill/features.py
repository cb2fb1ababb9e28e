"""The outputs of named layers inside a module: of a plain module through hooks, of an exported graph through nodes that record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from edgepress.compress.quantize.graph import is_float, op_name
from edgepress.targets.errors import TrainingError

_CHANNELS_SECOND = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_SELF = "L['self']"


@dataclass(frozen=True)
class Layer:
    """A place inside a module whose output can be copied.

    Attributes:
        name: dotted path of a layer, or the name of a node.
        shape: of its output for the example batch, the batch included.
        depth: its position in the order of execution, 0 at the input and 1 at the output.
        channel_dim: the axis of its channels, as far as the layer tells.
    """

    name: str
    shape: tuple[int, ...]
    depth: float
    channel_dim: int


class Features:
    """Records what some layers of a module put out, until `close`.

    Outputs are recorded in every forward pass that computes gradients (a student's) or, with `always`, in every one (a teacher's).

    Args:
        module: any module; a GraphModule made by torch.export gets recording nodes, which change nothing that it computes.
        names: layers, as `layers_of` names them.
        always: record without gradients too.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], always: bool = False) -> None:
        self._taken: dict[str, Tensor] = {}
        self._undo: list[Callable[[], None]] = []
        self._names, self._always, self._recording = tuple(names), always, True
        if isinstance(module, GraphModule):
            self._tap(module)
        else:
            modules = dict(module.named_modules())
            for name in names:
                handle = modules[name].register_forward_hook(partial(self._hook, name))
                self._undo.append(handle.remove)

    def take(self) -> Mapping[str, Tensor]:
        """What the last forward pass put out, by layer; forgotten afterwards.

        Raises:
            TrainingError: a layer was not executed in it.
        """
        taken = dict(self._taken)
        self._taken.clear()
        missing = [name for name in self._names if name not in taken]
        if missing:
            raise TrainingError(
                f"layer {missing[0]!r} gave no output", "the model did not execute it for this batch", "Name a layer that always runs."
            )
        return taken

    def close(self) -> None:
        """Leave the module as it was."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Features:
        """A copy of the module (averaged weights, say) must not answer for the module: its features record nothing."""
        copy = Features(nn.Identity(), ())
        copy._recording = False
        return copy

    def _hook(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._take(name, output)

    def _take(self, name: str, output: Any) -> None:
        value = _tensor(output)
        if value is not None and self._recording and (self._always or torch.is_grad_enabled()):
            self._taken[name] = value.clone()  # the next op may write in place

    def _tap(self, module: GraphModule) -> None:
        sources = _sources(module)
        for name in self._names:
            tap = _Tap(partial(self._take, name))
            path = _free_name(module)
            module.add_submodule(path, tap)
            with module.graph.inserting_after(sources[name]):
                node = module.graph.call_module(path, (sources[name],))
            self._undo.append(partial(_untap, module, node, path))
        module.recompile()


class _Tap(nn.Module):  # type: ignore[misc]
    """A node of a graph that hands its input on to a function."""

    _is_impure = True  # torch.fx: no dead code, although nothing reads its output

    def __init__(self, take: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._call = take

    def forward(self, value: Tensor) -> None:
        """Hand `value` on."""
        self._call(value)


def _free_name(module: GraphModule) -> str:
    taken = {name for name, _ in module.named_children()}
    return next(name for name in (f"_tap_{i}" for i in range(len(taken) + 1)) if name not in taken)


def _untap(module: GraphModule, node: Node, path: str) -> None:
    module.graph.erase_node(node)
    module.delete_submodule(path)
    module.recompile()


def _tensor(output: Any) -> Tensor | None:
    """The first floating-point tensor of what a layer returned."""
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else [output]
    return next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)


def _path(entry: Any) -> str:
    return str(entry[0]).replace(f"{_SELF}.", "").replace(_SELF, "") if entry else ""


def _sources(module: GraphModule) -> dict[str, Node]:
    """The node behind every name: a node by its own name, a layer by the last node that it or a layer inside it made.

    A layer and a node of one name: the layer is meant.
    """
    nodes: dict[str, Node] = {}
    layers: dict[str, Node] = {}
    for node in module.graph.nodes:
        if node.op != "call_function" or not is_float(node):
            continue
        nodes[node.name] = node
        for entry in (node.meta.get("nn_module_stack") or {}).values():
            if path := _path(entry):
                layers[path] = node
    return {**nodes, **layers}


def layers_of(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Layer, ...]:
    """Every layer (and, of an exported graph, every node) with a floating-point output of at least 2 dimensions.

    Args:
        module: in eval mode; executed once without gradients.
        inputs: an example batch, positional.

    Returns:
        Layers in the order in which their outputs appear.
    """
    with torch.no_grad():
        found = _graph_layers(module, inputs) if isinstance(module, GraphModule) else _module_layers(module, inputs)
    last = max(len(found) - 1, 1)
    return tuple(Layer(name, shape, index / last, dim) for index, (name, shape, dim) in enumerate(found))


def _graph_layers(module: GraphModule, inputs: Sequence[Tensor]) -> list[tuple[str, tuple[int, ...], int]]:
    shapes: dict[str, tuple[int, ...]] = {}

    class Shapes(Interpreter):  # type: ignore[misc]
        def run_node(self, node: Node) -> Any:
            result = super().run_node(node)
            if isinstance(result, Tensor):
                shapes[node.name] = tuple(result.shape)
            return result

    Shapes(module).run(*inputs)
    order = {node.name: index for index, node in enumerate(module.graph.nodes)}
    found = sorted(_sources(module).items(), key=lambda item: order[item[1].name])
    return [(name, shape, _dim(node, shape)) for name, node in found if len(shape := shapes[node.name]) > 1]


def _dim(node: Node, shape: tuple[int, ...]) -> int:
    second = len(shape) > 3 or op_name(node).startswith(("conv", "batch_norm", "group_norm", "instance_norm"))
    return 1 if second else len(shape) - 1


def _module_layers(module: nn.Module, inputs: Sequence[Tensor]) -> list[tuple[str, tuple[int, ...], int]]:
    found: dict[str, tuple[int, ...]] = {}
    dims: dict[str, int] = {}
    handles = []
    for name, layer in module.named_modules():

        def seen(layer: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            value = _tensor(output)
            if name and value is not None and value.ndim > 1:
                found.pop(name, None)
                found[name] = tuple(value.shape)
                dims[name] = 1 if value.ndim > 3 or isinstance(layer, _CHANNELS_SECOND) else value.ndim - 1

        handles.append(layer.register_forward_hook(seen))
    try:
        module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [(name, shape, dims[name]) for name, shape in found.items()]


def match(pattern: str, layers: Sequence[Layer], whose: str) -> list[Layer]:
    """The layers whose name `pattern` (shell wildcards) matches, in order.

    Args:
        pattern: e.g. `layer3` or `blocks.*.mlp`.
        layers: of `layers_of`.
        whose: for the message, e.g. "student".

    Raises:
        TrainingError: it matches nothing; the nearest names are given.
    """
    found = [layer for layer in layers if fnmatchcase(layer.name, pattern)]
    if not found:
        names = [layer.name for layer in layers]
        near = get_close_matches(pattern, names, 3, 0.3) or names[-3:]
        raise TrainingError(f"no layer of the {whose} matches {pattern!r}", "", f"The nearest are {', '.join(near)}.")
    return found
