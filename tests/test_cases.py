"""The real cases through the command line: every int8 artifact holds its bar on the whole validation set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgepress.bundle.digest import digest
from tests.project import report_of, started

RECIPES = Path(__file__).parent.parent / "benchmarks" / "cases"
CASES = Path(os.environ.get("EDGEPRESS_CASES", Path(__file__).parents[2] / "shared" / "cases")).absolute()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CASES.is_dir(), reason=f"the real cases are not at {CASES} (EDGEPRESS_CASES)")]


def check(recipe: Path, out: Path, worst_pp: float) -> None:
    store = str(out.parent / "store")
    done = started("run", recipe, "--out", out, timeout=2400, EDGEPRESS_CASES=str(CASES), EDGEPRESS_STORE=store)
    report = report_of(out)
    targets = {target["name"]: target for target in report["targets"]}
    assert [t["error"] for t in targets.values() if t["error"]] == [], done.stdout
    for name, target in targets.items():
        assert target["status"] == "validated", name
        assert target["metric"]["drop"] <= worst_pp, (name, target["metric"])
        assert target["metric"]["samples"] == report["reference"]["metric"]["samples"]
        assert target["kernels"]["int8"] > 0 and target["integer_share_of_macs"] > 0.9, (name, target["kernels"])
        assert digest(out / target["artifact"]["path"]) == target["artifact"]["sha256"]


def test_resnet20_in_int8_loses_at_most_half_a_point_on_every_target(tmp_path: Path) -> None:
    check(RECIPES / "cifar10" / "resnet20.yaml", tmp_path / "run", 0.5)


def test_minilm_in_int8_loses_at_most_one_point_on_every_target(tmp_path: Path) -> None:
    check(RECIPES / "sst2" / "minilm.yaml", tmp_path / "run", 1.0)
