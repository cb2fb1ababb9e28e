"""What a target's steps measured, as the evidence its gates are judged on."""

from __future__ import annotations

from typing import Any

from edgepress.bundle.digest import loaded_bytes
from edgepress.results import TargetRun
from edgepress.targets.nouns import Evidence


def gather(run: TargetRun, target: dict[str, Any]) -> list[Evidence]:
    """Every fact a gate may ask for; what could not be taken says why.

    Args:
        run: what the steps of the target returned.
        target: its entry of the report so far.
    """
    found = [_accuracy(run), _size(target)]
    if run.slices is not None:
        found.append(_worst_slice(run.slices.value["evidence"]))
    elif run.slices_error is not None:
        found.append(Evidence("slice_drop", None, "pp", error=run.slices_error))
    found += _latencies(run)
    if run.memory is not None:
        peak = float(run.memory.value["peak_bytes"])
        found.append(Evidence("peak_memory", peak, "bytes", how="high-water mark of a process that runs it alone"))
    else:
        found.append(Evidence("peak_memory", None, "bytes", error=run.memory_error, unmeasurable=run.unmeasurable))
    parity = target["parity"]
    found.append(Evidence("max_abs_error", parity["max_abs_error"], ""))
    found.append(Evidence("sqnr", parity["sqnr_db"], "dB"))
    found.append(Evidence("argmax_agreement", parity["argmax_agreement"], ""))
    return found


def _size(target: dict[str, Any]) -> Evidence:
    """What one device loads: of an artifact with a file for each kind of device, the largest."""
    whole = target["artifact"]["size_bytes"]
    loaded = loaded_bytes(whole, target["facts"])
    how = "bytes of the artifact" if loaded == whole else "largest file that one device loads"
    return Evidence("size", float(loaded), "bytes", how=how)


def _accuracy(run: TargetRun) -> Evidence:
    assert run.score is not None
    score = run.score.value
    low, high = score["interval"]
    return Evidence("accuracy_drop", score["drop"], score["unit"], (low, high), score["samples"], score["method"])


def _worst_slice(evidence: dict[str, Any]) -> Evidence:
    interval = evidence["interval"]
    return Evidence(**evidence | {"interval": tuple(interval) if interval else None})


def _latencies(run: TargetRun) -> list[Evidence]:
    names = ("latency_ratio", "latency_p50", "latency_p90", "latency_p95", "latency_p99")
    if run.latency is None:
        return [
            Evidence(name, None, "ratio" if name == "latency_ratio" else "ms", error=run.latency_error, unmeasurable=run.unmeasurable)
            for name in names
        ]
    value = run.latency.value
    low, high = value["latency_ratio"]["interval"]
    found = [Evidence("latency_ratio", value["latency_ratio"]["value"], "ratio", (low, high), value["pairs"], value["how"])]
    for name in names[1:]:
        percent = name.removeprefix("latency_p")
        if percent in value["percentiles"]:
            point, low, high = value["percentiles"][percent]
            found.append(Evidence(name, point, "ms", (low, high), value["pairs"], value["how"]))
        else:
            why = f"{value['pairs']} latencies were taken in the time there is, too few for p{percent}"
            found.append(Evidence(name, None, "ms", unmeasurable=why))
    return found
