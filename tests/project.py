"""A small real project for tests: the digits starter, cut down to what a test needs."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file, save_file

from edgepress.cli import main
from edgepress.starter import write_starter

NUMPY_TARGET = ["numpy"]
#: The layer of the digits project that `spoil` ruins.
SPOILT = "residual.second.0"


def digits(folder: Path, targets: list[Any] | None = None, **changes: Any) -> Path:
    """Write the digits project with other targets (by default the NumPy one) and top-level changes; returns the recipe.

    Its limit of the latency ratio is out of reach, and its windows are short: how fast the machine is at the moment decides no test.
    """
    write_starter(folder, "digits")
    path = folder / "edgepress.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["gates"]["latency_ratio"]["max"] = 1000
    recipe |= {"targets": targets or NUMPY_TARGET} | changes
    recipe["run"] = {"timing": "1s"} | recipe.get("run", {})
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def spoil(recipe: Path) -> Path:
    """Give the digits project a channel that is always zero, read with weights a thousand times as large as all others."""
    checkpoint = recipe.with_name("digits.safetensors")
    weights = load_file(checkpoint)
    weights["residual.first.1.weight"][0] = 0
    weights["residual.first.1.bias"][0] = 0
    weights[f"{SPOILT}.weight"][:, 0] = 1000 * abs(weights[f"{SPOILT}.weight"]).max()
    save_file(weights, checkpoint)
    return recipe


def edgepress(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line, in this process: PyTorch is loaded, and what steps are forked from serves all commands of a session."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in environment.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        patch.setattr(sys, "argv", ["edgepress", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            signal.signal(signal.SIGTERM, before)
    return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())


def started(*arguments: str | Path, cwd: Path | None = None, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, in a process of its own."""
    command = [sys.executable, "-m", "edgepress", *map(str, arguments)]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=variables)


def report_of(run_dir: Path) -> dict[str, Any]:
    """The report of a run."""
    loaded: dict[str, Any] = json.loads((run_dir / "report.json").read_text())
    return loaded
