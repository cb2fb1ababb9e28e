"""The way of a model through edgepress, as steps: the same code runs them and plans them.

data -> model -> reference -> [prune, train, distill: stages.py] -> calibrate -> per target: export -> execute -> score -> latency, memory
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgepress.config import Config, TargetPlan
from edgepress.config_steps import QatConfig
from edgepress.isolate import Limits
from edgepress.machine import cores
from edgepress.stages import Origin, Stage, Stages
from edgepress.step import Executor, Result, Step
from edgepress.targets.catalog import CATALOG
from edgepress.targets.errors import EdgepressError
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for
from edgepress.validators.runtimes import RUNTIMES

_CONFIDENCE = 0.95
_PROJECT = "edgepress.compress.project.steps"


@dataclass(frozen=True)
class Candidate:
    """One scheme tried for a target.

    Attributes:
        scheme: what was tried.
        export: result of its export, or None when it failed.
        selection: its score on the selection share, where one was needed.
        held: the drop on the selection share is within the recipe's `max_drop` (True where it was the only choice).
        why: in words.
        training: quantization-aware training that made its weights, None for post-training quantization.
    """

    scheme: Scheme
    export: Result | None
    selection: Result | None
    held: bool
    why: str
    training: Result | None = None

    @property
    def drop(self) -> float:
        """On the selection share; 0 where it was not taken."""
        return float(self.selection.value["drop"]) if self.selection and not self.selection.pending else 0.0


@dataclass
class TargetRun:
    """Everything one target went through."""

    plan: TargetPlan
    tried: list[Candidate] = field(default_factory=list)
    chosen: Candidate | None = None
    execution: Result | None = None
    score: Result | None = None
    latency: Result | None = None
    latency_error: str | None = None
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
        reference: what the original answers: every drop is counted from it.
        original: the original's metric.
        stages: what the steps before quantization made.
        rebuilt: the last stage's model as a file for PyTorch, where it was pruned.
        calibration: activation statistics of `model`, where a scheme needs them.
    """

    data: Result
    source: Result
    model: Result
    reference: Result
    original: Result
    stages: tuple[Stage, ...]
    rebuilt: Result | None
    calibration: Result | None


