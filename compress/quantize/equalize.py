"""Cross-layer equalization (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1).

Where a layer's output channel reaches the next layer through ops that commute with a positive factor, that factor can move from one
weight to the other: nothing changes in float, and all channels of both weights come to the same range, so that one scale per tensor
fits them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgepress.compress.program import export_like
from edgepress.compress.quantize.graph import constant, is_float, kind_of, layer_of, op_name, set_attribute, value_of
from edgepress.compress.quantize.prepare import finish, float_module
from edgepress.targets.progress import progress

_WEIGHTED = frozenset({"conv", "conv_transpose", "linear"})
#: Place of `groups` among the arguments of convolutions, transposed ones too.
_GROUPS = 6
#: Elementwise ops with f(s x) = s f(x) for s > 0.
_HOMOGENEOUS = frozenset({"relu", "leaky_relu", "clone", "contiguous"})
#: Ops over the positions of an image that are homogeneous and keep channels apart; channels are dimension 1.
_PER_CHANNEL = frozenset({"pad", "constant_pad_nd"})
_POOLS = frozenset({"max_pool", "avg_pool"})
#: Rounds over all pairs; a pair changes what its neighbours balance, and they settle in a few (section 4.1.2).
MAX_ROUNDS = 50
#: Rounds end when no factor is further from 1 than this.
SETTLED = 1e-4
#: A channel moves by at most this factor in all rounds together: a nearly dead channel would otherwise blow up an activation.
MAX_FACTOR = 2.0**12


@dataclass(frozen=True)
class Equalized:
    """A model with equalized weights.

    Attributes:
        program: takes and returns what the given one does; batch norms are folded.
        pairs: names of layers whose ranges were balanced, in graph order.
    """

    program: ExportedProgram
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Pair:
    first: Node
    second: Node


def equalize(program: ExportedProgram) -> Equalized:
    """Balance the channel ranges of consecutive layers.

    Pairs are convolutions, transposed convolutions and linear layers that follow each other through nothing but ReLU, leaky ReLU,
    padding with zeros, pooling and flattening; a depthwise convolution between two layers is in two pairs. A ReLU6 or any other
    clamp ends a pair: its bound does not scale along. So do a weight that other layers share and an output that is read twice.

    Args:
        program: float, eval mode.

    Returns:
        The same function up to float rounding, and the pairs; the program itself where it has none.
    """
    module = float_module(program)
    pairs = [pair for node in module.graph.nodes if (pair := _pair_from(module, node)) is not None]
    if not pairs:
        return Equalized(program, ())
    weights = {node: _tensor(module, node.args[1]).double() for pair in pairs for node in (pair.first, pair.second)}
    biases = {pair.first: _tensor(module, pair.first.args[2]).double() for pair in pairs if _has_bias(pair.first)}
    moved: dict[Node, Tensor] = {}
    for turn in range(MAX_ROUNDS):
        progress("equalizing layers", turn, MAX_ROUNDS)
        if max(_balance(pair, weights, biases, moved) for pair in pairs) < SETTLED:
            break
    for node, weight in weights.items():
        set_attribute(module, str(node.args[1].target), weight.float())
    for node, bias in biases.items():
        set_attribute(module, str(node.args[2].target), bias.float())
    return Equalized(export_like(finish(module), program), tuple((layer_of(pair.first), layer_of(pair.second)) for pair in pairs))


def _balance(pair: _Pair, weights: dict[Node, Tensor], biases: dict[Node, Tensor], moved: dict[Node, Tensor]) -> float:
    """Give both weights of a pair the range sqrt(r1 r2) in every channel (equation 11); returns the largest log2 of a factor."""
    first, second = _split(pair.first, weights[pair.first]), _split(pair.second, weights[pair.second])
    outputs, axes = _output_axes(pair.first, first)
    if op_name(pair.second) == "linear":  # positions that were flattened into features follow their channel
        second = weights[pair.second].reshape(1, weights[pair.second].shape[0], outputs, -1)
    inputs = (0, 1) if kind_of(pair.second) == "conv_transpose" else (0, 2)
    before, after = _range(first, axes), _range(second, inputs)
    alive = (before > 0) & (after > 0)
    factor = torch.where(alive, torch.sqrt(before / after.clamp_min(torch.finfo(torch.float64).tiny)), 1.0)
    already = moved.get(pair.first, torch.ones_like(factor))
    total = torch.where(alive, (already * factor).clamp(1 / MAX_FACTOR, MAX_FACTOR), 1.0)
    factor, moved[pair.first] = total / already, total
    weights[pair.first] = (first / _spread(factor, first, axes)).reshape(weights[pair.first].shape)
    weights[pair.second] = (second * _spread(factor, second, inputs)).reshape(weights[pair.second].shape)
    if pair.first in biases:
        biases[pair.first] = biases[pair.first] / factor
    return float(factor.log2().abs().max())


def _split(node: Node, weight: Tensor) -> Tensor:
    """(groups, outputs, inputs, positions) of a weight; (groups, inputs, outputs, positions) of a transposed convolution's."""
    groups = _groups(node)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _output_axes(node: Node, split: Tensor) -> tuple[int, tuple[int, int]]:
    axis = 2 if kind_of(node) == "conv_transpose" else 1
    return split.shape[0] * split.shape[axis], (0, axis)


