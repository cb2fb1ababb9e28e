"""Findings as SARIF 2.1.0 (OASIS, errata 01), for code scanning and editors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from edgepress import __version__
from edgepress.report.findings import Finding

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def render_sarif(findings: Sequence[Finding], rules: Mapping[str, str], unchecked: Sequence[str]) -> str:
    """One SARIF run as JSON text.

    Args:
        findings: the results.
        rules: what each rule that was checked means, by its id.
        unchecked: what could not be checked, and why.
    """
    ids = list(rules)
    driver = {
        "name": "edgepress",
        "version": __version__,
        "rules": [{"id": rule, "shortDescription": {"text": meaning}} for rule, meaning in rules.items()],
    }
    notes = [{"level": "note", "message": {"text": text}} for text in unchecked]
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": notes}],
        "results": [_result(finding, ids.index(finding.rule)) for finding in findings],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False) + "\n"


def _result(finding: Finding, index: int) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": {"uri": quote(finding.path), "uriBaseId": "%SRCROOT%"}}
    if finding.line:
        place["region"] = {"startLine": finding.line}
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": finding.level,
        "message": {"text": finding.summary},
        "locations": [{"physicalLocation": place}],
        "partialFingerprints": {"edgepressFinding/v1": finding.fingerprint},
    }
