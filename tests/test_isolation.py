"""A converter that crashes, hangs, babbles or eats the machine costs its own target and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgepress import isolate
from edgepress.isolate import Call, Limits
from edgepress.step import Result, Runner, Step
from edgepress.store import Store
from edgepress.targets.errors import EdgepressError, ExportError, IsolationError, LimitError
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec
from tests import faults
from tests.project import digits, report_of, started

SIGNATURE = Signature((TensorSpec("x", "float32", (None, 4)),), (TensorSpec("y", "float32", (None, 1)),))
NO_TIME = Limits(timeout_s=4, timeout_key="run.timeout")
NO_MEMORY = Limits(timeout_s=60, memory_bytes=700 << 20, memory_key="run.memory")


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Faults are registered, in one place: what steps are forked from serves one path of modules."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in faults.install(tmp_path_factory.mktemp("package")).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def pids(registered: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every process that faults start is gone when the test ends."""
    file = tmp_path / "pids.txt"
    monkeypatch.setenv(faults.PIDS, str(file))
    yield file
    assert gone(file, within_s=2)
    assert [child for child in psutil.Process().children(recursive=True) if not serves_forks(child)] == []


def serves_forks(process: psutil.Process) -> bool:
    """Is it what steps are forked from, with no step left?"""
    return "edgepress.forkserver" in process.cmdline() and process.parent() == psutil.Process()


@pytest.fixture(params=[False, True], ids=["started", "forked"])
def warm(request: pytest.FixtureRequest) -> bool:
    """Are children started afresh, or forked from a process that has PyTorch loaded?"""
    return bool(request.param)


def alive(file: Path) -> list[int]:
    """Processes noted in `file` that still run."""
    running = []
    for pid in map(int, file.read_text().split() if file.exists() else ()):
        try:
            running += [pid] if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else []
        except psutil.NoSuchProcess:
            continue
    return running


def gone(file: Path, within_s: float) -> bool:
    """Do the processes noted in `file` end in time?"""
    deadline = time.monotonic() + within_s
    while alive(file) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(file)


def call(fault: str, folder: Path, limits: Limits = isolate.DEFAULT_LIMITS, warm: bool = False, **more: Any) -> isolate.Outcome:
    return isolate.call(Call(f"tests.faults:{fault}", {}, folder, f"export {fault}", warm=warm), limits, **more)


@pytest.mark.parametrize(
    ("fault", "limits", "why"),
    [
        ("exits", isolate.DEFAULT_LIMITS, "ended with exit code 7"),
        ("segfaults", isolate.DEFAULT_LIMITS, "killed by SIGSEGV"),
        ("hangs", NO_TIME, "past its timeout of 4 s. Raise `run.timeout` (4 s) in the recipe"),
        ("eats_memory", NO_MEMORY, "its limit is 0.7 GiB. Raise `run.memory` (0.7 GiB) in the recipe"),
        ("raises_foreign", isolate.DEFAULT_LIMITS, "NotAnException: code 0x7f"),
        ("exits_politely", isolate.DEFAULT_LIMITS, "SystemExit: 0"),
    ],
)
def test_a_fault_is_one_error_that_names_the_step_and_the_reason(fault: str, limits: Limits, why: str, warm: bool, tmp_path: Path) -> None:
    with pytest.raises(IsolationError) as caught:
        call(fault, tmp_path / "out", limits, warm)
    assert f"export {fault}" in str(caught.value)
    assert why in str(caught.value)


def test_memory_is_taken_back_before_the_machine_notices(tmp_path: Path) -> None:
    before = psutil.virtual_memory().available
    started = time.monotonic()
    with pytest.raises(IsolationError, match="memory"):
        call("eats_memory", tmp_path / "out", NO_MEMORY)
    assert time.monotonic() - started < 30
    assert psutil.virtual_memory().available > before - (2 << 30)


