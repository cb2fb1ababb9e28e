from __future__ import annotations

import sys

import pytest

from edgepress.compress.project.usercode import call_user, load_callable
from edgepress.targets.errors import ProjectError

from .conftest import Write

MODEL = """
    class Net:
        def make():
            return 5

    def resnet20(width=16, *, depth=3):
        return width * depth

    number = 3

    def broken():
        values = []
        return values[3]

    def leaves():
        raise SystemExit(4)
"""


def test_a_function_is_found_beside_the_config_and_called_by_keyword(write: Write) -> None:
    root = write("model.py", MODEL)
    assert call_user("model:resnet20", load_callable("model:resnet20", root), root, {"width": 2}) == 6
    assert load_callable("model:Net.make", root)() == 5


def test_the_same_module_name_in_another_project_is_that_projects_own(write: Write) -> None:
    root = write("one/model.py", "import part\ndef f(): return part.value") / "one"
    write("one/part.py", "value = 1")
    write("two/model.py", "import part\ndef f(): return part.value")
    write("two/part.py", "value = 2")
    assert load_callable("model:f", root)() == 1
    assert load_callable("model:f", root.parent / "two")() == 2
    assert load_callable("model:f", root)() == 1


def test_modules_in_packages_and_installed_ones_are_found(write: Write) -> None:
    root = write("nets/small.py", "def f(): return 7")
    assert load_callable("nets.small:f", root)() == 7
    assert load_callable("torch.nn:Linear", root).__name__ == "Linear"


def test_no_bytecode_is_written_beside_the_users_files(write: Write) -> None:
    root = write("plain.py", "def f(): return 7")
    load_callable("plain:f", root)
    assert not (root / "__pycache__").exists() and sys.dont_write_bytecode


@pytest.mark.parametrize(
    ("spec", "fragment"),
    [
        (
            "model:resnet",
            "model.py has no 'resnet'. Did you mean 'resnet20'? Callables there: Net, broken, leaves, resnet20.",
        ),
        ("modle:resnet20", "module 'modle' was not found: there is no modle.py in"),
        ("modle:resnet20", "Did you mean 'model'? Modules there: model."),
        ("model.sub:f", "module 'model.sub' was not found"),
        ("model:number", "'model:number' cannot be called: it is int"),
        ("model:Net.mak", "Did you mean 'make'?"),
    ],
)
def test_what_cannot_be_found_names_the_nearest(write: Write, spec: str, fragment: str) -> None:
    root = write("model.py", MODEL)
    with pytest.raises(ProjectError) as caught:
        load_callable(spec, root)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("import torch\nx = 1\nraise ValueError('no GPU')\n", "module 'wrong' cannot be imported at wrong.py:3: ValueError: no GPU"),
        ("def f(:\n  pass\n", "cannot be imported at wrong.py:1: SyntaxError"),
        ("import not_installed_here\n", "cannot be imported at wrong.py:1: ModuleNotFoundError: No module named 'not_installed_here'"),
        ("import sys\nsys.exit(3)\n", "cannot be imported at wrong.py:2: SystemExit: 3"),
    ],
)
def test_a_module_that_raises_names_its_own_line(write: Write, text: str, fragment: str) -> None:
    with pytest.raises(ProjectError) as caught:
        load_callable("wrong:f", write("wrong.py", text))
    assert fragment in str(caught.value)


def test_a_function_that_raises_names_its_own_line(write: Write) -> None:
    root = write("model.py", MODEL)
    with pytest.raises(ProjectError, match=r"'model:broken' failed at model\.py:13: IndexError: list index out of range"):
        call_user("model:broken", load_callable("model:broken", root), root)
    with pytest.raises(ProjectError, match=r"'model:leaves' failed at model\.py:16: SystemExit: 4"):
        call_user("model:leaves", load_callable("model:leaves", root), root)


def test_a_wrong_argument_names_the_nearest_parameter(write: Write) -> None:
    root = write("model.py", MODEL)
    with pytest.raises(ProjectError, match=r"Did you mean 'width'\? Its parameters: width, depth"):
        call_user("model:resnet20", load_callable("model:resnet20", root), root, {"widht": 3})


@pytest.mark.parametrize("name", ["json", "types", "numpy", "torch"])
def test_a_file_named_like_a_module_in_use_is_told_to_be_renamed(write: Write, name: str) -> None:
    root = write(f"{name}.py", "def f(): return 1")
    with pytest.raises(
        ProjectError, match=rf"'{name}\.py' cannot be loaded as '{name}': that name belongs to .*Rename it, e\.g\. my_{name}\.py"
    ):
        load_callable(f"{name}:f", root)
