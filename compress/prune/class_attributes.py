"""What the whole-number attributes of a user's modules may become when the sizes they speak of shrink."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from edgepress.compress.prune.structure import Structure
from edgepress.compress.resize import sizes_in

#: Options kept per attribute, and different sizes that are combined with one another, so that a search stays short.
_OPTIONS = 8
_COMBINED = 40
#: A size that is shared out evenly: queries, keys and values in one matrix, the halves of a gated unit, the gates of a recurrent layer.
_SHARES = (2, 3, 4)
#: Layers of torch without tensors whose numbers are sizes of what flows through them.
_PASSIVE: dict[type[nn.Module], frozenset[str]] = {
    nn.Unflatten: frozenset({"unflattened_size"}),
    nn.ChannelShuffle: frozenset({"groups"}),
    nn.GroupNorm: frozenset({"num_groups", "num_channels"}),
}


class Change(NamedTuple):
    """A size before and after."""

    old: int
    new: int


@dataclass(frozen=True)
class Size:
    """One size that a module's code may speak of.

    Attributes:
        path: dotted path of the module that it belongs to.
        key: what it is, the same for corresponding sizes of other modules, e.g. "weight:0".
        change: before and after.
        kind: of the units it counts (see `Family.kind`); empty for a dimension or a layer's attribute.
        of_heads: it is a number of heads, a size of heads, or a dimension made of heads.
    """

    path: str
    key: str
    change: Change
    kind: str = ""
    of_heads: bool = False


@dataclass(frozen=True)
class Choice:
    """What one attribute of all modules of a class may become: one rule for the class, not one per module.

    Attributes:
        kind: the class.
        name: of the attribute.
        position: in it where it is a tuple or list, else None.
        paths: the modules of the class that have it.
        options: values per module, the likeliest first; the present values are among them. The first is right as far as names and sizes
            tell, also where no code reads the attribute.
    """

    kind: type[nn.Module]
    name: str
    position: int | None
    paths: tuple[str, ...]
    options: tuple[tuple[int, ...], ...]


def unit_counts(structure: Structure, removed: np.ndarray | None = None) -> dict[tuple[str, int, str, int], int]:
    """How many units of a kind stand along a dimension of a tensor.

    Args:
        structure: whose units.
        removed: bool (unit_count,), units not to count.

    Returns:
        (tensor, dimension, kind, which family of that kind; -1 for all of them together) -> count.
    """
    family_of = {unit: family for family in structure.families for unit in family.units}
    found: dict[tuple[str, int, str, int], int] = {}
    for footprint in structure.footprints:
        units = sorted(set(footprint.unit.tolist()))
        numbers: dict[str, dict[int, int]] = {}
        for unit in units:
            family = family_of[unit]
            number = numbers.setdefault(family.kind, {}).setdefault(family.index, len(numbers[family.kind]))
            alive = removed is None or not removed[unit]
            for which in (number, -1):
                key = (footprint.tensor, footprint.dim, family.kind, which)
                found[key] = found.get(key, 0) + alive
    return found


def choices(model: nn.Module, sizes: Sequence[Size]) -> list[Choice]:
    """The attributes that may have to change, each with what it may become.

    Args:
        model: the attributes have their old values.
        sizes: all that is known to have changed, and dimensions that have not.
    """
    inside = _inside(sizes)
    found = []
    for (kind, name, position), members in _numbers(model).items():
        paths = tuple(members)
        values = tuple(members.values())
        options = _options(name, values, _rows(paths, inside)) if max(values) > 1 else [values]
        if len(options) > 1:
            found.append(Choice(kind, name, position, paths, tuple(options[:_OPTIONS])))
    return found


def _inside(sizes: Sequence[Size]) -> dict[str, list[Size]]:
    """Path of a module -> the sizes at or below it."""
    found: dict[str, list[Size]] = {}
    for size in sizes:
        parts = size.path.split(".") if size.path else []
        for depth in range(len(parts) + 1):
            found.setdefault(".".join(parts[:depth]), []).append(size)
    return found


def _numbers(model: nn.Module) -> dict[tuple[type[nn.Module], str, int | None], dict[str, int]]:
    """(class, attribute, position) -> value per module that has it."""
    found: dict[tuple[type[nn.Module], str, int | None], dict[str, int]] = {}
    for path, part in model.named_modules():
        for name, value in _attributes(part):
            numbers = sizes_in(value) or ()
            for i, number in enumerate(numbers):
                position = i if isinstance(value, (tuple, list)) else None
                found.setdefault((type(part), name, position), {})[path] = number
    return found


def _attributes(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes of a user's module that are its own or its class's; of torch's modules only sizes that no tensor of theirs has."""
    if type(part).__module__.startswith("torch."):
        if not any(True for _ in part.parameters()):
            yield from ((name, getattr(part, name)) for name in _PASSIVE.get(type(part), ()))
        return
    bases = [kind for kind in type(part).__mro__ if kind.__module__.startswith("torch.") and kind is not nn.Module]
    torchs = {name for kind in bases for name in _set_by(kind)}
    classes = [kind for kind in reversed(type(part).__mro__) if issubclass(kind, nn.Module) and not kind.__module__.startswith("torch.")]
    known = {name: value for kind in classes for name, value in vars(kind).items()} | vars(part)
    yield from ((name, value) for name, value in known.items() if name not in torchs)


