"""Time every layer of a model alone, at several widths, in one runtime: the table that pruning to a latency looks layers up in.

A layer is exported like any model and timed in the runtime's own session. Each program holds several copies of it, so that the call, and
what the runtime converts at its borders, weigh little; the time of a call that computes nothing is taken off. All widths of a layer, and
that call, take turns in one window, so that drift of the machine hits them alike.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepress.targets.errors import EdgepressError, MeasurementError
from edgepress.targets.nouns import Scheme, Signature, Target
from edgepress.targets.progress import progress

if TYPE_CHECKING:
    from edgepress.compress.prune.heavy import Configuration
    from edgepress.compress.prune.latency import LatencyTable, Point
    from edgepress.compress.prune.structure import Structure

_FP32 = Scheme("fp32", "float")
#: Numbers in all weights that are open at once: half a gigabyte.
_LARGEST_WEIGHTS = 1 << 27
Clock = Callable[[], int]


@dataclass(frozen=True)
class LayerPlan:
    """What is timed, and how long.

    Attributes:
        runtime: key of the exporter and the runtime.
        threads, batch: of every call.
        multiple: widths are multiples of it, as the pruned model's will be.
        copies: of the layer in one program.
        widths: most widths per side.
        exports: most programs in all; with more configurations each gets fewer widths.
        rounds: most calls of each program, after a tenth as warm-up.
        seconds: no round of a window starts later, but for the first `least`.
        least: fewest rounds.
    """

    runtime: str
    threads: int = 1
    batch: int = 1
    multiple: int = 8
    copies: int = 4
    widths: int = 8
    exports: int = 160
    rounds: int = 200
    seconds: float = 2.0
    least: int = 20

    def __post_init__(self) -> None:
        if min(self.threads, self.batch, self.multiple, self.copies, self.exports, self.rounds, self.least) < 1 or self.widths < 2:
            raise MeasurementError(f"a plan of {self}", "", "Take 1 or more of everything, and 2 widths or more.")


def measure_layers(
    program: Path, structure: Structure, signature: Signature, samples: Mapping[str, np.ndarray], plan: LayerPlan
) -> LatencyTable:
    """Time the whole model and each of its layers.

    Args:
        program: the model's `.pt2`, float.
        structure: of that program.
        signature: the model's.
        samples: inputs by name, of shape (n >= 2 and >= batch, ...).
        plan: where and how long.

    Raises:
        RuntimeUnavailable: exporter or runtime is missing.
        MeasurementError: times of this runtime cannot be taken here, or a layer alone cannot be exported or run.
    """
    import torch

    from edgepress.compress.prune.heavy import heavy_layers
    from edgepress.compress.prune.latency import LatencyTable, light_elements

    loaded = torch.export.load(program)
    layers = heavy_layers(loaded, structure, plan.batch)
    configurations = {layer.configuration.key: layer.configuration for layer in layers}
    grids = widths_of(list(configurations.values()), plan)
    with bench(plan) as machine:
        progress("timing the whole model")
        machine.add_saved(program, signature, tuple(np.array(samples[spec.name]) for spec in signature.inputs), plan.batch)
        whole, call = machine.window()
        points: dict[str, tuple[Point, ...]] = {}
        total = sum(map(len, grids.values()))
        done = 0
        for key, configuration in configurations.items():
            progress(f"timing {configuration.op} {configuration.widths[0]} -> {configuration.widths[1]}", done, total)
            points[key] = _points(machine, configuration, grids[key], plan)
            done += len(grids[key])
        return LatencyTable(
            runtime=plan.runtime,
            executed_by=machine.executed_by,
            precision=_FP32.precision,
            threads=plan.threads,
            batch=plan.batch,
            whole_ms=whole,
            call_ms=call,
            elements=light_elements(loaded, structure, layers),
            layers={layer.name: layer.configuration.key for layer in layers},
            points=points,
        )


def _points(machine: Bench, configuration: Configuration, widths: Sequence[tuple[int, int]], plan: LayerPlan) -> tuple[Point, ...]:
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


class Bench:
    """Exports programs, opens them in one runtime, and times all that are open in turns.

    Args:
        plan: the runtime, and how long.
        folder: for the exports.
        clock: nanoseconds; a test hands in its own.

    Raises:
        RuntimeUnavailable: exporter or runtime is missing.
        MeasurementError: times of this runtime cannot be taken here.
    """

    def __init__(self, plan: LayerPlan, folder: Path, clock: Clock = time.perf_counter_ns) -> None:
        from edgepress.exporters import EXPORTERS
        from edgepress.validators.layer_programs import Nothing
        from edgepress.validators.runtimes import RUNTIMES

        self._plan, self._folder, self._clock = plan, folder, clock
        self._runtime, self._exporter = RUNTIMES.get(plan.runtime)(), EXPORTERS.get(plan.runtime)
        if reason := self._runtime.timing_unavailable():
            raise MeasurementError(
                f"latency in {plan.runtime} cannot be taken here", reason, "Choose a budget of MACs, parameters or size."
            )
        self._made: list[Path] = []
        self._opened = ExitStack()
        self._calls: list[Callable[[], object]] = []
        self.executed_by = ""
        self.add(Nothing(plan.batch))
        self._nothing, self._base = self._calls.pop(), self._opened.pop_all()

    def add(self, module: Any) -> None:
        """Export a module of `layer_programs` and open it."""
        from edgepress.validators.layer_programs import save_program

        path = self._folder / "program.pt2"
        signature, samples = save_program(module, path)
        self.add_saved(path, signature, samples, len(module.inputs[0]))

    def add_saved(self, program: Path, signature: Signature, samples: tuple[np.ndarray, ...], batch: int) -> None:
        """Export a saved program and open it for calls of `batch` samples."""
        from edgepress.exporters.base import ExportRequest

        target = Target(f"{self._plan.runtime}:layer", self._plan.runtime, "", "fp32", threads=self._plan.threads, batch=batch)
        request = ExportRequest(program, signature, None, target, _FP32, samples)
        folder = self._folder / str(len(self._made))
        self._made.append(folder)
        artifact = self._exporter().export(request, folder)
        session = self._opened.enter_context(self._runtime.open(artifact, folder, self._plan.threads))
        self._calls.append(session.bind({s.name: np.ascontiguousarray(a[:batch]) for s, a in zip(signature.inputs, samples, strict=True)}))
        self.executed_by = session.executed_by

    def window(self) -> list[float]:
        """Median milliseconds of every open program in the order they were added, then of the empty one; closes them."""
        times = interleaved([*self._calls, self._nothing], self._plan, self._clock)
        self._calls.clear()
        self._opened.close()
        while len(self._made) > 1:  # the first is the empty program, which stays open
            shutil.rmtree(self._made.pop(), ignore_errors=True)
        return times

    def close(self) -> None:
        """Release every session."""
        self._opened.close()
        self._base.close()


@contextmanager
def bench(plan: LayerPlan) -> Iterator[Bench]:
    """A bench whose files and sessions are gone afterwards."""
    with TemporaryDirectory() as folder:
        machine = Bench(plan, Path(folder))
        try:
            yield machine
        finally:
            machine.close()


def interleaved(calls: Sequence[Callable[[], object]], plan: LayerPlan, clock: Clock = time.perf_counter_ns) -> list[float]:
    """Call each in turn, in a new order every round, and take the median time of each in milliseconds.

    Raises:
        MeasurementError: a call failed.
    """
    shuffled = np.random.default_rng(0)
    taken: list[list[int]] = []
    deadline = clock() + int(plan.seconds * 1e9)
    collecting = gc.isenabled()
    gc.disable()  # a collection would land on any of them at random
    try:
        warm_up = max(3, plan.rounds // 10)
        while len(taken) < warm_up + plan.rounds and (len(taken) < plan.least or clock() < deadline):
            taken.append([0] * len(calls))
            for which in shuffled.permutation(len(calls)).tolist():
                start = clock()
                calls[which]()
                taken[-1][which] = clock() - start
    except EdgepressError:
        raise
    except Exception as error:  # a runtime may raise anything; there is no latency then
        raise MeasurementError("a layer failed while its latency was taken", f"{type(error).__name__}: {error}") from error
    finally:
        if collecting:
            gc.enable()
    kept = taken[min(warm_up, len(taken) // 4) :]
    return [float(value) / 1e6 for value in np.median(np.asarray(kept, dtype=np.float64), axis=0)]
