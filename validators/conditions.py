"""What the machine did while latencies were taken: on which cores, at which clock, beside how much other work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Conditions:
    """Between two moments.

    Attributes:
        cores: that this process may run on, their numbers; empty where the system does not say.
        mhz: slowest and fastest clock of any core at either moment; None where the system does not say.
        governor: of the clock, e.g. `performance`; None where the system does not say.
        others: share of the whole machine's processor time that other processes took, 0 to 1.
    """

    cores: tuple[int, ...]
    mhz: tuple[float, float] | None
    governor: str | None
    others: float

    def to_json(self) -> dict[str, Any]:
        """Plain lists."""
        mhz = [round(value) for value in self.mhz] if self.mhz else None
        return {"cores": list(self.cores), "mhz": mhz, "governor": self.governor, "others": round(self.others, 3)}


class Watch:
    """Begins when it is made; `end` gives what was seen."""

    def __init__(self) -> None:
        self._clocks, self._busy = _clocks(), _busy()

    def end(self) -> Conditions:
        """What happened since it was made."""
        clocks = [*self._clocks, *_clocks()]
        (mine, busy, total), (mine_then, busy_then, total_then) = _busy(), self._busy
        passed = total - total_then
        others = max(0.0, (busy - busy_then) - (mine - mine_then)) / passed if passed > 0 else 0.0
        cores = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
        return Conditions(cores, (min(clocks), max(clocks)) if clocks else None, _governor(), min(others, 1.0))


def _clocks() -> list[float]:
    try:
        found = psutil.cpu_freq(percpu=True)
    except (AttributeError, NotImplementedError, OSError, RuntimeError):  # it depends on the system and its container
        return []
    return [core.current for core in found or [] if core.current]


def _busy() -> tuple[float, float, float]:
    """Processor seconds of this process, of all processes, and that there were, over all cores."""
    mine, every = psutil.Process().cpu_times(), psutil.cpu_times()
    total = sum(every)
    return mine.user + mine.system, total - every.idle - getattr(every, "iowait", 0.0), total


def _governor() -> str | None:
    try:
        return _GOVERNOR.read_text().strip() or None
    except OSError:
        return None