def _set_by(kind: type) -> tuple[str, ...]:
    """The names that a class's own constructor uses, its attributes among them."""
    code = getattr(vars(kind).get("__init__"), "__code__", None)
    return code.co_names if code is not None else ()


@dataclass(frozen=True)
class _Row:
    """One size in all modules of a class: its changes, None in those that do not have it; is it of the modules or their children?"""

    kind: str
    of_heads: bool
    near: bool
    changes: tuple[Change | None, ...]


def _rows(paths: Sequence[str], sizes: Mapping[str, Sequence[Size]]) -> list[_Row]:
    """The sizes at or below each module (of the nearest module around it that has any), lined up by what they are."""
    columns: dict[tuple[str, str], list[Size | None]] = {}
    distant: set[str] = set()
    for i, path in enumerate(paths):
        scope = path
        while scope and not sizes.get(scope):
            scope = scope.rpartition(".")[0]
        for size in sizes.get(scope, ()):
            inner = size.path.removeprefix(scope).lstrip(".")
            key = f"{inner}.{size.key}"
            columns.setdefault((key, size.kind), [None] * len(paths))[i] = size
            if scope != path or "." in inner:
                distant.add(key)
    rows = []
    for (key, kind), column in sorted(columns.items(), key=lambda item: item[0][0].count(".")):
        changes = tuple(None if size is None else size.change for size in column)
        rows.append(_Row(kind, any(size is not None and size.of_heads for size in column), key not in distant, changes))
    return rows


def _options(name: str, values: tuple[int, ...], rows: Sequence[_Row]) -> list[tuple[int, ...]]:
    """Values the attribute may take, the likeliest first."""
    direct = [(_rank(row.kind, name), new) for row in rows if (new := _read(values, row.changes)) not in (None, values)]
    ranked = [new for _, new in sorted(direct, key=lambda pair: pair[0]) if new is not None]
    return list(dict.fromkeys([_plausible(name, values, rows), *ranked, values, *_derived(values, rows)]))


def _plausible(name: str, values: tuple[int, ...], rows: Sequence[_Row]) -> tuple[int, ...]:
    """What the attribute becomes judging by near sizes equal to it; the present values where those say different things.

    Sizes that every module of the class has count more than those of some.
    """
    equal = [
        ((_rank(row.kind, name), None in row.changes), new)
        for row in rows
        if row.near and (row.of_heads or "head" not in name) and (new := _read(values, row.changes)) is not None
    ]
    best = min((rank for rank, _ in equal), default=(0, False))
    found = {new for rank, new in equal if rank == best}
    return found.pop() if len(found) == 1 else values


def _read(values: Sequence[int], changes: Sequence[Change | None]) -> tuple[int, ...] | None:
    """The new values where the old ones are those of the attribute, else None; a module without this size keeps its value."""
    if any(change is not None and change.old != value for value, change in zip(values, changes, strict=True)):
        return None
    return tuple(value if change is None else change.new for value, change in zip(values, changes, strict=True))


def _rank(kind: str, name: str) -> int:
    """Counts of units are likelier than a dimension that happens to be equal where the attribute's name speaks of them."""
    says_size = "dim" in name or "size" in name
    suits = {"heads": "head" in name and not says_size, "head_dims": says_size, "groups": "group" in name}
    return 1 if kind not in suits else 0 if suits[kind] else 2


def _derived(values: Sequence[int], rows: Sequence[_Row]) -> Iterator[tuple[int, ...]]:
    """Values computed from one or two sizes as the old ones are: shares, quotients, products of counts, halved differences."""
    distinct = list({row.changes: row for row in rows if None not in row.changes}.values())[:_COMBINED]
    for row in distinct:
        for share in _SHARES:
            yield from _apply(values, row.changes, row.changes, partial(_share, of=share))
    for formula in (_divide, lambda a, b: _divide(a - b, 2), lambda a, b: a - b):
        for one, other in permutations(distinct, 2):
            yield from _apply(values, one.changes, other.changes, formula)
    for one, other in combinations([row for row in distinct if row.kind], 2):
        yield from _apply(values, one.changes, other.changes, lambda a, b: a * b)


def _share(a: int, _: int, of: int) -> int | None:
    return _divide(a, of)


def _divide(a: int, b: int) -> int | None:
    """a / b where that is a whole number."""
    return a // b if b and a % b == 0 else None


def _apply(
    values: Sequence[int], ones: Sequence[Any], others: Sequence[Any], formula: Callable[[int, int], int | None]
) -> Iterator[tuple[int, ...]]:
    if all(formula(a.old, b.old) == value for value, a, b in zip(values, ones, others, strict=True)):
        new = [formula(a.new, b.new) for a, b in zip(ones, others, strict=True)]
        if all(number is not None and number >= 0 for number in new):
            yield tuple(new)  # type: ignore[arg-type]
