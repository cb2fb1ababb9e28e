"""The conditions of a measurement are those of the machine it ran on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgepress.validators import conditions
from edgepress.validators.conditions import Watch


def test_cores_and_clock_are_those_of_this_process() -> None:
    found = Watch().end()
    assert set(found.cores) == os.sched_getaffinity(0)
    assert found.mhz is None or 0 < found.mhz[0] <= found.mhz[1]
    assert found.to_json()["cores"] == sorted(os.sched_getaffinity(0))


def test_work_of_another_process_is_seen() -> None:
    watch = Watch()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.6: pass"], check=True)
    assert watch.end().others > 0.05


def test_own_work_is_not_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([(1.0, 10.0, 100.0), (3.0, 16.0, 110.0)])
    monkeypatch.setattr(conditions, "_busy", lambda: next(seen))
    assert Watch().end().others == pytest.approx(0.4)  # six seconds were busy of ten, two of them our own
