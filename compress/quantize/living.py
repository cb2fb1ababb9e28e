"""Which values of a graph live at a time, and how many samples may be run together for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from edgepress.compress.quantize.batches import fitting, joined, only_batch
from edgepress.compress.quantize.graph import op_name, value_of
from edgepress.targets.errors import QuantizationError

#: Tensors of both models held at a time, for all samples together.
LIMIT_BYTES = 1024**3
#: Samples that are run even where they need more than that.
MIN_SAMPLES = 8


def last_uses(module: GraphModule) -> dict[Node, list[Node]]:
    """node -> the nodes whose values nobody reads after it."""
    found: dict[Node, list[Node]] = {}
    for node in module.graph.nodes:
        reader = max([node, *node.users])  # nodes compare by their place in the graph
        found.setdefault(reader, []).append(node)
    return found


def batches_that_fit(
    module: GraphModule, pieces: Sequence[Sequence[Node]], batches: Iterable[Sequence[Any]], enough: int | None = None
) -> list[list[Tensor]]:
    """As many calibration samples as may live at a time, joined into one batch, or in batches of the only size that the graph takes.

    Args:
        module: the graph that is run twice, float and quantized.
        pieces: its nodes in order; values are freed after the piece that reads them last.
        batches: tuples of positional inputs.
        enough: so many are taken at most.

    Raises:
        QuantizationError: no samples.
    """
    limit = max(MIN_SAMPLES, LIMIT_BYTES // max(2 * _living_bytes(module, pieces), 1))
    limit = min(limit, enough) if enough else limit
    found, have, any_size = list[list[Tensor]](), 0, only_batch(module) is None
    for batch in fitting(module, batches):
        found.append([tensor[: limit - have] for tensor in batch] if any_size else batch)
        have += len(batch[0])
        if have >= limit:
            break
    if not found:
        raise QuantizationError("layers got no calibration samples", remedy="Set data.calibration.samples to 1 or more.")
    return [joined(found)] if any_size else found


def _living_bytes(module: GraphModule, pieces: Sequence[Sequence[Node]]) -> int:
    """The most bytes of activations of one sample that live at a time."""
    last, living, most = last_uses(module), 0, 0
    for piece in pieces:
        living += sum(bytes_of(node) for node in piece)
        most = max(most, living)
        living -= sum(bytes_of(dead) for node in piece for dead in last.get(node, ()))
    return most


def bytes_of(node: Node) -> int:
    """Bytes of the activations a node makes of one sample."""
    if node.op not in ("placeholder", "call_function") or (node.op == "call_function" and op_name(node) == "getitem"):
        return 0
    tensors = [item for item in tree_leaves(value_of(node)) if isinstance(item, Tensor)]
    return sum(item.element_size() * int(np.prod([size for size in item.shape[1:] if isinstance(size, int)])) for item in tensors)
