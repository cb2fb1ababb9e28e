"""What a program's structure allows to remove: units, families of units, and what is left after removing some."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from torch.export import ExportedProgram

from edgepress.compress.prune.axes import axes_of, size_of
from edgepress.compress.prune.counts import Counter, Products
from edgepress.compress.prune.families import Family, Footprint, solve
from edgepress.compress.prune.flow import Flow, Pinned, Tensors
from edgepress.compress.prune.kept import Kept, Solution
from edgepress.compress.prune.propagate import propagate
from edgepress.targets.errors import PruneError

__all__ = ["Family", "Footprint", "Pinned", "Structure", "analyse"]


class Structure:
    """The units of a program. Made by `analyse`.

    A removal is a bool array (unit_count,): True for every unit that goes.

    Attributes:
        families: units that stand along one axis and act on the same tensors.
        unit_count: number of units.
        footprints: where the units act, per dimension of a parameter or buffer.
        pinned: what is not removable because an operator does not allow it, in the order of the graph.
        flow, solution, tensors: the labels of every tensor of the graph, for surgery and the oracle.
    """

    def __init__(self, flow: Flow, solution: Solution, found: tuple[tuple[Family, ...], tuple[Footprint, ...]], tensors: Tensors) -> None:
        self.families, self.footprints = found
        self.unit_count = solution.unit_count
        self.pinned = tuple(flow.pinned)
        self.flow, self.solution, self.tensors = flow, solution, tensors
        self._counter = Counter(solution)
        for dims in flow.dims.values():
            for axis in axes_of(dims):
                self._counter.add(axis)
        self._macs = Products(self._counter, flow, flow.costs)
        self._nodes = [node for node, _ in flow.costs]
        self._parameters = Products(self._counter, flow, [(p, flow.dims[p]) for p in tensors.parameters])

    def check(self, removed: np.ndarray) -> np.ndarray:
        """The removal as a bool array.

        Raises:
            PruneError: it has another length or dtype.
        """
        array = np.asarray(removed)
        if array.shape != (self.unit_count,) or array.dtype != bool:
            raise PruneError(
                f"a removal of shape {array.shape} and dtype {array.dtype}",
                f"the model has {self.unit_count} units",
                "Give a bool array with one entry per unit.",
            )
        return array

    def kept(self, removed: np.ndarray) -> Kept:
        """What is left of every axis."""
        return Kept(self.solution, self.check(removed))

    def keeps(self, removed: np.ndarray) -> Mapping[str, tuple[np.ndarray | None, ...]]:
        """Name of a parameter, buffer or constant -> per dimension the kept indices, int64 (k,), or None where all are.

        Tensors that lose nothing are not listed.
        """
        kept = self.kept(removed)
        result = {}
        for placeholder, tensor in self.tensors.names.items():
            masks = [kept.mask(dim) for dim in self.flow.dims[placeholder]]
            if any(mask is not None for mask in masks):
                result[tensor] = tuple(None if mask is None else np.flatnonzero(mask) for mask in masks)
        return result

    def smallest(self, removed: np.ndarray) -> int:
        """The smallest number of kept indices over all axes that can lose some; 0 means that the removal is not possible."""
        return int(self._counter.counts(self.check(removed)).min(initial=np.iinfo(np.int64).max))

    def macs(self, removed: np.ndarray) -> int:
        """Multiply-accumulates per sample of convolutions, linear layers, matrix products and attention that are left."""
        return int(self._macs.values(self.check(removed)).sum())

    def layer_macs(self, removed: np.ndarray) -> Mapping[str, int]:
        """The same per node of the graph."""
        result: dict[str, int] = defaultdict(int)
        for node, macs in zip(self._nodes, self._macs.values(self.check(removed)).tolist(), strict=True):
            result[node] += macs
        return result

    def parameters(self, removed: np.ndarray) -> int:
        """Parameters (not buffers) that are left."""
        return int(self._parameters.values(self.check(removed)).sum())

    def activations(self, node_name: str) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Per dimension of a node's output: (index, unit), int64 (k,) each, which unit removes which index.

        Dimensions that the batch is folded into are not listed.

        Raises:
            PruneError: there is no such node, or it returns several tensors.
        """
        dims = self.flow.dims.get(node_name)
        if not isinstance(dims, tuple):
            raise PruneError(f"node {node_name!r} has no labelled output", "it is not in the graph, or returns several tensors")
        return tuple(self.solution.pairs(() if self.flow.sizes.static(size_of(dim)) != size_of(dim) else dim) for dim in dims)


def analyse(program: ExportedProgram) -> Structure:
    """Find what can be removed from a program so that the rest computes the same as with zeros in its place.

    Args:
        program: exported in eval mode; it is not changed.
    """
    flow = propagate(program)
    tensors = Tensors.of(program)
    solution, families, footprints = solve(flow, tensors)
    return Structure(flow, solution, (families, footprints), tensors)
