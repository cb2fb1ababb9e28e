"""The steps of one target: export, run, score, time, weigh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from edgepress.baseline.artifacts import AtHand
from edgepress.config import TargetPlan
from edgepress.config_steps import QuantizeConfig
from edgepress.machine import cores
from edgepress.results import Prepared, TargetRun
from edgepress.step import Result, Step
from edgepress.step_kinds import StepKinds
from edgepress.targets.catalog import CATALOG
from edgepress.targets.errors import ConfigError, EdgepressError, QuantizationError
from edgepress.targets.nouns import Scheme, Signature
from edgepress.targets.rules import rules_for
from edgepress.validators.runtimes import RUNTIMES

INT4: Final = "int4-weights"
_CONFIDENCE = 0.95
#: Each layer is measured on this many samples: a mean square needs no more, and every layer costs half a pass over them.
_SENSITIVITY_SAMPLES = 128
#: Seconds that a refinement of a small net takes, about, before its export.
_REFINE_S = 1.0
#: Layers named in one line of text.
NAMED = 4


class TargetSteps(StepKinds):
    """Builds the steps of targets and hands them to an executor."""

    @property
    def _own_cores(self) -> int:
        """Threads of what is done for each target of the recipe, side by side; with `--only` too, since sums depend on their number."""
        return max(1, cores() // len(self.config.targets))

    def export(self, plan: TargetPlan, prepared: Prepared, scheme: Scheme, baseline: bool = False, suffix: str = "") -> Result:
        """Write the artifact of a scheme; `baseline` is the original's, for comparison."""
        target = plan.target.to_json() | {"precision": scheme.precision, "threads": 1}  # threads are measured with, not exported with
        params = {"target": target, "scheme": vars(scheme), "signature": prepared.model.value.get("signature")}
        inputs = {"model": prepared.source if baseline else prepared.model, "data": prepared.data}
        if scheme.calibrated and prepared.calibration is not None:
            inputs["calibration"] = prepared.calibration
        return self.shared(
            f"export {plan.target.name} {scheme.label}{suffix}" + (" (for comparison)" if baseline else ""),
            "edgepress.steps.export:export",
            params,
            inputs,
            self._own_cores,
            _export_s(plan),
        )

    def equalized(self, plans: Sequence[TargetPlan], model: Result, data: Result) -> Result:
        """The model with factors moved between consecutive layers, for all targets; the same function in float."""
        counts = {key: model.value.get(key) for key in ("signature", "parameters", "macs", "size_bytes")}
        params = {"stage": counts, "runtimes": sorted({plan.target.runtime for plan in plans})}
        return self.shared("equalize", "edgepress.steps.algorithms:equalize", params, {"model": model, "data": data})

    def refined(self, plan: TargetPlan, prepared: Prepared, scheme: Scheme, algorithms: list[str], suffix: str) -> Result:
        """The calibration, with weights and biases that were refined for one runtime's integers."""
        assert prepared.calibration is not None, "static schemes are calibrated"
        params = {
            "runtime": plan.target.runtime,
            "scheme": _placed(scheme),
            "algorithms": algorithms,
            "seed": self.config.seed,
            "signature": prepared.model.value.get("signature"),
        }
        inputs = {"model": prepared.model, "data": prepared.data, "calibration": prepared.calibration}
        name = f"refine {plan.target.runtime} {scheme.label}{suffix} ({', '.join(algorithms)})"
        return self.shared(name, "edgepress.steps.algorithms:refine", params, inputs, self._own_cores, _REFINE_S + _export_s(plan))

    def sensitivity(self, plan: TargetPlan, prepared: Prepared, scheme: Scheme, narrow: Sequence[int] = ()) -> Result:
        """What the integers of each layer cost, and its weight in `narrow` bits below 8, measured on samples that choose between schemes.

        One step for all targets of a runtime.
        """
        assert prepared.calibration is not None, "static schemes are calibrated"
        params = {
            "runtime": plan.target.runtime,
            "scheme": _placed(scheme),
            "samples": _SENSITIVITY_SAMPLES,
            "narrow": list(narrow),
            "signature": prepared.model.value.get("signature"),
        }
        inputs = {"model": prepared.model, "data": prepared.data, "calibration": prepared.calibration}
        name = f"sensitivity {plan.target.runtime} {scheme.kind}" + (f" and {' and '.join(map(str, narrow))} bits" if narrow else "")
        return self.shared(name, "edgepress.steps.sensitivity:sensitivity", params, inputs, self._own_cores)

    def layers(self, plan: TargetPlan, prepared: Prepared, export: Step) -> Result:
        """How far every layer of an export is from the float one; with 4-bit weights the export reads a model that has them.

        Raises:
            QuantizationError: the two answer different numbers on purpose.
        """
        if plan.target.precision == INT4 and self.config.quantize and self.config.quantize.rounding == "awq":
            raise QuantizationError(
                "awq scales what layers read", "its tensors are not the float model's, and cannot be compared one by one"
            )
        params = {"runtime": plan.target.runtime, "scheme": export.params["scheme"], "signature": export.params["signature"]}
        made = {name: export.inputs[name] for name in ("data", "model", "calibration") if name in export.inputs}
        if plan.target.precision == INT4:
            made |= {"model": prepared.model, "rounded": export.inputs["model"]}
        return self.shared(f"layers of {plan.target.name}", "edgepress.steps.blame:layers", params, made)

    def assigned(self, plan: TargetPlan, layers: Result, room: float | None) -> Result:
        """A precision for every layer within `room` bytes beyond 8 bits for all; every assignment worth trying where it is None."""
        params = {"layers": layers.value.get("layers"), "float_bytes": rules_for(plan.target.runtime).float_bytes, "room": room}
        return self._assigned(plan, layers, params)

    def within_time(self, plan: TargetPlan, layers: Result, costs: Mapping[str, float], room: float) -> Result:
        """The layers in float with the least noise within `room` beyond the time of all in integers, at `costs` of each; none at worst."""
        return self._assigned(plan, layers, {"layers": layers.value.get("layers"), "costs": dict(costs), "room": room})

    def _assigned(self, plan: TargetPlan, layers: Result, params: dict[str, Any]) -> Result:
        return self.shared(f"assign precisions {plan.target.name}", "edgepress.steps.sensitivity:assign", params, {"layers": layers})

    def int4(self, plan: TargetPlan, prepared: Prepared) -> Result:
        """The model with 4-bit weights in the groups a target's kernel takes; one step for all targets that take the same."""
        quantize, rules = self.config.quantize or QuantizeConfig(precision=INT4), rules_for(plan.target.runtime).int4
        if rules is None:
            raise ConfigError(f"target {plan.target.name!r} has no {INT4}", remedy="Choose another precision.")
        params = {
            "method": quantize.rounding,
            "group": quantize.group,
            "rules": {"symmetric": rules.symmetric, "groups": list(rules.groups), "rows": rules.rows},
            "signature": prepared.model.value.get("signature"),
        }
        kind = "symmetric" if rules.symmetric else "asymmetric"
        name = f"round to 4 bits ({quantize.rounding}, {kind})"
        return self.shared(name, "edgepress.steps.int4:quantize", params, {"model": prepared.model, "data": prepared.data})

    def int4_said(self, model: Result) -> str:
        """How the layers of `int4` were rounded, in words; layers with another group than the recipe's are named."""
        if model.pending:
            return ""
        quantize, groups = self.config.quantize or QuantizeConfig(precision=INT4), model.value["groups"]
        others = [f"{name} has {size}" for name, size in groups.items() if size != quantize.group]
        shown = [*others[:NAMED], *(["…"] if len(others) > NAMED else [])]
        exceptions = f"; {quantize.group} does not divide the inputs of {len(others)}: {', '.join(shown)}" if others else ""
        return f"{len(groups)} layers rounded by {quantize.rounding} in groups of {quantize.group}{exceptions}"

    def execute(self, plan: TargetPlan, prepared: Prepared, export: Result, share: str, runtime: str, label: str = "") -> Result:
        """Run an artifact over a share of the data."""
        name = plan.target.name if runtime == plan.target.runtime else f"{plan.target.name} in {runtime}"
        params = {
            "runtime": runtime,
            "artifact": export.value.get("artifact"),
            "signature": prepared.model.value.get("signature"),
            "share": share,
        }
        title = f"run {name} {label}".rstrip() + (" (selection)" if share == "selection" else "")
        step = Step(
            title,
            "edgepress.steps.execute:execute",
            params,
            {"export": export, "data": prepared.data},
            machine=True,
            threads=self._own_cores,
            limits=self._limits,
        )
        return self._do(step)

    def score(self, plan: TargetPlan, prepared: Prepared, execution: Result, share: str, label: str = "") -> Result:
        """The metric of an execution, paired with the original's; on the selection share with that of the float model it is made of."""
        gate = next((gate for gate in plan.gates if gate.name == "accuracy_drop"), None)
        params = {
            "metric": self.config.metric,
            "root": str(self.config.root),
            "share": share,
            "confidence": gate.confidence if gate else _CONFIDENCE,
            "signature": prepared.model.value.get("signature"),
        }
        against = prepared.reference if share == "validation" else prepared.baseline
        inputs = {"execution": execution, "reference": against, "data": prepared.data}
        name = f"score {plan.target.name} {label}".rstrip() + (" (selection)" if share == "selection" else "")
        return self.user(name, "edgepress.steps.score:score", params, inputs)

    def slices(self, run: TargetRun, prepared: Prepared) -> None:
        """The metric of every slice, where the recipe names some; one on which it has no value costs the gate on slices alone."""
        if prepared.groups is None or run.execution is None:
            return
        gate = next((gate for gate in run.plan.gates if gate.name == "slice_drop"), None)
        params = {
            "metric": self.config.metric,
            "root": str(self.config.root),
            "confidence": gate.confidence if gate else _CONFIDENCE,
            "signature": prepared.model.value.get("signature"),
        }
        inputs = {"execution": run.execution, "reference": prepared.reference, "data": prepared.data, "groups": prepared.groups}
        try:
            run.slices = self.user(f"score slices {run.plan.target.name}", "edgepress.steps.score:slices", params, inputs)
        except EdgepressError as error:
            run.slices_error = str(error)

    def second(self, plan: TargetPlan, prepared: Prepared, export: Result) -> dict[str, Any] | None:
        """What a second runtime of the same file says, where the catalog names one that is installed."""
        second = CATALOG.get(plan.target.name.partition(":")[0]).second_runtime
        if second is None:
            return None
        support = RUNTIMES.get(second)().supports()
        if not support.usable:
            return {"runtime": second, "error": f"{support.missing}. Run: {support.install}"}
        try:
            execution = self.execute(plan, prepared, export, "validation", second)
            score = self.score(plan, prepared, execution, "validation", f"in {second}")
        except EdgepressError as error:
            return {"runtime": second, "error": str(error)}
        return {"runtime": second, "execution": execution, "score": score}

    def latency(self, plan: TargetPlan, prepared: Prepared, export: Result) -> Result:
        """One window of pairs; where it leaves the recipe's limit undecided, a second one that goes on until it is decided."""
        gate = next((gate for gate in plan.gates if gate.name == "latency_ratio"), None)
        original = self.export(plan, prepared, Scheme("fp32", "float"), baseline=True)
        name = f"latency {plan.target.name}"
        first = self.paired(name, plan, prepared, (export, original))
        if gate is None or first.pending:
            return first
        low, high = first.value["latency_ratio"]["interval"]
        if not low <= gate.limit <= high:
            return first
        return self.paired(f"{name}, more pairs", plan, prepared, (export, original), gate.limit)

    def pruned_latency(self, plan: TargetPlan, prepared: Prepared) -> Result:
        """The float model that was pruned against the float original: what pruning alone bought in this runtime."""
        scheme = Scheme("fp32", "float")
        pair = (self.export(plan, prepared, scheme), self.export(plan, prepared, scheme, baseline=True))
        return self.paired(f"latency {plan.target.name} (pruned, float)", plan, prepared, pair)

    def against_baseline(self, plan: TargetPlan, prepared: Prepared, export: Result, accepted: AtHand) -> Result | None:
        """Latency beside the accepted release's artifact until the gate is decided; None where that takes other inputs, or no gate asks."""
        gate = next((gate for gate in plan.gates if gate.name == "baseline.latency_ratio"), None)
        if gate is None or (not export.pending and accepted.inputs != export.value["artifact"]["signature"]["inputs"]):
            return None
        params = {"source": str(accepted.folder), "artifact": dict(accepted.artifact), "sha256": accepted.sha256}
        name = f"fetch the baseline of {plan.target.name}"
        baseline = self._do(Step(name, "edgepress.steps.baseline:fetch", params, limits=self._limits))
        return self.paired(f"latency {plan.target.name} against the baseline", plan, prepared, (export, baseline), gate.limit)

    def paired(self, name: str, plan: TargetPlan, prepared: Prepared, pair: tuple[Result, Result], limit: float | None = None) -> Result:
        """Interleaved latencies of two exports, candidate and reference; with a `limit` until their ratio is decided against it."""
        gate = next((gate for gate in plan.gates if gate.name == "latency_ratio"), None)
        export, reference = pair
        inputs = {"export": export, "float_export": reference, "data": prepared.data}
        params = {
            **self._measured(plan, prepared, export),
            "reference": reference.value.get("artifact"),
            "confidence": gate.confidence if gate else _CONFIDENCE,
            "seconds": self.config.run.timing,
            **({} if limit is None else {"limit": limit}),
        }
        return self.machine(name, "edgepress.steps.measure:latency", params, inputs, plan.target.threads)

    def peak(self, threads: int) -> Result:
        """What this machine reaches on some threads; one step for all targets and all recipes."""
        name = f"peak of this machine ({threads} thread{'' if threads == 1 else 's'})"
        return self.machine(name, "edgepress.steps.measure:peak", {"threads": threads}, {}, threads)

    def memory(self, plan: TargetPlan, prepared: Prepared, export: Result) -> Result:
        """Peak memory of a process that loads and runs this artifact alone."""
        inputs = {"export": export, "data": prepared.data}
        function, common = "edgepress.steps.measure:memory", self._measured(plan, prepared, export)
        return self.machine(f"memory {plan.target.name}", function, common, inputs, plan.target.threads)

    def _measured(self, plan: TargetPlan, prepared: Prepared, export: Result) -> dict[str, Any]:
        signature = prepared.model.value.get("signature")
        only = Signature.from_json(signature).only_batch if signature else None
        return {
            "runtime": plan.target.runtime,
            "artifact": export.value.get("artifact"),
            "signature": signature,
            "threads": plan.target.threads,
            "batch": only or plan.target.batch,
        }


def _placed(scheme: Scheme) -> dict[str, Any]:
    """What places integers: int8 and mixed share the steps that only depend on that."""
    return vars(replace(scheme, precision="int8"))


def _export_s(plan: TargetPlan) -> float:
    """Seconds that an export of a small net takes, about."""
    seconds: float = CATALOG.get(plan.target.name.partition(":")[0]).export_s
    return seconds
