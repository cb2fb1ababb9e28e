import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgepress import isolate
from edgepress.step import Runner, Step
from edgepress.store import Store
from tests.test_isolation import Silent


def test_of_waiting_steps_one_that_wants_the_machine_alone_is_next_then_the_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []
    first_runs, all_wait = threading.Event(), threading.Event()

    def call(request: isolate.Call, *_: object) -> isolate.Outcome:
        began.append(request.label)
        first_runs.set()
        assert all_wait.wait(60)
        return isolate.Outcome({}, 0.0)

    monkeypatch.setattr(isolate, "call", call)
    runner = Runner(Store(tmp_path / "store"), Silent(), tmp_path / "log.txt", jobs=1)
    later = [Step("short", "m:a", expected_s=2), Step("timing", "m:b", alone=True), Step("long", "m:c", expected_s=4), Step("other", "m:d")]
    with ThreadPoolExecutor(5) as pool:
        steps = [pool.submit(runner.do, Step("first", "m:first"))]
        assert first_runs.wait(60)
        for step in later:
            steps.append(pool.submit(runner.do, step))
        while len(runner._slots._waiting) < len(later):
            assert not any(step.done() for step in steps)
        all_wait.set()
        for done in steps:
            done.result()
    assert began == ["first", "timing", "long", "short", "other"]
