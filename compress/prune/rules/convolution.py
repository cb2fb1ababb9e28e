"""Convolutions: plain, grouped, depthwise and transposed.

With groups, in = groups x I and out = groups x O: whole groups can go, and every group loses the same of I and of O.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from edgepress.compress.prune.axes import Dim, Dims, opaque, size_of
from edgepress.compress.prune.flow import Flow, call_of
from edgepress.compress.prune.rules.contraction import add_bias
from edgepress.compress.prune.rules.registry import rule


@rule("conv1d", "conv2d", "conv3d")
def conv(flow: Flow, node: Node) -> Dims:
    """x ([batch], in, ...), weight (out, in / groups, ...)."""
    call = call_of(node)
    flow.role(call["weight"], ["out", "in"])
    x, weight, channel = _operands(flow, node, call)
    groups, inner, outer = _channels(flow, node, x[channel], (weight[1], weight[0]), int(call["groups"]))
    out = (*groups, *outer)
    result = _result(flow, node, x[:channel], out)
    flow.cost(node, [*x[:channel], out, *result[channel + 1 :], inner, *weight[2:]])
    add_bias(flow, call["bias"], out)
    return result


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(flow: Flow, node: Node) -> Dims:
    """x ([batch], in, ...), weight (in, out / groups, ...)."""
    call = call_of(node)
    flow.role(call["weight"], ["in", "out"])
    x, weight, channel = _operands(flow, node, call)
    groups, outer, inner = _channels(flow, node, x[channel], (weight[1], weight[0]), int(call["groups"]), transposed=True)
    out = (*groups, *outer)
    flow.cost(node, [*x[:channel], (*groups, *inner), *x[channel + 1 :], outer, *weight[2:]])
    add_bias(flow, call["bias"], out)
    return _result(flow, node, x[:channel], out)


def _operands(flow: Flow, node: Node, call: dict[str, Any]) -> tuple[Dims, Dims, int]:
    """The input, the weight, and which dimension of the input holds the channels (0 without a batch)."""
    x, weight = flow.of(call["input"]), flow.of(call["weight"])
    channel = len(x) - len(weight) + 1
    for taps in weight[2:]:
        flow.space.pin(taps)
    flow.pin(node, x[channel + 1 :], "a convolution needs every position")
    return x, weight, channel


def _channels(flow: Flow, node: Node, x: Dim, weight: tuple[Dim, Dim], groups: int, transposed: bool = False) -> tuple[Dim, Dim, Dim]:
    """(groups, the weight's side within a group, the side that the weight holds for all groups, within a group).

    `weight` is (the dimension that holds one group, the dimension that holds all groups). The input's channels are the former's within
    a plain convolution and the latter's in a transposed one.
    """
    within, across = weight
    if groups == 1:
        flow.space.unify(x, across if transposed else within)
        return (), within, across
    group, theirs = flow.group(across, (groups, size_of(across) // groups))
    ours, inner = flow.group(x, (groups, size_of(x) // groups))
    group = flow.space.unify(ours, group)
    flow.space.unify(inner, theirs if transposed else within)
    if size_of(within) > 1 or size_of(theirs) > 1:
        flow.mark(group, "groups" if size_of(inner) > 1 else "channels")
        flow.mark(within, "group_channels")
        flow.mark(theirs, "group_channels")
    flow.change(node, lambda kept, call: {"groups": kept.size(group)})
    return group, within, theirs


def _result(flow: Flow, node: Node, batch: Dims, out: Dim) -> Dims:
    return (*batch, out, *(opaque(size) for size in flow.shape(node)[len(batch) + 1 :]))
