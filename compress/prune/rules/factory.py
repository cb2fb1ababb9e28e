"""Operators that make tensors out of sizes."""

from __future__ import annotations

from torch.fx import Node

from edgepress.compress.prune.axes import Dims, opaque
from edgepress.compress.prune.flow import Flow
from edgepress.compress.prune.rules.registry import rule


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def constant(flow: Flow, node: Node) -> Dims:
    """The same value everywhere: indices are free, and the sizes are rewritten. What depends on the batch is pinned."""
    shape = flow.shape(node)
    result = tuple(opaque(size) if flow.sizes.static(size) != size else flow.space.fresh(size) for size in shape)
    flow.change(node, lambda kept, call: {"size": [kept.resized(s, d) for s, d in zip(call["size"], result, strict=True)]})
    return result


@rule("arange", "scalar_tensor", "linspace", "tensor", "eye", "randn", "rand")
def numbered(flow: Flow, node: Node) -> Dims:
    """Every index has a value of its own: pinned."""
    return tuple(opaque(size) for size in flow.shape(node))
