"""Depthwise convolutions over large windows, as sums of those that XNNPACK has kernels for.

Its kernels for one channel at a time take windows of up to 25 values; larger ones run as convolutions of groups of one channel, which take
eight times as long for each value. Windows are cut into grids, rows and columns at a constant distance each, which are dilated
convolutions. Where a grid lies in the middle of its window, the file has the same padding as for the window.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from edgepress.compress.rewriting import arguments_of, call
from edgepress.exporters.rounded_constants import derived

aten = torch.ops.aten
#: Values of a window that XNNPACK's largest kernel for one channel at a time takes.
LARGEST_WINDOW = 25


class Line(NamedTuple):
    """Places at a constant distance along one dimension of a window."""

    first: int
    step: int
    places: int

    def margins(self, extent: int) -> tuple[int, int]:
        """How many of `extent` places lie before it and behind it."""
        return self.first, extent - 1 - (self.first + (self.places - 1) * self.step)


Grid = tuple[Line, Line]


def grids(height: int, width: int, largest: int = LARGEST_WINDOW) -> list[Grid]:
    """Few grids of at most `largest` places that cover a window once; those in its middle before others, where they are as many."""
    ways = [_grids_of(rows, width, largest) for rows in _cuts(height, min(height, largest))]
    return min(ways, key=partial(_cost, height=height, width=width))


def _grids_of(rows: list[Line], width: int, largest: int) -> list[Grid]:
    """Rows with the columns that each of them takes, the cheapest way."""
    found: list[Grid] = []
    for row in rows:
        ways: list[list[Grid]] = [[(row, line) for line in columns] for columns in _cuts(width, largest // row.places)]
        found += min(ways, key=partial(_cost, height=0, width=width))
    return found


def _cuts(extent: int, most: int) -> list[list[Line]]:
    """Ways to cover `extent` places once with lines of at most `most`: every n-th of them, or the middle and pairs around it."""
    least = -(-extent // most)
    ways = [[Line(first, step, -(-(extent - first) // step)) for first in range(step)] for step in range(least, min(extent, least + 2) + 1)]
    if least > 1 and most > 1:
        middle = most - (extent - most) % 2
        around = (extent - middle) // 2
        ways.append([Line(around, 1, middle), *(Line(at, extent - 1 - 2 * at, 2) for at in range(around))])
    return ways


def _cost(way: list[Grid], height: int, width: int) -> float:
    """Convolutions, and half a one for what is moved where a grid is not in the middle; `height` 0 leaves rows out of account."""
    aside = [any(before != behind for before, behind in _margins(grid, height, width)) for grid in way]
    return len(way) + sum(aside) / 2


def _margins(grid: Grid, height: int, width: int) -> list[tuple[int, int]]:
    rows, columns = grid
    return [*([rows.margins(height)] if height else []), columns.margins(width)]


def convolve_grids(module: GraphModule) -> GraphModule:
    """Rewrite the depthwise convolutions of a graph whose windows are too large for XNNPACK's kernels.

    Args:
        module: with `val` of fixed shapes; changed in place. Convolutions that are not over two dimensions, that have several outputs for a
            channel, or whose weight is computed at run time, stay as they are.

    Returns:
        The same module, which computes the same values up to the rounding of sums.
    """
    for node in module.graph.find_nodes(op="call_function", target=aten.conv2d.default):
        weight: Tensor = node.args[1].meta["val"]
        height, width = weight.shape[2:]
        if weight.shape[:2] == (node.args[0].meta["val"].shape[-3], 1) and height * width > LARGEST_WINDOW:
            with module.graph.inserting_before(node):
                total = _sum(module, node, grids(height, width))
            if total is not None:
                node.replace_all_uses_with(total)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module


def _sum(module: GraphModule, node: Node, parts: list[Grid]) -> Node | None:
    graph = module.graph
    x, weight, bias, *settings, groups = arguments_of(node)
    strides, padding, dilations = ([value] * 2 if isinstance(value, int) else [*value, *value[:1] * (2 - len(value))] for value in settings)
    extent = weight.meta["val"].shape[2:]
    found = list[Node]()
    for number, grid in enumerate(parts):
        kernel = derived(module, weight, f"grid{number}", partial(_places, grid=grid))
        if kernel is None:
            return None
        rows = [
            tuple(p - dilation * margin for margin in line.margins(size))
            for line, size, p, dilation in zip(grid, extent, padding, dilations, strict=True)
        ]
        source, same = x, [max(before, 0) if before == behind else 0 for before, behind in rows]
        for axis, (before, behind) in enumerate(rows, start=2):
            source = _moved(graph, source, axis, before - same[axis - 2], behind - same[axis - 2])
        steps = [line.step * dilation for line, dilation in zip(grid, dilations, strict=True)]
        found.append(call(graph, aten.conv2d.default, source, kernel, None if number else bias, strides, same, steps, groups))
    return reduce(lambda a, b: call(graph, aten.add.Tensor, a, b), found)


def _places(whole: Tensor, grid: Grid) -> Tensor:
    """(channels, 1, height, width) -> the rows and columns of the grid."""
    rows, columns = (slice(line.first, line.first + (line.places - 1) * line.step + 1, line.step) for line in grid)
    return whole[:, :, rows, columns]


def _moved(graph: Graph, x: Node, axis: int, before: int, behind: int) -> Node:
    """With so many zeros more at both ends of an axis, or values less."""
    size = x.meta["val"].shape[axis]
    if before < 0 or behind < 0:
        x = call(graph, aten.slice.Tensor, x, axis, max(-before, 0), size - max(-behind, 0))
    if before > 0 or behind > 0:
        x = call(graph, aten.constant_pad_nd.default, x, [*[0] * (2 * (3 - axis)), max(before, 0), max(behind, 0)])
    return x
