"""The list of ops that stay in float, as reports have it."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping

import torch
from torch.fx import Node

from edgepress.compress.quantize.graph import kind_of, op_name, value_of


def summary(reasons: Mapping[Node, str]) -> tuple[dict[str, object], ...]:
    """Ops left in float, counted by op and reason; ops that only move values or count in integers are one line or none."""
    counts: dict[tuple[str, str], int] = {}
    for node, reason in reasons.items():
        key = _line(node, reason)
        if key is not None:
            counts[key] = counts.get(key, 0) + 1
    return tuple({"op": op, "count": count, "reason": reason} for (op, reason), count in sorted(counts.items()))


def _line(node: Node, reason: str) -> tuple[str, str] | None:
    value = value_of(node)
    values: Iterable[object] = value if isinstance(value, list | tuple) else (value,)
    tensors = [item for item in values if isinstance(item, torch.Tensor)]
    if not tensors or kind_of(node) == "shape" or node.target is operator.getitem:
        return None
    if not any(item.is_floating_point() for item in tensors):
        return "integer and boolean ops", "indices, shapes and masks are not activations"
    return f"aten.{op_name(node)}", reason
