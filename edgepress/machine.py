"""What this machine is: measured facts are comparable only between machines with the same fingerprint."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path

import psutil


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


def own_threads() -> int:
    """Threads that the step which this process runs was given; as many as there are cores outside of a step."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else cores()


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and all its descendants, in bytes; 0 when it is gone."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *_descendants(parent)]:
            total += process.memory_info().rss
    except psutil.Error:
        return total
    return total


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    """All that a process started; where Linux says so, without a look at every process of the machine."""
    try:
        tasks = [task / "children" for task in Path(f"/proc/{process.pid}/task").iterdir()]
        children = [psutil.Process(int(pid)) for task in tasks for pid in task.read_text().split()]
    except OSError:
        return list(process.children(recursive=True))
    return [found for child in children for found in (child, *_descendants(child))]
