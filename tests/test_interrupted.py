"""A run that is ended from outside says so, is no verdict, and leaves nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.project import digits

RUN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom edgepress.cli import main\nmain()"
HANGS = "\nfrom pathlib import Path\nimport time\nPath(__file__).with_name('began').touch()\ntime.sleep(300)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_cannot_judge_and_names_the_way_on(tmp_path: Path, number: signal.Signals) -> None:
    recipe = digits(tmp_path / "project")
    recipe.with_name("data.py").write_text(recipe.with_name("data.py").read_text() + HANGS)
    command = [sys.executable, "-c", RUN, "run", str(recipe)]  # a shell starts background jobs with SIGINT ignored
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ | {"EDGEPRESS_STORE": str(tmp_path / "store")}
    )
    deadline = time.monotonic() + 60
    while not recipe.with_name("began").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, text = process.communicate(timeout=20)
    assert process.returncode == 2
    assert text.splitlines() == [
        "interrupted  data",
        "error: Interrupted. Finished steps are stored; run the same command to go on.",
    ]
    assert list((tmp_path / "runs").iterdir()) == list((tmp_path / "store" / "tmp").iterdir()) == []
