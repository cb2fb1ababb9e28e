"""What a pruned model will take in a runtime, from a table of measured layers.

The latency of a network on a device is close to the sum of its layers' latencies (Yang et al. 2018, "NetAdapt", ECCV, on layer-wise look-up
tables), so layers are timed once at several widths, and every candidate is looked up. What the sum does not explain (elementwise operators,
pooling, copies, and that layers alone are not quite as fast as in a model) is fitted to a few whole models, pruned evenly, that were timed
too.

Kernels work in tiles, so a layer's time is a staircase: a table holds for widths on the multiples it was measured at.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.export import ExportedProgram

from edgepress.compress.prune.axes import Dim
from edgepress.compress.prune.budget import Cost
from edgepress.compress.prune.counts import Counter, Products
from edgepress.compress.prune.heavy import HeavyLayer, heavy_layers
from edgepress.compress.prune.structure import Structure
from edgepress.compress.quantize.graph import kind_of, value_of
from edgepress.targets.errors import PruneError

#: A point of a table: (width read, width made, milliseconds).
Point = tuple[int, int, float]
#: A product of dimensions, see `Products`.
Term = tuple[str, Sequence[Dim]]
#: Times are compared by ratio; below a nanosecond there is nothing but noise.
_LEAST_MS = 1e-6
#: How far a measured interior point may pull the product of row and column.
_LARGEST_CORRECTION = 2.0
#: How strongly the three coefficients of `fit` are drawn to their priors, against relative errors of a few percent.
_PRIOR = (0.1, 0.03, 0.03)


@dataclass(frozen=True)
class Grid:
    """The time of one configuration as a function of its two widths.

    Attributes:
        reads, makes: widths of the two sides, ascending.
        milliseconds: float64 (len(reads), len(makes)), never falling along either axis.
    """

    reads: tuple[int, ...]
    makes: tuple[int, ...]
    milliseconds: np.ndarray

    @classmethod
    def of(cls, points: Sequence[Point]) -> Grid:
        """The whole grid from its measured points: the last row, the last column, and some inside.

        Elsewhere the time is row times column over the corner — exact for kernels whose work is a product of tiles — corrected by what the
        points inside say of that rule. Noise that makes a wider layer faster is then smoothed away.

        Raises:
            PruneError: the last row or column is not complete.
        """
        known = {(read, make): max(time, _LEAST_MS) for read, make, time in points}
        reads, makes = tuple(sorted({a for a, _ in known})), tuple(sorted({b for _, b in known}))
        missing = [(a, b) for a in reads for b in makes if (a == reads[-1] or b == makes[-1]) and (a, b) not in known]
        if missing or not known:
            raise PruneError(
                f"a latency grid without the widths {missing[:3]}", "its last row and column must be complete", "Measure again."
            )
        column = np.array([known[a, makes[-1]] for a in reads])
        row = np.array([known[reads[-1], b] for b in makes])
        separable = np.outer(column, row) / row[-1]
        times = separable * _corrections(known, separable, reads, makes)
        for (a, b), time in known.items():
            times[reads.index(a), makes.index(b)] = time
        return cls(reads, makes, monotone(times))

    def at(self, read: float, make: float) -> float:
        """Milliseconds at any widths, bilinear between those of the grid, constant beyond them."""
        i, s = _place(self.reads, read)
        j, t = _place(self.makes, make)
        near, far = self.milliseconds[i], self.milliseconds[min(i + 1, len(self.reads) - 1)]
        k = min(j + 1, len(self.makes) - 1)
        return float((1 - s) * ((1 - t) * near[j] + t * near[k]) + s * ((1 - t) * far[j] + t * far[k]))


def _place(widths: tuple[int, ...], width: float) -> tuple[int, float]:
    """The grid interval a width falls into, and how far into it (0..1)."""
    index = max(0, min(bisect_right(widths, width) - 1, len(widths) - 1))
    if index == len(widths) - 1:
        return index, 0.0
    return index, max(0.0, (width - widths[index]) / (widths[index + 1] - widths[index]))


def _corrections(
    known: Mapping[tuple[int, int], float], separable: np.ndarray, reads: tuple[int, ...], makes: tuple[int, ...]
) -> np.ndarray:
    """Measured over predicted, interpolated (bilinear, logarithms) from the points inside; 1 on the last row and column."""
    inner_reads = sorted({a for a, b in known if a != reads[-1] and b != makes[-1]})
    inner_makes = sorted({b for a, b in known if a != reads[-1] and b != makes[-1]})
    coarse = np.zeros((len(inner_reads) + 1, len(inner_makes) + 1))
    for i, a in enumerate(inner_reads):
        for j, b in enumerate(inner_makes):
            predicted = separable[reads.index(a), makes.index(b)]
            coarse[i, j] = np.log(known.get((a, b), predicted) / predicted)
    limit = np.log(_LARGEST_CORRECTION)
    coarse = coarse.clip(-limit, limit)
    down = np.array([np.interp(reads, [*inner_reads, reads[-1]], column) for column in coarse.T]).T
    factors: np.ndarray = np.exp(np.array([np.interp(makes, [*inner_makes, makes[-1]], line) for line in down]))
    return factors


def monotone(times: np.ndarray) -> np.ndarray:
    """The nearest values, by largest difference, that never fall along either axis; values that do not fall already stay.

    The midpoint of the two monotone envelopes is the optimum in the uniform norm (Ubhaya 1974, "Isotone optimization I", Journal of
    Approximation Theory 12).

    Args:
        times: float64 (rows, columns).
    """
    upper = np.maximum.accumulate(np.maximum.accumulate(times, axis=0), axis=1)
    flipped = times[::-1, ::-1]
    lower = np.minimum.accumulate(np.minimum.accumulate(flipped, axis=0), axis=1)[::-1, ::-1]
    middle: np.ndarray = (upper + lower) / 2
    return middle


class ModelTime(NamedTuple):
    """A whole model that was timed.

    Attributes:
        layers_ms: the sum over its layers, by the table.
        elements: activation elements per sample that other ops compute.
        ms: median of one call.
    """

    layers_ms: float
    elements: int
    ms: float


@dataclass(frozen=True)
class LatencyTable:
    """Layers timed in one runtime on one machine.

    Attributes:
        runtime, executed_by: where they were timed, and what really computed.
        precision: of layers and models, e.g. `fp32`.
        threads, batch: per call.
        call_ms: median of one call of a model that computes nothing; layers are without it.
        models: the unpruned model, then others pruned from it.
        layers: name of a layer (`HeavyLayer.name`) -> key of its configuration.
        points: key -> what was measured.
    """

    runtime: str
    executed_by: str
    precision: str
    threads: int
    batch: int
    call_ms: float
    models: tuple[ModelTime, ...]
    layers: Mapping[str, str]
    points: Mapping[str, tuple[Point, ...]]
    grids: Mapping[str, Grid] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grids", {key: Grid.of(points) for key, points in self.points.items()})

    @property
    def whole_ms(self) -> float:
        """Median of one call of the unpruned model."""
        return self.models[0].ms

    def cost(self, structure: Structure, program: ExportedProgram) -> Cost:
        """Milliseconds of a program as a function of the units removed from it; it never grows when more is removed.

        Args:
            structure: `analyse(program)`.
            program: the model the table was measured on, or one pruned from it.

        Raises:
            PruneError: the program has a layer that the table does not.
        """
        parts = parts_of(self.grids, self.layers, structure, program)
        per_ms, per_element, fixed = fit(self.models, self.call_ms)

        def cost(removed: np.ndarray) -> float:
            layers_ms, elements = parts(removed)
            return self.call_ms + per_ms * layers_ms + per_element * elements + fixed

        return cost

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries; per configuration the points measured and the grid made of them."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        configurations = {
            key: {
                "in_widths": list(grid.reads),
                "out_widths": list(grid.makes),
                "milliseconds": grid.milliseconds.tolist(),
                "points": [list(point) for point in self.points[key]],
            }
            for key, grid in self.grids.items()
        }
        models = [model._asdict() for model in self.models]
        return {**plain, "whole_ms": self.whole_ms, "models": models, "layers": dict(self.layers), "configurations": configurations}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyTable:
        """The inverse of `to_json`."""
        points = {
            key: tuple((int(read), int(make), float(time)) for read, make, time in value["points"])
            for key, value in data["configurations"].items()
        }
        models = tuple(ModelTime(**model) for model in data["models"])
        return cls(**{name: data[name] for name in _PLAIN}, models=models, layers=data["layers"], points=points)


_PLAIN = ("runtime", "executed_by", "precision", "threads", "batch", "call_ms")


def fit(models: Sequence[ModelTime], call_ms: float) -> tuple[float, float, float]:
    """What a model takes per millisecond of its layers, per element, and in any case; each at least 0, and exact for the first model.

    Least squares of relative errors, drawn towards layers that take what they take alone: few models cannot tell the three apart.
    """
    taken = np.array([max(model.ms - call_ms, _LEAST_MS) for model in models])
    whole = np.array([max(models[0].layers_ms, _LEAST_MS), max(models[0].elements, 1), 1.0])
    rows = np.array([[model.layers_ms, model.elements, 1.0] for model in models]) / whole / taken[:, None]
    prior = np.diag(_PRIOR) / taken[0]
    matrix = np.vstack([rows, prior])
    target = np.concatenate([np.ones(len(models)), [_PRIOR[0] * whole[0] / taken[0], 0.0, 0.0]])
    shares = _not_negative(matrix, target)
    per_ms, per_element, fixed = (shares * taken[0] / shares.sum() / whole).tolist()
    return per_ms, per_element, fixed


def _not_negative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares with no negative coefficient, by trying every set of coefficients that are not 0."""
    best, error = np.zeros(matrix.shape[1]), np.inf
    for chosen in product((False, True), repeat=matrix.shape[1]):
        columns = np.array(chosen)
        found = np.zeros(matrix.shape[1])
        found[columns] = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
        left = float(((matrix @ found - target) ** 2).sum())
        if found.any() and (found >= 0).all() and left < error:
            best, error = found, left
    return best


