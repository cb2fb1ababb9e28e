"""Reading a checkpoint without running anything in it, and filling a model with it."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgepress.targets.errors import ProjectError

#: Where training loops keep the state dict inside a checkpoint.
NESTED = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_CODE = re.compile(r"(?:GLOBAL |unrecognized function |add_safe_globals`,? but got (?:<class ')?)(?P<name>[\w.]+)")
_SAVE = "Save it again with `safetensors.torch.save_file(model.state_dict(), 'model.safetensors')`."


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from .safetensors, .pt or .pth.

    A .pt or .pth is always read with `weights_only=True`; the state dict may be bare or under one of `NESTED`.

    Raises:
        ProjectError: missing, truncated or corrupt, a pickle that would run code, or no state dict inside.
    """
    _exists(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _state_dict_in(path, _read_pickle(path))


def read_program(path: Path) -> ExportedProgram:
    """An ExportedProgram from a .pt2 whose tensors are plain bytes.

    Raises:
        ProjectError: missing, corrupt, or holding a pickle that could run code when loaded.
    """
    _exists(path)
    try:
        _refuse_pickles(path)
        return torch.export.load(path)
    except ProjectError:
        raise
    except Exception as error:  # torch.export.load raises whatever its parser meets in a damaged file
        raise _corrupt(path, error, "Save it again with `torch.export.save`, using the same torch version.") from error


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy a state dict into a model, in place; prefixes of DataParallel, torch.compile and Lightning are stripped.

    Raises:
        ProjectError: missing or unexpected keys, wrong shapes (the first are listed with both shapes), NaN or infinite weights.
    """
    own = model.state_dict()
    state = _strip(dict(state), set(own))
    _fill_tied(own, state)
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        raise _wrong_keys(path, missing, unexpected)
    shapes = [(n, tuple(state[n].shape), tuple(t.shape)) for n, t in own.items() if n in state and state[n].shape != t.shape]
    if shapes:
        shown = "; ".join(f"{n} is {a} in the file, {b} in the model" for n, a, b in shapes[:3])
        more = f"; and {len(shapes) - 3} more" if len(shapes) > 3 else ""
        raise ProjectError(f"checkpoint {path.name!r} does not fit the model", f"{shown}{more}", "Check `model.factory` and `model.args`.")
    check_finite(state, path)
    model.load_state_dict(state, strict=False)


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse NaN and infinite values.

    Raises:
        ProjectError: names the first tensors that have them, with counts.
    """
    bad = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
            count = tensor.numel() - int(torch.isfinite(tensor).sum())
            if count:
                bad[name] = f"{name} has {count} of {tensor.numel()}"
    if bad:
        more = f"; and {len(bad) - 3} more tensors" if len(bad) > 3 else ""
        why = "; ".join(list(bad.values())[:3]) + more
        raise ProjectError(f"checkpoint {path.name!r} has NaN or infinite weights", why, "Use a checkpoint from before training diverged.")


def _exists(path: Path) -> None:
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".safetensors", ".pt", ".pth", ".pt2"))
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ProjectError(f"checkpoint {str(path)!r} {what}", "", f"Check `model.checkpoint`. Found there: {', '.join(near) or 'none'}.")
    if path.stat().st_size == 0:
        raise ProjectError(f"checkpoint {path.name!r} is empty", "0 bytes", "Copy it again.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise _corrupt(path, error, "Copy or save it again.") from error
    return tensors


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _CODE.search(str(error))
        name = found["name"] if found else _global_in(path)
        if name:
            why = f"it is a pickle that would run code ({name}), and only tensors are read"
            raise ProjectError(f"checkpoint {path.name!r} was refused", why, _SAVE) from error
        raise _corrupt(path, ValueError("it is not what torch.save writes"), "Copy or save it again.") from error
    except Exception as error:  # a damaged zip or pickle raises nearly anything: RuntimeError, EOFError, KeyError, UnicodeError
        if "torchscript" in str(error).lower():
            raise ProjectError(f"checkpoint {path.name!r} was refused", "it is a TorchScript archive, not a state dict", _SAVE) from error
        raise _corrupt(path, error, "Copy or save it again.") from error


def _global_in(path: Path) -> str:
    """The first function a bare pickle would import, empty where it is no pickle; torch's reader stops at newer protocols unsaid."""
    words: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(path.read_bytes()):
            if operation.name in ("GLOBAL", "INST"):
                return str(argument).replace(" ", ".")
            if operation.name == "STACK_GLOBAL":
                return ".".join(words[-2:])
            if isinstance(argument, str):
                words.append(argument)
    except (ValueError, IndexError, AttributeError):  # no pickle at all
        return ""
    return ""


def _state_dict_in(path: Path, content: Any) -> dict[str, Tensor]:
    for candidate in (content, *(content.get(key) for key in NESTED if isinstance(content, Mapping))):
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return {str(name): tensor for name, tensor in candidate.items()}
    keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
    raise ProjectError(
        f"checkpoint {path.name!r} holds no state dict",
        f"found {keys or 'an empty mapping'}",
        f"Put it at the top or under {', '.join(NESTED)}.",
    )


def _refuse_pickles(path: Path) -> None:
    """`torch.export.load` unpickles tensor subclasses, opaque constants and odd sample inputs freely; plain tensors are raw bytes."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            _, _, inner = name.partition("/data/")
            if inner.endswith("_config.json"):
                for entry, meta in json.loads(archive.read(name)).get("config", {}).items():
                    if isinstance(meta, dict) and meta.get("use_pickle"):
                        raise _pickled(path, entry)
            if inner.startswith("constants/opaque_obj_") or inner.startswith("constants/custom_obj_"):
                raise _pickled(path, inner)
            if inner.startswith("sample_inputs/") and archive.getinfo(name).file_size:
                try:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                except pickle.UnpicklingError as error:
                    raise _pickled(path, inner) from error


def _pickled(path: Path, entry: str) -> ProjectError:
    return ProjectError(
        f"checkpoint {path.name!r} was refused",
        f"{entry!r} in it is a pickle that could run code",
        "Export the model with plain tensors only.",
    )


def _corrupt(path: Path, error: Exception, remedy: str) -> ProjectError:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
    return ProjectError(f"checkpoint {path.name!r} is truncated or corrupt ({path.stat().st_size} bytes)", text, remedy)


def _strip(state: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Remove wrappers' prefixes, unless the model itself has such a name."""
    while state and not own & set(state):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    if not any("_orig_mod." in name for name in own):
        state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    return state


def _fill_tied(own: Mapping[str, Tensor], state: dict[str, Tensor]) -> None:
    """Weights that share memory in the model are stored once by safetensors."""
    by_storage: dict[tuple[int, tuple[int, ...]], str] = {(t.data_ptr(), tuple(t.shape)): n for n, t in own.items() if n in state}
    for name, tensor in own.items():
        twin = by_storage.get((tensor.data_ptr(), tuple(tensor.shape)))
        if name not in state and twin is not None and tensor.numel():
            state[name] = state[twin]


def _wrong_keys(path: Path, missing: list[str], unexpected: list[str]) -> ProjectError:
    parts = []
    for word, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            parts.append(f"{len(names)} {word}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}")
    near = get_close_matches(missing[0], unexpected, 1, 0.5) if missing else []
    hint = f"The model's {missing[0]!r} may be the file's {near[0]!r}. " if near else ""
    return ProjectError(
        f"checkpoint {path.name!r} does not fit the model",
        "; ".join(parts),
        f"{hint}Check `model.factory`, `model.args` and `model.checkpoint`.",
    )