def test_garbage_on_stdout_and_stderr_does_not_touch_the_result(warm: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.txt"
    outcome = call("prints_garbage", tmp_path / "out", warm=warm, log=log)
    assert outcome.value == {"made": True}
    assert capfd.readouterr() == ("", "")
    assert "== export prints_garbage" in log.read_text()


def test_a_forked_child_finds_the_surroundings_of_a_started_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for warm in (False, True, True):
        monkeypatch.setenv("OF_THE_DAY", str(len(seen)))
        request = Call("tests.faults:looks_around", {}, tmp_path, root=tmp_path, threads=2, warm=warm)
        seen.append(isolate.call(request).value)
    started, forked, again = seen
    assert [found.pop("day") for found in seen] == ["0", "1", "2"]
    assert started == forked == again
    assert started["threads"] == 2 and started["folder"] == str(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="steps are forked on Linux alone")
def test_steps_go_on_where_what_they_are_forked_from_was_killed(tmp_path: Path) -> None:
    call("prints_garbage", tmp_path / "out", warm=True)
    for child in psutil.Process().children():
        if serves_forks(child):
            child.kill()
    assert call("prints_garbage", tmp_path / "out", warm=True).value == {"made": True}


WARMS = """
import sys
from pathlib import Path
import psutil, torch
from edgepress import forkserver
file = Path(sys.argv[1])
torch.export.save(torch.export.export(torch.nn.Linear(512, 2048), (torch.zeros(2, 512),)), file)
before = torch.get_rng_state()
threads = psutil.Process().num_threads()
for module in (*forkserver._PRELOADED, forkserver._QUANTIZER):
    forkserver._load(module)
forkserver._warm()
forkserver._hold(file)
from edgepress.compress import program
assert program._held, "nothing is held ready"
assert psutil.Process().num_threads() == threads, "a fork would lose a thread, and what it holds"
assert torch.equal(torch.get_rng_state(), before), "children would draw other numbers"
"""


def test_warming_leaves_no_thread_and_draws_no_number(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WARMS, str(tmp_path / "model.pt2")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


class Silent:
    """A listener that only counts."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def started(self, step: Step) -> None: ...

    def moved(self, step: Step, text: str, done: int, total: int) -> None: ...

    def ended(self, step: Step, result: Result | None) -> None:
        if result is None:
            self.failed.append(step.name)

    def interrupted(self, step: Step) -> None: ...


def export_step(fault: str, data: Path, limits: Limits = isolate.DEFAULT_LIMITS) -> Step:
    folder = Result({}, data, "digest", False, 0.0)
    target = Target(fault, fault, "nowhere", "fp32")
    params = {"target": target.to_json(), "scheme": vars(Scheme("fp32", "float")), "signature": SIGNATURE.to_json()}
    return Step(f"export {fault}", "edgepress.steps.export:export", params, {"data": folder, "model": folder}, limits=limits, warm=True)


def test_each_faulty_exporter_costs_its_own_target_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "data" / "validation").mkdir(parents=True)
    np.save(tmp_path / "data" / "validation" / "input_0.npy", np.zeros((8, 4), np.float32))
    store, listener = Store(tmp_path / "store"), Silent()
    runner = Runner(store, listener, tmp_path / "log.txt", jobs=4)
    limits = {"hangs": NO_TIME, "eats-memory": NO_MEMORY}

    def attempt(fault: str) -> Result | EdgepressError:
        try:
            return runner.do(export_step(fault, tmp_path / "data", limits.get(fault, isolate.DEFAULT_LIMITS)))
        except EdgepressError as error:
            return error

    with ThreadPoolExecutor(len(faults.EXPORTERS)) as pool:
        outcomes = dict(zip(faults.EXPORTERS, pool.map(attempt, faults.EXPORTERS), strict=True))
    good = outcomes.pop("prints-garbage")
    assert isinstance(good, Result)
    assert (good.folder / "artifact" / "model.bin").read_bytes() == b"model"
    expected = {
        "exits": (IsolationError, "exit code 7"),
        "segfaults": (IsolationError, "SIGSEGV"),
        "hangs": (LimitError, "timeout"),
        "eats-memory": (LimitError, "memory"),
        "raises-foreign": (ExportError, "ZeroDivisionError: in pass 'fold_everything'"),
        "writes-nothing": (ExportError, "promised 'model.bin'"),
        "renames": (ExportError, "inputs are ['x_0'], the model's are ['x']"),
        "refuses": (ExportError, "no op 'frobnicate'"),
    }
    for fault, (kind, words) in expected.items():
        error = outcomes[fault]
        assert type(error) is kind, error
        assert words in str(error) and fault in str(error)
    assert sorted(listener.failed) == sorted(f"export {fault}" for fault in expected)
    assert list(tmp_path.joinpath("store").rglob("half-written.bin")) == []
    assert list(store.root.joinpath("tmp").iterdir()) == []


WAITS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
from pathlib import Path
from edgepress import isolate
from edgepress.engine import _interruptible
calls = [isolate.Call("tests.faults:hangs", {}, Path(sys.argv[1]) / str(i), warm=sys.argv[2] == "True") for i in range(3)]
_interruptible(lambda pool: [future.result() for future in [pool.submit(isolate.call, call) for call in calls]], 3)
"""


def three_hanging_children(folder: Path, pids: Path, warm: bool) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WAITS, str(folder), str(warm)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(pids.read_text().split() if pids.exists() else ()) < 6:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert len(alive(pids)) == 6
    return process


def test_ctrl_c_ends_all_children_within_two_seconds(tmp_path: Path, pids: Path, warm: bool) -> None:
    process = three_hanging_children(tmp_path, pids, warm)
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert gone(pids, within_s=max(0.0, 2 - (time.monotonic() - pressed)))
    assert process.returncode != 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_children_of_a_killed_parent_end_too(tmp_path: Path, pids: Path, warm: bool) -> None:
    process = three_hanging_children(tmp_path, pids, warm)
    noted = list(map(int, pids.read_text().split()))
    process.kill()
    process.communicate(timeout=10)
    workers = [pid for pid in alive(pids) if pid in noted and "edgepress." in " ".join(psutil.Process(pid).cmdline())]
    deadline = time.monotonic() + 2
    while any(pid in alive(pids) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(pid in alive(pids) for pid in workers)
    for pid in alive(pids):  # what a hung converter put into a session of its own nobody can reach any more
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_run_with_every_fault_validates_the_good_target_and_names_each_bad_one(tmp_path: Path) -> None:
    pytest.importorskip("edgepress_numpy")
    names = [name for name in faults.EXPORTERS if name != "prints-garbage"]
    recipe = digits(tmp_path / "project", ["numpy", *names], run={"timeout": "90 s", "memory": "3GB"})
    done = started("run", recipe, "--out", tmp_path / "run", timeout=600)
    assert done.returncode == 2, done.stderr
    targets = {target["name"]: target for target in report_of(tmp_path / "run")["targets"]}
    assert targets["numpy"]["status"] == "validated", targets["numpy"]["error"]
    for name in names:
        assert targets[name]["status"] == "failed"
        assert name in targets[name]["error"]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("half-written.bin")) == []
    assert sorted(path.name for path in (tmp_path / "run" / "bundle").iterdir() if path.is_dir()) == ["numpy"]


@pytest.mark.parametrize(("fault", "place"), [("copies_to_a_full_disk", "destination.bin"), ("writes_by_a_library", "out")])
def test_a_step_on_a_full_disk_ends_the_run_and_not_its_target(fault: str, place: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:  # no EdgepressError, which would only cost the target
        isolate.call(Call(f"tests.faults:{fault}", {}, out), log=tmp_path / "log.txt")
    assert caught.value.errno == errno.ENOSPC and Path(caught.value.filename).name == place
    assert "Traceback" in (tmp_path / "log.txt").read_text()
