"""What this machine is: measured facts are comparable only between machines with the same fingerprint."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path


@cache
def cpu_name() -> str:
    """The processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def fingerprint() -> str:
    """16 hex digits over processor model, instruction-set flags, core count, architecture and operating system."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = ""
    if cpuinfo.exists():
        lines = (line for line in cpuinfo.read_text().splitlines() if line.lower().startswith(("flags", "features")))
        flags = " ".join(sorted(next(lines, "").partition(":")[2].split()))
    facts = (cpu_name(), flags, str(cores()), platform.machine(), platform.system())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
