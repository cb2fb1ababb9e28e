"""The thresholds of `gates:`, of the whole recipe and of a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepress.config_models import BASELINE_GATES, FRACTION, BaselineLimits, DataConfig, GatesConfig, keys_of
from edgepress.config_steps import QuantizeConfig
from edgepress.config_targets import TargetEntry
from edgepress.config_yaml import Place, Source
from edgepress.quantities import Quantity


@dataclass(frozen=True)
class GateLimit:
    """One threshold.

    Attributes:
        name: `accuracy_drop`, `slice_drop`, `latency_ratio`, `size`, `peak_memory`, `latency_p50` … `latency_p99`, and the smallest
            allowed `sqnr` and `argmax_agreement`; thresholds against the accepted release are prefixed: `baseline.accuracy_drop`,
            `baseline.latency_ratio`, `baseline.size`, `baseline.peak_memory`.
        limit: in `unit`.
        unit: `pp`, `ratio`, `bytes`, `ms`, `dB`, or empty for the metric's own.
        confidence: of the interval it is judged on; without meaning for exact facts.
        machine: fingerprint of the machine an absolute latency holds for, where the recipe names one.
    """

    name: str
    limit: float
    unit: str
    confidence: float = 0.95
    machine: str | None = None


def gates_of(defaults: GatesConfig, entry: TargetEntry) -> tuple[GateLimit, ...]:
    """The thresholds of a target: its own, else those of the recipe."""
    limits: list[GateLimit] = []
    for name in keys_of(GatesConfig):
        gate = getattr(entry.overrides.gates, name) or getattr(defaults, name)
        if gate is None or name in entry.gates_off:
            continue
        if name == "against_baseline":
            alike = {limit.name: limit.confidence for limit in limits}
            values = {key: getattr(gate, key) for key in BASELINE_GATES}
            limits += [
                GateLimit(f"baseline.{key}", *_number(value, "ratio"), confidence=alike.get(key, 0.95))
                for key, value in values.items()
                if value is not None
            ]
        else:
            limits.append(_limit(name, gate))
    return tuple(limits)


def baseline_limits(defaults: GatesConfig, entry: TargetEntry) -> BaselineLimits | None:
    """What a target is held to against the accepted release."""
    return None if "against_baseline" in entry.gates_off else entry.overrides.gates.against_baseline or defaults.against_baseline


def _number(value: float | Quantity, unit: str) -> tuple[float, str]:
    """A drop carries its unit with it: `pp`, or empty for the metric's own."""
    return (value.value, value.unit) if isinstance(value, Quantity) else (value, unit)


def _limit(name: str, gate: Any) -> GateLimit:
    units = {"latency_ratio": "ratio", "size": "bytes", "peak_memory": "bytes", "sqnr": "dB", "argmax_agreement": ""}
    unit = units.get(name, "ms")
    limit, unit = _number(gate.min if hasattr(gate, "min") else gate.max, unit)
    return GateLimit(
        name, limit * (1000.0 if unit == "ms" else 1.0), unit, getattr(gate, "confidence", 0.95), getattr(gate, "machine", None)
    )


def check_slices(gates: GatesConfig, data: DataConfig, source: Source, place: Place) -> None:
    """A gate on slices stands in a recipe that has some."""
    if gates.slice_drop is not None and not data.slices:
        what = "no slices are named"
        raise source.error((*place, "slice_drop"), what, "Write e.g. `slices: {class: labels}` under `data:`.")


def check_drops(gates: GatesConfig, metric: str, source: Source, place: Place) -> None:
    """A plain number is no drop of a fraction."""
    baseline = gates.against_baseline.accuracy_drop if gates.against_baseline else None
    own, worst = (gate.max if gate else None for gate in (gates.accuracy_drop, gates.slice_drop))
    given: dict[Place, Quantity | None] = {
        ("accuracy_drop", "max"): own,
        ("slice_drop", "max"): worst,
        ("against_baseline", "accuracy_drop"): baseline,
    }
    _in_points(given, metric, source, place)


def check_allowed(quantize: QuantizeConfig, metric: str, source: Source, place: Place) -> None:
    """The same for what the quantize step may lose."""
    budget = quantize.budget.accuracy_drop if quantize.budget else None
    _in_points({("max_drop",): quantize.max_drop, ("budget", "accuracy_drop"): budget}, metric, source, place)


def _in_points(given: Mapping[Place, Quantity | None], metric: str, source: Source, place: Place) -> None:
    for path, value in given.items():
        if FRACTION.fullmatch(metric) and value is not None and not value.unit:
            raise source.error((*place, *path), f"'{value}' has no unit", f"Write e.g. {value}pp.")
