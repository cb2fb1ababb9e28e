"""Which scheme a target ships: those of its precision are tried in its runtime, on the selection samples, until one holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from edgepress.best import Best, after_a_limit
from edgepress.best_steps import BestSteps
from edgepress.config import Config, TargetPlan
from edgepress.config_layers import MIXED
from edgepress.config_steps import QatConfig, QuantizeConfig
from edgepress.drops import allowance
from edgepress.mixed_layers import MixedLayers
from edgepress.results import Candidate, Prepared, TargetRun
from edgepress.stages import Origin, Stages
from edgepress.step import Result
from edgepress.target_steps import INT4
from edgepress.targets.errors import EdgepressError, LimitError, TrainingError
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for

#: What refines integers that do not hold, before a target falls back to weights alone, where the recipe names no algorithm.
RESCUE = ("gptq",)


class Ladder:
    """Tries the schemes of a target's precision and chooses one.

    Args:
        config: the recipe.
        steps: of a target.
        stages: of training before quantization, and after it.
        calibrate: the step that calibrates a model, by its name, the model and the data.
    """

    def __init__(self, config: Config, steps: BestSteps, stages: Stages, calibrate: Callable[[str, Result, Result], Result]) -> None:
        self.config, self._steps, self._stages, self._calibrate = config, steps, stages, calibrate

    def schemes(self, plan: TargetPlan) -> list[Scheme]:
        """How the target's precision may be carried out, in the order of trial."""
        precision = plan.target.precision
        if precision == "int8":
            chosen = self.config.quantize.scheme if self.config.quantize else "auto"
            kinds = rules_for(plan.target.runtime).ladder if chosen == "auto" else (chosen,)
        elif precision == MIXED:
            ladder = [kind for kind in rules_for(plan.target.runtime).ladder if kind.startswith("static")]
            chosen = self.config.quantize.scheme if self.config.quantize else "auto"
            kinds = tuple(ladder) if chosen == "auto" else (chosen,)
        else:
            kinds = ({"int8-weights": "weights", INT4: "weights", "fp8": "fp8"}.get(precision, "float"),)
        bits = int(plan.target.options.get("weight_bits", 0)) if kinds[0] not in ("float", "fp8") else 0
        return [Scheme(precision, kind, weight_bits=bits) for kind in kinds]

    def choose(self, run: TargetRun, prepared: Prepared) -> None:
        """Walk the ladder: the first scheme that holds, else the one that lost least.

        With `fallback`, layers go back to float before calibrated ranges are given up.
        """
        schemes, quantize = self.schemes(run.plan), self.config.quantize
        if quantize is not None and quantize.method == "best" and run.plan.target.precision == "int8":
            max_drop = quantize.max_drop.value if quantize.max_drop is not None else None

            def attempt(scheme: Scheme, export: Result | None) -> Candidate:
                return self._scored(run.plan, prepared, scheme, export) if export else self._attempt(run.plan, prepared, scheme)

            run.chosen = Best(self._steps, run, prepared, attempt, max_drop).choose(schemes)
            if run.chosen is None:
                raise EdgepressError(f"target {run.plan.target.name!r}: no candidate could be made", run.tried[0].why)
            return
        static = [scheme for scheme in schemes if scheme.kind.startswith("static")]
        mixed = run.plan.target.precision == MIXED
        searches = mixed or (quantize is not None and quantize.fallback and bool(static))
        last = self._walk(run, prepared, static if searches else schemes, mixed, only=len(schemes) == 1 and not searches)
        searches = searches and not isinstance(last, LimitError)
        if searches and run.chosen is None and any(candidate.export for candidate in run.tried):
            search = MixedLayers(self._steps, run, prepared, lambda scheme: self._attempt(run.plan, prepared, scheme))
            budget = quantize.budget if quantize and mixed else None
            narrow = [bits for bits in rules_for(run.plan.target.runtime).static_bits if quantize is None or quantize.allows(bits)]
            best = search.mixed(budget, narrow) if budget else search.fallback()
            run.chosen = best if best and (best.held or mixed) else None
        if searches and run.chosen is None:
            last = self._walk(run, prepared, [scheme for scheme in schemes if scheme not in static], False, only=False) or last
        if run.chosen is None:
            made = [c for c in run.tried if c.export is not None and c.selection is not None]
            if not made:
                raise last or EdgepressError(f"target {run.plan.target.name!r} has no scheme to try")
            run.chosen = min(made, key=lambda candidate: candidate.drop)

    def _walk(self, run: TargetRun, prepared: Prepared, schemes: Sequence[Scheme], every: bool, only: bool) -> EdgepressError | None:
        """Try schemes until one holds, or `every` one; what could not be made is returned.

        Before arithmetic goes back to float, which `weights` means, and where nothing holds, what lost no more than chance explains ships.
        One that runs into a limit of the recipe is the last that is tried.
        """
        last: EdgepressError | None = None
        rungs = self._rungs(schemes)
        for place, (scheme, refiners) in enumerate(rungs, start=1):
            if scheme.kind == "weights" and not every and _take_by_chance(run):
                break
            try:
                candidates = self._tries(run.plan, prepared, scheme, refiners, only)
            except TrainingError:
                raise
            except LimitError as error:
                last = after_a_limit(error, more=place < len(rungs))
                run.tried.append(Candidate(scheme, None, None, False, str(last)))
                break
            except EdgepressError as error:
                last = error
                run.tried.append(Candidate(scheme, None, None, False, str(error)))
                continue
            run.tried += candidates
            best = min(candidates, key=lambda candidate: candidate.drop)
            if best.held and not every:
                run.chosen = best
                break
        if run.chosen is None and not every:
            _take_by_chance(run)
        return last

    def _rungs(self, schemes: Sequence[Scheme]) -> list[tuple[Scheme, Sequence[str]]]:
        """Schemes with the algorithms that refine them: those of the recipe.

        Where it names none, the first scheme is refined before all arithmetic goes back to float, which `weights` means.
        """
        rungs = [(scheme, self._refiners(scheme)) for scheme in schemes]
        last = next((place for place, scheme in enumerate(schemes) if scheme.kind == "weights"), 0)
        ptq = self.config.quantize is not None and self.config.quantize.method == "ptq"
        if last and ptq and schemes[0].kind.startswith("static") and not rungs[0][1]:
            rungs.insert(last, (schemes[0], RESCUE))
        return rungs

    def _refiners(self, scheme: Scheme) -> Sequence[str]:
        """What the recipe refines a scheme by; weights of 4 or 2 bits are never left rounded to nearest."""
        named = self.config.quantize.refiners if self.config.quantize and scheme.kind.startswith("static") else ()
        return named or (RESCUE if scheme.narrow_layers else ())

    def _tries(self, plan: TargetPlan, prepared: Prepared, scheme: Scheme, refiners: Sequence[str], only: bool) -> list[Candidate]:
        """One scheme: as it is, and after quantization-aware training where the recipe asks for it. The first wins where they tie.

        A training that fails raises `TrainingError`: what the recipe asks for is not replaced by another scheme.
        """
        quantize = self.config.quantize
        train = quantize is not None and quantize.method == "qat" and scheme.kind.startswith("static") and prepared.calibration is not None
        plain = self._try(plan, prepared, scheme, refiners, only and not train)
        if not train or quantize is None or prepared.calibration is None:
            return [plain]
        origin = Origin(prepared.data, prepared.source, prepared.reference)
        settings, runtime = quantize.qat or QatConfig(), plan.target.runtime
        try:
            trained = self._stages.qat(settings, origin, prepared.model, prepared.calibration, runtime, scheme)
        except EdgepressError as error:
            raise TrainingError(f"quantization-aware training in {scheme.label}: {error.what}", error.why, error.remedy) from error
        calibration = self._calibrate(f"calibrate {plan.target.name} {scheme.label} after training", trained, prepared.data)
        prepared = replace(prepared, model=trained, calibration=calibration)
        again = self._try(plan, prepared, scheme, refiners, False, " after training")
        word = "better than" if again.drop < plain.drop else "no better than"
        why = f"quantization-aware training: {again.why}; {word} {plain.drop:+.2f} without it"
        return [plain, replace(again, training=trained, why=why)]

    def _attempt(self, plan: TargetPlan, prepared: Prepared, scheme: Scheme) -> Candidate:
        """One of several schemes, refined as the recipe says."""
        return self._try(plan, prepared, scheme, self._refiners(scheme), only=False)

    def _try(
        self, plan: TargetPlan, prepared: Prepared, scheme: Scheme, refiners: Sequence[str], only: bool, suffix: str = ""
    ) -> Candidate:
        why, after = "the only scheme for this precision", ""
        if scheme.precision == INT4:
            model = self._steps.int4(plan, prepared)
            prepared, why = replace(prepared, model=model), self._steps.int4_said(model)
        if refiners:
            refined = self._steps.refined(plan, prepared, scheme, list(refiners), suffix)
            prepared, after = replace(prepared, calibration=refined), f"; layers refined by {', '.join(refiners)}"
            suffix = f" refined{suffix}"
        export = self._steps.export(plan, prepared, scheme, suffix=suffix)
        if only:
            return Candidate(scheme, export, None, True, why + after)
        return self._scored(plan, prepared, scheme, export, suffix, after)

    def _scored(self, plan: TargetPlan, prepared: Prepared, scheme: Scheme, export: Result, suffix: str = "", after: str = "") -> Candidate:
        """An export on the selection share, against what the recipe allows there."""
        execution = self._steps.execute(plan, prepared, export, "selection", plan.target.runtime, f"{scheme.label}{suffix}")
        score = self._steps.score(plan, prepared, execution, "selection", f"{scheme.label}{suffix}")
        if score.pending:
            return Candidate(scheme, export, score, True, "", execution=execution)
        drop, low, unit = float(score.value["drop"]), float(score.value["interval"][0]), score.value["unit"]
        allowed = allowance(self.config.quantize or QuantizeConfig(), scheme.precision, plan.gates, score.value["reference"], unit)
        held, chance = drop <= allowed.limit, allowed.is_chance(drop, low)
        sign = "within" if held else "over"
        why = f"drop of {drop:+.2f} {unit} on {score.value['samples']} training samples kept apart, {sign} {allowed.limit:g} {unit}"
        why += (f", which chance explains (interval from {low:+.2f})" if chance else "") + after
        return Candidate(scheme, export, score, held, why, execution=execution, chance=chance)


def _take_by_chance(run: TargetRun) -> bool:
    """Choose the candidate that lost least of those over the limit by no more than chance, if there is one."""
    places = [place for place, candidate in enumerate(run.tried) if candidate.chance]
    if not places:
        return False
    best = min(places, key=lambda place: run.tried[place].drop)
    run.chosen = run.tried[best] = replace(run.tried[best], held=True)
    return True
