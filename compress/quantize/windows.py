"""Windows of an image, patches and heads: a view of six dimensions, moved around, is one of fewer where neighbours move together.

(batch, rows, height, columns, width, channels) with `height` and `columns` exchanged, as Swin Transformer cuts its windows (Liu et al.
2021, section 3.2), is (batch * rows, height, columns, width * channels) with the same two exchanged. Core ML has no tensor of more than
five dimensions. What is no five groups of neighbours is moved in two steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, permutations

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import op_name, value_of

_MOST = 5  # dimensions that every runtime has
_VIEWS = frozenset(["view", "reshape", "_unsafe_view"])
_COPIES = frozenset(["clone", "contiguous"])
aten = torch.ops.aten


def merge_moved_dimensions(module: GraphModule) -> None:
    """Rewrite views of more than five dimensions whose dimensions are exchanged, and which end in a view of at most five."""
    for view in list(module.graph.nodes):
        if op_name(view) in _VIEWS and value_of(view).dim() > _MOST:
            found = _moved(view)
            if found is not None:
                _merge(module, view, *found)


def _moved(view: Node) -> tuple[list[int], Node] | None:
    """In which order the dimensions of a view leave, and the last node before the next view; None where that is not how it is read."""
    order, last = list(range(value_of(view).dim())), view
    while len(last.users) == 1:
        user = next(iter(last.users))
        name = op_name(user)
        if name == "permute":
            order = [order[axis] for axis in user.args[1]]
        elif name == "transpose":
            first, second = user.args[1:3]
            order[first], order[second] = order[second], order[first]
        elif name in (*_VIEWS, "flatten") and value_of(user).dim() <= _MOST:
            return (order, last) if last is not view else None
        elif name not in _COPIES:
            return None
        last = user
    return None


def _merge(module: GraphModule, view: Node, order: Sequence[int], last: Node) -> None:
    sizes = {axis: size for axis, size in enumerate(value_of(view).shape) if not (isinstance(size, int) and size == 1)}
    unknown = {axis for axis, size in sizes.items() if not isinstance(size, int)}
    reader = next(iter(last.users))
    shape = [size if isinstance(size, int) else -1 for size in value_of(reader).shape]
    path = _path(tuple(sizes), tuple(axis for axis in order if axis in sizes))
    if not path or len(unknown) > 1 or shape.count(-1) > 1:
        return
    moved = source = view.args[0]
    with module.graph.inserting_before(view):
        for before, after in pairwise(path):
            groups = _together(before, after)
            here = sorted(groups, key=lambda group: before.index(group[0]))
            fewer = [-1 if unknown & set(group) else math.prod(sizes[axis] for axis in group) for group in here]
            narrow = module.graph.call_function(aten.reshape.default, (moved, fewer))
            narrow.meta |= view.meta | {"val": value_of(moved).reshape(fewer)}
            moved = module.graph.call_function(aten.permute.default, (narrow, [here.index(group) for group in groups]))
            moved.meta |= last.meta | {"val": value_of(narrow).permute(moved.args[1])}
    reader.target, reader.args, reader.kwargs = aten.reshape.default, (moved, shape), {}  # a view needs the copy before it
    while last is not source:
        last, gone = last.args[0], last
        module.graph.erase_node(gone)


def _together(before: Sequence[int], after: Sequence[int]) -> list[list[int]]:
    """The dimensions in their order after, those in one group that are neighbours before and after."""
    groups: list[list[int]] = []
    for axis in after:
        if groups and before.index(axis) == before.index(groups[-1][-1]) + 1:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def _path(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Orders from the first to the last, of which neighbours differ by at most five groups: in one step or two; empty where none is."""
    if len(_together(before, after)) <= _MOST:
        return [before, after]
    for between in permutations(before) if len(before) == _MOST + 1 else ():
        if len(_together(before, between)) <= _MOST and len(_together(between, after)) <= _MOST:
            return [before, between, after]
    return []
