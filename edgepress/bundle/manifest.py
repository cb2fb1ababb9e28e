"""bundle.json: one entry per artifact, everything a device team asks before they load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from edgepress.bundle import inputs
from edgepress.report.present import target_verdict
from edgepress.targets.nouns import Artifact

if TYPE_CHECKING:
    from edgepress.bundle.release import Release
    from edgepress.bundle.write import Shipment

SCHEMA = "edgepress/bundle/v1"


def manifest(
    report: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], release: Release, layouts: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of bundle.json.

    Args:
        report: the report dictionary.
        entries: one per artifact.
        release: what the report does not say.
        layouts: as `edgepress.bundle.layouts.describe` returns them.
    """
    return {
        "schema": SCHEMA,
        "project": report["project"],
        "edgepress": version("edgepress"),
        "verdict": report["verdict"],
        "reference": report["reference"],
        "license": {"expression": release.license, "files": release.license_files},
        "input_statistics": inputs.NAME if release.statistics else None,
        "layouts": dict(layouts),
        "artifacts": list(entries),
    }


def entry(shipment: Shipment, target: Mapping[str, Any], folder: str, files: Mapping[str, str]) -> dict[str, Any]:
    """One artifact.

    Args:
        shipment: what was shipped.
        target: its entry in the report.
        folder: its folder in the bundle.
        files: every file of that folder with its sha256.
    """
    artifact = shipment.artifact
    data = artifact.to_json()
    return {
        "target": shipment.target,
        "runtime": shipment.runtime,
        "device": target["device"],
        "precision": target["precision"],
        "scheme": {"label": artifact.scheme.label, "kind": artifact.scheme.kind},
        "folder": folder,
        "path": artifact.path,
        "sha256": target["artifact"]["sha256"],
        "size_bytes": target["artifact"]["size_bytes"],
        "files": dict(files),
        "parents": dict(shipment.parents),
        "inputs": data["signature"]["inputs"],
        "outputs": data["signature"]["outputs"],
        "preprocessing": shipment.preprocessing,
        "runtime_minimum": artifact.facts.get("runtime_minimum"),
        "artifact": data,
        "executed_by": target["executed_by"],
        "metric": target["metric"],
        "latency_ms": target["latency_ms"],
        "latency_ratio": target["latency_ratio"],
        "peak_memory_bytes": target["peak_memory_bytes"],
        "verdict": target_verdict(target),
        "verdicts": list(target["gates"]),
        "golden": "golden.json",
    }


def artifact_of(data: Mapping[str, Any]) -> Artifact:
    """The artifact an entry describes; its paths are relative to the entry's folder."""
    return Artifact.from_json(data["artifact"])
