"""sbom.cdx.json: CycloneDX 1.6. The packages that made the artifacts, and the artifacts with their hashes."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

_NAMESPACE = uuid.UUID("6d5a4b1c-3f5e-5a3b-9a63-2f8f3d1f7c11")  # any fixed one: the serial number depends on the content alone


def sbom(report: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of sbom.cdx.json; a time only where SOURCE_DATE_EPOCH gives one."""
    packages = report["environment"]["packages"]
    components = [_model(report["project"], item) for item in entries]
    components += [_package(name, packages[name]) for name in sorted(packages)]
    product = {"type": "application", "name": report["project"] or "project", "bom-ref": "project"}
    metadata: dict[str, Any] = {
        "component": product,
        "tools": {"components": [{"type": "application", "name": "edgepress", "version": version("edgepress")}]},
    }
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        metadata["timestamp"] = datetime.fromtimestamp(int(epoch), UTC).isoformat().replace("+00:00", "Z")
    serial = uuid.uuid5(_NAMESPACE, json.dumps(components, sort_keys=True))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": [{"ref": "project", "dependsOn": [component["bom-ref"] for component in components]}],
    }


def package_url(name: str, number: str) -> str:
    """The purl of a Python distribution (name normalised as PEP 503 says; `+` of a local version percent-encoded)."""
    return f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{number.replace('+', '%2B')}"


def _package(name: str, number: str) -> dict[str, Any]:
    url = package_url(name, number)
    return {"type": "library", "name": name, "version": number, "purl": url, "bom-ref": url}


def _model(project: str, item: Mapping[str, Any]) -> dict[str, Any]:
    files = [
        {
            "type": "file",
            "name": f"{item['folder']}/{name}",
            "hashes": [{"alg": "SHA-256", "content": value}],
            "bom-ref": f"file:{item['folder']}/{name}",
        }
        for name, value in sorted(item["files"].items())
    ]
    facts = {"runtime": item["runtime"], "precision": item["precision"], "scheme": item["scheme"]["label"], "sha256": item["sha256"]}
    return {
        "type": "machine-learning-model",
        "name": f"{project}/{item['target']}",
        "bom-ref": f"artifact:{item['target']}",
        "components": files,
        "properties": [{"name": f"edgepress:{name}", "value": str(value)} for name, value in sorted(facts.items())],
    }
