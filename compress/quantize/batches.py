"""Samples in batches that a graph takes: of any size, or of the only one that it was traced with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from edgepress.compress.quantize.graph import value_of


def only_batch(module: GraphModule) -> int | None:
    """How many samples a graph takes at a time: dimension 0 of its inputs; None where any number will do."""
    sizes = [value_of(node).shape[0] for node in module.graph.nodes if node.op == "placeholder"]
    fixed = all(isinstance(size, int) for size in sizes) and len(set(sizes)) == 1
    return int(sizes[0]) if fixed else None


def fitting(module: GraphModule, batches: Iterable[Sequence[Any]]) -> Iterator[list[Tensor]]:
    """Samples in batches that a graph takes.

    Args:
        module: the graph.
        batches: tuples of positional inputs (tensors or numpy arrays), dimension 0 is the sample.

    Returns:
        The batches as they come; where the graph takes batches of one size alone, samples in these, the last one filled up by repeating
        its last sample.
    """
    size, waiting = only_batch(module), list[Tensor]()
    for batch in batches:
        tensors = [torch.as_tensor(item) for item in batch]
        if size is None:
            yield tensors
            continue
        waiting = joined([waiting, tensors]) if waiting else tensors
        while len(waiting[0]) >= size:
            yield [item[:size] for item in waiting]
            waiting = [item[size:] for item in waiting]
    if size and waiting and len(waiting[0]):
        yield [torch.cat([item, item[-1:].expand(size - len(item), *item.shape[1:])]) for item in waiting]


def joined(batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The samples of several batches as one, input by input."""
    return [torch.cat(column) if len(column) > 1 else column[0] for column in zip(*batches, strict=True)]
