"""Blocks: stretches of a graph between which one tensor alone carries on what layers computed, such as residual blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.arithmetic import Arithmetic
from edgepress.compress.quantize.graph import layer_of, value_of
from edgepress.compress.quantize.layer import Layer, WeightGrid
from edgepress.compress.quantize.living import last_uses


@dataclass(frozen=True)
class Values:
    """What the graph holds so far.

    Attributes:
        exact: values of the float model, those of the block too.
        rounded: values of the quantized model before the block.
        samples: how many samples were run.
    """

    exact: Mapping[Node, Any]
    rounded: Mapping[Node, Any]
    samples: int


@dataclass(frozen=True)
class Block:
    """A block at its place in the quantized model.

    Attributes:
        nodes: its ops, in graph order.
        grids: its layers with integer weights of their own -> weight and grid.
        targets: what others read of it -> the float model's answer, (samples, ...).
        read: what it reads: constants, and values of the quantized model before it.
        samples: how many samples were run.
        arithmetic: computes its nodes.
    """

    nodes: Sequence[Node]
    grids: Mapping[Node, WeightGrid]
    targets: Mapping[Node, Tensor]
    read: Mapping[Node, Any]
    samples: int
    arithmetic: Arithmetic

    @property
    def name(self) -> str:
        """Its first and last layer with integer weights, or op where it has none, by the modules of the user's model."""
        names = list(dict.fromkeys(layer_of(node) for node in self.grids or self.nodes))
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"

    @property
    def positions(self) -> int:
        """How many output positions (pixels, tokens) a sample has."""
        target = next(iter(self.targets.values()))
        return target[0].numel() // target.shape[1] if target.dim() > 2 else 1

    def error(self, weights: Mapping[Node, Tensor], index: Tensor) -> Tensor:
        """Mean squared error of what others read, for some samples; differentiable by the weights."""
        values = {node: self._take(node, value, index) for node, value in self.read.items()}
        for node in self.nodes:
            values[node] = self.arithmetic.rounded(node, values, weights)
        return torch.stack([(values[node] - target[index]).square().mean() for node, target in self.targets.items()]).sum()

    def _take(self, node: Node, value: Any, index: Tensor) -> Any:
        """A value for some of the samples; a number counts rows, and all samples have equally many."""
        if not _varies(node):
            return value
        return value[index] if isinstance(value, Tensor) else value * len(index) // self.samples


class BlockRefiner(ABC):
    """Rounds the layers of a block together; a layer whose block cannot be taken as a whole, alone."""

    @abstractmethod
    def __call__(self, layer: Layer) -> Layer:
        """A layer that is no part of a `Block`."""

    @abstractmethod
    def block(self, block: Block) -> Mapping[Node, Tensor]:
        """Every layer in `grids` -> its weight on its grid."""


def block_of(piece: Sequence[Node], grids: Mapping[Node, WeightGrid], arithmetic: Arithmetic, values: Values) -> Block | None:
    """A piece of the graph as a block; None where samples are not told apart by the first dimension of what it reads and answers.

    Args:
        piece: from `split`.
        grids: of its layers that may be rounded.
        arithmetic: computes its nodes.
        values: see `Values`.
    """
    inside = set(piece)
    nodes = [node for node in piece if node.op == "call_function"]
    read = {node: values.exact[node] for node in piece if node.op != "call_function"}
    read |= {item: values.rounded[item] for node in nodes for item in node.all_input_nodes if item not in inside}
    left = [node for node in nodes if any(user not in inside for user in node.users) and not _is_count(node)]
    targets = {node: values.exact[node] for node in left}
    whole = all(_by_sample(node, value, values.samples) for node, value in [*read.items(), *targets.items()] if _varies(node))
    if not whole or not targets or not all(_varies(node) for node in targets):
        return None
    return Block(nodes, grids, targets, read, values.samples, arithmetic)


def split(module: GraphModule, layers: Collection[Node], tails: Mapping[Node, Node]) -> list[list[Node]]:
    """Cut a graph into pieces, each with a layer, between which one tensor alone carries on what layers computed.

    Args:
        module: the graph.
        layers: its ops with integer weights.
        tails: op -> the activation fused into it: they are not cut apart.

    Returns:
        Every node but the output, in order.
    """
    last, pieces, has_layer = last_uses(module), [list[Node]()], False
    computed: set[Node] = set()
    living: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "output":
            break
        pieces[-1].append(node)
        has_layer |= node in layers
        if node in layers or any(item in computed for item in node.all_input_nodes):
            computed.add(node)
            living.add(node)
        living -= {*last.get(node, ())}
        if has_layer and living == {node} and tails.get(node, node) is node and _carries(node):
            pieces.append([])
            has_layer = False
    return [piece for piece in pieces if piece]


def _carries(node: Node) -> bool:
    value = value_of(node)
    return isinstance(value, Tensor) and value.is_floating_point() and _varies(node)


def _is_count(node: Node) -> bool:
    return isinstance(value_of(node), torch.SymInt)


def _varies(node: Node) -> bool:
    """Does its size, or its value, depend on the number of samples?"""
    leaves = torch.utils._pytree.tree_leaves(value_of(node))
    sizes = [size for item in leaves for size in (item.shape if isinstance(item, Tensor) else (item,))]
    return any(isinstance(size, torch.SymInt) for size in sizes)


def _by_sample(node: Node, value: Any, samples: int) -> bool:
    if isinstance(value, Tensor):
        return len(value) == samples and not any(isinstance(size, torch.SymInt) for size in value_of(node).shape[1:])
    return isinstance(value, int) and value % samples == 0
