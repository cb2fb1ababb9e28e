"""What people get wrong: one clear line on stderr, exit code 2, and nothing half-written."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from tests.project import digits, edgepress

CHECKPOINT = "digits.safetensors"


class Evil:
    """Unpickling this would write a file."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (Path("pwned"),))


def missing(project: Path) -> None:
    (project / CHECKPOINT).unlink()


def truncated(project: Path) -> None:
    (project / CHECKPOINT).write_bytes((project / CHECKPOINT).read_bytes()[:500])


def wrong_shape(project: Path) -> None:
    weights = load_file(project / CHECKPOINT)
    weights["classifier.weight"] = weights["classifier.weight"][:7].copy()
    save_file(weights, project / CHECKPOINT)


def not_a_number(project: Path) -> None:
    weights = load_file(project / CHECKPOINT)
    weights["classifier.bias"][3] = np.nan
    save_file(weights, project / CHECKPOINT)


def code_in_a_pickle(project: Path) -> None:
    (project / "evil.pt").write_bytes(pickle.dumps({"classifier.weight": Evil()}))
    edit(project, model={"factory": "model:digit_net", "checkpoint": "evil.pt"})


def no_factory(project: Path) -> None:
    edit(project, model={"factory": "model:digit_nett", "checkpoint": CHECKPOINT})


def raising_factory(project: Path) -> None:
    append(project / "model.py", "def broken() -> nn.Module:\n    raise RuntimeError('no such backbone')\n")
    edit(project, model={"factory": "model:broken", "checkpoint": CHECKPOINT})


def empty_validation(project: Path) -> None:
    append(project / "data.py", "def nothing():\n    from torch.utils.data import TensorDataset\n    return TensorDataset()\n")
    append(project / "data.py", "class Empty:\n    def __len__(self): return 0\n    def __getitem__(self, i): raise IndexError(i)\n")
    edit_data(project, "data:Empty")


def text_inputs(project: Path) -> None:
    append(project / "data.py", "class Texts:\n    def __len__(self): return 9\n    def __getitem__(self, i): return 'seven', 7\n")
    edit_data(project, "data:Texts")


def labels_out_of_range(project: Path) -> None:
    body = "    def __len__(self): return 20\n    def __getitem__(self, i): return torch.zeros(1, 16, 16), 10 + i\n"
    append(project / "data.py", f"import torch\nclass Off:\n{body}")
    edit_data(project, "data:Off")


def unknown_key(project: Path) -> None:
    edit(project, gate={"size": {"max": "2MB"}})


def no_unit(project: Path) -> None:
    edit(project, gates={"size": {"max": 2}})


def another_unit(project: Path) -> None:
    edit(project, metric="cohen_kappa", gates={"accuracy_drop": {"max": 0.01}})


def unknown_target(project: Path) -> None:
    edit(project, targets=["onnxruntim"])


def edit(project: Path, **changes: object) -> None:
    path = project / "edgepress.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes, sort_keys=False))


def edit_data(project: Path, validation: str) -> None:
    edit(project, data={"train": "data:train", "validation": validation, "calibration": {"samples": 64, "selection": 64}})


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + "\n\n" + text)


CASES: list[tuple[Callable[[Path], None], list[str]]] = [
    (missing, [CHECKPOINT, "does not exist"]),
    (truncated, [CHECKPOINT]),
    (wrong_shape, ["classifier.weight", "10", "7"]),
    (not_a_number, ["classifier.bias", "NaN"]),
    (code_in_a_pickle, ["evil.pt", "pickle"]),
    (no_factory, ["digit_nett", "Did you mean", "digit_net"]),
    (raising_factory, ["no such backbone", "model.py"]),
    (empty_validation, ["data:Empty", "no samples"]),
    (text_inputs, ["data:Texts", "str"]),
    (labels_out_of_range, ["label", "10", "classes"]),
    (unknown_key, ["edgepress.yaml", "gate", "gates"]),
    (no_unit, ["gates.size.max", "unit"]),
    (another_unit, ["accuracy_drop is 0.01 without a unit", "cohen_kappa is a fraction", "0.01pp"]),
    (unknown_target, ["onnxruntim", "onnxruntime"]),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every spoilt project stands: what a mistake leaves as it was is found in the store."""
    return tmp_path_factory.mktemp("spoilt") / "project"


@pytest.mark.parametrize(("spoil", "fragments"), CASES, ids=[spoil.__name__ for spoil, _ in CASES])
def test_a_mistake_is_one_line_exit_two_and_no_output(
    spoil: Callable[[Path], None], fragments: list[str], place: Path, tmp_path: Path
) -> None:
    shutil.rmtree(place, ignore_errors=True)
    recipe = digits(place)
    spoil(recipe.parent)
    done = edgepress("run", recipe, "--out", tmp_path / "out" / "run", cwd=tmp_path)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1 and done.stderr.splitlines()[-1] == errors[0], done.stderr
    assert "Traceback" not in done.stderr
    for fragment in fragments:
        assert fragment.lower() in errors[0].lower(), f"{fragment!r} not in {errors[0]}"
    assert not [p for p in (tmp_path / "out").glob("**/*") if p.is_file()] if (tmp_path / "out").exists() else True
    assert not [found for folder in (tmp_path, place) for found in folder.rglob("pwned")]


@pytest.mark.parametrize(
    "arguments", [["run", "nowhere.yaml"], ["gate", "nowhere"], ["verify", "nowhere"], ["explain", "nowhere", "tflite"]]
)
def test_a_path_that_is_not_there_is_one_line_and_exit_two(arguments: list[str], tmp_path: Path) -> None:
    done = edgepress(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr


def test_only_an_unknown_target_names_the_nearest(tmp_path: Path) -> None:
    done = edgepress("run", digits(tmp_path / "project"), "--only", "nunpy")
    assert done.returncode == 2 and "Did you mean 'numpy'?" in done.stderr


def test_a_full_disk_is_one_line_and_leaves_no_report(tmp_path: Path) -> None:
    """A file-size limit stands in for the full disk: writing the arrays fails the same way, in the middle."""
    import resource
    import subprocess
    import sys

    recipe = digits(tmp_path / "project")
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.RLIM_INFINITY})); "
    code += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += f"import sys; sys.argv = ['edgepress', 'run', {str(recipe)!r}, '--out', {str(tmp_path / 'run')!r}]; "
    code += "from edgepress.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "error:" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()