def _range(split: Tensor, axes: tuple[int, int]) -> Tensor:
    """Largest magnitude per channel, (channels,)."""
    others = [axis for axis in range(split.dim()) if axis not in axes]
    return split.abs().amax(dim=others).flatten()


def _spread(factor: Tensor, split: Tensor, axes: tuple[int, int]) -> Tensor:
    return factor.reshape([split.shape[axis] if axis in axes else 1 for axis in range(split.dim())])


def _groups(node: Node) -> int:
    if kind_of(node) == "linear":
        return 1
    return int(node.args[_GROUPS]) if len(node.args) > _GROUPS else int(node.kwargs.get("groups", 1))


def _pair_from(module: GraphModule, first: Node) -> _Pair | None:
    """Follow a layer's output to the next layer, as long as every op on the way commutes with a factor per channel."""
    if not _free(module, first):
        return None
    node = first
    while len(node.users) == 1:
        user = next(iter(node.users))
        if kind_of(user) in _WEIGHTED:
            fits = user.args[0] is node and _free(module, user) and _channels_meet(first, node, user)
            return _Pair(first, user) if fits else None
        if not _commutes(first, node, user):
            return None
        node = user
    return None


def _free(module: GraphModule, node: Node) -> bool:
    """Are weight and bias constants that nothing else reads?"""
    if kind_of(node) not in _WEIGHTED or not is_float(node):
        return False
    for item in [node.args[1], *([node.args[2]] if _has_bias(node) else [])]:
        tensor = constant(module, item)
        if tensor is None or len(item.users) != 1 or tensor.dtype != torch.float32:
            return False
    return True


def _has_bias(node: Node) -> bool:
    return len(node.args) > 2 and node.args[2] is not None


def _tensor(module: GraphModule, node: Node) -> Tensor:
    tensor = constant(module, node)
    assert tensor is not None
    return tensor.detach()


def _commutes(first: Node, before: Node, node: Node) -> bool:
    """Does an op give s f(x) for s x, channel by channel?"""
    name, images = op_name(node), kind_of(first) != "linear"
    if name in _HOMOGENEOUS:
        return True
    if name == "clamp_min":
        return bool(node.args[1] == 0)
    if name in _PER_CHANNEL:
        return images and kind_of(node) == "shape" and _channels(before) == _channels(node)
    if name == "mean":
        rank = value_of(before).dim()
        axes = {int(axis) % rank for axis in node.args[1]} if len(node.args) > 1 and isinstance(node.args[1], list | tuple) else set()
        return images and bool(axes) and not axes & {0, 1}
    if kind_of(node) in _POOLS and name != "amax":
        return images and value_of(before).dim() > 2 and _channels(before) == _channels(node)
    return name in ("flatten", "view", "reshape") and images and _flattens(before, node)


def _channels(node: Node) -> object:
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
