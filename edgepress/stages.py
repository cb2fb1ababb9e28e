"""The compression steps before quantization: what each does to the model, and what the model is worth after it.

prune      -> [sparsity training] -> prune -> [fine-tuning], as often as `steps` says, each time to a part of the budget
distill    -> training with teachers
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from edgepress.config_steps import BUDGETS, DistillConfig, PruneConfig, QatConfig, TrainSettings
from edgepress.isolate import Limits
from edgepress.machine import cores
from edgepress.step import Result, Step
from edgepress.step_kinds import StepKinds
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import rules_for

#: A training says how far it is and can be stopped; it is not taken for a hanging converter.
_TRAINING_S = 30 * 24 * 3600.0


#: Makes a step from the model before it.
Builder = Callable[[Result], Step]


@dataclass(frozen=True)
class Origin:
    """Where the steps start: the traced original, its data and what it answers on them."""

    data: Result
    model: Result
    reference: Result


@dataclass(frozen=True)
class Stage:
    """A model between two steps.

    Attributes:
        name: e.g. `prune 2.00x`, `finetune`, `distill kd`.
        model: `model.pt2` with its signature, parameters and multiply-accumulates; `report` in its value says what was done.
        outputs: what it answers on the validation and selection shares.
        score: its metric on the validation share, paired with the original's.
    """

    name: str
    model: Result
    outputs: Result
    score: Result


class Stages(StepKinds):
    """Builds the steps of `compress:` before quantization."""

    def run(self, origin: Origin) -> tuple[Stage, ...]:
        """Every stage in order; the last one's model is exported.

        Raises:
            EdgepressError: a step failed; no target can run then.
        """
        made: list[Stage] = []
        model = origin.model
        for name, build in self._builders(origin):
            model = self._do(build(model))
            made.append(self._judged(name, model, origin))
        return tuple(made)

    def _builders(self, origin: Origin) -> Iterator[tuple[str, Builder]]:
        for place, config in enumerate(self.config.steps):
            if isinstance(config, PruneConfig):
                yield from self._prune(place, config, origin)
            elif isinstance(config, DistillConfig):
                yield f"distill {_losses(config.loss)}", partial(self._train, self._title("distill", place), "distill", config, origin)

    def _prune(self, place: int, config: PruneConfig, origin: Origin) -> Iterator[tuple[str, Builder]]:
        choice, table = self._choice(config), self._table(config, origin)
        if config.sparsity is not None:
            yield (
                "sparsity training",
                partial(self._train, self._title("sparsity", place), "sparsity", config.sparsity, origin, extra=choice),
            )
        for turn in range(1, config.steps + 1):
            name = f"prune {_budget(config)}" + (f" ({turn} of {config.steps})" if config.steps > 1 else "")
            yield name, partial(self._remove, self._title(name, place), {**choice, "turn": turn, "turns": config.steps}, origin, table)
            if config.finetune is not None:
                share = config.finetune.model_copy(update={"epochs": config.finetune.epochs / config.steps})
                yield "finetune", partial(self._train, self._title("finetune", place), "finetune", share, origin)

    def _table(self, config: PruneConfig, origin: Origin) -> Result | None:
        """What every layer costs in the runtime of a latency budget, measured once on the original."""
        if config.latency is None:
            return None
        entry = next(entry for entry in self.config.targets if entry.name == config.latency.target)
        run, runtime = self.config.run, entry.entry.runtime
        precision = config.latency.precision if config.latency.precision != "auto" else self._shipped(entry.overrides.precision, runtime)
        multiple = rules_for(runtime).multiple
        params = {"runtime": runtime, "precision": precision, "threads": run.threads, "batch": run.batch, "multiple": multiple}
        inputs = {"model": origin.model, "data": origin.data}
        title = f"layer latencies {config.latency.target} {precision}"
        function = "edgepress.steps.layers:latencies"
        return self.machine(title, function, params, inputs, run.threads)

    def _shipped(self, precision: str | None, runtime: str) -> str:
        """`int8` where the first scheme that is tried for a target has integers with calibrated ranges, else `fp32`."""
        quantize = self.config.quantize
        if quantize is None or (precision or quantize.precision) != "int8":
            return "fp32"
        scheme = rules_for(runtime).ladder[0] if quantize.scheme == "auto" else quantize.scheme
        return "int8" if scheme == "static" else "fp32"

    def _remove(self, title: str, settings: Mapping[str, Any], origin: Origin, table: Result | None, model: Result) -> Step:
        inputs = {"model": model, "data": origin.data, "original": origin.model}
        if table is not None:
            settings = {**settings, "table": dict(table.value)}
        return Step(title, "edgepress.steps.prune:prune", settings, inputs, threads=cores(), limits=self._limits, warm=True)

    def _choice(self, config: PruneConfig) -> dict[str, Any]:
        """JSON-able parameters of `steps.prune:prune`; `multiple: auto` is what every target of the recipe likes."""
        runtimes = sorted({entry.entry.runtime for entry in self.config.targets})
        own = config.model_dump(exclude={"finetune", "sparsity", "steps"})
        if config.multiple == "auto":
            own["multiple"] = max((rules_for(runtime).multiple for runtime in runtimes), default=1)
        return own | {"seed": self.config.seed}

    def rebuilt(self, origin: Origin, made: Sequence[Stage]) -> Result | None:
        """The last stage's model for PyTorch, where pruning changed its shape."""
        if not any(isinstance(config, PruneConfig) for config in self.config.steps):
            return None
        model = self.config.model
        params = {"root": str(self.config.root), "factory": model.factory, "args": model.args}
        inputs = {"model": made[-1].model, "original": origin.model, "data": origin.data}
        function = "edgepress.steps.rebuild:rebuild"
        return self.user("rebuild", function, params, inputs)

    def qat(self, config: QatConfig, origin: Origin, model: Result, calibration: Result, runtime: str, scheme: Scheme) -> Result:
        """The model after training with one runtime's integers simulated, to be calibrated and exported like any other."""
        settings = {"runtime": runtime, "scheme": vars(scheme)}
        step = self._train(f"train {runtime} {scheme.label}", "qat", config, origin, model, settings)
        return self._do(replace(step, inputs={**step.inputs, "calibration": calibration}))

    def _train(
        self, title: str, kind: str, config: TrainSettings, origin: Origin, model: Result, extra: Mapping[str, Any] = MappingProxyType({})
    ) -> Step:
        own = self.config.collect_params()
        params: dict[str, Any] = {
            "kind": kind,
            "train_config": config.train_config(self.config.seed),
            "root": own["root"],
            "train": config.data or own["train"],
            "shares": {"calibration": own["calibration"], "exact": own["exact"]},
            "model_inputs": own["model_inputs"],
            "metric": self.config.metric,
            "factory": self.config.model.factory,
            "args": self.config.model.args,
            **config.model_dump(include={"loss", "temperature", "task", "task_loss", "layers", "strength"}),
            **extra,
        }
        if isinstance(config, DistillConfig):
            params["teacher"] = [config.teacher] if isinstance(config.teacher, str) else config.teacher
        inputs = {"model": model, "data": origin.data, "original": origin.model, "reference": origin.reference}
        return Step(
            title,
            "edgepress.steps.train:train",
            params,
            inputs,
            self.config.root,
            tuple(self.config.root / name for name in params.get("teacher") or ()),
            threads=cores(),
            limits=Limits(_TRAINING_S, int(self.config.run.memory), memory_key="run.memory"),
            resumes=True,
        )

    def _judged(self, name: str, model: Result, origin: Origin) -> Stage:
        root, metric, data = str(self.config.root), self.config.metric, origin.data
        function = "edgepress.compress.project.steps:reference"
        outputs = self.shared(f"run {name}", function, {"metric": metric}, {"model": model, "data": data})
        params = {"metric": metric, "root": root, "share": "validation", "confidence": 0.95, "signature": model.value.get("signature")}
        inputs = {"execution": outputs, "reference": origin.reference, "data": data}
        return Stage(name, model, outputs, self.user(f"score {name}", "edgepress.steps.score:stage", params, inputs))

    def _title(self, name: str, place: int) -> str:
        return name if len(self.config.steps) < 3 else f"{name} (step {place + 1})"


def _budget(config: PruneConfig) -> str:
    name = next((name for name in BUDGETS if getattr(config, name) is not None), None)
    if name == "speedup":
        return f"{config.speedup:.2f}x MACs"
    if name == "latency":
        assert config.latency is not None
        return f"to {config.latency.ratio:.2f}x latency in {config.latency.target}"
    if name == "mask":
        return f"mask {config.mask}"
    return f"{config.blocks} blocks" if name is None else f"{name} {getattr(config, name):g}"


def _losses(loss: str | dict[str, float]) -> str:
    return loss if isinstance(loss, str) else " + ".join(loss)
