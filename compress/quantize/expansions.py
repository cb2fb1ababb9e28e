"""An operator of two tensors repeats the smaller one by itself: what writes the repetition out beforehand is left out."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import op_name, value_of

_OF_TWO = frozenset(["add", "sub", "mul", "div", "maximum", "minimum"])


def drop_expansions(module: GraphModule) -> None:
    """Let sums, products and the like read what an `expand` read, where the other tensor has the shape that it gives.

    LiteRT's converter loses track of such a repetition between integers: files that cannot be loaded, or products that it refuses.
    """
    for node in module.graph.nodes:
        if op_name(node) not in _OF_TWO:
            continue
        for place in (0, 1):
            wide, other = node.args[place], node.args[1 - place]
            if isinstance(wide, Node) and op_name(wide) in ("expand", "expand_as") and wide is not other and _alike(wide, other):
                node.update_arg(place, wide.args[0])


def _alike(wide: Node, other: object) -> bool:
    """Is `other` a tensor of the same shape? Sizes are compared as they are written: what has the same symbol has the same size."""
    value = value_of(other) if isinstance(other, Node) else None
    return isinstance(value, torch.Tensor) and [*map(str, value.shape)] == [*map(str, value_of(wide).shape)]
