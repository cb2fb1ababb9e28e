"""The steps that run the user's code, as functions `(params, folder) -> JSON`; each runs in a process of its own.

collect    folder/<share>/input_0.npy … labels.npy     for the shares validation, calibration, selection
trace      folder/model.pt2, folder/signature.json
reference  folder/<share>/output_0.npy …               for the shares validation and selection
slices     folder/groups.json                          the groups of every validation sample
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.compress.project.collect import collect_data, shares_of
from edgepress.targets.nouns import Signature

_TRACE_SAMPLES = 4
MOST_GROUPS = 1000
#: torchmetrics names whose integer labels are class numbers.
CLASSIFICATION = frozenset(
    {"accuracy", "top5", "precision", "recall", "f1_score", "fbeta_score", "specificity", "auroc", "average_precision", "calibration_error"}
    | {"cohen_kappa", "matthews_corrcoef", "jaccard_index", "hinge_loss", "stat_scores", "confusion_matrix", "hamming_distance"}
)


def collect(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Read the datasets.

    Args:
        params: `root`, `train`, `validation`, `calibration` (`samples`, `selection`, `seed`), `exact` (which of `samples`, `selection`
            the user set), `model_inputs` (dtype overrides, or None), `seed`.
        folder: receives the shares.

    Returns:
        `counts` per share, `inputs`, `labels`, `train_samples`.
    """
    shares = shares_of(params["calibration"], params["exact"])
    casts = [item["dtype"] for item in params["model_inputs"] or ()]
    datasets = {"train": params["train"], "validation": params["validation"]}
    return collect_data(Path(params["root"]), datasets, shares, casts, folder, params["seed"])


def trace(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Build the model and trace it.

    Args:
        params: `root`, `factory`, `args`, `checkpoint`, `model_inputs`, `model_outputs`, `dynamic_batch`, `metric`, `seed`, and
            `inputs` with the folder of `data`.
        folder: receives `model.pt2` and `signature.json`.

    Returns:
        `signature`, `parameters`, `macs` per sample, `size_bytes` of the checkpoint.
    """
    import torch

    from edgepress.compress.project.model import ModelSpec, count_macs, count_parameters, load_model
    from edgepress.compress.project.reference import load_share
    from edgepress.compress.project.trace import TraceOptions, trace_model
    from edgepress.compress.project.usercode import seed_everything

    root = Path(params["root"])
    seed_everything(params["seed"])
    model = load_model(ModelSpec(params["checkpoint"], params["factory"], params["args"]), root)
    arrays, labels = load_share(Path(params["inputs"]["data"]) / "validation")
    names = [item["name"] for item in params["model_inputs"]] if params["model_inputs"] else None
    options = TraceOptions(names, params["model_outputs"], params["dynamic_batch"])
    few = [np.array(a[:_TRACE_SAMPLES]) for a in arrays]
    traced = trace_model(model, few, root, options)
    check_labels(labels, traced.signature, params["metric"])
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(traced.program, folder / "model.pt2")
    signature = traced.signature.to_json()
    (folder / "signature.json").write_text(json.dumps(signature, indent=2, sort_keys=True) + "\n")
    return {
        "signature": signature,
        "parameters": count_parameters(model),
        "macs": count_macs(traced.program, few, traced.signature.inputs[0].shape[0] or 1),
        "size_bytes": (root / params["checkpoint"]).stat().st_size,
    }


def reference(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run the float program on the validation and selection shares.

    Args:
        params: `metric`, and `inputs` with the folders of `model` and `data`.
        folder: receives `<share>/output_0.npy …`.

    Returns:
        `counts` per share.
    """
    from edgepress.compress.program import load_program
    from edgepress.compress.project.reference import load_share, reference_outputs

    model, data = Path(params["inputs"]["model"]), Path(params["inputs"]["data"])
    program = load_program(model / "model.pt2")
    signature = Signature.from_json(json.loads((model / "signature.json").read_text()))
    counts = {}
    for share in ("validation", "selection"):
        arrays, labels = load_share(data / share)
        check_labels(labels, signature, params["metric"])
        outputs = reference_outputs(program, arrays, fixed=signature.inputs[0].shape[0])
        (folder / share).mkdir(parents=True)
        for i, output in enumerate(outputs):
            np.save(folder / share / f"output_{i}.npy", output, allow_pickle=False)
        counts[share] = len(labels)
    return {"counts": counts}


def slices(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Group the validation samples.

    Args:
        params: `root`; `slices`: by what -> `labels` or a callable that returns a name (str, int or bool) per validation sample; `inputs`
            names the folder of `data`.
        folder: receives `groups.json`: by what -> the name of every sample's group.

    Returns:
        `groups`: by what -> group -> number of samples.

    Raises:
        ProjectError: a callable fails, or does not return one name for each sample.
    """
    from edgepress.compress.project.usercode import call_user, load_callable

    root, labels = Path(params["root"]), np.load(Path(params["inputs"]["data"]) / "validation" / "labels.npy")
    groups = {}
    for by, spec in params["slices"].items():
        found = labels if spec == "labels" else call_user(spec, load_callable(spec, root), root)
        groups[by] = _names(by, spec, found, len(labels))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "groups.json").write_text(json.dumps(groups))
    return {"groups": {by: dict(sorted(Counter(names).items())) for by, names in groups.items()}}


def _names(by: str, spec: str, found: Any, total: int) -> list[str]:
    """One name per sample.

    Raises:
        ProjectError: they are not.
    """
    from edgepress.targets.errors import ProjectError

    values = found.tolist() if hasattr(found, "tolist") else list(found) if isinstance(found, Iterable) else None
    if values is None or len(values) != total:
        got = f"{len(values)} names" if values is not None else type(found).__name__
        raise ProjectError(f"slices {by!r}: {spec!r} gave {got}", f"{total} validation samples need one group name each, in their order")
    wrong = next((i for i, value in enumerate(values) if not isinstance(value, str | int)), None)
    if wrong is not None:
        what = f"slices {by!r}: {spec!r} gave {values[wrong]!r} for sample {wrong}"
        raise ProjectError(what, "the name of a group is a str, an int or a bool", "Cut numbers into ranges and name them, e.g. 'short'.")
    if len(set(values)) > MOST_GROUPS:
        what = f"slices {by!r}: {spec!r} gave {len(set(values))} groups"
        raise ProjectError(what, f"more than {MOST_GROUPS} tell nothing", "Merge groups.")
    return [str(value) for value in values]


def check_labels(labels: np.ndarray, signature: Signature, metric: str) -> None:
    """Class numbers lie within the classes of the first output, where the metric is one of classification.

    Raises:
        ProjectError: a label is out of range; its sample, value and the number of classes are named.
    """
    from edgepress.targets.errors import ProjectError

    shape = signature.outputs[0].shape
    if metric not in CLASSIFICATION or labels.ndim != 1 or labels.dtype.kind != "i" or len(shape) != 2 or shape[1] in (None, 1):
        return
    wrong = (labels != -100) & ((labels < 0) | (labels >= shape[1]))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ProjectError(
            f"label {int(labels[first])} of sample {first} is out of range",
            f"the model has {shape[1]} classes, labels 0 to {(shape[1] or 0) - 1}; {int(wrong.sum())} of {len(labels)} labels are outside",
            "Map the labels to class numbers in your data code.",
        )