def parts_of(
    grids: Mapping[str, Grid], layers: Mapping[str, str], structure: Structure, program: ExportedProgram
) -> Callable[[np.ndarray], tuple[float, int]]:
    """(sum of the layers' milliseconds, elements that other ops compute) of a program, as a function of the units removed from it.

    Args:
        grids: key of a configuration -> its times.
        layers: name of a layer -> key of its configuration.
        structure: `analyse(program)`.
        program: its layers are a part of these.

    Raises:
        PruneError: one is not.
    """
    found = heavy_layers(program, structure)
    if unknown := [layer.name for layer in found if layer.name not in layers]:
        raise PruneError(f"the latency table has no layer {unknown[0]!r}", "it was measured on another model", "Measure this one.")
    own = [grids[layers[layer.name]] for layer in found]
    sides: list[Term] = [(layer.name, [side]) for layer in found for side in (layer.reads[0], layer.reads[-1], layer.makes)]
    sizes = Products(Counter(structure.solution), structure.flow, [*sides, *_light(program, structure, found)])

    def parts(removed: np.ndarray) -> tuple[float, int]:
        values = sizes.values(structure.check(removed))
        widths = values[: len(sides)].reshape(-1, 3).tolist()
        layers_ms = sum(grid.at((one + other) / 2, make) for grid, (one, other, make) in zip(own, widths, strict=True))
        return float(layers_ms), int(values[len(sides) :].sum())

    return parts


def _light(program: ExportedProgram, structure: Structure, heavy: Sequence[HeavyLayer]) -> list[Term]:
    """Elements of what ops other than the heavy ones compute; views are not counted."""
    timed = {layer.node for layer in heavy}
    return [
        (node.name, structure.flow.dims[node.name])
        for node in program.graph.nodes
        if node.op == "call_function" and node.name not in timed and kind_of(node) != "shape" and isinstance(value_of(node), Tensor)
    ]