class Pipeline:
    """Builds the steps of a recipe and hands them to an executor.

    Args:
        config: the recipe.
        plans: its targets, or those that were asked for.
        executor: runs or plans steps.
    """

    def __init__(self, config: Config, plans: Sequence[TargetPlan], executor: Executor) -> None:
        self.config, self.plans, self._do = config, plans, executor.do
        self._limits = Limits(config.run.timeout, int(config.run.memory))

    def prepare(self) -> Prepared:
        """The steps all targets share.

        Raises:
            EdgepressError: the user's model, checkpoint, data or metric cannot be used; no target can run then.
        """
        config = self.config
        data = self._user("data", f"{_PROJECT}:collect", config.collect_params(), {})
        model = self._user("model", f"{_PROJECT}:trace", config.trace_params(), {"data": data}, (config.checkpoint,))
        reference = self._user("reference", f"{_PROJECT}:reference", {"metric": config.metric}, {"model": model, "data": data})
        params = {"metric": config.metric, "root": str(config.root), "signature": self._signature(model)}
        original = self._user("score original", "edgepress.steps.score:original", params, {"reference": reference, "data": data})
        source, steps, origin = model, Stages(config, self._do), Origin(data, model, reference)
        stages = steps.run(origin)
        rebuilt = steps.rebuilt(origin, stages)
        model = stages[-1].model if stages else source
        calibration = None
        if any(scheme.kind.startswith("static") for plan in self.plans for scheme in self.schemes(plan)):
            calibration = self._calibrate("calibrate", model, data)
        return Prepared(data, source, model, reference, original, stages, rebuilt, calibration)

    def _calibrate(self, name: str, model: Result, data: Result) -> Result:
        observer = self.config.quantize.observer if self.config.quantize else "histogram"
        params = {"observer": observer, "signature": self._signature(model)}
        return self._shared(name, "edgepress.steps.quantize:calibrate", params, {"model": model, "data": data})

    def schemes(self, plan: TargetPlan) -> list[Scheme]:
        """How the target's precision may be carried out, in the order of trial."""
        precision = plan.target.precision
        if precision == "int8":
            chosen = self.config.quantize.scheme if self.config.quantize else "auto"
            kinds = rules_for(plan.target.runtime).ladder if chosen == "auto" else (chosen,)
        else:
            kinds = ("weights",) if precision == "int8-weights" else ("float",)
        return [Scheme(precision, kind) for kind in kinds]

    def compress(self, plan: TargetPlan, prepared: Prepared) -> TargetRun:
        """Export, execute and score one target; try the next scheme while outputs do not hold."""
        run = TargetRun(plan)
        try:
            self._choose(run, prepared)
            if run.chosen is not None and run.chosen.export is not None:
                export = run.chosen.export
                run.execution = self._execute(plan, prepared, export, "validation", plan.target.runtime)
                run.score = self._score(plan, prepared, run.execution, "validation")
                run.second = self._second(plan, prepared, export)
        except EdgepressError as error:
            run.error = error
        return run

    def measure(self, run: TargetRun, prepared: Prepared) -> None:
        """Latency beside the float model in the same runtime, and peak memory; each alone on the machine."""
        if run.error is not None or run.chosen is None or run.chosen.export is None:
            return
        plan, export = run.plan, run.chosen.export
        run.unmeasurable = RUNTIMES.get(plan.target.runtime)().timing_unavailable()
        if run.unmeasurable is not None:
            return
        common = self._measured(plan, prepared, export)
        try:
            run.latency = self._latency(plan, prepared, export, common)
        except EdgepressError as error:
            run.latency_error = str(error)
        try:
            inputs = {"export": export, "data": prepared.data}
            run.memory = self._machine(f"memory {plan.target.name}", "edgepress.steps.measure:memory", common, inputs, plan.target.threads)
        except EdgepressError as error:
            run.memory_error = str(error)

    def _latency(self, plan: TargetPlan, prepared: Prepared, export: Result, common: Mapping[str, Any]) -> Result:
        """One window of pairs; where it leaves the recipe's limit undecided, a second one that goes on until it is decided."""
        gate = next((gate for gate in plan.gates if gate.name == "latency_ratio"), None)
        float_export = self._export(plan, prepared, Scheme("fp32", "float"), baseline=True)
        inputs = {"export": export, "float_export": float_export, "data": prepared.data}
        confidence = gate.confidence if gate else _CONFIDENCE
        params = {**common, "reference": float_export.value.get("artifact"), "confidence": confidence}
        name, function = f"latency {plan.target.name}", "edgepress.steps.measure:latency"
        first = self._machine(name, function, params, inputs, plan.target.threads)
        if gate is None or first.pending:
            return first
        low, high = first.value["latency_ratio"]["interval"]
        if not low <= gate.limit <= high:
            return first
        return self._machine(f"{name}, more pairs", function, {**params, "limit": gate.limit}, inputs, plan.target.threads)

    def _choose(self, run: TargetRun, prepared: Prepared) -> None:
        """Walk the ladder: the first scheme that holds, else the one that lost least."""
        schemes = self.schemes(run.plan)
        last: EdgepressError | None = None
        for scheme in schemes:
            try:
                candidates = self._tries(run.plan, prepared, scheme, only=len(schemes) == 1)
            except EdgepressError as error:
                last = error
                run.tried.append(Candidate(scheme, None, None, False, str(error)))
                continue
            run.tried += candidates
            best = min(candidates, key=lambda candidate: candidate.drop)
            if best.held:
                run.chosen = best
                return
        made = [c for c in run.tried if c.export is not None and c.selection is not None]
        if not made:
            raise last or EdgepressError(f"target {run.plan.target.name!r} has no scheme to try")
        run.chosen = min(made, key=lambda candidate: candidate.drop)

    def _tries(self, plan: TargetPlan, prepared: Prepared, scheme: Scheme, only: bool) -> list[Candidate]:
        """One scheme: as it is, and after quantization-aware training where the recipe asks for it. The first wins where they tie."""
        quantize = self.config.quantize
        train = quantize is not None and quantize.method == "qat" and scheme.kind.startswith("static") and prepared.calibration is not None
        plain = self._try(plan, prepared, scheme, only and not train)
        if not train or quantize is None or prepared.calibration is None:
            return [plain]
        origin = Origin(prepared.data, prepared.source, prepared.reference)
        settings = quantize.qat or QatConfig()
        runtime = plan.target.runtime
        trained = Stages(self.config, self._do).qat(settings, origin, prepared.model, prepared.calibration, runtime, scheme)
        calibration = self._calibrate(f"calibrate {plan.target.name} {scheme.label} after training", trained, prepared.data)
        again = self._try(plan, replace(prepared, model=trained, calibration=calibration), scheme, False, " after training")
        word = "better than" if again.drop < plain.drop else "no better than"
        why = f"quantization-aware training: {again.why}; {word} {plain.drop:+.2f} without it"
        return [plain, replace(again, training=trained, why=why)]

    def _try(self, plan: TargetPlan, prepared: Prepared, scheme: Scheme, only: bool, suffix: str = "") -> Candidate:
        export = self._export(plan, prepared, scheme, suffix=suffix)
        if only:
            return Candidate(scheme, export, None, True, "the only scheme for this precision")
        execution = self._execute(plan, prepared, export, "selection", plan.target.runtime, f"{scheme.label}{suffix}")
        score = self._score(plan, prepared, execution, "selection", f"{scheme.label}{suffix}")
        if score.pending:
            return Candidate(scheme, export, score, True, "")
        limit = self.config.quantize.max_drop if self.config.quantize else 0.5
        drop, unit = float(score.value["drop"]), score.value["unit"]
        held = drop <= limit
        sign = "within" if held else "over"
        why = f"drop of {drop:+.2f} {unit} on {score.value['samples']} training samples kept apart, {sign} {limit:g} {unit}"
        return Candidate(scheme, export, score, held, why)

    def _export(self, plan: TargetPlan, prepared: Prepared, scheme: Scheme, baseline: bool = False, suffix: str = "") -> Result:
        target = plan.target.to_json() | {"precision": scheme.precision, "threads": 1}  # threads are measured with, not exported with
        params = {"target": target, "scheme": vars(scheme), "signature": self._signature(prepared.model)}
        inputs = {"model": prepared.source if baseline else prepared.model, "data": prepared.data}
        if scheme.kind.startswith("static") and prepared.calibration is not None:
            inputs["calibration"] = prepared.calibration
        return self._shared(
            f"export {plan.target.name} {scheme.label}{suffix}" + (" (for comparison)" if baseline else ""),
            "edgepress.steps.export:export",
            params,
            inputs,
        )

    def _execute(self, plan: TargetPlan, prepared: Prepared, export: Result, share: str, runtime: str, label: str = "") -> Result:
        name = plan.target.name if runtime == plan.target.runtime else f"{plan.target.name} in {runtime}"
        params = {
            "runtime": runtime,
            "artifact": export.value.get("artifact"),
            "signature": self._signature(prepared.model),
            "share": share,
            "threads": cores(),
        }
        title = f"run {name} {label}".rstrip() + (" (selection)" if share == "selection" else "")
        step = Step(
            title,
            "edgepress.steps.execute:execute",
            params,
            {"export": export, "data": prepared.data},
            machine=True,
            threads=cores(),
            limits=self._limits,
        )
        return self._do(step)

    def _score(self, plan: TargetPlan, prepared: Prepared, execution: Result, share: str, label: str = "") -> Result:
        gate = next((gate for gate in plan.gates if gate.name == "accuracy_drop"), None)
        params = {
            "metric": self.config.metric,
            "root": str(self.config.root),
            "share": share,
            "confidence": gate.confidence if gate else _CONFIDENCE,
            "signature": self._signature(prepared.model),
        }
        inputs = {"execution": execution, "reference": prepared.reference, "data": prepared.data}
        name = f"score {plan.target.name} {label}".rstrip() + (" (selection)" if share == "selection" else "")
        return self._user(name, "edgepress.steps.score:score", params, inputs)

    def _second(self, plan: TargetPlan, prepared: Prepared, export: Result) -> dict[str, Any] | None:
        """What a second runtime of the same file says, where the catalog names one that is installed."""
        second = CATALOG.get(plan.target.name.partition(":")[0]).second_runtime
        if second is None:
            return None
        support = RUNTIMES.get(second)().supports()
        if not support.usable:
            return {"runtime": second, "error": f"{support.missing}. Run: {support.install}"}
        try:
            execution = self._execute(plan, prepared, export, "validation", second)
            score = self._score(plan, prepared, execution, "validation", f"in {second}")
        except EdgepressError as error:
            return {"runtime": second, "error": str(error)}
        return {"runtime": second, "execution": execution, "score": score}

    def _measured(self, plan: TargetPlan, prepared: Prepared, export: Result) -> dict[str, Any]:
        return {
            "runtime": plan.target.runtime,
            "artifact": export.value.get("artifact"),
            "signature": self._signature(prepared.model),
            "threads": plan.target.threads,
            "batch": plan.target.batch,
        }

    def _signature(self, model: Result) -> Any:
        return model.value.get("signature")

    def _user(
        self, name: str, function: str, params: Mapping[str, Any], inputs: Mapping[str, Result], files: tuple[Any, ...] = ()
    ) -> Result:
        """A step that runs the user's code."""
        return self._do(Step(name, function, params, inputs, self.config.root, files, threads=cores(), limits=self._limits))

    def _shared(self, name: str, function: str, params: Mapping[str, Any], inputs: Mapping[str, Result]) -> Result:
        """A step whose result holds on every machine."""
        return self._do(Step(name, function, params, inputs, threads=cores(), limits=self._limits))

    def _machine(self, name: str, function: str, params: Mapping[str, Any], inputs: Mapping[str, Result], threads: int) -> Result:
        """A measurement: for this machine, with nothing else running."""
        return self._do(Step(name, function, params, inputs, machine=True, alone=True, threads=threads, limits=self._limits))
