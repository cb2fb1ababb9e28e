"""edgepress.yaml: load it strictly, and turn it into the targets of a run. Imports neither torch nor any runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepress.baseline.file import NAME
from edgepress.bundle.layouts import SERVED
from edgepress.config_check import build
from edgepress.config_gates import GateLimit, baseline_limits, check_allowed, check_drops, check_slices, gates_of
from edgepress.config_layers import MIXED, check_best, check_layers
from edgepress.config_models import BundleConfig, DataConfig, GatesConfig, ModelConfig, Multiplicity, RunConfig, TopLevel
from edgepress.config_steps import PruneConfig, QuantizeConfig, Step
from edgepress.config_targets import TargetEntry, read_steps, read_targets
from edgepress.config_waivers import Waiver, read_waivers
from edgepress.config_yaml import Place, Source, read
from edgepress.targets.nouns import Target
from edgepress.targets.rules import INT4_METHODS, rules_for


@dataclass(frozen=True)
class TargetPlan:
    """A target and how it is judged.

    Attributes:
        target: what to export for.
        gates: its thresholds.
        accepted: metrics that may stay unmeasured: `accuracy`, `latency`, `peak_memory`.
        confidence: of the interval of its accuracy drop.
        second_runtime: a further runtime of the same file, where the catalog names one.
        ratchet: a run of it that is worse than the accepted release is not accepted.
    """

    target: Target
    gates: tuple[GateLimit, ...]
    accepted: frozenset[str]
    confidence: float = 0.95
    second_runtime: str | None = None
    ratchet: bool = False


@dataclass(frozen=True)
class Config:
    """A checked edgepress.yaml.

    Attributes:
        path: the file, absolute.
        root: folder of the user's modules and of relative paths, absolute.
        source: the file with its lines, for messages about what only shows later.
        steps: the compression steps in their order, `quantize` last.
        targets: entries of `targets:`; `recipe` makes nouns of them.
        baseline: the file of the accepted release, absolute; it need not exist.
    """

    path: Path
    root: Path
    source: Source
    project: str
    model: ModelConfig
    data: DataConfig
    metric: str
    steps: tuple[Step, ...]
    targets: tuple[TargetEntry, ...]
    gates: GatesConfig
    multiplicity: Multiplicity
    baseline: Path
    waivers: tuple[Waiver, ...]
    run: RunConfig
    bundle: BundleConfig
    seed: int

    @property
    def quantize(self) -> QuantizeConfig | None:
        """The quantize step, or None: every target stays fp32."""
        return next((step for step in self.steps if isinstance(step, QuantizeConfig)), None)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's absolute path."""
        return self.root / self.model.checkpoint

    def collect_params(self) -> dict[str, Any]:
        """JSON-able parameters of `compress.project.steps:collect`."""
        calibration = self.data.calibration
        return {
            "root": str(self.root),
            "train": self.data.train,
            "validation": self.data.validation,
            "calibration": calibration.model_dump(),
            "exact": sorted(calibration.model_fields_set & {"samples", "selection"}),
            "model_inputs": self._inputs(),
            "seed": self.seed,
        }

    def trace_params(self) -> dict[str, Any]:
        """JSON-able parameters of `compress.project.steps:trace`."""
        return {
            "root": str(self.root),
            "factory": self.model.factory,
            "args": self.model.args,
            "checkpoint": self.model.checkpoint,
            "model_inputs": self._inputs(),
            "model_outputs": list(self.model.outputs) if self.model.outputs is not None else None,
            "dynamic_batch": self.model.dynamic_batch,
            "metric": self.metric,
            "seed": self.seed,
        }

    def _inputs(self) -> list[dict[str, str | None]] | None:
        return [item.model_dump() for item in self.model.inputs] if self.model.inputs is not None else None


def load(path: str | Path) -> Config:
    """Read and check a recipe.

    Raises:
        ConfigError: anything wrong with the file; the message names file, line, value and what to write.
    """
    return check(read(Path(path)))


def check(source: Source) -> Config:
    """`load` what was read already."""
    path = Path(source.file)
    top = build(TopLevel, source.data, source, ())
    steps = read_steps(top.compress, source)
    targets = read_targets(top.targets, source)
    _check_latency(steps, targets, source)
    _check_int4(steps, targets, source)
    _check_refiners(steps, targets, source)
    _check_training(steps, targets, source)
    check_layers(steps, targets, source)
    check_best(steps, targets, source)
    _check_layouts(top.bundle, targets, source)
    for index, step in enumerate(steps):
        if isinstance(step, QuantizeConfig):
            check_allowed(step, top.metric, source, ("compress", index, "quantize"))
    check_drops(top.gates, top.metric, source, ("gates",))
    check_slices(top.gates, top.data, source, ("gates",))
    for entry in targets:
        check_drops(entry.overrides.gates, top.metric, source, (*entry.place, "gates"))
        check_slices(entry.overrides.gates, top.data, source, (*entry.place, "gates"))
    root = path.absolute().parent / Path(top.root or "").expanduser()
    if not root.is_dir():
        raise source.error(("root",), f"{str(top.root)!r} is not a folder", f"Resolved to {root}.")
    waivers = read_waivers(top.waivers, source, root, {entry.name: [gate.name for gate in gates_of(top.gates, entry)] for entry in targets})
    return Config(
        path=path.absolute(),
        root=root.resolve(),
        source=source,
        project=top.project,
        model=top.model,
        data=top.data,
        metric=top.metric,
        steps=steps,
        targets=targets,
        gates=top.gates,
        multiplicity=top.multiplicity,
        baseline=root / top.baseline if top.baseline else path.absolute().parent / NAME,
        waivers=waivers,
        run=top.run,
        bundle=top.bundle,
        seed=top.seed,
    )


