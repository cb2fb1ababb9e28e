"""The child side of `edgepress verify`: run golden inputs, compare with golden outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.bundle.manifest import artifact_of
from edgepress.bundle.npz import load_npz


def replay(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one artifact of a bundle.

    Args:
        params: `entry` of bundle.json and the `folder` it speaks of.
        folder: scratch space; nothing is written.

    Returns:
        `usable` with `missing` and `install`; where usable also `match`, `problem`, `max_abs_error`, `allowed`, `samples`, `executed_by`.

    Raises:
        ExecutionError: the runtime refused the artifact or failed.
    """
    from edgepress.validators.runtimes import RUNTIMES

    entry, place = params["entry"], Path(params["folder"])
    if entry["runtime"] not in RUNTIMES.table():
        return {"usable": False, "missing": f"no installed package brings the runtime {entry['runtime']!r}", "install": None}
    runtime = RUNTIMES.get(entry["runtime"])()
    support = runtime.supports()
    if not support.usable:
        return {"usable": False, "missing": support.missing, "install": support.install}
    golden = json.loads((place / entry["golden"]).read_text("utf-8"))
    inputs, expected = load_npz(place / golden["inputs"]), load_npz(place / golden["outputs"])
    with runtime.open(artifact_of(entry), place, 1) as session:
        outputs = session.run(inputs)
        executed_by = session.executed_by
    compared = compare(outputs, expected, golden["rtol"], golden["atol"])
    return {"usable": True, **compared, "samples": len(next(iter(inputs.values()))), "executed_by": executed_by}


def compare(outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], rtol: float, atol: float) -> dict[str, Any]:
    """Whether `|output - expected| <= atol + rtol * |expected|` everywhere, and the largest deviation; NaN never matches.

    Args:
        outputs: what the runtime returned, by name.
        expected: the golden outputs, by name.
        rtol: relative tolerance.
        atol: absolute tolerance, in the outputs' unit.
    """
    worst, allowed, match = 0.0, atol, True
    for name, value in expected.items():
        got = outputs.get(name)
        if got is None or got.shape != value.shape:
            shape = "missing" if got is None else f"of shape {got.shape}"
            return _differs(f"output {name!r} is {shape}, golden {value.shape}", atol)
        error = np.abs(got.astype(np.float64) - value.astype(np.float64))
        if not np.isfinite(error).all():
            return _differs(f"output {name!r} has values that are not finite", atol)
        limit = atol + rtol * np.abs(value.astype(np.float64))
        match = match and bool((error <= limit).all())
        if error.size and error.max() >= worst:
            worst, allowed = float(error.max()), float(limit.flat[error.argmax()])
    return {"match": match, "problem": None, "max_abs_error": worst, "allowed": allowed}


def _differs(problem: str, allowed: float) -> dict[str, Any]:
    return {"match": False, "problem": problem, "max_abs_error": None, "allowed": allowed}
