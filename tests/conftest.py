"""Side by side, each worker of the suite keeps to a core of its own, and so do the runs it starts: threads that wait for each other on
cores that they share take several times as long."""

from __future__ import annotations

import os
import re

worker = re.fullmatch(r"gw(\d+)", os.environ.get("PYTEST_XDIST_WORKER", ""))
if worker is not None and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker[1]) % len(cores)]})  # before torch counts them
