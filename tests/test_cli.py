"""The command line: light, documented, and honest about usage."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from edgepress.cli import app
from edgepress.config import load, recipe
from edgepress.config_models import TargetOverrides, TopLevel, keys_of, model_of
from edgepress.config_steps import STEPS
from edgepress.targets.catalog import CATALOG
from tests.project import edgepress, started

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch",
    "numpy",
    "onnxruntime",
    "onnx",
    "openvino",
    "coremltools",
    "ai_edge_litert",
    "litert_torch",
    "tensorrt_rtx_bindings",
    "pydantic",
)
COMMANDS = sorted(command.callback.__name__ for command in app.registered_commands if command.callback)


@pytest.mark.parametrize(
    "code", ["import edgepress", "import edgepress.cli", "from edgepress.cli import app; app(['--help'], standalone_mode=False)"]
)
def test_help_loads_neither_torch_nor_a_runtime(code: str) -> None:
    check = f"{code}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = edgepress(command, "--help")
    assert done.returncode == 0
    assert f"Example: edgepress {command}" in done.stdout


def test_accepting_a_baseline_has_help_with_an_example() -> None:
    done = edgepress("baseline", "accept", "--help")
    assert done.returncode == 0 and "Example: edgepress baseline accept" in done.stdout


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if not re.search(rf"`edgepress [^`]*\b{name}\b|`{name}`", text)] == []


def keys(model: type[BaseModel]) -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        found.add(name)
        inner = model_of(field.annotation)
        if inner is not None:
            found |= keys(inner)
    return found


def test_every_key_of_the_recipe_is_documented() -> None:
    text = (ROOT / "docs" / "recipe.md").read_text()
    known = keys(TopLevel) | keys(TargetOverrides) | set(STEPS)
    for step in STEPS.values():
        known |= keys(step)
    for name in CATALOG.table():
        known |= {option for option, _ in CATALOG.get(name).options}
    assert [key for key in sorted(known) if not re.search(rf"\b{key}\b", text)] == []


@pytest.mark.parametrize("page", ["README.md", "docs/recipe.md"])
def test_the_recipes_in_the_docs_load(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "edgepress.yaml").write_text(text)
    assert len(recipe(load(tmp_path / "edgepress.yaml"))) == 5


def test_usage_errors_exit_with_two() -> None:
    assert started("run", "--no-such-option").returncode == 2
    assert edgepress("no-such-command").returncode == 2


def test_data_goes_to_stdout_as_json_and_has_no_colours() -> None:
    done = started("targets", "--json")
    names = [row["name"] for row in json.loads(done.stdout)]
    assert {"onnxruntime", "openvino", "tensorrt", "coreml", "tflite"} <= set(names)
    assert "\x1b[" not in done.stdout + done.stderr


def test_the_installed_names_are_those_of_the_interface() -> None:
    names = {"init", "run", "plan", "check", "gate", "bench", "explain", "verify", "sign", "diff", "trend", "targets", "doctor"}
    assert names == set(COMMANDS)
    assert keys_of(TopLevel)[0] == "project"
