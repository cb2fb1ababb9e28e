"""A compressed model in one file, and back: the user's class in a .safetensors, or the graph itself in a .pt2. No pickles."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgepress.compress.project.checkpoint import read_program
from edgepress.compress.project.usercode import call_user, load_callable
from edgepress.compress.resize import resize, sizes_in, tensors_of
from edgepress.compress.train import trainable
from edgepress.targets.errors import ProjectError

#: The key of the file's metadata that holds ours, and the version of its form.
_KEY, _FORM = "edgepress", 1
_FIELDS = {"form": int, "factory": str, "args": dict, "root": str, "attributes": dict, "tied": dict, "plain": list}
#: Packages whose functions are no model factories: a file must not make loading run one of them.
_FOREIGN = ("torch", "numpy", "edgepress", "safetensors")


@dataclass(frozen=True)
class Origin:
    """Where the user's class comes from.

    Attributes:
        factory: `module:callable` that returns the model.
        args: its keyword arguments; JSON-able.
        root: folder of the user's modules.
    """

    factory: str
    args: Mapping[str, Any]
    root: Path


def save_class(path: Path, module: nn.Module, attributes: Mapping[str, Mapping[str, Any]], origin: Origin) -> None:
    """Write a resized model of the user's class: its tensors, and all that is needed to build it again.

    Args:
        path: a .safetensors; its folder exists.
        module: what `origin` returns, with other sizes.
        attributes: those that differ from a fresh instance's (`Rebuilt.attributes`).
        origin: the user's factory. The folder is only looked into where the modules are not beside the file.

    Raises:
        ProjectError: an argument of the factory is no JSON, or the path has another suffix.
    """
    from safetensors.torch import save_file

    if path.suffix != ".safetensors":
        raise ProjectError(f"{path.name!r} is no name for weights", "they are written as .safetensors", "Change the suffix.")
    stored: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors_of(module).items():
        first = stored.setdefault(id(tensor), name)
        if first == name:
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            tied[name] = first
    about = {
        "form": _FORM,
        "edgepress": version("edgepress"),
        "factory": origin.factory,
        "args": dict(origin.args),
        "root": str(origin.root.resolve()),
        "attributes": {part: dict(values) for part, values in attributes.items()},
        "tied": tied,
        "plain": sorted((tensors.keys() | tied.keys()) - _state(module)),
    }
    try:
        text = json.dumps(about, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ProjectError(
            "the arguments of the model's factory cannot be stored", str(error), "Use numbers, strings, lists and mappings."
        ) from error
    save_file(tensors, path, metadata={_KEY: text})


def load(path: Path, root: Path | None = None) -> nn.Module:
    """A compressed model, ready to run, train or export: eval mode, on the CPU.

    Args:
        path: a .safetensors of `save_class` or a .pt2. Loading the former runs the factory it names: the user's own code, or that of an
            installed package, with the arguments in the file. Load files of people you trust.
        root: folder of the user's modules; by default the file's own folder where they lie there, else the one they were in when
            the file was written.

    Returns:
        The user's module; or, of a .pt2, its graph as a module whose norms and dropouts switch with
        `edgepress.compress.train.set_training`.

    Raises:
        ProjectError: the file is missing, damaged or not edgepress's, or the user's code is not found or does not fit it.
    """
    if path.suffix == ".pt2":
        module: nn.Module = trainable(read_program(path))
        return module
    about, stored = _read(path)
    root = _root(path, about, root)
    model = _build(about, root)
    _check_attributes(path, model, about["attributes"])
    resize(model, _for_model(path, model, stored, about), about["attributes"])
    return model.eval()


def _state(module: nn.Module) -> set[str]:
    """Names of parameters and buffers; other tensors are attributes, which code may keep or make as it runs."""
    return {name for name, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and the tensors of a file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ProjectError(f"{str(path)!r} does not exist", "", "Name a .safetensors or .pt2 that edgepress wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, ValueError, OSError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    if text is None:
        raise ProjectError(
            f"{path.name!r} was not written by edgepress",
            "it holds tensors, and does not say how to build their model",
            "Build the model in Python and load these with `load_state_dict`.",
        )
    try:
        about = json.loads(text)
    except ValueError as error:
        raise _damaged(path, f"its metadata is no JSON ({error})") from error
    wrong = [key for key, kind in _FIELDS.items() if not isinstance(about, dict) or not isinstance(about.get(key), kind)]
    wrong = wrong or [key for key in ("tied", "plain") if not all(isinstance(name, str) for name in _leaves(about[key]))]
    if wrong:
        raise _damaged(path, f"its metadata has no valid {wrong[0]!r}")
    if about["form"] != _FORM:
        raise ProjectError(
            f"{path.name!r} has form {about['form']}", f"this edgepress reads form {_FORM}", f"It was written by {about.get('edgepress')}."
        )
    return about, tensors


def _leaves(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value)


def _damaged(path: Path, why: str) -> ProjectError:
    return ProjectError(f"{path.name!r} is damaged ({path.stat().st_size} bytes)", why, "Copy or write it again.")


def _root(path: Path, about: Mapping[str, Any], root: Path | None) -> Path:
    """The folder to look for the user's modules in."""
    if root is not None:
        return root
    top = str(about["factory"]).partition(":")[0].partition(".")[0]
    folders = [path.resolve().parent, Path(about["root"])]
    return next((f for f in folders if (f / f"{top}.py").is_file() or (f / top).is_dir()), folders[0])


