"""Normalisations: per channel they follow their channels; what they average over is pinned."""

from __future__ import annotations

from torch.fx import Node

from edgepress.compress.prune.axes import Dim, Dims, size_of
from edgepress.compress.prune.flow import Flow, call_of
from edgepress.compress.prune.rules.registry import rule

_STATISTICS = ("weight", "bias", "running_mean", "running_var")


def _follow(flow: Flow, node: Node, channels: Dim) -> Dim:
    """Scale, shift and running statistics lose what the channels lose."""
    call = call_of(node)
    for name in _STATISTICS:
        parameter = call.get(name)
        if isinstance(parameter, Node) and channels:
            flow.role(parameter, ["norm"])
            channels = flow.space.unify(channels, flow.of(parameter)[0])
    return channels


@rule("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm")
def per_channel(flow: Flow, node: Node) -> Dims:
    """Every channel is normalised by itself: nothing is tied beyond its statistics."""
    x = flow.of(node.args[0])
    if op_is_instance(node):
        flow.pin(node, x[2:], "it averages over every position")
    return (x[0], _follow(flow, node, x[1]), *x[2:])


def op_is_instance(node: Node) -> bool:
    """Does the norm average over positions?"""
    return "use_input_stats" in call_of(node)


@rule("group_norm")
def group_norm(flow: Flow, node: Node) -> Dims:
    """Whole groups can go; within a group every channel takes part in the average."""
    call = call_of(node)
    x, groups = flow.of(call["input"]), int(call["num_groups"])
    flow.pin(node, x[2:], "it averages over every position")
    group, inner = flow.group(_follow(flow, node, x[1]), (groups, size_of(x[1]) // groups))
    flow.pin(node, [inner], "it averages over the channels of a group")
    flow.mark(group, "groups" if size_of(inner) > 1 else "channels")
    flow.change(node, lambda kept, call: {"num_groups": kept.size(group)})
    return (x[0], (*group, *inner), *x[2:])


@rule("layer_norm", "rms_norm")
def layer_norm(flow: Flow, node: Node) -> Dims:
    """The average over the last dimensions needs every index of them."""
    call = call_of(node)
    x = flow.of(call["input"])
    count = len(call["normalized_shape"])
    operands = [call.get("weight"), call.get("bias")]
    flow.pin(node, [*x[-count:], *(dim for operand in operands for dim in flow.of(operand))], "it averages over these features")
    return x
