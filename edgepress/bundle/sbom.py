"""sbom.cdx.json: CycloneDX 1.6. The artifacts with hashes and ancestry, the checkpoint, the data, and the packages that made them."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from edgepress.bundle.license import cyclonedx
from edgepress.bundle.mlbom import checkpoint_card, model_card
from edgepress.bundle.release import Release

Json = Mapping[str, Any]
_NAMESPACE = uuid.UUID("6d5a4b1c-3f5e-5a3b-9a63-2f8f3d1f7c11")  # any fixed one: the serial number depends on the content alone


def sbom(report: Json, entries: Sequence[Json], release: Release) -> dict[str, Any]:
    """The content of sbom.cdx.json; a time only where SOURCE_DATE_EPOCH gives one."""
    packages = report["environment"]["packages"]
    data = [_data(name, release) for name in sorted(release.data)]
    components = [_checkpoint(report, release), *(_model(report, item, release) for item in entries), *data]
    components += [_package(name, packages[name]) for name in sorted(packages)]
    product = {"type": "application", "name": report["project"] or "project", "bom-ref": "project"}
    metadata: dict[str, Any] = {
        "component": product,
        "tools": {"components": [{"type": "application", "name": "edgepress", "version": version("edgepress")}]},
    }
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        metadata["timestamp"] = datetime.fromtimestamp(int(epoch), UTC).isoformat().replace("+00:00", "Z")
    serial = uuid.uuid5(_NAMESPACE, json.dumps(components, sort_keys=True))
    made_from = ["checkpoint", *(item["bom-ref"] for item in data)]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": [
            {"ref": "project", "dependsOn": [component["bom-ref"] for component in components]},
            *({"ref": f"artifact:{item['target']}", "dependsOn": made_from} for item in entries),
        ],
    }


def package_url(name: str, number: str) -> str:
    """The purl of a Python distribution (name normalised as PEP 503 says; `+` of a local version percent-encoded)."""
    return f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{number.replace('+', '%2B')}"


def _package(name: str, number: str) -> dict[str, Any]:
    url = package_url(name, number)
    return {"type": "library", "name": name, "version": number, "purl": url, "bom-ref": url}


def _data(name: str, release: Release) -> dict[str, Any]:
    """Samples that were read: the hash is of what the callables yielded, not of a file of the user's."""
    facts = {"sha256 of the samples": release.data[name], **release.datasets}
    return {"type": "data", "name": name, "bom-ref": f"data:{name}", "properties": _properties(facts)}


def _checkpoint(report: Json, release: Release) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "name": f"{report['project']}/checkpoint",
        "bom-ref": "checkpoint",
        "hashes": _hashes(report["environment"]["checkpoint_sha256"]),
        **_licensed(release),
        "modelCard": checkpoint_card(report),
    }


def _model(report: Json, item: Json, release: Release) -> dict[str, Any]:
    files = [
        {
            "type": "file",
            "name": f"{item['folder']}/{name}",
            "hashes": _hashes(value),
            "bom-ref": f"file:{item['folder']}/{name}",
        }
        for name, value in sorted(item["files"].items())
    ]
    facts = {"runtime": item["runtime"], "precision": item["precision"], "scheme": item["scheme"]["label"], "sha256": item["sha256"]}
    single = {"hashes": _hashes(item["sha256"])} if item["path"] in item["files"] else {}  # a folder's hash is of no file
    return {
        "type": "machine-learning-model",
        "name": f"{report['project']}/{item['target']}",
        "bom-ref": f"artifact:{item['target']}",
        **single,
        **_licensed(release),
        "pedigree": _pedigree(report, item, release),
        "modelCard": model_card(report, item, sorted(release.data)),
        "components": files,
        "properties": _properties(facts),
    }


def _pedigree(report: Json, item: Json, release: Release) -> dict[str, Any]:
    """The checkpoint an artifact descends from, and what was done on the way."""
    ancestor = {
        "type": "machine-learning-model",
        "name": f"{report['project']}/checkpoint",
        "hashes": _hashes(item["parents"].get("checkpoint", report["environment"]["checkpoint_sha256"])),
        **_licensed(release),
    }
    done = [stage["name"] for stage in report["stages"] if stage["name"] != "original" and not stage["name"].startswith("quantize")]
    return {"ancestors": [ancestor], "notes": "; ".join([*done, f"exported as {item['scheme']['label']} for {item['runtime']}"])}


def _licensed(release: Release) -> dict[str, Any]:
    found = cyclonedx(release.license)
    return {"licenses": found} if found else {}


def _hashes(value: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": value}]


def _properties(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": f"edgepress:{name}", "value": str(value)} for name, value in sorted(facts.items())]
