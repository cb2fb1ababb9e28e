"""The way of a model through edgepress, as steps: the same code runs them and plans them.

data -> model -> reference -> [prune, train, distill: stages.py] -> [equalize] -> calibrate
-> per target: [refine] -> export -> execute -> score -> latency, memory
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from edgepress.baseline.artifacts import AtHand
from edgepress.best_steps import BestSteps
from edgepress.config import Config, TargetPlan
from edgepress.config_steps import QuantizeConfig
from edgepress.drops import check_units
from edgepress.ladder import Ladder
from edgepress.results import Prepared, TargetRun
from edgepress.stages import Origin, Stages
from edgepress.step import Executor, Result
from edgepress.targets.errors import EdgepressError
from edgepress.targets.rules import RULES
from edgepress.validators.runtimes import RUNTIMES

_PROJECT = "edgepress.compress.project.steps"


class Pipeline:
    """Builds the steps of a recipe and hands them to an executor.

    Args:
        config: the recipe.
        plans: its targets, or those that were asked for.
        executor: runs or plans steps.
        accepted: target -> the accepted release's artifact, where it is at hand.
    """

    def __init__(
        self,
        config: Config,
        plans: Sequence[TargetPlan],
        executor: Executor,
        accepted: Mapping[str, AtHand] = MappingProxyType({}),
    ) -> None:
        self.config, self.plans, self._accepted = config, plans, accepted
        self._steps, self._stages = BestSteps(config, executor.do), Stages(config, executor.do)
        self._ladder = Ladder(config, self._steps, self._stages, self._calibrate)

    def prepare(self) -> Prepared:
        """The steps all targets share.

        Raises:
            EdgepressError: the user's model, checkpoint, data or metric cannot be used; no target can run then.
        """
        config = self.config
        origin, original = self.original()
        data, source, reference = origin.data, origin.model, origin.reference
        groups = None
        if config.data.slices:
            params = {"root": str(config.root), "slices": config.data.slices}
            groups = self._steps.user("slices", f"{_PROJECT}:slices", params, {"data": data})
        stages = self._stages.run(origin)
        rebuilt = self._stages.rebuilt(origin, stages)
        model, baseline = (stages[-1].model, stages[-1].outputs) if stages else (source, reference)
        if config.quantize and "equalize" in config.quantize.algorithms:
            model = self._steps.equalized(self.plans, model, data)
        calibration = None
        if any(scheme.calibrated for plan in self.plans for scheme in self._ladder.schemes(plan)):
            calibration = self._calibrate("calibrate", model, data)
        about = {"signature": source.value.get("signature")}
        inputs = self._steps.shared("input statistics", "edgepress.steps.inputs:statistics", about, {"data": data})
        return Prepared(data, source, model, reference, baseline, original, stages, rebuilt, calibration, inputs, groups)

    def original(self) -> tuple[Origin, Result]:
        """The user's model and data, and how the float original scores on them.

        Raises:
            EdgepressError: as `prepare`.
        """
        config = self.config
        data = self._steps.user("data", f"{_PROJECT}:collect", config.collect_params(), {})
        model = self._steps.user("model", f"{_PROJECT}:trace", config.trace_params(), {"data": data}, (config.checkpoint,))
        reference = self._steps.user("reference", f"{_PROJECT}:reference", {"metric": config.metric}, {"model": model, "data": data})
        params = {"metric": config.metric, "root": str(config.root), "signature": model.value.get("signature")}
        original = self._steps.user("score original", "edgepress.steps.score:original", params, {"reference": reference, "data": data})
        if not original.pending:
            check_units([gate for plan in self.plans for gate in plan.gates], config.quantize, config.metric, original.value["unit"])
        return Origin(data, model, reference), original

    def _calibrate(self, name: str, model: Result, data: Result) -> Result:
        observer = (self.config.quantize or QuantizeConfig()).observer
        calibrated = {plan.target.runtime for plan in self.plans if any(scheme.calibrated for scheme in self._ladder.schemes(plan))}
        # What edgepress has rules for is always among them, so that another target finds the calibration done.
        params = {"observer": observer, "signature": model.value.get("signature"), "runtimes": sorted({*RULES.builtins, *calibrated})}
        return self._steps.shared(name, "edgepress.steps.quantize:calibrate", params, {"model": model, "data": data})

    def compress(self, plan: TargetPlan, prepared: Prepared) -> TargetRun:
        """Export, execute and score one target; try the next scheme while outputs do not hold."""
        run = TargetRun(plan)
        try:
            self._ladder.choose(run, prepared)
            execution = self._executed(run, prepared)
            if execution is not None and run.chosen is not None and run.chosen.export is not None:
                run.execution = execution
                run.score = self._steps.score(plan, prepared, run.execution, "validation")
                self._steps.slices(run, prepared)
                run.second = self._steps.second(plan, prepared, run.chosen.export)
        except EdgepressError as error:
            run.error = error
        return run

    def _executed(self, run: TargetRun, prepared: Prepared) -> Result | None:
        """The chosen artifact on the validation share; one that fails there gives way to the next of those compared with it."""
        while run.chosen is not None and run.chosen.export is not None:
            try:
                return self._steps.execute(run.plan, prepared, run.chosen.export, "validation", run.plan.target.runtime)
            except EdgepressError as error:
                if not run.reserves:
                    raise
                place = next(i for i, candidate in enumerate(run.tried) if candidate is run.chosen)
                run.tried[place] = replace(run.chosen, held=False, why=str(error))
                run.chosen = run.reserves.pop(0)
        return None

    def measure(self, run: TargetRun, prepared: Prepared) -> None:
        """Latency beside the float model in the same runtime, and beside the accepted release's; peak memory. Each alone on the machine."""
        if run.error is not None or run.chosen is None or run.chosen.export is None:
            return
        plan, export = run.plan, run.chosen.export
        run.unmeasurable = RUNTIMES.get(plan.target.runtime)().timing_unavailable()
        if run.unmeasurable is not None:
            return
        try:
            run.latency = self._steps.latency(plan, prepared, export)
            if prepared.rebuilt is not None:
                run.pruned = self._steps.pruned_latency(plan, prepared)
        except EdgepressError as error:
            run.latency_error = str(error)
        run.accepted = self._accepted.get(plan.target.name)
        try:
            run.against_baseline = self._steps.against_baseline(plan, prepared, export, run.accepted) if run.accepted else None
        except EdgepressError as error:
            run.against_baseline_error = str(error)
        run.peak_error = RUNTIMES.get(plan.target.runtime)().peak_unavailable()
        try:
            if run.latency is not None and run.peak_error is None:
                run.peak = self._steps.peak(plan.target.threads)
        except EdgepressError as error:
            run.peak_error = str(error)
        try:
            run.memory = self._steps.memory(plan, prepared, export)
        except EdgepressError as error:
            run.memory_error = str(error)
