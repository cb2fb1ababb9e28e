"""Latency and peak memory of one artifact, each in a process of its own with nothing else running."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepress.targets.errors import MeasurementError
from edgepress.targets.nouns import Artifact, Signature
from edgepress.targets.progress import progress
from edgepress.validators.latency import LatencyPlan, Sides

if TYPE_CHECKING:
    from edgepress.validators.runtimes.base import Runtime, Session

_SAMPLES = 8
#: Enough pairs for a p99 (662) where the model is fast enough; a slow model gets what fits into the time.
FIRST = LatencyPlan(min_pairs=664, max_pairs=664, seconds=10.0)
#: Goes on until a limit is decided; of the first window's time at most so many times as much.
MORE = LatencyPlan(min_pairs=64, max_pairs=4000, seconds=45.0)
_LONGER = MORE.seconds / FIRST.seconds
_SPREAD = (0.05, 0.5, 0.95)
_PERCENTILES = (50, 90, 95, 99)


def latency(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time an artifact against another one in the same runtime, mostly the float model, in interleaved pairs.

    Args:
        params: `runtime`, `artifact`, `reference` (the other artifact), `signature`, `threads`, `batch`, `confidence`, `seconds` of a
            first window; `limit` where that left the gate undecided: pairs are then added until it is decided or 4.5 times the time
            is up. `inputs` names the folders of `export`, `float_export` and `data`.
        folder: receives `times_ms.npy` of shape (2, pairs): candidate, reference.
    """
    from edgepress.validators.conditions import Watch
    from edgepress.validators.latency import compare_opened
    from edgepress.validators.percentiles import latency_summary, percentile_interval, percentile_ms
    from edgepress.validators.runtimes import RUNTIMES

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    samples = _batch(inputs["data"], params)
    runtime = RUNTIMES.get(params["runtime"])()
    candidate = Artifact.from_json(params["artifact"])
    reference = Artifact.from_json(params["reference"])
    limit = params.get("limit")
    seconds = params["seconds"]
    plan = replace(FIRST, seconds=seconds) if limit is None else replace(MORE, seconds=_LONGER * seconds)
    progress(f"timing against {reference.scheme.label}")
    new = Side(candidate, inputs["export"] / "artifact", samples)
    old = Side(reference, inputs["float_export"] / "artifact", samples)
    opened = InTurns(runtime, new, old, params["threads"])
    watch = Watch()
    found = compare_opened(opened, limit=limit, confidence=params["confidence"], plan=plan)
    conditions = watch.end().to_json()
    name = f"{reference.scheme.label} in {opened.executed_by}"
    times = found.candidate_ms
    np.save(folder / "times_ms.npy", np.stack([times, found.reference_ms]))
    percentiles = {}
    for percent in _PERCENTILES:
        value = percentile_ms(times, percent / 100)
        if value is not None:
            percentiles[str(percent)] = [value, *percentile_interval(times, percent / 100)]
    spread = {
        side: [float(x) for x in np.quantile(taken, _SPREAD)] for side, taken in (("candidate", times), ("reference", found.reference_ms))
    }
    return {
        "latency_ms": latency_summary(times, params["threads"], params["batch"]) | {"conditions": conditions, "spread": spread},
        "latency_ratio": found.to_json(name),
        "pairs": found.pairs,
        "how": found.evidence(name).how,
        "percentiles": percentiles,
    }


def memory(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Peak memory of this process, which loads and runs one artifact and does nothing else."""
    from edgepress.validators.memory import peak_memory

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    samples = _batch(inputs["data"], params)
    peak = peak_memory(inputs["export"] / "artifact", params["artifact"], params["runtime"], samples, params["threads"], params["batch"])
    return peak.to_json()


def peak(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What this machine's processor reaches in int8 and in float32 on `threads`, in multiply-accumulates per second."""
    from edgepress.validators.peak import measure_peak

    progress("timing matrix products")
    return measure_peak(params["threads"]).to_json()


def pair(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time two shipped artifacts of one runtime against each other on golden samples.

    Args:
        params: `candidate` and `reference`, each `{"runtime", "artifact", "folder"}`, and `threads`.
    """
    from edgepress.validators.latency import compare_opened
    from edgepress.validators.percentiles import percentile_ms
    from edgepress.validators.runtimes import RUNTIMES

    sides = [params["candidate"], params["reference"]]
    runtime = RUNTIMES.get(sides[0]["runtime"])()
    if reason := runtime.timing_unavailable():
        raise MeasurementError(f"latency in {sides[0]['runtime']} cannot be taken here", reason)
    new, old = (Side(Artifact.from_json(side["artifact"]), Path(side["folder"]), _golden(Path(side["folder"]))) for side in sides)
    opened = InTurns(runtime, new, old, params["threads"])
    found = compare_opened(opened, plan=FIRST)
    return {
        "ratio": found.ratio,
        "interval": list(found.interval),
        "pairs": found.pairs,
        "candidate_p50_ms": percentile_ms(found.candidate_ms, 0.5),
        "reference_p50_ms": percentile_ms(found.reference_ms, 0.5),
        "executed_by": opened.executed_by,
    }


@dataclass(frozen=True)
class Side:
    """One artifact of a comparison, and the inputs it is timed on."""

    artifact: Artifact
    folder: Path
    inputs: Mapping[str, np.ndarray]


class InTurns:
    """Opens two artifacts of one runtime, in the order asked for (`compare_opened`); `executed_by` is the reference's, once opened."""

    def __init__(self, runtime: Runtime, candidate: Side, reference: Side, threads: int) -> None:
        self._runtime, self._sides, self._threads = runtime, (candidate, reference), threads
        self.executed_by = ""

    @contextmanager
    def __call__(self, reference_first: bool) -> Iterator[Sides]:
        """Both opened, as calls of one inference each: (candidate, reference)."""
        with ExitStack() as stack:
            sessions: dict[int, Session] = {}
            for place in (1, 0) if reference_first else (0, 1):
                side = self._sides[place]
                sessions[place] = stack.enter_context(self._runtime.open(side.artifact, side.folder, self._threads))
            self.executed_by = sessions[1].executed_by
            yield sessions[0].bind(self._sides[0].inputs), sessions[1].bind(self._sides[1].inputs)


def _golden(folder: Path) -> dict[str, np.ndarray]:
    """The first golden sample of a shipped artifact."""
    with np.load(folder / "golden_inputs.npz") as golden:
        return {name: golden[name][:1] for name in golden.files}


def _batch(data: Path, params: dict[str, Any]) -> dict[str, np.ndarray]:
    """One batch of real samples, repeated where the data has fewer."""
    from edgepress.steps.arrays import load_inputs

    found = load_inputs(data / "validation", Signature.from_json(params["signature"]), max(_SAMPLES, params["batch"]))
    rows = np.arange(params["batch"]) % len(next(iter(found.values())))
    return {name: np.ascontiguousarray(value[rows]) for name, value in found.items()}
