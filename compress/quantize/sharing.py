"""Scales and zero points: tensors that must share them are grouped, their ranges merged, and each group gets one pair."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import ACTIVATIONS, PIECES, RANGE, constant, is_float, op_name, root_of
from edgepress.compress.quantize.observers import Range
from edgepress.compress.quantize.placement import Placement, data_inputs
from edgepress.compress.quantize.statistics import Statistics
from edgepress.targets.rules import QuantRules

#: Scale of zeros alone.
_OF_ZEROS = 2.0**-16
#: The smallest scale of an activation: biases are 32-bit multiples of it and of the weight's.
_SMALLEST = 2.0**-22
#: `<node>.range` among the corrections is the learnt range (low, high) of a tensor, float64.
RANGE_PART = "range"


@dataclass(frozen=True)
class QParams:
    """real = (integer - zero_point) * scale."""

    scale: float
    zero_point: int


def is_symmetric(interval: Range, rules: QuantRules, centred: bool) -> bool:
    """Is zero the middle of the integers that cover an interval? Where `centred`, if anything in it is negative."""
    return rules.activation_symmetric or (centred and interval[0] < 0)


def qparams(interval: Range, rules: QuantRules, centred: bool = False) -> QParams:
    """Scale (a float32 number) and zero point that cover an interval containing zero; zero itself is an integer.

    The zero point is counted from `activation_min`, so that int8 and uint8 renderings of one range differ by the shift of 128 alone
    (Jacob et al. 2018, section 2.1).
    """
    low, high = interval
    lowest, highest = rules.activation_min, rules.activation_max
    middle, symmetric = (lowest + highest + 1) // 2, is_symmetric(interval, rules, centred)
    scale = max(-low, high) / min(highest - middle, middle - lowest) if symmetric else (high - low) / (highest - lowest)
    scale = float(np.float32(max(scale, smallest_activation_scale(rules)) if high > low else _OF_ZEROS))
    zero = middle if symmetric else lowest + min(max(round(-low / scale), 0), highest - lowest)
    return QParams(scale, zero)


def smallest_activation_scale(rules: QuantRules) -> float:
    """The smallest scale of a tensor that is not zero."""
    return max(rules.smallest_scale, _SMALLEST)


@dataclass(frozen=True)
class Shared:
    """Tensors that have one scale and zero point.

    Attributes:
        nodes: what makes them.
        interval: the range their integers cover.
        centred: see `is_symmetric`.
    """

    nodes: tuple[Node, ...]
    interval: Range
    centred: bool = False


class TensorParameters:
    """The quantization parameters of every tensor that a quantized op reads or writes."""

    def __init__(self, module: GraphModule, placement: Placement, rules: QuantRules, statistics: Statistics) -> None:
        self._module, self._placement, self._rules, self._statistics = module, placement, rules, statistics
        self._parent: dict[Node, Node] = {}
        self._fixed: set[Node] = set()
        self._centred: set[Node] = set()
        for node, kind in placement.kinds.items():
            tail = placement.tails[node]
            inputs = data_inputs(node, kind)
            for item in (*inputs, tail):
                self._parent.setdefault(item, item)
            if self._shares(node, kind):
                for item in inputs:
                    self._union(item, tail)
            if kind in rules.centred_inputs:
                self._centred.update(inputs)
            if tail in placement.outputs and any(op_name(user) in rules.rounded_before for user in tail.users):
                self._centred.add(tail)
            if kind in ("softmax", "sigmoid") and rules.unit_output is not None:
                self._fixed.add(tail)
        self._members = self._grouped()
        self._groups = {root: self._group(nodes) for root, nodes in self._members.items()}

    def of(self, node: Node) -> QParams:
        """Scale and zero point of the tensor a node makes."""
        return self._groups[self._find(node)]

    def rounded_within(self, nodes: Collection[Node]) -> Iterator[Shared]:
        """The tensors, grouped by the scale they share, whose values become integers in some of the graph and nowhere else.

        Ops that hand on the values of their inputs, at the same scale, may lie anywhere. A scale that the rules fix is left out.

        Args:
            nodes: a part of the graph.
        """
        for root, places in self._places().items():
            group = self._members[root]
            if places <= set(nodes) and not any(node in self._fixed for node in group):
                yield Shared(tuple(group), self._interval(group), self._is_centred(group))

    def _places(self) -> dict[Node, set[Node]]:
        """Group -> the ops at which values are rounded to its scale for the first time."""
        found: dict[Node, set[Node]] = {root: set() for root in self._members}
        kinds, outputs = self._placement.kinds, self._placement.outputs
        for node, kind in kinds.items():
            tail = self._placement.tails[node]
            for item in data_inputs(node, kind):
                if item not in outputs and is_float(item):
                    found[self._find(item)].add(node)
            if tail in outputs and not self._shares(node, kind):
                found[self._find(tail)].add(tail)
        return {root: places for root, places in found.items() if places}

    def set_range(self, group: Shared, interval: Range) -> None:
        """Let tensors that share a range have another one."""
        self._groups[self._find(group.nodes[0])] = qparams(interval, self._rules, group.centred)

    def _shares(self, node: Node, kind: str) -> bool:
        """Does it write the scale that it reads?"""
        return kind in self._rules.shared and not (self._rules.clips and op_name(node) in ACTIVATIONS)

    def _find(self, node: Node) -> Node:
        while self._parent[node] is not node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def _union(self, first: Node, second: Node) -> None:
        self._parent[self._find(second)] = self._find(first)

    def _grouped(self) -> dict[Node, list[Node]]:
        members: dict[Node, list[Node]] = {}
        for node in self._parent:
            members.setdefault(self._find(node), []).append(node)
        return members

    def _interval(self, nodes: list[Node]) -> Range:
        ranges = [self._range(node) for node in nodes if op_name(node) not in PIECES]
        return min(r[0] for r in ranges), max(r[1] for r in ranges)

    def _group(self, nodes: list[Node]) -> QParams:
        low, high = self._interval(nodes)
        if self._rules.unit_output is not None and high <= 1.0 and any(node in self._fixed for node in nodes):
            return QParams(float(np.float32(self._rules.unit_output[0])), self._rules.unit_output[1])
        return qparams((low, high), self._rules, self._is_centred(nodes))

    def _is_centred(self, nodes: list[Node]) -> bool:
        return not self._centred.isdisjoint(nodes)

    def _range(self, node: Node) -> Range:
        learnt = self._statistics.corrections.get(f"{node.name}.{RANGE_PART}")
        if learnt is not None:
            return float(learnt[0]), float(learnt[1])
        root = root_of(node)
        tensor = constant(self._module, root)
        if tensor is not None:
            low, high = torch.aminmax(tensor.detach())
            return min(float(low), 0.0), max(float(high), 0.0)
        if op_name(node) in ("sigmoid", "hardsigmoid") and node.name not in self._statistics.histograms:
            # of a silu or hard-swish, which calibration saw whole
            return 0.0, 1.0
        if RANGE in node.meta:
            known: Range = node.meta[RANGE]
            return known
        return self._statistics.range_of(root.name, self._rules.activation_symmetric)
