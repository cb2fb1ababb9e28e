"""The layout that docs/architecture.md promises."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ["targets", "compress", "exporters", "validators", "edgepress"]


def sources(part: str) -> list[Path]:
    linked = {"compress", "exporters", "validators", "targets"} if part == "edgepress" else set()
    return [p for p in sorted((ROOT / part).rglob("*.py")) if p.relative_to(ROOT / part).parts[0] not in linked]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("part", ORDER)
def test_arrows_point_one_way(part: str) -> None:
    allowed = {f"edgepress.{name}" for name in ORDER[: ORDER.index(part) + 1]}
    for path in sources(part):
        for name in imported(path):
            if part != "edgepress" and (name == "edgepress" or name.startswith("edgepress.")):
                assert name == "edgepress" or any(name == a or name.startswith(f"{a}.") for a in allowed), f"{path} imports {name}"


def test_the_four_folders_are_importable_under_one_name_only() -> None:
    code = (
        "import sys, pkgutil, importlib, edgepress\n"
        "for part in ('targets', 'exporters', 'validators', 'compress'):\n"
        "    importlib.import_module(f'edgepress.{part}')\n"
        "print([n for n in ('compress', 'exporters', 'validators', 'targets') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
