"""docs/add-a-target.md, followed: the example is found by its entry points, and a name that is taken names both owners."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from edgepress.exporters import EXPORTERS
from edgepress.targets import registry
from edgepress.targets.catalog import CATALOG
from edgepress.targets.errors import ConfigError
from edgepress.targets.rules import rules_for
from edgepress.validators.runtimes import RUNTIMES
from tests.project import edgepress

DOC = Path(__file__).parent.parent / "docs" / "add-a-target.md"


def test_the_example_is_found_in_all_four_groups() -> None:
    assert CATALOG.get("numpy").runtime == "numpy"
    assert rules_for("numpy").ladder == ("static", "weights")
    assert EXPORTERS.get("numpy").runtime == RUNTIMES.get("numpy").name == "numpy"


def test_the_entry_points_of_the_page_are_those_of_the_example() -> None:
    example = (DOC.parent.parent / "examples" / "numpy-target" / "pyproject.toml").read_text()
    lines = [line.strip() for line in DOC.read_text().splitlines() if line.strip().startswith(("numpy =", "[project.entry-points"))]
    assert len(lines) == 8
    assert all(line in example for line in lines)


def test_it_is_listed_with_what_it_has() -> None:
    rows = {row["name"]: row for row in json.loads(edgepress("targets", "--json").stdout)}
    assert rows["numpy"]["precisions"] == ["fp32", "int8", "int8-weights"]
    assert rows["numpy"]["run"]["usable"]


def test_a_taken_name_names_both_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(group: str) -> list[Any]:
        return [EntryPoint("onnxruntime", "somebody.else:TARGET", group)]

    monkeypatch.setattr(registry, "entry_points", points)
    with pytest.raises(ConfigError, match=r"claimed twice: by edgepress\.targets\.catalog:ONNXRUNTIME and by somebody\.else:TARGET"):
        CATALOG.table()


def test_a_name_nobody_has_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'numpy'"):
        CATALOG.get("nunpy")
