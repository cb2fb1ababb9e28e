"""How far a target's latency is from the time that its multiply-accumulates take at this machine's peak, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepress.results import TargetRun
from edgepress.validators.peak import Peak


def peak_distance(run: TargetRun, target: Mapping[str, Any], macs: int) -> dict[str, Any] | None:
    """The `peak_distance` object of `report.json`; `why` says why there is no `value`, None as a whole stands for no latency.

    Args:
        run: what the steps of the target returned.
        target: its entry of the report so far.
        macs: multiply-accumulates of one sample.
    """
    latency = target["latency_ms"]
    if latency is None:
        return None
    share = _integer_share(target)
    peak = Peak(**run.peak.value) if run.peak is not None else None
    why = run.peak_error or _unknown(target["kernels"], share, macs)
    facts = {"integer_share": share, "macs": macs * latency["batch"], **(peak.to_json() if peak else {})}
    if why is not None or peak is None or share is None:
        return {"value": None, "shortest_ms": None, "why": why or "the peak was not measured", **facts}
    shortest = peak.shortest_ms(facts["macs"], share)
    return {"value": latency["p50"] / shortest, "shortest_ms": shortest, "why": None, **facts}


def _integer_share(target: Mapping[str, Any]) -> float | None:
    """Of the multiply-accumulates; without integer kernels it is 0 even where the runtime hides its shapes."""
    share, kernels = target["integer_share_of_macs"], target["kernels"]
    return 0.0 if share is None and kernels["int8"] == kernels["unknown"] == 0 else share


def _unknown(kernels: Mapping[str, Any], share: float | None, macs: int) -> str | None:
    if not macs:
        return "the model has no multiply-accumulates"
    if share is None:
        return "the runtime does not say which multiply-accumulates run in integers"
    if share < 1 and kernels["fp16"]:
        return "some multiply-accumulates run in half precision, whose peak is not measured"
    return None
