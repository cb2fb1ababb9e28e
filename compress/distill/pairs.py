"""Which layer of the student learns from which layer of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepress.compress.distill.features import Layer, match
from edgepress.compress.distill.projectors import channel_dim
from edgepress.targets.errors import TrainingError

#: Pairs taken where a whole model keeps one size, as a transformer does.
_PAIRS_OF_ONE_SIZE = 3


@dataclass(frozen=True)
class Pair:
    """A layer of the student and the layer of the teacher that it copies; `dim` is the axis of their channels."""

    student: Layer
    teacher: Layer
    dim: int


def named_pairs(names: Sequence[tuple[str, str]], student: Sequence[Layer], teacher: Sequence[Layer]) -> tuple[Pair, ...]:
    """Pairs that the user named; patterns that match several layers are paired in order.

    Raises:
        TrainingError: a pattern matches nothing, both match different numbers of layers, or a pair's shapes do not go together.
    """
    pairs: list[Pair] = []
    for left, right in names:
        found, wanted = match(left, student, "student"), match(right, teacher, "teacher")
        if len(found) != len(wanted):
            raise TrainingError(
                f"{left!r} matches {len(found)} layers of the student and {right!r} {len(wanted)} of the teacher",
                "layers are paired one to one",
                "Name them one by one.",
            )
        pairs += [_pair(a, b) for a, b in zip(found, wanted, strict=True)]
    return tuple(pairs)


def automatic_pairs(student: Sequence[Layer], teacher: Sequence[Layer]) -> tuple[Pair, ...]:
    """Pairs by shape and depth: for every size of places that both models have, the blocks that end the run of that size.

    A model that keeps one size throughout (a transformer) gives up to three pairs of its numbered blocks, evenly spaced in depth.

    Raises:
        TrainingError: the models share no size.
    """
    ours, theirs = _stages(student), _stages(teacher)
    common = [places for places in ours if places in theirs]
    if not common:
        shapes = [", ".join(map(str, stages)) or "none" for stages in (ours, theirs)]
        raise TrainingError(
            "student and teacher have no layers of one size", f"places are {shapes[0]} and {shapes[1]}", "Name pairs of layers."
        )
    count = _PAIRS_OF_ONE_SIZE if len(common) == 1 else 1
    return tuple(pair for places in common for pair in _stage_pairs(ours[places], theirs[places], count))


def _stage_pairs(student: list[Layer], teacher: list[Layer], count: int) -> list[Pair]:
    """The last blocks of a stage, and up to `count` in all at even distances before them."""
    ours, theirs = (_numbered(layers) if count > 1 else layers[-1:] for layers in (student, teacher))
    pairs = []
    for part in range(1, min(count, len(ours)) + 1):
        share = part / min(count, len(ours))
        pairs.append(_pair(*(layers[max(round(share * len(layers)), 1) - 1] for layers in (ours, theirs))))
    return pairs


def _pair(student: Layer, teacher: Layer) -> Pair:
    if len(student.shape) != len(teacher.shape):
        raise TrainingError(
            f"layer {student.name!r} of the student has shape {student.shape}, {teacher.name!r} of the teacher {teacher.shape}",
            "they differ in the number of dimensions",
            "Name another pair of layers.",
        )
    return Pair(student, teacher, channel_dim(student.shape, teacher.shape, student.channel_dim))


def _stages(layers: Sequence[Layer]) -> dict[tuple[int, ...], list[Layer]]:
    """Layers that hold other layers (all, where none does), by the sizes of their places.

    Outputs without places (logits, pooled features) are no feature maps.
    """
    parents = {layer.name.rpartition(".")[0] for layer in layers}
    maps = [layer for layer in layers if len(layer.shape) > 2]
    stages: dict[tuple[int, ...], list[Layer]] = {}
    for layer in [layer for layer in maps if layer.name in parents] or maps:
        places = tuple(size for dim, size in enumerate(layer.shape) if dim not in (0, layer.channel_dim))
        stages.setdefault(places, []).append(layer)
    return stages


def _numbered(layers: list[Layer]) -> list[Layer]:
    """The most numerous group of siblings whose names end in a number (`blocks.0`, `blocks.1`, ...); the last layer where there is none."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        parent, _, last = layer.name.rpartition(".")
        if last.isdigit():
            groups.setdefault(parent, []).append(layer)
    return max(groups.values(), key=len, default=layers[-1:])
