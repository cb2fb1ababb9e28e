"""From what the steps returned to report.json: evidence, verdicts, and the facts beside them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from edgepress.baseline.file import Baseline
from edgepress.best import figures
from edgepress.bundle import inputs, license
from edgepress.bundle.digest import sha256
from edgepress.bundle.release import Release
from edgepress.bundle.write import Shipment, shipped_artifacts
from edgepress.config import Config
from edgepress.config_places import gate_line, target_line
from edgepress.environment import environment
from edgepress.evidence import gather
from edgepress.judgement import against_baseline, conclude
from edgepress.machine import fingerprint
from edgepress.peak_distance import peak_distance
from edgepress.results import Candidate, Prepared, TargetRun
from edgepress.step import Result
from edgepress.targets.errors import RuntimeUnavailable
from edgepress.targets.nouns import Artifact, Scheme, Verdict
from edgepress.validators.multiplicity import Asked, judge_together

#: Stands in for the gates of a target that has none: nothing was asked, so nothing passed, whatever undecided gates count as.
NO_GATE = Verdict("gates", "at least one", "none", None, "error", "Add `gates:` to the recipe, e.g. `accuracy_drop: {max: 1.0pp}`.")


def assemble(
    config: Config,
    prepared: Prepared,
    runs: Sequence[TargetRun],
    baseline: Baseline | None,
    started: datetime,
    seconds: float,
    options: Sequence[str] = (),
) -> tuple[dict[str, Any], list[Shipment]]:
    """Build the report.

    Args:
        baseline: the accepted release, None where there is none yet.
        started: when the run was; waivers hold on that day or do not.
        options: of the command line, those that repeating the run takes.

    Returns:
        The report, and what the bundle ships for every target that has an artifact.
    """
    original = prepared.original.value
    shipments = [_shipment(config, prepared, run) for run in runs if run.error is None]
    artifacts = shipped_artifacts(shipments)
    targets = [_target(run, artifacts.get(run.plan.target.name), prepared.model.value["macs"]) for run in runs]
    _judge(config, runs, targets)
    report: dict[str, Any] = {
        "schema": "edgepress/report/v1",
        "project": config.project,
        "verdict": None,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "command": shlex.join(["edgepress", "run", _shown(config.path), *options]),
        "recipe": _shown(config.path),
        "environment": environment(config),
        "reference": {
            "metric": {
                "name": config.metric,
                "value": original["value"],
                "samples": original["samples"],
                "drop_unit": original["unit"],
            },
            "dataset_sha256": original["dataset"],
            "parameters": prepared.source.value["parameters"],
            "macs": prepared.source.value["macs"],
            "size_bytes": config.checkpoint.stat().st_size,
        },
        "stages": _stages(prepared, runs),
        "compressed": _compressed(prepared.rebuilt),
        "multiplicity": config.multiplicity,
        "targets": targets,
    }
    judged: dict[str, Any] = conclude(against_baseline(report, baseline, _shown(config.baseline)), config.waivers, started.date())
    judged["targets"] = [_located(config, target) for target in judged["targets"]]
    return judged, shipments


def release_of(config: Config, prepared: Prepared) -> Release:
    """What the bundle says beyond the report: licence, data, input statistics, layouts."""
    return Release(
        license=config.model.license,
        license_texts=license.texts(config.checkpoint),
        datasets={"train": config.data.train, "validation": config.data.validation},
        data={"samples": prepared.data.digest},
        statistics=prepared.inputs.folder / inputs.NAME,
        layouts=config.bundle.layouts,
    )


def _stages(prepared: Prepared, runs: Sequence[TargetRun]) -> list[dict[str, Any]]:
    reference = prepared.reference
    stages = [_stage("original", prepared.original.value["value"], prepared.source, reference.seconds, reference.cached)]
    for stage in prepared.stages:
        row = _stage(stage.name, stage.score.value["value"], stage.model, stage.model.seconds, stage.model.cached)
        row |= {key: stage.score.value[key] for key in ("drop", "interval")}
        stages.append(row | {"report": stage.model.value["report"], "timing": stage.model.value.get("timing")})
    worst = [run for run in runs if run.score is not None and run.plan.target.precision != "fp32"]
    if worst and prepared.calibration is not None:
        run = max(worst, key=lambda r: float(r.score.value["drop"]) if r.score else 0.0)
        assert run.score is not None
        name, calibration = f"quantize (worst target: {run.plan.target.name})", prepared.calibration
        row = _stage(name, run.score.value["value"], prepared.model, calibration.seconds, calibration.cached)
        stages.append(row | {key: run.score.value[key] for key in ("drop", "interval")})
    return stages


def _compressed(rebuilt: Result | None) -> dict[str, Any] | None:
    """The smaller model for PyTorch, beside the bundle."""
    if rebuilt is None:
        return None
    path = rebuilt.folder / rebuilt.value["file"]
    facts = {"sha256": sha256(path), "size_bytes": path.stat().st_size, "route": rebuilt.value["route"], "why": rebuilt.value["why"]}
    return {"path": f"compressed/{path.name}", **facts}


def _stage(name: str, metric: float, model: Result, seconds: float, cached: bool) -> dict[str, Any]:
    sizes = {key: model.value[key] for key in ("parameters", "macs")}
    return {"name": name, "metric": metric, **sizes, "seconds": seconds, "cached": cached}


def _located(config: Config, target: dict[str, Any]) -> dict[str, Any]:
    """A target with the lines of the recipe that ask for it and for its gates."""
    gates = [gate | {"line": gate_line(config, target["name"], gate["name"])} for gate in target["gates"]]
    return target | {"line": target_line(config, target["name"]), "gates": gates}


def _shipment(config: Config, prepared: Prepared, run: TargetRun) -> Shipment:
    assert run.chosen is not None and run.chosen.export is not None and run.execution is not None
    target, export = run.plan.target, run.chosen.export
    parents = {"checkpoint": sha256(config.checkpoint), "config": sha256(config.path), "program": prepared.model.digest}
    artifact = Artifact.from_json(export.value["artifact"])
    return Shipment(target.name, target.runtime, artifact, export.folder / "artifact", run.execution.folder, parents)


def _target(run: TargetRun, artifact: Mapping[str, Any] | None, macs: int) -> dict[str, Any]:
    target, plan = run.plan.target, run.plan
    base: dict[str, Any] = {
        "name": target.name,
        "device": target.device,
        "precision": target.precision,
        "runtime": target.runtime,
        "status": _status(run),
        "executed_by": None,
        "error": str(run.error) if run.error else None,
        "seconds": round(run.seconds, 2),
        "artifact": artifact,
        "metric": None,
        "slices": None,
        "parity": None,
        "latency_ms": None,
        "latency_ratio": None,
        "pruned_latency_ratio": None,
        "peak_distance": None,
        "peak_memory_bytes": None,
        "kernels": None,
        "gates": [],
        "against_baseline": None,
        "sample_scores": None,
        "fallback": run.fallback,
        "mixed": run.mixed,
        "best": run.best,
        "tried": [_tried(candidate) | (figures(candidate, candidate is run.chosen) if run.best else {}) for candidate in run.tried],
        "unmeasured": sorted(plan.accepted),
    }
    if run.error is None:
        base |= _measured(run)
        base["against_baseline"] = _against_baseline(run)
        base["peak_distance"] = peak_distance(run, base, macs)
    return base


def _judge(config: Config, runs: Sequence[TargetRun], targets: Sequence[dict[str, Any]]) -> None:
    """Fill in the gates of every target that was validated, but for those against the accepted release."""
    asked = []
    for run, target in zip(runs, targets, strict=True):
        own = [gate for gate in run.plan.gates if not gate.name.startswith("baseline.")]
        asked.append(Asked(own, gather(run, target), run.plan.accepted) if run.error is None else Asked((), ()))
    verdicts = judge_together(asked, adjust=config.multiplicity == "holm", fingerprint=fingerprint())
    for run, target, found in zip(runs, targets, verdicts, strict=True):
        shown = found if run.plan.gates or run.error is not None else (NO_GATE,)
        target["gates"] = [verdict.to_json() for verdict in shown]


def _against_baseline(run: TargetRun) -> dict[str, Any] | None:
    """What a later judgement against an accepted release needs; None where the recipe asks for none."""
    limits = [gate for gate in run.plan.gates if gate.name.startswith("baseline.")]
    if not limits and not run.plan.ratchet:
        return None
    window = None
    if run.against_baseline is not None and run.accepted is not None:
        value = run.against_baseline.value
        window = {**value["latency_ratio"], "pairs": value["pairs"], "artifact_sha256": run.accepted.sha256}
    return {
        "limits": [vars(gate) for gate in limits],
        "ratchet": run.plan.ratchet,
        "latency": window,
        "error": run.against_baseline_error,
        "unmeasurable": run.unmeasurable,
        "entry": None,
    }


def _status(run: TargetRun) -> str:
    if run.error is None:
        return "validated"
    return "unsupported" if isinstance(run.error, RuntimeUnavailable) else "failed"


def _measured(run: TargetRun) -> dict[str, Any]:
    assert run.chosen is not None and run.chosen.export is not None and run.execution is not None and run.score is not None
    export, execution, score = run.chosen.export.value, run.execution.value, run.score.value
    artifact = export["artifact"]
    latency = run.latency.value if run.latency else {}
    kernels = dict(execution["kernels"])
    share = kernels.pop("int8_macs_share")
    return {
        "executed_by": execution["executed_by"],
        "metric": {key: score[key] for key in ("value", "drop", "interval", "confidence", "samples")},
        "sample_scores": score["scores"],
        "parity": {**execution["parity"], "against": export["parity_source"]},
        "latency_ms": latency.get("latency_ms"),
        "latency_ratio": latency.get("latency_ratio"),
        "slices": run.slices.value["slices"] if run.slices else None,
        "pruned_latency_ratio": run.pruned.value["latency_ratio"] if run.pruned else None,
        "peak_memory_bytes": run.memory.value["peak_bytes"] if run.memory else None,
        "kernels": {**kernels, "float_share_of_macs": None if share is None else round(1 - share, 6)},
        "scheme": {"label": _label(artifact["scheme"]), "kind": artifact["scheme"]["kind"]},
        "integer_share_of_macs": share,
        "float_ops": artifact["float_ops"],
        "facts": artifact["facts"],
        "signature": artifact["signature"],
        "also_executed_by": _also(run.second),
    }


def _label(scheme: Mapping[str, Any]) -> str:
    return Scheme(**scheme).label


def _tried(candidate: Candidate) -> dict[str, Any]:
    score = candidate.selection.value if candidate.selection else {}
    return {"scheme": candidate.scheme.label, "drop_on_selection": score.get("drop"), "held": candidate.held, "why": candidate.why}


def _also(second: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if second is None:
        return []
    if "error" in second:
        return [{"executed_by": second["runtime"], "error": second["error"]}]
    score = second["score"].value
    metric = {key: score[key] for key in ("value", "drop", "interval", "samples")}
    return [{"executed_by": second["execution"].value["executed_by"], "metric": metric, "parity": second["execution"].value["parity"]}]


def _shown(path: Path) -> str:
    """A path as the user would type it from here."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return str(path)
