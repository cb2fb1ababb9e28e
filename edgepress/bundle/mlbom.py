"""The model cards of a CycloneDX 1.6 ML-BOM: form of inputs and outputs, data, and the figures that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgepress.bundle.digest import loaded_bytes
from edgepress.report.present import drop_unit

Json = Mapping[str, Any]


def checkpoint_card(report: Json) -> dict[str, Any]:
    """The card of the original: its metric in float."""
    metric = report["reference"]["metric"]
    return {
        "quantitativeAnalysis": {
            "performanceMetrics": [_metric(metric["name"], metric["value"], f"{metric['samples']} validation samples")]
        }
    }


def model_card(report: Json, item: Json, data: Sequence[str]) -> dict[str, Any]:
    """The card of one artifact.

    Args:
        report: the report dictionary.
        item: its entry in bundle.json.
        data: names of the data components.
    """
    parameters = {
        "datasets": [{"ref": f"data:{name}"} for name in data],
        "inputs": [{"format": _format(spec)} for spec in item["inputs"]],
        "outputs": [{"format": _format(spec)} for spec in item["outputs"]],
    }
    card: dict[str, Any] = {"modelParameters": {name: value for name, value in parameters.items() if value}}
    if found := _measured(report, item):
        card["quantitativeAnalysis"] = {"performanceMetrics": found}
    return card


def _measured(report: Json, item: Json) -> list[dict[str, Any]]:
    """What was measured of an artifact, and nothing else."""
    metric, ratio, latency, memory = item["metric"], item["latency_ratio"], item["latency_ms"], item["peak_memory_bytes"]
    found = [_metric("size_bytes", loaded_bytes(item["size_bytes"], item["artifact"]["facts"]))]
    if metric:
        name, unit, slice_ = report["reference"]["metric"]["name"], drop_unit(report), f"{metric['samples']} validation samples"
        found.append(_metric(name, metric["value"], slice_))
        found.append(_metric(f"{name}_drop{f'_{unit}' if unit else ''}", metric["drop"], slice_, metric["interval"]))
    if ratio:
        found.append(_metric("latency_ratio", ratio["value"], f"against {ratio['reference']}", ratio["interval"]))
    if latency:
        found.append(_metric("latency_p50_ms", latency["p50"], f"batch {latency['batch']}, {latency['threads']} threads"))
    if memory is not None:
        found.append(_metric("peak_memory_bytes", memory))
    return found


def _metric(kind: str, value: float, slice_: str = "", interval: Sequence[float] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"type": kind, "value": str(value)}
    if slice_:
        found["slice"] = slice_
    if interval is not None:
        found["confidenceInterval"] = {"lowerBound": str(interval[0]), "upperBound": str(interval[1])}
    return found


def _format(spec: Json) -> str:
    return f"{spec['name']}: {spec['dtype']} [{', '.join('N' if size is None else str(size) for size in spec['shape'])}]"
