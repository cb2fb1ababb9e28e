import subprocess
import sys

import pytest

from edgepress.machine import cores, own_threads, resident_bytes

#: A process that starts one that starts another, which takes 64 MB and says so.
LAST = "import sys; held = b'x' * (64 << 20); print('held', flush=True); sys.stdin.read()"
STARTS = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}])"


def test_memory_is_that_of_a_process_and_of_all_that_it_started() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS.format(STARTS.format(LAST))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"held\n"
        held = resident_bytes(process.pid)
        process.stdin.close()
    assert held > 64 << 20
    assert resident_bytes(process.pid) == 0


@pytest.mark.parametrize(("given", "threads"), [("3", 3), ("", None), ("0", None), ("many", None)])
def test_a_step_takes_the_threads_it_was_given_and_all_cores_where_nothing_was_said(
    given: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert own_threads() == (threads or cores())
