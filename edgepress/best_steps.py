"""The steps of `method: best` for one target: native quantizers, and what tells candidates apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgepress.config import TargetPlan
from edgepress.exporters.native.base import NativeQuantizer
from edgepress.results import Candidate, Prepared
from edgepress.step import Result
from edgepress.target_steps import TargetSteps
from edgepress.targets.nouns import Scheme


class BestSteps(TargetSteps):
    """Builds the steps that compare candidates."""

    def native(self, plan: TargetPlan, prepared: Prepared, quantizer: NativeQuantizer, scheme: Scheme) -> Result:
        """The artifact of a native quantizer, made of the float artifact and the calibration samples alone."""
        base = Scheme(quantizer.base_precision, "float")
        float_export = self.export(plan, replace(prepared, model=prepared.trained), base)
        params = {
            "quantizer": scheme.tool,
            "target": plan.target.to_json() | {"threads": 1},
            "scheme": vars(scheme),
            "signature": prepared.model.value.get("signature"),
            "artifact": float_export.value.get("artifact"),
            "parity_source": float_export.value.get("parity_source"),
        }
        inputs = {"float_export": float_export, "data": prepared.data}
        return self.shared(f"export {plan.target.name} {scheme.label}", "edgepress.steps.native:quantize", params, inputs)

    def against_most_accurate(self, plan: TargetPlan, prepared: Prepared, candidates: Sequence[Candidate]) -> Result:
        """What each loses against the one that loses least, paired on the selection share; by its place in `candidates`."""
        executions = {str(i): candidate.execution for i, candidate in enumerate(candidates) if candidate.execution is not None}
        best = min(range(len(candidates)), key=lambda i: candidates[i].drop)
        params = {
            "metric": self.config.metric,
            "root": str(self.config.root),
            "confidence": plan.confidence,
            "signature": prepared.model.value.get("signature"),
            "names": list(executions),
            "best": str(best),
        }
        name = f"compare the candidates of {plan.target.name} (selection)"
        return self.user(name, "edgepress.steps.score:against_most_accurate", params, {**executions, "data": prepared.data})

    def window(self, plan: TargetPlan, prepared: Prepared, candidate: Candidate) -> Result:
        """A candidate's latency against the float original's in the same runtime."""
        assert candidate.export is not None, "only files that were made are timed"
        original = self.export(plan, prepared, Scheme("fp32", "float"), baseline=True)
        return self.paired(f"latency {plan.target.name} {candidate.scheme.label}", plan, prepared, (candidate.export, original))

    def duel(self, plan: TargetPlan, prepared: Prepared, challenger: Candidate, leader: Candidate) -> Result:
        """Two candidates' latencies in one window."""
        assert challenger.export is not None and leader.export is not None, "only files that were made are timed"
        name = f"latency {plan.target.name} {challenger.scheme.label} against {leader.scheme.label}"
        return self.paired(name, plan, prepared, (challenger.export, leader.export))
