"""`quantize: {method: best}` through the command line, with native quantizers that work and some that do not."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgepress.report.schema import load_schema
from tests import native_quantizers
from tests.project import digits, edgepress, report_of, started

Run = tuple[subprocess.CompletedProcess[str], dict[str, Any], Path]
PEER = "int8 static (copier)"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("best")
    environment = native_quantizers.install(folder / "site")
    gates = {"accuracy_drop": {"max": "5pp"}}
    recipe = digits(folder / "project", compress=[{"quantize": {"method": "best"}}], gates=gates, run={"jobs": 2})
    done = started("run", recipe, "--out", folder / "run", COLUMNS="200", **environment)
    return done, report_of(folder / "run"), folder / "run"


def candidates(run: Run) -> dict[str, dict[str, Any]]:
    return {item["scheme"]: item for item in run[1]["targets"][0]["tried"]}


@pytest.mark.slow
def test_the_winner_ships_under_the_name_of_its_tool_and_verifies(finished: Run) -> None:
    done, report, run_dir = finished
    assert done.returncode == 0, done.stdout + done.stderr
    (target,) = report["targets"]
    assert target["scheme"]["label"] == PEER and target["facts"]["quantizer"].startswith("copier (numpy ")
    assert [item["scheme"] for item in target["tried"] if item["shipped"]] == [PEER]
    verified = edgepress("verify", run_dir / "bundle")
    assert verified.returncode == 0 and "1 of 1 replays match" in verified.stdout


@pytest.mark.slow
def test_every_loser_is_listed_with_its_figures(finished: Run) -> None:
    winner, others = candidates(finished)[PEER], [candidates(finished)[name] for name in ("int8 static", "int8 weights")]
    for item in others:
        low, high = item["interval"]
        assert low <= item["drop_on_selection"] <= high and item["size_bytes"] > 0 and item["tool"] == "edgepress"
        assert item["latency_ratio"]["reference"].startswith("fp32 in numpy") and not item["shipped"]
        assert item["latency_ratio"]["value"] > winner["latency_ratio"]["value"] and item["why"] == "slower"
    assert winner["drop_on_selection"] == pytest.approx(0, abs=1e-9) and "fastest" in winner["why"]
    jsonschema.validate(finished[1], load_schema("report.v1"))


@pytest.mark.slow
def test_a_peer_that_raises_dies_or_writes_garbage_is_listed_with_its_reason_and_the_run_goes_on(finished: Run) -> None:
    found = candidates(finished)
    for name, reason in (
        ("raiser", "ZeroDivisionError: in pass 'fold_everything'"),
        ("dier", "ended with exit code 7"),
        ("garbler", "model.npz"),
    ):
        item = found[f"int8 static ({name})"]
        assert reason in item["why"] and not item["held"] and item["latency_ratio"] is None and item["size_bytes"] is None


@pytest.mark.slow
def test_a_peer_that_is_absent_is_named_with_how_to_install_it(finished: Run) -> None:
    assert candidates(finished)["int8 static (absentee)"]["why"] == "not installed: pip install 'edgepress[native]'"


@pytest.mark.slow
def test_terminal_and_page_list_every_candidate(finished: Run) -> None:
    done, report, run_dir = finished
    page = (run_dir / "report.html").read_text()
    for name in candidates(finished):
        assert name in done.stdout and name in page
    rule = report["targets"][0]["best"]["rule"]
    assert f"numpy: 7 candidates ({rule})" in done.stdout and rule in page


def test_a_plan_names_the_steps_of_every_candidate_and_runs_none(tmp_path: Path) -> None:
    environment = native_quantizers.install(tmp_path / "site")
    done = started("plan", digits(tmp_path / "project", compress=[{"quantize": {"method": "best"}}]), COLUMNS="200", **environment)
    assert done.returncode == 0 and f"export numpy {PEER}" in done.stdout and "latency numpy int8 weights" in done.stdout


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        ({"method": "bset"}, "Did you mean 'best'?"),
        ({"method": "best", "precision": "int8-weights"}, "method best compares ways to int8, and no target has it"),
        ({"method": "best", "scheme": "static"}, "method best compares all schemes, and scheme static names one"),
        ({"method": "best", "fallback": True}, "method best compares whole files"),
    ],
)
def test_a_recipe_that_cannot_mean_it_is_refused(tmp_path: Path, quantize: dict[str, Any], message: str) -> None:
    done = edgepress("plan", digits(tmp_path, compress=[{"quantize": quantize}]))
    assert done.returncode == 2 and message in " ".join(done.stderr.split())
