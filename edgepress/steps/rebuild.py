"""The compressed model for PyTorch: as the user's own class where it can hold it, else as the exported graph; one file either way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.targets.progress import progress

_SAMPLES = 4


def rebuild(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the model of the last stage for further work in PyTorch (`edgepress.compress.compressed.load` reads it).

    Args:
        params: `root`, `factory`, `args`; `inputs` names the folders of `model`, `original` and `data`.
        folder: receives `model.safetensors` (the user's class) or `model.pt2` (the graph).

    Returns:
        `file`, `route` (`class` or `graph`), and `why` the class could not hold it.
    """
    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    why = _as_class(params, inputs, folder / "model.safetensors") if params["factory"] else "the checkpoint is a program without a class"
    if not why:
        return {"file": "model.safetensors", "route": "class", "why": ""}
    shutil.copyfile(inputs["model"] / "model.pt2", folder / "model.pt2")
    return {"file": "model.pt2", "route": "graph", "why": why}


def _as_class(params: dict[str, Any], inputs: dict[str, Path], path: Path) -> str:
    """Why it did not work; empty where it did."""
    import torch

    from edgepress.compress.compressed import Origin, save_class
    from edgepress.compress.program import load_program
    from edgepress.compress.project.reference import load_share
    from edgepress.compress.project.usercode import call_user, load_callable
    from edgepress.compress.prune import analyse
    from edgepress.compress.prune.user_class import rebuild as as_class

    root = Path(params["root"])
    progress("fitting the user's class to the smaller model")
    model = call_user(params["factory"], load_callable(params["factory"], root), root, params["args"])
    whole, smaller = (load_program(inputs[name] / "model.pt2") for name in ("original", "model"))
    arrays, _ = load_share(inputs["data"] / "calibration")
    samples = [torch.from_numpy(np.array(a[:_SAMPLES])) for a in arrays]
    found = as_class(model, smaller, analyse(whole), None, samples)
    if found.module is None:
        return found.why
    save_class(path, found.module, found.attributes, Origin(params["factory"], params["args"], root))
    return ""
