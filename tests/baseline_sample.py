"""A run with everything a baseline needs, as a folder with a report; and the command line in this process."""

from __future__ import annotations

import json
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from edgepress.cli import main
from edgepress.validators.score_bits import pack
from tests.report_sample import SHA, report, target

SAMPLES = 2000
DATA, OTHER = "d" * 64, "e" * 64
LIMITS = {"accuracy_drop": (1.0, "pp"), "latency_ratio": (1.05, "ratio"), "size": (1.02, "ratio"), "peak_memory": (1.1, "ratio")}


def today(days: int = 0) -> date:
    return datetime.now(UTC).date() + timedelta(days=days)


def waiver(gate: str, days: int, name: str = "onnxruntime") -> dict[str, str]:
    expires = today(days).isoformat()
    return {"target": name, "gate": gate, "owner": "jane", "reason": "the new kernel comes in May", "expires": expires}


def scores(wrong: int, shift: int = 0) -> str:
    """`wrong` of the samples are, from the one at `shift` on."""
    values = np.ones(SAMPLES)
    values[shift : shift + wrong] = 0
    text = pack(values)
    assert text is not None
    return text


def limits(*names: str) -> dict[str, Any]:
    """What the recipe asks of a target, as a report has it; all of it unless named."""
    chosen = names or tuple(LIMITS)
    made = [
        {"name": f"baseline.{name}", "limit": LIMITS[name][0], "unit": LIMITS[name][1], "confidence": 0.95, "machine": None}
        for name in chosen
    ]
    return {"limits": made, "ratchet": False, "latency": None, "error": None, "unmeasurable": None, "entry": None}


def measured(name: str = "onnxruntime", wrong: int = 171, shift: int = 0, **more: Any) -> dict[str, Any]:
    """A target with `wrong` of its samples wrong; `more` replaces fields."""
    fields: dict[str, Any] = {
        "runtime": name,
        "metric": {"value": 1 - wrong / SAMPLES, "drop": 0.12, "interval": [-0.05, 0.31], "confidence": 0.95, "samples": SAMPLES},
        "latency_ratio": {"value": 0.312, "interval": [0.309, 0.315], "confidence": 0.95, "reference": "fp32 in onnxruntime 1.32.0"},
        "sample_scores": scores(wrong, shift),
        "against_baseline": limits(),
    }
    return target(name, **{**fields, **more})


def run(*targets: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A report of `targets`; `more` replaces its fields, or those of `environment` and `reference`."""
    made = report(*(targets or (measured(),)))
    made["reference"]["dataset_sha256"] = DATA
    for key, value in more.items():
        place = next((made[part] for part in ("environment", "reference") if key in made[part]), made)
        place[key] = value
    return made


def written(folder: Path, made: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(made))
    return folder


def cli(*arguments: object) -> int:
    """The exit code of a command line."""
    with patch.object(sys, "argv", ["edgepress", *map(str, arguments)]):
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def accepted(folder: Path, made: dict[str, Any], *options: object) -> tuple[int, Path]:
    """Exit code and file of `baseline accept` of a run."""
    file = folder / "edgepress-baseline.yaml"
    run_dir = written(folder / "old", made)
    return cli("baseline", "accept", run_dir, "--reason", "release 1", "--by", "jane", "--file", file, *options), file


__all__ = ["DATA", "OTHER", "SAMPLES", "SHA", "accepted", "cli", "limits", "measured", "run", "scores", "today", "waiver", "written"]
