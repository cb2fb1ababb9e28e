"""provenance.intoto.jsonl: an in-toto Statement v1 with a SLSA provenance v1 predicate, unsigned. Sign it where your keys are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from edgepress.bundle.sbom import package_url

NAME = "provenance.intoto.jsonl"


def statement(report: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], files: Mapping[str, str]) -> str:
    """One line of JSON.

    Args:
        report: the report dictionary.
        entries: the artifacts of bundle.json.
        files: every file of the bundle written so far, with its sha256: the subjects.
    """
    environment = report["environment"]
    parents = {"checkpoint": environment["checkpoint_sha256"], "config": environment["config_sha256"]}
    for item in entries:
        parents |= {f"{item['target']}/{name}": value for name, value in item["parents"].items() if parents.get(name) != value}
    dependencies: list[dict[str, Any]] = [{"name": name, "digest": {"sha256": parents[name]}} for name in sorted(parents)]
    dependencies += [{"uri": package_url(name, number)} for name, number in sorted(environment["packages"].items())]
    body = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": value}} for name, value in files.items()],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:edgepress:run:v1",
                "externalParameters": {
                    "project": report["project"],
                    "targets": [{"name": item["target"], "precision": item["precision"], "device": item["device"]} for item in entries],
                },
                "internalParameters": {
                    "stages": [stage["name"] for stage in report["stages"]],
                    "schemes": {item["target"]: item["scheme"]["label"] for item in entries},
                },
                "resolvedDependencies": dependencies,
            },
            "runDetails": {"builder": {"id": "urn:edgepress:local", "version": {"edgepress": version("edgepress")}}},
        },
    }
    return json.dumps(body, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def subjects(text: str) -> dict[str, str]:
    """Name -> sha256 of everything a statement speaks of.

    Raises:
        ValueError: the text is no statement.
    """
    try:
        return {item["name"]: item["digest"]["sha256"] for item in json.loads(text)["subject"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an in-toto statement: {error!r}") from error
