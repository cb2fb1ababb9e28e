"""A run's measurements in the OpenMetrics 1.0 text format, for GitLab's metrics report and anything that reads Prometheus text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from edgepress.report.present import TargetView, drop_unit, shown_verdict, views

Json = Mapping[str, Any]
Sample = tuple[dict[str, str], float]


def render_metrics(report: Json) -> str:
    """The report as OpenMetrics text: one gauge a quantity, one sample a target; what was not measured is absent."""
    rows = views(report)
    metric = {"metric": str(report["reference"]["metric"]["name"])}
    values = ((_labels(r, **metric), _at(r, "metric", "value")) for r in rows)
    text = _family("edgepress_metric", "Metric of the exported file.", values)
    drops = (
        (_labels(r, **metric, unit=drop_unit(report) or report["reference"]["metric"]["name"]), _at(r, "metric", "drop")) for r in rows
    )
    text += _family("edgepress_drop", "Loss against the original.", drops)
    ratios = ((_labels(r), _at(r, "latency_ratio", "value")) for r in rows)
    text += _family("edgepress_latency_ratio", "Latency over that of the float model in the same runtime.", ratios)
    medians = ((_labels(r), _seconds(_at(r, "latency_ms", "p50"))) for r in rows)
    text += _family("edgepress_latency_p50_seconds", "Median latency.", medians, "seconds")
    text += _family("edgepress_size_bytes", "What one device loads.", ((_labels(r), r.loaded_bytes) for r in rows), "bytes")
    peaks = ((_labels(r), r.data["peak_memory_bytes"]) for r in rows)
    text += _family("edgepress_peak_memory_bytes", "Of a process that loads and runs it alone.", peaks, "bytes")
    shares = ((_labels(r), r.integer_share) for r in rows)
    text += _family("edgepress_integer_macs_ratio", "Share of multiply-accumulates in integers.", shares, "ratio")
    counts = (
        ({**_labels(row), "verdict": verdict}, float(count))
        for row in rows
        for verdict, count in sorted(Counter(shown_verdict(gate) for gate in row.gates()).items())
    )
    return text + _family("edgepress_gates", "Gates by verdict.", counts) + "# EOF\n"


def _labels(row: TargetView, **more: str) -> dict[str, str]:
    return {"target": row.name, **more}


def _at(row: TargetView, group: str, key: str) -> float | None:
    found = row.data[group]
    return None if found is None else found[key]


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _family(name: str, meaning: str, samples: Iterable[tuple[dict[str, str], float | None]], unit: str = "") -> str:
    """A gauge with its description; nothing where it has no sample. A unit is the name's last word."""
    lines = [f"{name}{{{_label_text(labels)}}} {value!r}" for labels, value in samples if value is not None]
    if not lines:
        return ""
    head = [f"# TYPE {name} gauge", *([f"# UNIT {name} {unit}"] if unit else []), f"# HELP {name} {meaning}"]
    return "\n".join((*head, *lines)) + "\n"


def _label_text(labels: Mapping[str, str]) -> str:
    return ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items())


def _escape(text: str) -> str:
    r"""A label's value: backslash, quote and line feed are escaped (OpenMetrics 1.0, "Escaping")."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
