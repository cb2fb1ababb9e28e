"""Findings on a recipe: everything that is wrong with it, and the gates that a run could not decide.

The recipe alone shows wrong keys and values. What was stored by an earlier run (sample counts, the traced model) shows more; nothing of the
user's code is run here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgepress import config_yaml
from edgepress.config import Config, TargetPlan, recipe
from edgepress.config import check as check_source
from edgepress.config_gates import GateLimit
from edgepress.config_places import gate_line, target_line
from edgepress.config_steps import PruneConfig
from edgepress.config_yaml import Place
from edgepress.machine import fingerprint
from edgepress.report.findings import Finding, repository_path
from edgepress.targets.errors import ConfigError, EdgepressError, PruneError
from edgepress.validators.gates import accepts

#: What each rule finds.
RULES = {
    "recipe/unreadable": "The recipe is missing or no valid YAML.",
    "recipe/unknown-key": "A key that edgepress does not know.",
    "recipe/invalid": "A value of the wrong type, unit or range, or one that does not go with another.",
    "recipe/no-file": "A file that the recipe names and that is not there.",
    "recipe/no-match": "A pattern of layers that no layer of the model has.",
    "recipe/no-gate": "A target that no gate judges.",
    "recipe/undecidable": "A gate that the data or the machine at hand cannot decide.",
}
_MOST_FINDINGS = 100


@dataclass(frozen=True)
class Checked:
    """What was found, in the order of the file, and what could not be looked at."""

    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...]


def check(path: Path) -> Checked:
    """Everything that can be said of a recipe without running it."""
    config, errors = _read(path)
    if config is None:
        return Checked(_in_order([_of_error(path, error) for error in errors]), ())
    plans = recipe(config)
    stored = _Stored(config, plans)
    found = [*_checkpoint(config), *_metric(config), *_gates(config, plans, stored), *_patterns(config, stored)]
    return Checked(_in_order(found), tuple(stored.missing))


def _in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: finding.line or 0))


def _read(path: Path) -> tuple[Config | None, list[ConfigError]]:
    """The recipe, or its mistakes: what is wrong is taken out and the rest is read again, until nothing is wrong or nothing can go."""
    errors: list[ConfigError] = []
    try:
        source = config_yaml.read(path)
        while len(errors) < _MOST_FINDINGS:
            try:
                config = check_source(source)
                recipe(config)
                return (None if errors else config), errors
            except ConfigError as error:
                follows = any(earlier.place[: len(error.place)] == error.place for earlier in errors)  # from what was taken out
                if not follows:
                    errors.append(error)
                rest = source.without(error.place) if error.place else None
                if rest is None:
                    break
                source = rest
    except ConfigError as error:
        errors.append(error)
    return None, errors


def _of_error(path: Path, error: ConfigError) -> Finding:
    summary = str(error).removeprefix(f"{path}:{error.line}: ")
    key = (config_yaml.dotted_name(error.place), error.what)
    return _finding(f"recipe/{error.kind}", "error", summary, str(path), error.line, key)


def _finding(rule: str, verdict: str, summary: str, path: str, line: int | None, key: tuple[str, ...]) -> Finding:
    level = "error" if verdict == "error" else "warning"
    return Finding(rule, verdict, level, rule, summary, (), repository_path(path), line, key)


class _Stored:
    """What earlier runs left in the store."""

    def __init__(self, config: Config, plans: tuple[TargetPlan, ...]) -> None:
        from edgepress.engine import open_store
        from edgepress.pipeline import Pipeline
        from edgepress.step import Planner

        self.missing: list[str] = []
        self._prepared = Pipeline(config, plans, Planner(open_store(config))).prepare()

    @property
    def samples(self) -> int | None:
        """Of the validation share."""
        if self._prepared.data.pending:
            self._miss("how many samples decide accuracy gates")
            return None
        return int(self._prepared.data.value["counts"]["validation"])

    @property
    def fraction(self) -> bool:
        """Is the metric a fraction, whose drops are percentage points?"""
        original = self._prepared.original
        return not original.pending and original.value["unit"] == "pp"

    @cached_property
    def layers(self) -> list[str] | None:
        """Names of the model's layers."""
        if self._prepared.source.pending:
            self._miss("patterns of layers")
            return None
        return _layers(self._prepared.source.folder / "model.pt2")

    def _miss(self, what: str) -> None:
        note = f"{what}: no earlier run is stored"
        if note not in self.missing:
            self.missing.append(note)


