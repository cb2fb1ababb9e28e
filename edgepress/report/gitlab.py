"""GitLab: findings as a Code Quality report (docs.gitlab.com, "Code Quality", report format), for `artifacts:reports:codequality`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgepress.report.findings import Finding

#: Of what fails the job; a policy that lets it through makes it `minor` or `info`.
_SEVERITIES = {"error": "blocker", "fail": "critical", "undecided": "major"}
_MILDER = {"warning": "minor", "note": "info"}


def render_code_quality(findings: Sequence[Finding]) -> str:
    """The report as JSON text: a list, empty where everything passed."""
    return json.dumps([_issue(finding) for finding in findings], indent=2, ensure_ascii=False) + "\n"


def _issue(finding: Finding) -> dict[str, object]:
    return {
        "description": " ".join(finding.summary.split()),
        "check_name": f"edgepress/{finding.rule}",
        "fingerprint": finding.fingerprint,
        "severity": _MILDER.get(finding.level) or _SEVERITIES.get(finding.verdict, "major"),
        "location": {"path": finding.path, "lines": {"begin": finding.line or 1}},
    }
