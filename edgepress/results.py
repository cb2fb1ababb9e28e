"""What the steps of a run made, per target and for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgepress.baseline.artifacts import AtHand
from edgepress.bundle import digest
from edgepress.config import TargetPlan
from edgepress.stages import Stage
from edgepress.step import Result
from edgepress.targets.errors import EdgepressError
from edgepress.targets.nouns import Scheme


def loaded_bytes(export: Result) -> int:
    """What one device loads of an export: of an artifact with a file for each kind of device, the largest."""
    artifact = export.value["artifact"]
    return digest.loaded_bytes(digest.size_bytes(export.folder / "artifact" / artifact["path"]), artifact["facts"])


@dataclass(frozen=True)
class Candidate:
    """One scheme tried for a target.

    Attributes:
        scheme: what was tried.
        export: result of its export, or None when it failed.
        selection: its score on the selection share, where one was needed.
        held: the drop on the selection share is within what the recipe allows (`drops.allowance`; True where it was the only choice).
        why: in words.
        training: quantization-aware training that made its weights, None for post-training quantization.
        execution: what it answers on the selection share, where it was run there.
        latency: against the float model in the same runtime, where candidates are timed.
        chance: the drop is over what is allowed, but by no more than chance.
    """

    scheme: Scheme
    export: Result | None
    selection: Result | None
    held: bool
    why: str
    training: Result | None = None
    execution: Result | None = None
    latency: Result | None = None
    chance: bool = False

    @property
    def drop(self) -> float:
        """On the selection share; 0 where it was not taken."""
        return float(self.selection.value["drop"]) if self.selection and not self.selection.pending else 0.0

    @property
    def size_bytes(self) -> int | None:
        """What one device loads; None where there is no file."""
        return None if self.export is None or self.export.pending else loaded_bytes(self.export)


@dataclass
class TargetRun:
    """Everything one target went through; `reserves` ship in their order where the one before them fails on the validation share.

    `accepted` is the accepted release's artifact where it is at hand, `against_baseline` its latency beside that where a gate asks for it.
    """

    plan: TargetPlan
    tried: list[Candidate] = field(default_factory=list)
    chosen: Candidate | None = None
    fallback: dict[str, Any] | None = None
    mixed: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    reserves: list[Candidate] = field(default_factory=list)
    execution: Result | None = None
    score: Result | None = None
    slices: Result | None = None
    slices_error: str | None = None
    latency: Result | None = None
    pruned: Result | None = None
    latency_error: str | None = None
    accepted: AtHand | None = None
    against_baseline: Result | None = None
    against_baseline_error: str | None = None
    peak: Result | None = None
    peak_error: str | None = None
    memory: Result | None = None
    memory_error: str | None = None
    unmeasurable: str | None = None
    second: dict[str, Any] | None = None
    error: EdgepressError | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Prepared:
    """The float model and its data, ready for every target.

    Attributes:
        data: the shares of the user's datasets.
        source: the traced original: what latency is compared with.
        model: what is exported: the last stage's model, or the original.
        reference: what the original answers: every drop that is judged is counted from it.
        baseline: what `model` answers in float: a scheme is chosen by what it loses against it.
        original: the original's metric.
        stages: what the steps before quantization made.
        rebuilt: the last stage's model as a file for PyTorch, where it was pruned.
        calibration: activation statistics of `model`, where a scheme needs them.
        inputs: statistics of the calibration inputs, for devices that watch theirs.
        groups: the groups of the validation samples, where the recipe names slices.
    """

    data: Result
    source: Result
    model: Result
    reference: Result
    baseline: Result
    original: Result
    stages: tuple[Stage, ...]
    rebuilt: Result | None
    calibration: Result | None
    inputs: Result
    groups: Result | None = None

    @property
    def trained(self) -> Result:
        """The float model as the stages left it: `model` before `equalize` changed it."""
        return self.stages[-1].model if self.stages else self.source
