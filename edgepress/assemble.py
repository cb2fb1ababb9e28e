"""From what the steps returned to report.json: evidence, verdicts, and the facts beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgepress.bundle.digest import digest, sha256, size_bytes
from edgepress.config import Config
from edgepress.evidence import gather
from edgepress.machine import cores, cpu_name, fingerprint
from edgepress.pipeline import Candidate, Prepared, TargetRun
from edgepress.targets.errors import RuntimeUnavailable
from edgepress.validators.gates import judge, overall

#: Packages whose versions a report states, where they are installed.
PACKAGES = (
    "edgepress",
    "torch",
    "torchao",
    "torchmetrics",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "tensorrt-rtx-cu13-libs",
    "coremltools",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
)


def assemble(
    config: Config, prepared: Prepared, runs: Sequence[TargetRun], started: datetime, seconds: float
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Build the report.

    Returns:
        The report, and for every target with an artifact the folder its export wrote into.
    """
    reference = prepared.reference.value
    targets = [_target(config, run) for run in runs]
    verdicts = [verdict for run in targets for verdict in run["gates"]]
    report = {
        "schema": "edgepress/report/v1",
        "project": config.project,
        "verdict": overall([gate["verdict"] for gate in verdicts], [target["status"] for target in targets]),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "command": f"edgepress run {_shown(config.path)}",
        "environment": environment(config),
        "reference": {
            "metric": {
                "name": config.metric,
                "value": reference["value"],
                "samples": reference["samples"],
                "drop_unit": reference["unit"],
            },
            "parameters": prepared.model.value["parameters"],
            "macs": prepared.model.value["macs"],
            "size_bytes": config.checkpoint.stat().st_size,
        },
        "stages": _stages(prepared, runs),
        "targets": targets,
    }
    folders = {run.plan.target.name: run.chosen.export.folder for run in runs if run.error is None and run.chosen and run.chosen.export}
    return report, folders


def environment(config: Config) -> dict[str, Any]:
    """Where and with what a run was made."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "fingerprint": fingerprint(),
        "cpu": cpu_name(),
        "threads": cores(),
        "packages": packages,
        "checkpoint_sha256": sha256(config.checkpoint),
        "config_sha256": sha256(config.path),
    }


def _stages(prepared: Prepared, runs: Sequence[TargetRun]) -> list[dict[str, Any]]:
    model, reference = prepared.model.value, prepared.reference
    sizes = {"parameters": model["parameters"], "macs": model["macs"]}
    stages = [{"name": "original", "metric": reference.value["value"], **sizes, "seconds": reference.seconds, "cached": reference.cached}]
    worst = [run for run in runs if run.score is not None and run.plan.target.precision != "fp32"]
    if worst and prepared.calibration is not None:
        run = max(worst, key=lambda r: float(r.score.value["drop"]) if r.score else 0.0)
        assert run.score is not None
        calibration = prepared.calibration
        stages.append(
            {
                "name": f"quantize (worst target: {run.plan.target.name})",
                "metric": run.score.value["value"],
                **sizes,
                "seconds": calibration.seconds,
                "cached": calibration.cached,
            }
        )
    return stages


def _target(config: Config, run: TargetRun) -> dict[str, Any]:
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
        "artifact": None,
        "metric": None,
        "parity": None,
        "latency_ms": None,
        "latency_ratio": None,
        "peak_memory_bytes": None,
        "kernels": None,
        "gates": [],
        "tried": [_tried(candidate) for candidate in run.tried],
        "unmeasured": sorted(plan.accepted),
    }
    if run.error is None and run.chosen is not None and run.chosen.export is not None and run.execution and run.score:
        base |= _measured(config, run, run.chosen)
        base["gates"] = [verdict.to_json() for verdict in judge(plan.gates, gather(run, base), plan.accepted)]
    return base


def _status(run: TargetRun) -> str:
    if run.error is None:
        return "validated"
    return "unsupported" if isinstance(run.error, RuntimeUnavailable) else "failed"


def _measured(config: Config, run: TargetRun, chosen: Candidate) -> dict[str, Any]:
    assert chosen.export is not None and run.execution is not None and run.score is not None
    artifact, execution, score = chosen.export.value["artifact"], run.execution.value, run.score.value
    path = chosen.export.folder / "artifact" / artifact["path"]
    latency = run.latency.value if run.latency else {}
    kernels = dict(execution["kernels"])
    share = kernels.pop("int8_macs_share")
    folder = run.plan.target.name.replace(":", "-") if ":" in run.plan.target.name else run.plan.target.name
    return {
        "executed_by": execution["executed_by"],
        "artifact": {"path": f"bundle/{folder}/{artifact['path']}", "sha256": digest(path), "size_bytes": size_bytes(path)},
        "metric": {key: score[key] for key in ("value", "drop", "interval", "samples")},
        "parity": {**execution["parity"], "against": chosen.export.value["parity_source"]},
        "latency_ms": latency.get("latency_ms"),
        "latency_ratio": latency.get("latency_ratio"),
        "peak_memory_bytes": run.memory.value["peak_bytes"] if run.memory else None,
        "kernels": {**kernels, "float_share_of_macs": None if share is None else round(1 - share, 6)},
        "scheme": {"label": _label(artifact["scheme"]), "kind": artifact["scheme"]["kind"]},
        "integer_share_of_macs": share,
        "float_ops": artifact["float_ops"],
        "facts": artifact["facts"],
        "signature": artifact["signature"],
        "also_executed_by": _also(run.second),
    }


def _label(scheme: Mapping[str, str]) -> str:
    from edgepress.targets.nouns import Scheme

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
