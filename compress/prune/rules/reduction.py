"""Pooling, resizing, reductions, and operators that read a whole axis."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from edgepress.compress.prune.axes import Dims, opaque
from edgepress.compress.prune.flow import Flow, call_of
from edgepress.compress.prune.rules.registry import rule
from edgepress.compress.quantize.graph import op_name, value_of

_POOLS = tuple(
    f"{adaptive}{kind}_pool{n}d{suffix}"
    for n in (1, 2, 3)
    for adaptive in ("", "adaptive_")
    for kind in ("max", "avg")
    for suffix in ("", "_with_indices")
)
_RESIZES = (
    *(f"upsample_{mode}" for mode in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
    *(f"_upsample_{mode}" for mode in ("nearest_exact1d", "nearest_exact2d", "nearest_exact3d", "bilinear2d_aa", "bicubic2d_aa")),
)
_PADS = tuple(f"{mode}_pad{n}d" for mode in ("reflection", "replication") for n in (1, 2, 3))
_WHOLE_AXIS = ("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "sort", "argsort", "cummax")
_REDUCTIONS = (
    *("mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "prod", "var", "std", "var_mean", "std_mean", "logsumexp"),
    *("all", "any", "norm", "linalg_vector_norm", "median", "nansum", "count_nonzero", "aminmax"),
)


def _several(node: Node, dims: Dims) -> Any:
    """The same dimensions for each result of an operator that returns several."""
    value = value_of(node)
    return [dims] * len(value) if isinstance(value, (tuple, list)) else dims


@rule(*_POOLS, *_RESIZES, *_PADS)
def positions(flow: Flow, node: Node) -> Any:
    """Channel by channel over positions: the first dimensions follow, positions are pinned."""
    x = flow.of(node.args[0])
    name = op_name(node)
    count = next((int(c) for c in name if c.isdigit()), 2)
    flow.pin(node, x[len(x) - count :], "it needs every position")
    value = value_of(node)
    shape = flow.shape(node, 0) if isinstance(value, (tuple, list)) else flow.shape(node)
    return _several(node, (*x[: len(x) - count], *(opaque(size) for size in shape[len(x) - count :])))


@rule("grid_sampler")
def sampled(flow: Flow, node: Node) -> Dims:
    """x (batch, channels, ...) read at the places of a grid (batch, ..., 2 or 3): channel by channel."""
    x, grid = flow.of(node.args[0]), flow.of(node.args[1])
    flow.pin(node, [*x[2:], *grid[1:]], "it reads computed positions")
    return (*x[:2], *(opaque(size) for size in flow.shape(node)[2:]))


@rule("topk")
def topk(flow: Flow, node: Node) -> list[Dims]:
    """The largest along an axis."""
    call = call_of(node)
    x = flow.of(call["self"])
    axis = int(call["dim"]) % len(x)
    flow.pin(node, [x[axis]], "every result along this axis depends on all of it")
    return [(*x[:axis], opaque(flow.shape(node, 0)[axis]), *x[axis + 1 :])] * 2


@rule("sym_size")
def sym_size(flow: Flow, node: Node) -> Any:
    """A size that the graph computes with."""
    call = call_of(node)
    flow.pin(node, [flow.of(call["self"])[int(call["dim"])]], "its size is computed with")
    return ()


@rule(*_WHOLE_AXIS)
def whole_axis(flow: Flow, node: Node) -> Any:
    """Every result along the axis depends on all indices of it."""
    call = call_of(node)
    x = flow.of(call["self"])
    axis = int(call["dim"]) % len(x)
    flow.pin(node, [x[axis]], "every result along this axis depends on all of it")
    return _several(node, x)


@rule(*_REDUCTIONS)
def reduction(flow: Flow, node: Node) -> Any:
    """Sums and lengths do not miss zeros; every other reduction pins what it reduces."""
    call = call_of(node)
    operands = [argument for argument in node.args if isinstance(argument, Node)]
    x = flow.of(operands[0])
    if len(operands) > 1:  # the binary max and min
        return flow.broadcast([flow.of(operand) for operand in operands])
    given = call.get("dim")
    chosen = list(range(len(x))) if given is None or given == [] else [given] if isinstance(given, int) else list(given)
    axes = {int(axis) % len(x) for axis in chosen if x}
    if op_name(node) not in ("sum", "nansum") and not _is_length(node, call):
        flow.pin(node, [x[axis] for axis in sorted(axes)], "the result depends on how many there are, or on each")
    keep = bool(call.get("keepdim", False))
    return _several(node, tuple(() if axis in axes else dim for axis, dim in enumerate(x) if keep or axis not in axes))


def _is_length(node: Node, call: dict[str, Any]) -> bool:
    """Is it a norm of a positive order? Those are sums of powers, or a largest magnitude."""
    order = call.get("ord", call.get("p", 2))
    return op_name(node) in ("norm", "linalg_vector_norm") and (order is None or float(order) > 0)
