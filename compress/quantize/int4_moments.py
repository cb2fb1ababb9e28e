"""Second moments of what layers read: one streaming pass where they fit into memory together, several where they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgepress.compress.quantize.batches import fitting
from edgepress.compress.quantize.graph import layer_of, value_of
from edgepress.targets.errors import QuantizationError

#: Moments held at a time; a wider layer than fits is taken alone.
LIMIT_BYTES = 256 * 1024**2
_BYTES = 4

#: Makes a fresh iterator over batches, each a tuple of positional inputs.
Batches = Callable[[], Iterable[Sequence[Any]]]


def second_moments(
    module: GraphModule, sources: Sequence[Node], batches: Batches, limit_bytes: int = LIMIT_BYTES
) -> Iterator[tuple[Node, Tensor]]:
    """For each tensor the mean of x x^T over all its rows, float32 (channels, channels).

    Memory does not depend on the number of samples: at most `limit_bytes` of moments are held, and the samples are run again for
    the tensors that did not fit. Values of the graph are freed after their last use.

    Args:
        module: float; may be changed by the caller between two results as long as it computes the same.
        sources: tensors of the graph, channels in the last dimension; results come in this order.
        batches: called once per pass.
        limit_bytes: of moments held at a time.

    Raises:
        QuantizationError: no samples, or values that are not finite (the layer is named).
    """
    for chunk in _chunks(sources, limit_bytes):
        recorder = _Recorder(module, chunk)
        with torch.no_grad():
            for batch in fitting(module, batches()):
                recorder.run(*batch)
        for node in chunk:
            yield node, recorder.take(node)


def _chunks(sources: Sequence[Node], limit_bytes: int) -> list[list[Node]]:
    chunks: list[list[Node]] = []
    held = limit_bytes + 1
    for node in sources:
        size = _BYTES * int(value_of(node).shape[-1]) ** 2
        if held + size > limit_bytes:
            chunks.append([])
            held = 0
        chunks[-1].append(node)
        held += size
    return chunks


class _Recorder(Interpreter):  # type: ignore[misc]
    def __init__(self, module: GraphModule, nodes: Sequence[Node]) -> None:
        super().__init__(module)
        sizes = {node: int(value_of(node).shape[-1]) for node in nodes}
        self._sums = {node: torch.zeros(size, size) for node, size in sizes.items()}
        self._rows = dict.fromkeys(nodes, 0)

    def run_node(self, node: Node) -> Any:
        """Run one node and add what it made to its moments."""
        result = super().run_node(node)
        if node in self._sums:
            rows = result.detach().reshape(-1, result.shape[-1]).float()
            before, self._rows[node] = self._rows[node], self._rows[node] + len(rows)
            total = self._rows[node]
            # a running mean stays in the range of float32 however many rows there are
            self._sums[node].mul_(before / total).addmm_(rows.T / total, rows)
        return result

    def take(self, node: Node) -> Tensor:
        """The moments of one tensor, which are then forgotten."""
        moments = self._sums.pop(node)
        if not self._rows[node]:
            raise QuantizationError("calibration got no samples", remedy="Set data.calibration.samples to 1 or more.")
        if not bool(torch.isfinite(moments).all()):
            raise QuantizationError(
                f"what layer {layer_of(node)!r} produced during calibration is not finite",
                "the float model itself yields it on calibration samples",
                "Check the checkpoint and the preprocessing in data.py.",
            )
        return moments
