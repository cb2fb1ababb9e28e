"""provenance.intoto.jsonl: an in-toto Statement v1 with a SLSA provenance v1 predicate. `edgepress sign` signs it with the rest.

https://slsa.dev/spec/v1.0/provenance. What builds is the CI's to say: `EDGEPRESS_BUILDER_ID` is the URI of the builder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from edgepress.bundle.release import Release
from edgepress.bundle.sbom import package_url
from edgepress.targets.errors import ConfigError

NAME = "provenance.intoto.jsonl"
BUILDER = "EDGEPRESS_BUILDER_ID"
#: A machine nobody vouches for.
LOCAL_BUILDER = "urn:edgepress:local"


def builder_id() -> str:
    """The builder's URI: `EDGEPRESS_BUILDER_ID`, else `urn:edgepress:local`.

    Raises:
        ConfigError: the variable holds no URI.
    """
    value = os.environ.get(BUILDER) or LOCAL_BUILDER
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:\S+", value):
        raise ConfigError(f"{BUILDER} is {value!r}", "a builder is named by a URI", "Write e.g. https://ci.example.org/runners/7.")
    return value


def statement(report: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], release: Release, files: Mapping[str, str]) -> str:
    """One line of JSON.

    Args:
        report: the report dictionary.
        entries: the artifacts of bundle.json.
        release: what the report does not say.
        files: every file of the bundle written so far, with its sha256: the subjects.
    """
    environment = report["environment"]
    parents = {"checkpoint": environment["checkpoint_sha256"], "config": environment["config_sha256"], **release.data}
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
                    "recipe": {"digest": {"sha256": environment["config_sha256"]}},
                    "datasets": dict(release.datasets),
                    "targets": [{"name": item["target"], "precision": item["precision"], "device": item["device"]} for item in entries],
                },
                "internalParameters": {
                    "stages": [stage["name"] for stage in report["stages"]],
                    "schemes": {item["target"]: item["scheme"]["label"] for item in entries},
                },
                "resolvedDependencies": dependencies,
            },
            "runDetails": {"builder": {"id": builder_id(), "version": {"edgepress": version("edgepress")}}},
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
