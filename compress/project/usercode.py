"""Finding and calling the user's functions, and saying where in the user's files something went wrong."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from edgepress.targets.errors import EdgepressError, ProjectError

#: Modules that came from a project folder: name -> root. Another project in the same process replaces them.
_loaded: dict[str, Path] = {}


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def load_callable(spec: str, root: Path) -> Callable[..., Any]:
    """The function or class that `module:name` stands for.

    A file of that name beside the config wins over an installed package; without such a file an installed package is used.

    Args:
        spec: `module:name`, both may have dots.
        root: folder of the user's modules.

    Raises:
        ProjectError: no such module or name (the nearest are named), the module raises, or it bears the name of a module that
            Python or edgepress itself has loaded.
    """
    module_name, _, name = spec.partition(":")
    module = _load_module(module_name, root)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise _no_such_name(spec, part, found, module)
        found = getattr(found, part)
    if not callable(found):
        raise ProjectError(f"{spec!r} cannot be called", f"it is {type(found).__name__}", "Name a function or a class.")
    return found  # type: ignore[no-any-return]


def code_digest(root: Path) -> str:
    """sha256 over every module below `root` that is loaded: what a training resumes only while it is unchanged."""
    owned = [sys.modules[name] for name, owner in _loaded.items() if owner == root.resolve() and name in sys.modules]
    files = {str(module.__file__) for module in owned if getattr(module, "__file__", None)}
    return hashlib.sha256(b"".join(Path(name).read_bytes() for name in sorted(files))).hexdigest()


def call_user(spec: str, function: Callable[..., Any], root: Path, arguments: Mapping[str, Any] | None = None) -> Any:
    """Call a user's function by keyword.

    Raises:
        ProjectError: it does not take these arguments (the nearest parameter is named), or it raises; the message names the
            user's file and line.
    """
    arguments = dict(arguments or {})
    _check_arguments(spec, function, arguments)
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:  # user code may raise anything; it ends this step with its own file and line
        raise user_error(f"{spec!r} failed", error, root) from error


def user_error(what: str, error: BaseException, root: Path) -> EdgepressError:
    """`what`, with the exception and the deepest line of the user's own code; errors of ours pass through."""
    if isinstance(error, EdgepressError):
        return error
    place = user_line(error, root)
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:300]
    return ProjectError(f"{what}{f' at {place}' if place else ''}", f"{type(error).__name__}: {text}", "Fix it and run again.")


def user_line(error: BaseException, root: Path) -> str | None:
    """`model.py:12`: the deepest traceback entry below `root`, or a syntax error's own place."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_relative_to(root):
        return f"{Path(error.filename).relative_to(root)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        path = Path(frame.filename)
        if path.is_relative_to(root) and "site-packages" not in path.parts:
            return f"{path.relative_to(root)}:{frame.lineno}"
    return None


def _load_module(name: str, root: Path) -> ModuleType:
    root = root.resolve()
    sys.dont_write_bytecode = True
    if sys.path[0] != str(root):
        sys.path.insert(0, str(root))
    file = _file_of(name, root)
    top = name.partition(".")[0]
    if file is not None:
        _make_room(top, root, file)
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")) and file is None:
            raise _no_such_module(name, root) from None
        raise user_error(f"module {name!r} cannot be imported", error, root) from error
    except (Exception, SystemExit) as error:  # importing runs the user's code
        raise user_error(f"module {name!r} cannot be imported", error, root) from error
    for added in set(sys.modules) - before:
        origin = getattr(sys.modules[added], "__file__", None)
        if origin and Path(origin).is_relative_to(root) and "site-packages" not in Path(origin).parts:
            _loaded[added] = root
    return module


def _file_of(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    return next((path for path in (base.with_name(f"{base.name}.py"), base / "__init__.py") if path.is_file()), None)


def _make_room(top: str, root: Path, file: Path) -> None:
    """Forget another project's modules; refuse names that the running process needs for itself."""
    for name in [n for n, owner in _loaded.items() if owner != root]:
        sys.modules.pop(name, None)
        del _loaded[name]
    taken = sys.modules.get(top)
    if top in sys.stdlib_module_names or (taken is not None and top not in _loaded):
        owner = "Python's standard library" if top in sys.stdlib_module_names else getattr(taken, "__file__", None) or "another package"
        raise ProjectError(f"{file.name!r} cannot be loaded as {top!r}", f"that name belongs to {owner}", f"Rename it, e.g. my_{top}.py.")


def _no_such_module(name: str, root: Path) -> ProjectError:
    here = sorted(p.stem for p in root.glob("*.py"))
    near = get_close_matches(name, here, 1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return ProjectError(
        f"module {name!r} was not found", f"there is no {name}.py in {root}", f"{hint}Modules there: {', '.join(here) or 'none'}."
    )


def _no_such_name(spec: str, part: str, found: Any, module: ModuleType) -> ProjectError:
    public = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")] if hasattr(found, "__dict__") else []
    own = [n for n in public if getattr(getattr(found, n), "__module__", None) == module.__name__] or public
    near = get_close_matches(part, own, 1, 0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    where = Path(module.__file__).name if module.__file__ else module.__name__
    return ProjectError(
        f"{spec!r} was not found", f"{where} has no {part!r}", f"{hint}Callables there: {', '.join(sorted(own)[:12]) or 'none'}."
    )


def _check_arguments(spec: str, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature says for itself what it does not take
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        known = [n for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        wrong = [name for name in arguments if name not in known]
        near = get_close_matches(wrong[0], known, 1) if wrong else []
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ProjectError(f"{spec!r} cannot be called", str(error), f"{hint}Its parameters: {', '.join(known) or 'none'}.") from None
