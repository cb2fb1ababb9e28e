"""The words of a verdict: limit, observation and next step, with their numbers and units."""

from __future__ import annotations

import shlex
from typing import Protocol

from edgepress.targets.nouns import Evidence

#: What the runs of a gate are counted in.
COUNTED = {"accuracy": "validation samples", "latency": "latency pairs", "slice": "validation samples of that slice"}

#: What to do about a gate that failed.
FAILED = {
    "accuracy_drop": "Run `edgepress explain RUN_DIR TARGET` to see which stage and layer cost it, or choose a wider scheme or limit.",
    "slice_drop": "Calibrate on more samples of that slice, choose a wider scheme for its layers, or raise the limit.",
    "latency_ratio": "Run `edgepress explain RUN_DIR TARGET` to see which ops run in float, and how far the time is from the shortest.",
    "size": "Prune more, use fewer bits, or raise the limit.",
    "peak_memory": "Lower the batch size or prune more; `edgepress explain RUN_DIR TARGET` lists the layers.",
}

#: What to do about a latency of which nothing is left in float.
ALL_INTEGERS = (
    "No op runs in float: prune, take a smaller model, or raise the limit. "
    "`edgepress explain RUN_DIR TARGET` shows how far the time is from the shortest."
)


class Limit(Protocol):
    """What the texts read of a gate."""

    @property
    def name(self) -> str:
        """Of the gate."""

    @property
    def limit(self) -> float:
        """In `unit`."""

    @property
    def unit(self) -> str:
        """Of the limit."""

    @property
    def confidence(self) -> float | None:
        """Of the interval; None for exact facts."""

    @property
    def machine(self) -> str | None:
        """Declared for absolute latencies."""


def quantity_text(value: float, unit: str) -> str:
    """`0.42 pp`, `1.98 MB`, `3.14 ms`, `0.612` for ratios and plain numbers."""
    if unit == "bytes":
        for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if abs(value) >= size:
                return f"{value / size:.2f} {name}"
        return f"{value:.0f} bytes"
    if unit in ("pp", "dB"):
        return f"{value:.2f} {unit}"
    if unit == "ms":
        return f"{value:.4g} ms"
    return f"{value:.3f}" if unit == "ratio" else f"{value:.4g} {unit}".strip()


def counted(name: str) -> str:
    """What the evidence of a gate is counted in."""
    return COUNTED.get(name.removeprefix("baseline.").split("_")[0], "samples")


def limit_text(limit: float, unit: str, smallest: bool) -> str:
    """`at most 1.00 pp`."""
    return f"at {'least' if smallest else 'most'} {quantity_text(limit, unit)}"


def observed_text(evidence: Evidence) -> str:
    """`0.42 pp (0.10 to 0.80) on 5,000 samples`."""
    if evidence.value is None:
        return "not measured"
    text = quantity_text(evidence.value, evidence.unit)
    if evidence.interval is not None:
        text += f" ({quantity_text(evidence.interval[0], evidence.unit)} to {quantity_text(evidence.interval[1], evidence.unit)})"
    if evidence.samples:
        text += f" on {evidence.samples:,} {counted(evidence.name)}"
    if evidence.name == "slice_drop":
        text += f": {evidence.how}"
    if evidence.how and evidence.name.startswith("baseline."):  # there is more than one way to compare, and they differ in what they show
        text += f", {evidence.how}"
    return text


def across_step(gate: Limit, evidence: Evidence, needed: int | None) -> str:
    """What would decide a gate whose interval lies across the limit (or is missing)."""
    things = counted(gate.name)
    limit = quantity_text(gate.limit, gate.unit)
    if needed is not None:
        return f"Collect about {_round_up(needed):,} {things} to decide at {limit}; you have {evidence.samples:,}."
    if evidence.interval is None:
        return f"Collect more {things}: {evidence.samples:,} are too few for an interval."
    return f"No practical number of {things} decides this: the value is too close to the limit of {limit}. Change the limit or the model."


def adjusted_step(gate: Limit, evidence: Evidence, needed: int | None, gates: int) -> str:
    """What would decide a gate that fails by itself, but not among all gates of the run."""
    alone = f"By itself it fails, but one of {gates} gates judged together fails by chance too often to say so (Holm)."
    either = "or judge every gate alone: `multiplicity: each`."
    if needed is None:
        return f"{alone} Change the limit or the model, {either}"
    things = counted(gate.name)
    return f"{alone} Collect about {_round_up(needed):,} {things} (there are {evidence.samples:,}), {either}"


def unmeasurable_step(evidence: Evidence) -> str:
    """What to do where this machine, or this run, cannot take a number."""
    if evidence.name == "slice_drop":
        return "Collect more validation samples of every slice, or merge slices."
    own = evidence.name.removeprefix("baseline.")
    family = own if own == "peak_memory" else own.split("_")[0]
    accept = f"accept it by name: `unmeasured: {{{family}: accept}}`."
    if evidence.needed is not None:
        return f"Take at least {evidence.needed:,} {counted(evidence.name)} (there are {evidence.samples:,}), or {accept}"
    return f"Repeat the run on a machine that can measure {family.replace('_', ' ')}, or {accept}"


def undeclared_step(gate: Limit, fingerprint: str | None) -> str:
    """An absolute latency holds on one machine alone."""
    limit = quantity_text(gate.limit, gate.unit).replace(" ", "")
    if gate.machine is None:
        here = f" This machine's is {fingerprint}." if fingerprint else ""
        return f"Name the machine this limit holds on: `{gate.name}: {{max: {limit}, machine: FINGERPRINT}}`.{here}"
    return f"Run this on machine {gate.machine}, which the limit was declared for; this is {fingerprint or 'an unknown machine'}."


def failed_step(name: str) -> str:
    """What to do about a failed gate."""
    own = name.removeprefix("baseline.")
    return FAILED.get(own) or (FAILED["latency_ratio"] if own.startswith("latency") else FAILED["accuracy_drop"])


def fitted_step(step: str, target: str, in_float: bool) -> str:
    """A next step that names its target, and does not send anyone to look for ops in float where there are none."""
    if step == FAILED["latency_ratio"] and not in_float:
        step = ALL_INTEGERS
    return step.replace("RUN_DIR TARGET", f"RUN_DIR {shlex.quote(target)}")


def _round_up(number: int) -> int:
    """Two leading digits are all an approximation is worth."""
    step: int = 10 ** max(len(str(number)) - 2, 0)
    return -(-number // step) * step
