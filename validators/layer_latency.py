"""Time every layer of a model alone, at several widths, in one runtime: the table that pruning to a latency looks layers up in.

A layer is exported like any model and timed in the runtime's own session. Each program holds several copies of it, so that the call, and
what the runtime converts at its borders, weigh little; the time of a call that computes nothing is taken off. All widths of a layer, and
that call, take turns in one window, so that drift of the machine hits them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepress.targets.errors import EdgepressError, MeasurementError
from edgepress.targets.nouns import Signature
from edgepress.targets.progress import progress
from edgepress.validators.layer_bench import Bench, LayerPlan, Model, bench

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from edgepress.compress.prune.heavy import Configuration
    from edgepress.compress.prune.latency import LatencyTable, Point
    from edgepress.compress.prune.structure import Structure

#: Numbers in all weights that are open at once: half a gigabyte.
_LARGEST_WEIGHTS = 1 << 27
#: Shares of every family that the whole models timed beside the original lack.
_SHARES = (0.25, 0.5, 0.75)


def measure_layers(
    program: Path, structure: Structure, signature: Signature, samples: tuple[np.ndarray, ...], plan: LayerPlan
) -> LatencyTable:
    """Time the whole model, some pruned from it, and each of its layers.

    Args:
        program: the model's `.pt2`, float; it is quantized where the plan says so.
        structure: of that program.
        signature: the model's.
        samples: per input an array of shape (n >= 2 and >= batch, ...).
        plan: where and how long.

    Raises:
        RuntimeUnavailable: exporter or runtime is missing.
        MeasurementError: times of this runtime cannot be taken here, or a layer alone cannot be exported or run.
    """
    from edgepress.compress.program import load_program
    from edgepress.compress.prune.heavy import heavy_layers
    from edgepress.compress.prune.latency import Grid, LatencyTable, ModelTime, parts_of

    loaded = load_program(program)
    layers = {layer.name: layer.configuration for layer in heavy_layers(loaded, structure, plan.batch)}
    configurations = {configuration.key: configuration for configuration in layers.values()}
    widths = widths_of(list(configurations.values()), plan)
    removals = even_removals(structure, plan.multiple)
    keys = {name: configuration.key for name, configuration in layers.items()}
    with bench(plan) as machine:
        *models, call = _models(machine, loaded, structure, removals, Model(signature, samples, plan.batch))
        points: dict[str, tuple[Point, ...]] = {}
        for key, configuration in configurations.items():
            sides = " -> ".join(map(str, configuration.widths))
            progress(f"timing {configuration.op} {sides}", sum(map(len, points.values())), sum(map(len, widths.values())))
            points[key] = time_layer(machine, configuration, widths[key], plan)
    parts = parts_of({key: Grid.of(measured) for key, measured in points.items()}, keys, structure, loaded)
    return LatencyTable(
        runtime=plan.runtime,
        executed_by=machine.executed_by,
        precision=plan.scheme.precision,
        threads=plan.threads,
        batch=plan.batch,
        call_ms=call,
        models=tuple(ModelTime(*parts(removed), ms) for removed, ms in zip(removals, models, strict=True)),
        layers=keys,
        points=points,
    )


def even_removals(structure: Structure, multiple: int) -> list[np.ndarray]:
    """Nothing, and what takes the same share of every family and leaves multiples; only what leaves something everywhere."""
    from edgepress.compress.prune.select import SelectSettings

    settings = SelectSettings(multiple=multiple)
    found = [np.zeros(structure.unit_count, dtype=bool)]
    for share in _SHARES:
        removed = found[0].copy()
        for family in structure.families:
            step = settings.multiple_of(family.kind) if len(family.units) > multiple else 1
            kept = max(1, round(len(family.units) * (1 - share) / step)) * step
            removed[list(family.units[kept:])] = True
        if structure.smallest(removed) > 0 and not any(np.array_equal(removed, other) for other in found):
            found.append(removed)
    return found


def _models(machine: Bench, program: ExportedProgram, structure: Structure, removals: Sequence[np.ndarray], model: Model) -> list[float]:
    """Milliseconds of whole models, and of the call."""
    import torch

    from edgepress.compress.prune import remove

    for done, removed in enumerate(removals):
        progress("exporting whole models", done, len(removals))
        path = machine.folder / "model.pt2"
        torch.export.save(remove(program, structure, removed) if removed.any() else program, path)
        machine.add_saved(path, model)
    progress("timing whole models")
    return machine.window()


def time_layer(machine: Bench, configuration: Configuration, widths: Sequence[tuple[int, int]], plan: LayerPlan) -> tuple[Point, ...]:
    """Time one configuration at these (reading, making) widths.

    Returns:
        For each its milliseconds, without the call.

    Raises:
        MeasurementError: the layer alone cannot be exported or run in this runtime.
    """
    from edgepress.validators.layer_programs import layer_module

    fit = _LARGEST_WEIGHTS // max(configuration.weight_size, 1)
    copies = max(1, min(plan.copies, fit))
    together = max(1, fit // copies)
    points: list[Point] = []
    try:
        for start in range(0, len(widths), together):
            part = widths[start : start + together]
            for pair in part:
                machine.add(layer_module(configuration, pair, copies))
            *times, call = machine.window()
            points += [(*pair, max(taken - call, 0.0) / copies) for pair, taken in zip(part, times, strict=True)]
    except EdgepressError as error:
        raise MeasurementError(f"layer {configuration.key} cannot be timed alone in {plan.runtime}", str(error), "") from error
    return tuple(points)


def widths_of(configurations: Sequence[Configuration], plan: LayerPlan) -> dict[str, list[tuple[int, int]]]:
    """The (reading, making) widths at which each configuration is timed, with as many per side as `plan.exports` allows."""
    for count in range(plan.widths, 1, -1):
        found = {c.key: _pairs(c, plan.multiple, count) for c in configurations}
        if sum(map(len, found.values())) <= plan.exports:
            break
    return found


def _pairs(configuration: Configuration, multiple: int, count: int) -> list[tuple[int, int]]:
    """Every width of one side with the other at full width, and a few pairs of both small."""
    reads, makes = (
        _widths(size, configuration.step(side, multiple), count) if configuration.free[side] else [size]
        for side, size in enumerate(configuration.widths)
    )
    line = [(read, makes[-1]) for read in reads] + [(reads[-1], make) for make in makes[:-1]]
    few_reads, few_makes = (sorted({side[0], side[(len(side) - 1) // 2]} - {side[-1]}) for side in (reads, makes))
    return line + [(read, make) for read in few_reads for make in few_makes]


def _widths(size: int, step: int, count: int) -> list[int]:
    """At most `count` multiples of `step` up to `size`, evenly spread."""
    steps = [*range(step, size, step), size]
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(count, len(steps))).round().astype(int))
    return [steps[i] for i in chosen]
