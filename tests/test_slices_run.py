"""Slices through the command line: the recipe names groups, the report lists them, a gate judges the worst."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepress.compress.project.steps import slices
from edgepress.config import load
from edgepress.targets.errors import ConfigError, ProjectError
from tests.project import digits, edgepress, report_of


def project(folder: Path, named: dict[str, str], code: str = "", **gates: dict[str, str]) -> Path:
    path = digits(folder, data={"train": "data:train", "validation": "data:validation", "slices": named})
    text = path.read_text().replace(
        "gates:", "gates:\n" + "".join(f"  {name}: {{max: {gate['max']}}}\n" for name, gate in gates.items()), 1
    )
    path.write_text(text)
    with (folder / "data.py").open("a") as file:
        file.write(code)
    return path


HALVES = """

def halves():
    return ["first" if i < 450 else "second" for i in range(900)]
"""


def test_slices_are_listed_and_the_worst_is_judged(tmp_path: Path) -> None:
    path = project(tmp_path, {"digit": "labels", "half": "data:halves"}, HALVES, slice_drop={"max": "90pp"})
    done = edgepress("run", path, "--out", tmp_path / "run")
    assert done.returncode in (0, 1, 3), done.stderr  # the other gates are judged elsewhere
    target = report_of(tmp_path / "run")["targets"][0]
    assert [part["group"] for part in target["slices"]] == [*map(str, range(10)), "first", "second"]
    assert sum(part["samples"] for part in target["slices"][:10]) == sum(part["samples"] for part in target["slices"][10:]) == 900
    gate = next(gate for gate in target["gates"] if gate["name"] == "slice_drop")
    worst = max(target["slices"], key=lambda part: part["drop"])
    assert gate["verdict"] == "pass" and gate["observed"].startswith(f"{worst['drop']:.2f} pp")
    assert "the worst of 12 slices" in gate["observed"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def halves():\n    return ['a'] * 7\n", "gave 7 names"),
        ("def halves():\n    return [0.5] * 9\n", "gave 0.5 for sample 0"),
        ("def halves():\n    return 3\n", "gave int"),
        ("def halves():\n    return list(range(2000))\n", "gave 2000 names"),
        ("def halves():\n    raise ValueError('no file')\n", "no file"),
    ],
)
def test_groups_that_cannot_be_used_are_one_clear_error(tmp_path: Path, code: str, words: str) -> None:
    (tmp_path / "grouping.py").write_text(code)
    (tmp_path / "data" / "validation").mkdir(parents=True)
    np.save(tmp_path / "data" / "validation" / "labels.npy", np.zeros(9, dtype=np.int64))
    params = {"root": str(tmp_path), "slices": {"half": "grouping:halves"}, "inputs": {"data": str(tmp_path / "data")}}
    with pytest.raises(ProjectError, match=words):
        slices(params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gate_on_slices_needs_slices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no slices are named"):
        load(digits(tmp_path, gates={"slice_drop": {"max": "3pp"}}))


def test_a_grouping_is_labels_or_a_callable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither `labels` nor"):
        load(project(tmp_path, {"digit": "label"}))