def _build(about: Mapping[str, Any], root: Path) -> nn.Module:
    factory = str(about["factory"])
    module, _, name = factory.partition(":")
    if not module or not name:
        raise ProjectError(f"{factory!r} names no factory", "the file should say module:callable", "Write it again.")
    function = None if module.partition(".")[0] in sys.stdlib_module_names else load_callable(factory, root)
    if not _makes_models(function):
        why = "it is no factory of models but a function of Python or of a library that may do anything"
        raise ProjectError(f"{factory!r} was refused", why, "Load files of people you trust.")
    model = call_user(factory, function, root, about["args"])  # type: ignore[arg-type]
    if not isinstance(model, nn.Module):
        raise ProjectError(f"{factory!r} returned {type(model).__name__}", "a torch.nn.Module is needed", "Return the model itself.")
    return model


def _makes_models(function: Any) -> bool:
    """Is it a class of modules, or a function that is none of Python's and of the libraries at hand?"""
    while isinstance(function, partial):
        function = function.func
    if inspect.isclass(function) and issubclass(function, nn.Module):
        return True
    top = str(getattr(function, "__module__", None) or "builtins").partition(".")[0]
    return top not in sys.stdlib_module_names and top not in _FOREIGN


def _check_attributes(path: Path, model: nn.Module, attributes: Mapping[str, Any]) -> None:
    """Every attribute exists and is of the kind and length of the stored one."""
    parts = dict(model.named_modules(remove_duplicate=False))
    for part, values in attributes.items():
        for name, value in values.items() if isinstance(values, dict) else [("", None)]:
            old, new = sizes_in(getattr(parts.get(part), name, None)), sizes_in(value)
            if old is None or new is None or len(old) != len(new):
                raise ProjectError(
                    f"{path.name!r} does not fit the model",
                    f"it sets {f'{part}.{name}'.strip('.')!r} to {value!r}, and the class has no such sizes",
                    "Use the model code that it was made with.",
                )


def _for_model(path: Path, model: nn.Module, stored: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Tensor]:
    """The stored tensors under all names of the model's.

    Raises:
        ProjectError: names or numbers of dimensions differ.
    """
    own = tensors_of(model)
    plain = set(about["plain"])
    found = {name: stored[first] for name in {*stored, *about["tied"]} if (first := about["tied"].get(name, name)) in stored}
    missing = sorted(_state(model) - found.keys())
    unexpected = sorted(found.keys() - own.keys() - plain)
    wrong = [name for name in own.keys() & found.keys() if own[name].ndim != found[name].ndim]
    if missing or unexpected or wrong:
        lists = (("missing", missing), ("unexpected", unexpected), ("of other dimensions", wrong))
        why = "; ".join(f"{len(names)} {word}: {', '.join(names[:3])}" for word, names in lists if names)
        raise ProjectError(f"{path.name!r} does not fit the model", why, "Use the model code that it was made with.")
    return {name: tensor for name, tensor in found.items() if name in own}
