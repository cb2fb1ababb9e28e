"""Activation checkpointing: keep few activations and compute the others again in the backward pass.

Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from edgepress.targets.errors import TrainingError

#: Arguments of norms that a forward pass in train mode updates in place.
_STATISTICS = ("running_mean", "running_var")


@contextmanager
def checkpointed(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Within the context, the module's forward pass keeps activations between parts only.

    The parts are the blocks in an `nn.Sequential` or `nn.ModuleList`, or of an exported graph with n nodes about sqrt(n) stretches of equal
    length. Gradients and running statistics are those of the ordinary pass.

    Raises:
        TrainingError: a plain module has no such blocks.
    """
    parts = _parts(module) if enabled else []
    if enabled and not parts:
        raise TrainingError(
            "activation_checkpointing is on",
            "the model has no nn.Sequential or nn.ModuleList of blocks to recompute",
            "Switch it off, or train the exported program.",
        )
    for part in parts:
        part.forward = _recomputing(part)  # an attribute of the instance, which hides the method of its class
    try:
        yield
    finally:
        for part in parts:
            del part.forward


def _parts(module: nn.Module) -> list[nn.Module]:
    """Exported graphs, and blocks of the outermost lists; what lies inside of these is left alone."""
    if isinstance(module, GraphModule):
        return [module]
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return [child for child in module.children() if next(child.parameters(), None) is not None]
    return [part for child in module.children() for part in _parts(child)]


def _recomputing(part: nn.Module) -> Callable[..., Any]:
    if isinstance(part, GraphModule):
        return _Stretches(part)
    return functools.partial(_checkpoint, part.forward)


def _checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    return checkpoint(function, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _Again()), **kwargs)


class _Again(TorchDispatchMode):  # type: ignore[misc]
    """Computes the same values a second time without counting the batch a second time in running statistics."""

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        names = [argument.name for argument in op._schema.arguments]
        if "running_mean" in names:
            copied = [
                value.clone() if name in _STATISTICS and value is not None else value for name, value in zip(names, args, strict=False)
            ]
            return op(*copied, **(kwargs or {}))
        if op._schema.is_mutable and isinstance(args[0], torch.Tensor) and not args[0].is_floating_point():  # num_batches_tracked
            return args[0]
        return op(*args, **(kwargs or {}))


class _Stretches:
    """Runs a graph as stretches of nodes, each checkpointed; the graph itself stays as it is."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module

    def __call__(self, *args: Any) -> Any:
        """The graph's outputs for positional inputs."""
        interpreter = Interpreter(self._module, garbage_collect_values=False)
        nodes = list(self._module.graph.nodes)
        values: dict[Node, Any] = {}
        given = iter(self._module.graph.process_inputs(*args))
        for node in nodes:
            if node.op == "placeholder":
                values[node] = next(given, node.args[0] if node.args else None)
        for stretch in _stretches([node for node in nodes if node.op not in ("placeholder", "output")]):
            self._run(interpreter, stretch, values)
        interpreter.env = values
        outputs = interpreter.run_node(nodes[-1])
        return self._module.graph.process_outputs(outputs)

    def _run(self, interpreter: Interpreter, stretch: list[Node], values: dict[Node, Any]) -> None:
        inside = set(stretch)
        needs = list({source: None for node in stretch for source in node.all_input_nodes if source not in inside})
        gives = [node for node in stretch if any(user not in inside for user in node.users)]

        def compute(*inputs: Any) -> tuple[Any, ...]:
            interpreter.env = dict(zip(needs, inputs, strict=True))
            for node in stretch:
                interpreter.env[node] = interpreter.run_node(node)
            return tuple(interpreter.env[node] for node in gives)

        values.update(zip(gives, _checkpoint(compute, *(values[node] for node in needs)), strict=True))


def _stretches(nodes: list[Node]) -> list[list[Node]]:
    """Cut a list of nodes into about sqrt(n) parts, nowhere between a tensor and an op that changes it in place.

    What a part begins with must still be there when the part is computed again.
    """
    position = {node: i for i, node in enumerate(nodes)}
    together = [False] * (len(nodes) + 1)
    for i, node in enumerate(nodes):
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            for source in node.all_input_nodes[:1]:
                together[position.get(source, -1) + 1 : i + 1] = [True] * (i - position.get(source, -1))
    length = max(1, math.isqrt(len(nodes)))
    parts: list[list[Node]] = [[]]
    for i, node in enumerate(nodes):
        if len(parts[-1]) >= length and not together[i]:
            parts.append([])
        parts[-1].append(node)
    return parts
