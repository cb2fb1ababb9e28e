"""What all tests share: a core for each worker of the suite, and a store for the runs it starts.

Threads that wait for each other on cores that they share take several times as long. What a run of one module stored, a run of another
finds where it depends on nothing else, as runs of a user's projects do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

#: Tests are about the CPU, on machines with GPUs too; those of a GPU (test_gpu.py) show one to a process of their own.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

worker = re.fullmatch(r"gw(\d+)", os.environ.get("PYTEST_XDIST_WORKER", ""))
if worker is not None and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker[1]) % len(cores)]})  # before torch counts them


@pytest.fixture(scope="session", autouse=True)
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPRESS_STORE", str(tmp_path_factory.mktemp("store")))
        yield
