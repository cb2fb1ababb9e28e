"""Counting multiply-accumulates of convolutions, linear and recurrent layers, and matrix products, at batch 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from edgepress.compress.quantize.graph import op_name, value_of
from edgepress.compress.quantize.prepare import float_module
from edgepress.compress.quantize.unpacked import RECURRENT

#: `seen(node, macs)` is called for every op that multiplies and accumulates.
Seen = Callable[[Node, int], None]

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "convolution"})
_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
_PRODUCTS = frozenset({"matmul", "bmm", "mm", "addmm", "baddbmm"})


def count_macs(program: torch.export.ExportedProgram) -> int:
    """Multiply-accumulates of one sample through the float model.

    Fused attention counts as its two products; what no output needs does not count.
    """
    total = 0

    def add(_: Node, macs: int) -> None:
        nonlocal total
        total += macs

    _walk(float_module(program), add)
    return total


def macs_of(module: GraphModule) -> dict[Node, int]:
    """Node -> its multiply-accumulates for one sample; nodes that have none are left out."""
    found: dict[Node, int] = {}

    def add(node: Node, macs: int) -> None:
        found[node] = found.get(node, 0) + macs

    _walk(module, add)
    return found


def _walk(module: GraphModule, seen: Seen) -> None:
    """Run the graph on tensors without storage, one sample each."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = []
    with mode:
        for node in module.graph.nodes:
            if node.op == "placeholder":
                value = value_of(node)
                shape = [size if isinstance(size, int) else 1 for size in value.shape]
                inputs.append(torch.empty(shape, dtype=value.dtype))
        with torch.no_grad():
            _Counter(module, seen).run(*inputs)


class _Counter(Interpreter):  # type: ignore[misc]
    def __init__(self, module: GraphModule, seen: Seen) -> None:
        super().__init__(module)
        self._seen = seen

    def run_node(self, node: Node) -> Any:
        """Run one node on fake tensors and report its multiply-accumulates."""
        result = super().run_node(node)
        if node.op == "call_function":
            macs = _macs(op_name(node), list(map_arg(node.args, self.env.get)), result)
            if macs:
                self._seen(node, macs)
        return result


def _macs(name: str, factors: list[Any], result: Any) -> int:
    if name in _CONVOLUTIONS:
        return int(result.numel() * math.prod(factors[1].shape[1:]))
    if name in _TRANSPOSED:
        return int(factors[0].numel() * math.prod(factors[1].shape[1:]))
    if name == "linear":
        return int(result.numel() * factors[1].shape[-1])
    if name in _PRODUCTS:
        first = factors[1] if name in ("addmm", "baddbmm") else factors[0]
        return int(result.numel() * first.shape[-1])
    if name in RECURRENT:  # every weight at every step
        return int(math.prod(factors[0].shape[:-1]) * sum(item.numel() for item in factors[2] if item.dim() == 2))
    if name == "scaled_dot_product_attention":
        query, key, value = factors[:3]
        scores = math.prod(query.shape[:-1]) * key.shape[-2]
        return int(scores * (query.shape[-1] + value.shape[-1]))
    return 0