def recipe(config: Config) -> tuple[TargetPlan, ...]:
    """The targets of a run with their gates.

    The precision is the target's own, else the quantize step's, else fp32 where the recipe has no quantize step.

    Raises:
        ConfigError: a target's runtime does not have the precision or the scheme asked for.
    """
    return tuple(_plan(config, entry) for entry in config.targets)


def _plan(config: Config, entry: TargetEntry) -> TargetPlan:
    own, step = entry.overrides, config.quantize
    rules = rules_for(entry.entry.runtime)
    precision = own.precision or (step.precision if step else "fp32")
    if precision not in rules.precisions:
        place: Place = (*entry.place, "precision") if own.precision else entry.place
        raise config.source.error(
            place,
            f"target {entry.name!r} has no {precision}",
            f"Its runtime has {', '.join(rules.precisions)}; write e.g. `- {entry.name}: {{precision: {rules.precisions[0]}}}`.",
        )
    if step and precision in ("int8", MIXED) and step.scheme != "auto" and step.scheme not in rules.ladder:
        raise config.source.error(
            entry.place, f"target {entry.name!r} has no scheme {step.scheme!r}", f"Its runtime has {', '.join(rules.ladder)}; or use auto."
        )
    target = Target(
        name=entry.name,
        runtime=entry.entry.runtime,
        device=own.device or entry.entry.device,
        precision=precision,
        options=entry.options,
        threads=own.threads or config.run.threads,
        batch=own.batch or config.run.batch,
    )
    accepted = frozenset(name for name, word in own.unmeasured.model_dump().items() if word == "accept")
    gates = gates_of(config.gates, entry)
    confidence = next((gate.confidence for gate in gates if gate.name == "accuracy_drop"), 0.95)
    against = baseline_limits(config.gates, entry)
    return TargetPlan(target, gates, accepted, confidence, entry.entry.second_runtime, against is not None and against.ratchet)


def _check_latency(steps: Sequence[Step], targets: Sequence[TargetEntry], source: Source) -> None:
    """A latency budget names a target of the recipe, and widths its kernels like."""
    runtimes = {entry.name: entry.entry.runtime for entry in targets}
    for i, step in enumerate(steps):
        if not isinstance(step, PruneConfig) or step.latency is None:
            continue
        place: Place = ("compress", i, "prune")
        name = step.latency.target
        if name not in runtimes:
            raise source.error((*place, "latency", "target"), f"{name!r} is not a target of this recipe", f"It has {', '.join(runtimes)}.")
        needed = rules_for(runtimes[name]).multiple
        if step.multiple != "auto" and step.multiple % needed:
            what = f"kept widths that are multiples of {step.multiple} have no predictable latency in {name}"
            raise source.error((*place, "multiple"), what, f"Its kernels want multiples of {needed}; leave it at auto.")


def _check_int4(steps: Sequence[Step], targets: Sequence[TargetEntry], source: Source) -> None:
    """What speaks of 4-bit weights stands in a recipe that has some."""
    for i, step in enumerate(steps):
        if not isinstance(step, QuantizeConfig):
            continue
        place: Place = ("compress", i, "quantize")
        if not any((entry.overrides.precision or step.precision) == "int4-weights" for entry in targets):
            if step.method in INT4_METHODS:
                what = f"method {step.method!r} rounds 4-bit weights, and no target has them"
                raise source.error((*place, "method"), what, "Set precision: int4-weights, or method: ptq.")
            if "group" in step.model_fields_set:
                raise source.error((*place, "group"), "`group` is of 4-bit weights, and no target has them", "Set precision: int4-weights.")
        elif step.method == "qat" and step.precision == "int4-weights":
            what = "4-bit weights are not trained"
            raise source.error((*place, "method"), what, f"Use {', '.join(INT4_METHODS)}, or precision: int8 with method: qat.")


def _check_training(steps: Sequence[Step], targets: Sequence[TargetEntry], source: Source) -> None:
    """Quantization-aware training stands in a recipe with integers to train for."""
    for i, step in enumerate(steps):
        if not isinstance(step, QuantizeConfig) or step.method != "qat":
            continue
        if not any((entry.overrides.precision or step.precision) in ("int8", MIXED) for entry in targets):
            what = f"method 'qat' trains for calibrated integers, and precision {step.precision} has none"
            raise source.error(("compress", i, "quantize", "method"), what, "Set precision: int8, or method: ptq.")


def _check_refiners(steps: Sequence[Step], targets: Sequence[TargetEntry], source: Source) -> None:
    """What refines integers with calibrated ranges stands in a recipe that has some."""
    for i, step in enumerate(steps):
        if not isinstance(step, QuantizeConfig) or not step.refiners:
            continue
        integers = any((entry.overrides.precision or step.precision) in ("int8", MIXED) for entry in targets)
        if not integers or step.scheme in ("dynamic", "weights"):
            what = f"{step.refiners[0]!r} refines integers with calibrated ranges, and no target has them"
            raise source.error(("compress", i, "quantize", "algorithms"), what, "Set precision: int8 with scheme: auto, or leave it out.")


def _check_layouts(bundle: BundleConfig, targets: Sequence[TargetEntry], source: Source) -> None:
    """A server's layout stands in a recipe with a target it can serve."""
    runtimes = {entry.entry.runtime for entry in targets}
    for i, name in enumerate(bundle.layouts):
        if name in SERVED and not runtimes & set(SERVED[name]):
            place: Place = ("bundle", "layouts", i)
            raise source.error(place, f"layout {name!r} has no target to serve", f"It takes {', '.join(SERVED[name])}.")
