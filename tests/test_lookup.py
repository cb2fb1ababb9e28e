"""Results of a run found again: on whatever machine it was, and with the name of what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepress.isolate import Outcome
from edgepress.step import Lookup, Step
from edgepress.store import Store
from edgepress.targets.errors import EdgepressError


def step(name: str, machine: bool = False) -> Step:
    return Step(name, f"edgepress.steps.measure:{name}", {}, machine=machine)


def stored(store: Store, done: Step, machine: str, *sources: Path) -> None:
    store.put(done.key(machine), Outcome({"made": done.name}, 0.1, sources=tuple(map(str, sources))), store.workspace())


def test_a_measurement_of_another_machine_is_found_for_that_machine_alone(tmp_path: Path) -> None:
    store, latency = Store(tmp_path), step("latency", machine=True)
    stored(store, latency, "phone")
    lookup = Lookup(store, "phone")
    found = lookup.do(latency)
    assert found.value == {"made": "latency"} and lookup.steps[found.digest] == latency and lookup.lost() == ""
    with pytest.raises(EdgepressError, match="no result of the step 'latency': never run"):
        Lookup(store, "laptop").do(latency)


def test_what_is_lost_is_the_first_step_that_changed_and_not_one_that_may_have_failed_in_the_run(tmp_path: Path) -> None:
    store, source = Store(tmp_path / "store"), tmp_path / "code.py"
    source.write_text("x = 1")
    stored(store, step("export"), "", source)
    source.write_text("x = 2")
    lookup = Lookup(store, "laptop")
    for name in ("peer", "export", "fallback"):
        with pytest.raises(EdgepressError):
            lookup.do(step(name))
    assert list(lookup.misses) == ["peer", "export", "fallback"]
    assert lookup.lost().startswith("step 'export': ") and "code.py" in lookup.lost()
