"""Windows of an image, patches and heads: a view of six dimensions, moved around, is one of fewer where neighbours move together.

(batch, rows, height, columns, width, channels) with `height` and `columns` exchanged, as Swin Transformer cuts its windows (Liu et al.
2021, section 3.2), is (batch * rows, height, columns, width * channels) with the same two exchanged. Core ML has no tensor of more than
five dimensions. What is no five groups of neighbours is moved in two steps. Where pieces of one dimension are read (queries, keys and
values of heads in blocks, as Nested Transformers have them: Zhang et al. 2022), these get their dimensions back one by one.
A linear layer over windows that are not in a row yet (Twins: Chu et al. 2021, section 3.2) reads them in a row.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import pairwise, permutations

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import op_name, value_of

MOST = 5  # dimensions that every runtime has
_VIEWS = frozenset(["view", "reshape", "_unsafe_view"])
_COPIES = frozenset(["clone", "contiguous"])
aten = torch.ops.aten


def merge_moved_dimensions(module: GraphModule) -> None:
    """Rewrite views of more than five dimensions whose dimensions are exchanged, and which end in a view, or in pieces, of at most five."""
    for layer in list(module.graph.nodes):
        if op_name(layer) == "linear" and value_of(layer).dim() > MOST:
            _flatten(module, layer)
    for view in list(module.graph.nodes):
        if op_name(view) in _VIEWS and value_of(view).dim() > MOST:
            found = _moved(view)
            if found is not None:
                _merge(module, view, *found)


def _flatten(module: GraphModule, layer: Node) -> None:
    """Let a linear layer read rows of samples where only views read it: it treats all rows alike."""
    count, *rows, width = value_of(layer.args[0]).shape
    numbers = all(isinstance(size, int) for size in rows)
    if not numbers or not all(op_name(user) in _VIEWS for user in layer.users):
        return
    shape = [count if isinstance(count, int) else -1, math.prod(rows), width]
    with module.graph.inserting_before(layer):
        flat = module.graph.call_function(aten.reshape.default, (layer.args[0], shape))
    flat.meta |= layer.args[0].meta | {"val": value_of(layer.args[0]).reshape(shape)}
    layer.meta["val"] = value_of(layer).reshape(*shape[:2], value_of(layer).shape[-1])
    layer.args = (flat, *layer.args[1:])


def _moved(view: Node) -> tuple[list[int], Node] | None:
    """In which order the dimensions of a view leave, and the last node before what reads them; None where that is not how it is read."""
    order, last = list(range(value_of(view).dim())), view
    while len(last.users) == 1:
        user = next(iter(last.users))
        name = op_name(user)
        if name == "permute":
            order = [order[axis] for axis in user.args[1]]
        elif name == "transpose":
            first, second = user.args[1:3]
            order[first], order[second] = order[second], order[first]
        elif name in (*_VIEWS, "flatten") and value_of(user).dim() <= MOST:
            return (order, last) if last is not view else None
        elif name not in _COPIES:
            break
        last = user
    return (order, last) if last is not view and _axis(last) is not None else None


def _axis(node: Node) -> int | None:
    """The dimension that all readers take pieces of; None where one reads something else."""
    if not all(op_name(user) in ("unbind", "select") and not user.kwargs for user in node.users):
        return None
    axes = {(user.args[1] if len(user.args) > 1 else 0) % value_of(node).dim() for user in node.users}
    return axes.pop() if len(axes) == 1 else None


def _merge(module: GraphModule, view: Node, order: Sequence[int], last: Node) -> None:
    sizes = {axis: size for axis, size in enumerate(value_of(view).shape) if not (isinstance(size, int) and size == 1)}
    unknown = {axis for axis, size in sizes.items() if not isinstance(size, int)}
    path = _path(tuple(sizes), tuple(axis for axis in order if axis in sizes))
    axis = _axis(last)
    pieces = [] if axis is None else [[order[axis]]]
    if not path or len(unknown) > 1 or any(piece not in _together(*path[-2:]) for piece in pieces):
        return
    readers = list(last.users) if axis is None else [piece for user in last.users for piece in _pieces(user)]
    shapes = [[size if isinstance(size, int) else -1 for size in value_of(reader).shape] for reader in readers]
    if any(shape.count(-1) > 1 or len(shape) > MOST for shape in shapes):
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
    if axis is None:  # a view needs the copy before it
        readers[0].target, readers[0].args, readers[0].kwargs = aten.reshape.default, (moved, shapes[0]), {}
    else:
        values = [value_of(reader) for reader in readers]
        for user in list(last.users):
            user.args = (moved, groups.index(pieces[0]), *user.args[2:])
            user.meta["val"] = user.target(value_of(moved), *user.args[1:])
        for reader, shape, value in zip(readers, shapes, values, strict=True):
            _widen(module, reader, shape, value)
    while last is not source:
        last, gone = last.args[0], last
        module.graph.erase_node(gone)


def _pieces(reader: Node) -> list[Node]:
    """The nodes that hold one piece each."""
    return [reader] if op_name(reader) == "select" else list(reader.users)


def _widen(module: GraphModule, piece: Node, shape: Sequence[int], value: torch.Tensor) -> None:
    """Give a piece the shape of the value that its readers know."""
    if piece.target is operator.getitem:
        piece.meta["val"] = value_of(piece.args[0])[piece.args[1]]
    with module.graph.inserting_after(piece):
        again = module.graph.call_function(aten.reshape.default, (piece, list(shape)))
    again.meta |= piece.meta | {"val": value}
    piece.replace_all_uses_with(again, delete_user_cb=lambda user: user is not again)


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
    if len(_together(before, after)) <= MOST:
        return [before, after]
    for between in permutations(before) if len(before) == MOST + 1 else ():
        if len(_together(before, between)) <= MOST and len(_together(between, after)) <= MOST:
            return [before, between, after]
    return []
