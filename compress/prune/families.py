"""Units and families: what can be removed, and where it acts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepress.compress.prune.axes import axes_of
from edgepress.compress.prune.flow import Flow, Tensors
from edgepress.compress.prune.kept import Solution

#: What a mark says wins in this order, where an axis has several.
_ORDER = ("heads", "head_dims", "groups", "group_channels", "channels")


@dataclass(frozen=True)
class Family:
    """Units that stand along one axis and act on the same tensors.

    Attributes:
        index: position in `Structure.families`.
        kind: "channels" | "heads" | "head_dims" | "neurons" | "groups" | "group_channels".
        name: dotted path of the layer that owns the axis, e.g. "layer1.0.conv1".
        layers: dotted paths of all layers that lose something.
        units: unit numbers in index order.
    """

    index: int
    kind: str
    name: str
    layers: tuple[str, ...]
    units: tuple[int, ...]


@dataclass(frozen=True)
class Footprint:
    """Where units act on one dimension of one parameter or buffer.

    Attributes:
        tensor: its name in the program's state dict or constants, e.g. "layer1.0.conv1.weight".
        dim: the dimension.
        index: int64 (k,), indices along it.
        unit: int64 (k,), the unit that removes the index; an index may stand with several units.
        role: "out" (the tensor produces these channels) | "in" (it consumes them) | "norm" | "bias" | "other".
    """

    tensor: str
    dim: int
    index: np.ndarray
    unit: np.ndarray
    role: str


def drop_invalid(flow: Flow) -> None:
    """Pin what would empty an axis by itself."""
    labels = flow.space.labels
    for dims in flow.dims.values():
        for axis in axes_of(dims):
            known = flow.space.current(axis)
            if known is None or not known.all():
                continue
            common = labels.members(int(known[0]))
            for label in known[1:].tolist():
                if not common:
                    break
                common &= labels.members(label)
            for variable in common:
                labels.pin(variable)


@dataclass(frozen=True)
class _Acts:
    """The dimensions of one tensor that are free, and its variables at each index."""

    tensor: str
    dim: int
    rank: int
    variables: list[frozenset[int]]
    is_parameter: bool
    role: str


def solve(flow: Flow, tensors: Tensors) -> tuple[Solution, tuple[Family, ...], tuple[Footprint, ...]]:
    """Number the units, gather them into families, and list where they act.

    Args:
        flow: a finished propagation; what would empty an axis is pinned.
        tensors: the tensors of the program; what acts on no parameter is no unit.
    """
    drop_invalid(flow)
    acts = list(_acts(flow, tensors))
    signature = _signatures(acts)
    marks = _marks(flow)
    groups: dict[Any, list[int]] = defaultdict(list)
    for variable, where in signature.items():
        groups[flow.space.labels.origin(variable), marks.get(variable), where].append(variable)
    units = {variable: number for number, variable in enumerate(v for members in groups.values() for v in members)}
    solution = Solution(flow.space, units)
    by_place = {(act.tensor, act.dim): act for act in acts}
    families: list[Family] = []
    for (_, mark, where), members in groups.items():
        places = [by_place[tensor, dim] for tensor, dim, _ in where]
        layers = tuple(dict.fromkeys(layer_name(act.tensor) for act in places))
        owner = next((act for act in places if act.role == "out"), places[0])
        kind = mark or ("neurons" if all(act.rank <= 2 for act in places) else "channels")
        families.append(Family(len(families), kind, layer_name(owner.tensor), layers, tuple(units[v] for v in members)))
    return solution, tuple(families), tuple(_footprint(act, units) for act in acts if any(v in units for vs in act.variables for v in vs))


def layer_name(tensor: str) -> str:
    """The dotted path of the module that owns a parameter."""
    return tensor.rpartition(".")[0] or tensor


def _acts(flow: Flow, tensors: Tensors) -> Iterator[_Acts]:
    parameters = frozenset(tensors.parameters)
    roles = {(tensors.same[placeholder], dim): role for (placeholder, dim), role in flow.roles.items() if placeholder in tensors.same}
    for placeholder, tensor in tensors.names.items():
        dims = flow.dims[placeholder] if tensors.same[placeholder] == placeholder else ()
        for dim, axes in enumerate(dims):
            labels = flow.space.flat(axes)
            if labels is not None:
                variables = [flow.space.labels.members(label) for label in labels.tolist()]
                yield _Acts(tensor, dim, len(dims), variables, placeholder in parameters, roles.get((placeholder, dim), "other"))


def _signatures(acts: list[_Acts]) -> dict[int, tuple[tuple[str, int, int], ...]]:
    """Variable -> (tensor, dim, number of indices) of all it acts on; only variables that act on a parameter."""
    found: dict[int, dict[tuple[str, int], int]] = {}
    on_parameters = set[int]()
    for act in acts:
        for variables in act.variables:
            for variable in sorted(variables):
                place = found.setdefault(variable, {})
                place[act.tensor, act.dim] = place.get((act.tensor, act.dim), 0) + 1
                if act.is_parameter:
                    on_parameters.add(variable)
    return {v: tuple((t, d, n) for (t, d), n in places.items()) for v, places in found.items() if v in on_parameters}


def _marks(flow: Flow) -> dict[int, str]:
    """Variable -> the first of `_ORDER` that a rule said of it."""
    found: dict[int, str] = {}
    for dim, kind in flow.marks:
        for axis in dim:
            labels = flow.space.current(axis)
            for label in set() if labels is None else set(labels.tolist()):
                for variable in flow.space.labels.members(label):
                    found[variable] = min(found.get(variable, kind), kind, key=_ORDER.index)
    return found


def _footprint(act: _Acts, units: Mapping[int, int]) -> Footprint:
    pairs = [(k, units[v]) for k, variables in enumerate(act.variables) for v in sorted(variables) if v in units]
    both = np.array(pairs, dtype=np.int64)
    return Footprint(act.tensor, act.dim, both[:, 0], both[:, 1], act.role)
