"""Chains of layers: each is read by the next alone, through ops that commute with a positive factor per channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import constant, is_float, kind_of, op_name, value_of

_WEIGHTED = frozenset({"conv", "conv_transpose", "linear"})
#: Elementwise ops with f(s x) = s f(x) for s > 0.
_HOMOGENEOUS = frozenset({"relu", "leaky_relu", "clone", "contiguous"})
#: Elementwise ops that would be, but for an upper bound.
_BOUNDED = frozenset({"relu6", "hardtanh", "clamp"})
#: Ops over the positions of an image that are homogeneous and keep channels apart; channels are dimension 1.
_PER_CHANNEL = frozenset({"pad", "constant_pad_nd"})
_POOLS = frozenset({"max_pool", "avg_pool"})
#: Ops that make (batch, channels * positions) of (batch, channels, ...) between the layers of a pair.
FLATTENS = frozenset({"flatten", "view", "reshape"})


@dataclass(frozen=True)
class Pair:
    """Two layers in a row.

    Attributes:
        first, second: convolutions, transposed convolutions or linear layers.
        between: the ops from one to the other, in order.
    """

    first: Node
    second: Node
    between: tuple[Node, ...]

    @property
    def bounds(self) -> tuple[Node, ...]:
        """The ops between whose upper bound does not scale along: ReLU6 and its like."""
        return tuple(node for node in self.between if op_name(node) in _BOUNDED)


def chains_of(module: GraphModule) -> list[tuple[Pair, ...]]:
    """The pairs of a graph, those that follow each other together; the longest chains there are, in graph order.

    Args:
        module: float, batch norms folded.
    """
    pairs = {pair.first: pair for node in module.graph.nodes if (pair := _pair_from(module, node)) is not None}
    follow = {pair.second for pair in pairs.values()}
    found = []
    for start in (node for node in pairs if node not in follow):
        chain = [pairs[start]]
        while chain[-1].second in pairs:
            chain.append(pairs[chain[-1].second])
        found.append(tuple(chain))
    return found


def _pair_from(module: GraphModule, first: Node) -> Pair | None:
    """Follow a layer's output to the next layer, as long as every op on the way commutes with a factor per channel."""
    if not _free(module, first):
        return None
    node, between = first, list[Node]()
    while len(node.users) == 1:
        user = next(iter(node.users))
        if kind_of(user) in _WEIGHTED:
            fits = user.args[0] is node and _free(module, user) and _channels_meet(first, node, user)
            return Pair(first, user, tuple(between)) if fits else None
        if not _commutes(first, node, user):
            return None
        between.append(user)
        node = user
    return None


def _free(module: GraphModule, node: Node) -> bool:
    """Are weight and bias constants that nothing else reads?"""
    if kind_of(node) not in _WEIGHTED or not is_float(node):
        return False
    for item in [node.args[1], *([node.args[2]] if has_bias(node) else [])]:
        tensor = constant(module, item)
        if tensor is None or len(item.users) != 1 or tensor.dtype != torch.float32:
            return False
    return True


def has_bias(node: Node) -> bool:
    """Has a layer a bias?"""
    return len(node.args) > 2 and node.args[2] is not None


def _commutes(first: Node, before: Node, node: Node) -> bool:
    """Does an op give s f(x) for s x, channel by channel, a bound from above aside?"""
    name, images = op_name(node), kind_of(first) != "linear"
    if name in _HOMOGENEOUS or name == "relu6":
        return True
    if name == "clamp_min" or name in _BOUNDED:
        return bool(len(node.args) > 1 and node.args[1] == 0)
    if name in _PER_CHANNEL:
        return images and kind_of(node) == "shape" and _width(before) == _width(node)
    if name == "mean":
        rank = value_of(before).dim()
        axes = {int(axis) % rank for axis in node.args[1]} if len(node.args) > 1 and isinstance(node.args[1], list | tuple) else set()
        return images and bool(axes) and not axes & {0, 1}
    if kind_of(node) in _POOLS and name != "amax":
        return images and value_of(before).dim() > 2 and _width(before) == _width(node)
    return name in FLATTENS and images and _flattens(before, node)


def _width(node: Node) -> object:
    shape = value_of(node).shape
    return shape[1] if len(shape) > 1 else None


def _flattens(before: Node, node: Node) -> bool:
    """(batch, channels, ...) to (batch, channels * positions)."""
    old, new = value_of(before).shape, value_of(node).shape
    return len(new) == 2 and len(old) >= 2 and bool(old[0] == new[0]) and all(isinstance(size, int) for size in old[1:])


def _channels_meet(first: Node, before: Node, second: Node) -> bool:
    """Is the dimension that `first` scales the one whose channels `second` weighs?"""
    rank, linear = value_of(before).dim(), kind_of(second) == "linear"
    if kind_of(first) == "linear":
        return linear
    return bool(rank == 2 if linear else rank == value_of(first).dim())
