"""The YAML head of a model card as the Hugging Face hub reads it: licence, tags, metrics and measured results.

https://huggingface.co/docs/hub/model-cards#model-card-metadata
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from edgepress.bundle.license import hub_fields
from edgepress.bundle.release import Release
from edgepress.report.present import drop_unit

Json = Mapping[str, Any]


def front_matter(report: Json, entries: Sequence[Json], release: Release) -> str:
    """The head with its two lines of dashes."""
    metric = report["reference"]["metric"]["name"].split(":")[-1]
    results = [_result(report, item, metric, release) for item in entries if item["metric"]]
    head: dict[str, Any] = {
        **hub_fields(release.license, release.license_files),
        "library_name": "edgepress",
        "tags": sorted({"edgepress", *(item["runtime"] for item in entries), *(item["precision"] for item in entries)}),
        "metrics": [metric],
    }
    if results:
        head["model-index"] = [{"name": report["project"], "results": results}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=140)}---\n"


def _result(report: Json, item: Json, metric: str, release: Release) -> dict[str, Any]:
    """One target on the validation data. What the task is, no recipe says."""
    dataset, unit = release.datasets.get("validation", "validation"), drop_unit(report)
    measured = [
        {"type": metric, "value": item["metric"]["value"], "name": f"{metric} ({item['target']}, {item['scheme']['label']})"},
        {
            "type": "drop",
            "value": item["metric"]["drop"],
            "name": f"drop against the fp32 original{f', {unit}' if unit else ''} ({item['target']})",
        },
    ]
    if item["latency_ratio"]:
        name = f"latency against fp32 in the same runtime ({item['target']})"
        measured.append({"type": "latency-ratio", "value": item["latency_ratio"]["value"], "name": name})
    task = {"type": "other", "name": f"{item['target']} on {item['device']}"}
    return {"task": task, "dataset": {"type": dataset, "name": f"{dataset}, {item['metric']['samples']} samples"}, "metrics": measured}
