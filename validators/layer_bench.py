"""A bench for small programs: exports each, opens it in one runtime, and times all that are open in turns."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edgepress.targets.errors import EdgepressError, MeasurementError, QuantizationError
from edgepress.targets.nouns import Scheme, Signature, Target

FP32 = Scheme("fp32", "float")
INT8 = Scheme("int8", "static")
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
        scheme: float, or integers with calibrated ranges; a program that has nothing to quantize stays float.
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
    scheme: Scheme = FP32

    def __post_init__(self) -> None:
        if min(self.threads, self.batch, self.multiple, self.copies, self.exports, self.rounds, self.least) < 1 or self.widths < 2:
            raise MeasurementError(f"a plan of {self}", "", "Take 1 or more of everything, and 2 widths or more.")


@dataclass(frozen=True)
class Model:
    """What calls of a saved program need: its signature, per input samples of shape (n >= 2, ...), and how many of them a call takes."""

    signature: Signature
    samples: tuple[np.ndarray, ...]
    batch: int


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

        self._plan, self.folder, self._clock = plan, folder, clock
        self._runtime, self._exporter = RUNTIMES.get(plan.runtime)(), EXPORTERS.get(plan.runtime)
        if reason := self._runtime.timing_unavailable():
            raise MeasurementError(
                f"latency in {plan.runtime} cannot be taken here", reason, "Choose a budget of MACs, parameters or size."
            )
        self._made: list[Path] = []
        self._opened = ExitStack()
        self._calls: list[Callable[[], object]] = []
        self.executed_by = ""
        self.add(Nothing(plan.batch), FP32)
        self._nothing, self._base = self._calls.pop(), self._opened.pop_all()

    def add(self, module: Any, scheme: Scheme | None = None) -> None:
        """Export a module of `layer_programs`, in the plan's scheme or another, and open it."""
        from edgepress.validators.layer_programs import save_program

        path = self.folder / "program.pt2"
        signature, samples = save_program(module, path)
        self.add_saved(path, Model(signature, samples, len(module.inputs[0])), scheme)

    def add_saved(self, program: Path, model: Model, scheme: Scheme | None = None) -> None:
        """Export a saved program, in the plan's scheme or another, and open it."""
        from edgepress.exporters.base import ExportRequest

        scheme = scheme or self._plan.scheme
        statistics = self._statistics(program, model) if scheme.kind == "static" else None
        target = Target(
            f"{self._plan.runtime}:layer", self._plan.runtime, "", scheme.precision, threads=self._plan.threads, batch=model.batch
        )
        request = ExportRequest(program, model.signature, statistics, target, scheme, model.samples)
        folder = self.folder / str(len(self._made))
        self._made.append(folder)
        try:
            artifact = self._exporter().export(request, folder)
        except QuantizationError:  # nothing in it has an integer kernel, so the model that it is part of keeps it in float too
            artifact = self._exporter().export(replace(request, statistics=None, scheme=FP32), folder)
        session = self._opened.enter_context(self._runtime.open(artifact, folder, self._plan.threads))
        named = zip(model.signature.inputs, model.samples, strict=True)
        self._calls.append(session.bind({spec.name: np.ascontiguousarray(sample[: model.batch]) for spec, sample in named}))
        self.executed_by = session.executed_by

    def _statistics(self, program: Path, model: Model) -> Path:
        """Ranges from the few samples there are: they set no speed."""
        import torch

        from edgepress.compress.program import load_program
        from edgepress.compress.quantize import calibrate

        path = self.folder / "statistics"
        samples = tuple(torch.from_numpy(sample) for sample in model.samples)
        calibrate(load_program(program), [samples], observer="minmax").save(path)
        return path

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
