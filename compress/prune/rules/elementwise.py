"""Operators that compute every element from the elements at the same index of their operands."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx import Node

from edgepress.compress.prune.axes import Dim, Dims, size_of
from edgepress.compress.prune.flow import Flow, call_of
from edgepress.compress.prune.rules.registry import rule
from edgepress.compress.quantize.graph import op_name

#: Elementwise operators that carry no `pointwise` tag.
_UNTAGGED = (
    *("dropout", "alpha_dropout", "feature_dropout", "to", "_to_copy", "contiguous", "alias", "detach", "lift_fresh_copy", "lift_fresh"),
    *("hardswish", "log_sigmoid", "softsign", "relu6", "rrelu", "type_as", "rsub", "fill", "positive", "square", "special_expit"),
    *("__and__", "__or__", "__xor__", "zeros_like", "ones_like", "full_like", "empty_like", "bernoulli", "copy", "copysign", "true_divide"),
    *(
        "fake_quantize_per_tensor_affine",
        "hardsigmoid",
        "where",
        "multiply",
        "subtract",
        "divide",
        "negative",
        "greater",
        "less",
        "not_equal",
    ),
)
#: What a parameter is to an operator that takes it elementwise.
_ROLES = {"add": "bias", "sub": "bias", "mul": "norm", "div": "norm"}


def is_pointwise(node: Node) -> bool:
    """Does torch say that the operator is elementwise?"""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


@rule(*_UNTAGGED)
def pointwise(flow: Flow, node: Node) -> Dims:
    """Operands are broadcast; indices that meet go together."""
    operands = [argument for argument in (*node.args, *node.kwargs.values()) if isinstance(argument, Node)]
    result = flow.broadcast([flow.of(operand) for operand in operands])
    role = _ROLES.get(op_name(node).rstrip("_"))
    for operand in operands if role else []:
        flow.role(operand, [role or ""] * len(flow.of(operand)))
    return result


@rule("_weight_norm")
def weight_norm(flow: Flow, node: Node) -> Dims:
    """A direction is divided by its length, which zeros do not change, and multiplied by a length of its own."""
    direction, length = flow.of(node.args[0]), flow.of(node.args[1])
    flow.role(node.args[0], ["out", "in"])
    return flow.broadcast([direction, length])


@rule("prelu")
def prelu(flow: Flow, node: Node) -> Dims:
    """One slope for all channels, or one for each."""
    x, weight = flow.of(node.args[0]), flow.of(node.args[1])
    if len(x) > 1 and weight and weight[0]:
        flow.role(node.args[1], ["norm"])
        return (x[0], flow.space.unify(x[1], weight[0]), *x[2:])
    return x


@rule("glu")
def glu(flow: Flow, node: Node) -> Dims:
    """One half of the channels gates the other: both halves lose the same."""
    call = call_of(node)
    x = flow.of(call["self"])
    axis = int(call["dim"]) % len(x)
    return (*x[:axis], flow.space.unify(*halves(flow, x[axis])), *x[axis + 1 :])


def halves(flow: Flow, dim: Dim) -> tuple[Dim, Dim]:
    """The first and the second half of a dimension."""
    half = size_of(dim) // 2
    return flow.space.take(dim, np.arange(half)), flow.space.take(dim, np.arange(half, 2 * half))


@rule("_assert_tensor_metadata", "sym_constrain_range_for_size", "_assert_scalar")
def nothing(flow: Flow, node: Node) -> Any:
    """Checks of dtype, device and sizes that return nothing."""
    return ()