def _layers(program: Path) -> list[str]:
    from edgepress.compress.program import load_program

    return sorted({name.rpartition(".")[0] for name in load_program(program).state_dict} - {""})


def _checkpoint(config: Config) -> Iterator[Finding]:
    if not config.checkpoint.is_file():
        place: Place = ("model", "checkpoint")
        summary = f"model.checkpoint: {str(config.checkpoint)!r} does not exist. Next: train or fetch it, or correct the path."
        yield _finding("recipe/no-file", "error", summary, str(config.path), config.source.lines.get(place), (config.model.checkpoint,))


def _metric(config: Config) -> Iterator[Finding]:
    """A metric's name that is none; one of the user's own is not imported."""
    from edgepress.validators.metrics import metric_of

    if ":" in config.metric:
        return
    try:
        metric_of(config.metric)
    except EdgepressError as error:
        yield _finding("recipe/invalid", "error", f"metric: {error}", str(config.path), config.source.lines.get(("metric",)), ("metric",))


def _gates(config: Config, plans: tuple[TargetPlan, ...], stored: _Stored) -> Iterator[Finding]:
    path = str(config.path)
    for plan in plans:
        name = plan.target.name
        if not plan.gates:
            summary = f"target {name!r} has no gate: a run can show nothing about it. Next: add e.g. `accuracy_drop: {{max: 1.0pp}}`."
            yield _finding("recipe/no-gate", "error", summary, path, target_line(config, name), (name,))
        for gate in plan.gates:
            why = _undecidable(plan, gate, stored)
            if why is not None:
                summary = f"{gate.name} of {name!r} cannot be decided: {why}"
                yield _finding("recipe/undecidable", "undecided", summary, path, gate_line(config, name, gate.name), (name, gate.name))


def _undecidable(plan: TargetPlan, gate: GateLimit, stored: _Stored) -> str | None:
    from edgepress.validators.runtimes import RUNTIMES

    if gate.name == "accuracy_drop":
        return _too_few(gate, stored)
    if gate.name.startswith(("latency_", "peak_memory")) and not accepts(plan.accepted, gate.name):
        why = RUNTIMES.get(plan.target.runtime)().timing_unavailable()
        if why is not None:
            family = "peak_memory" if gate.name == "peak_memory" else "latency"
            return f"{why}. Next: check it where it can be measured, or accept it by name: `unmeasured: {{{family}: accept}}`."
    if gate.unit == "ms" and gate.machine != fingerprint():
        here = f"this machine is {fingerprint()}"
        return f"the limit holds on {gate.machine}, {here}." if gate.machine else f"it names no machine. Next: add `machine:`; {here}."
    return None


def _too_few(gate: GateLimit, stored: _Stored) -> str | None:
    """Is the margin below what the samples can show even where no prediction changes?"""
    from edgepress.validators.intervals import unseen_share

    samples = stored.samples
    if samples is None or gate.unit != "pp" or not stored.fraction:
        return None

    def finest(count: int) -> float:
        return 100 * unseen_share(count, gate.confidence)

    if finest(samples) < gate.limit:
        return None
    if gate.limit <= 0:
        return f"a limit of {gate.limit:g} pp is met by no interval, which contains 0 pp where nothing changes. Next: choose one above 0."
    needed = samples
    while finest(needed) >= gate.limit:
        needed = needed * 11 // 10 + 1
    return (
        f"{samples:,} validation samples show no less than {finest(samples):.2g} pp even where no answer changes, and the limit is "
        f"{gate.limit:g} pp. Next: at least {needed:,} samples, or a wider limit."
    )


def _patterns(config: Config, stored: _Stored) -> Iterator[Finding]:
    """Patterns of `prune` against the layers of the traced model."""
    for place, pattern in _pattern_places(config):
        layers = stored.layers
        if layers is None:
            return
        from edgepress.compress.prune.masks import matching_layers

        try:
            matching_layers((pattern,), layers)
        except PruneError as error:
            summary = f"{config_yaml.dotted_name(place)}: {error}"
            yield _finding("recipe/no-match", "error", summary, str(config.path), config.source.lines.get(place), (pattern,))


def _pattern_places(config: Config) -> Iterator[tuple[Place, str]]:
    for i, step in enumerate(config.steps):
        if isinstance(step, PruneConfig):
            for key, patterns in (("ignore", step.ignore), ("protect", step.protect)):
                for j, pattern in enumerate(patterns):
                    yield ("compress", i, "prune", key, j), pattern
