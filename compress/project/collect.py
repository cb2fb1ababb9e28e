"""Which samples are used for what: the whole validation set, and two disjoint shares of the training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.compress.project.dataset import length, open_dataset, samples, write_samples
from edgepress.compress.project.usercode import seed_everything
from edgepress.targets.errors import ProjectError

SHARES = ("validation", "calibration", "selection")


@dataclass(frozen=True)
class Shares:
    """How many training samples set activation ranges and how many choose the scheme.

    Attributes:
        calibration, selection: numbers of samples, disjoint.
        seed: of the draw.
        exact: which of the two the user asked for by number; the others shrink when the training data is small.
    """

    calibration: int = 512
    selection: int = 512
    seed: int = 0
    exact: frozenset[str] = frozenset()


def shares_of(calibration: Mapping[str, int], exact: Sequence[str]) -> Shares:
    """The recipe's `data.calibration` (`samples`, `selection`, `seed`), and which of the first two the user set."""
    names = frozenset({"samples": "calibration"}.get(name, name) for name in exact)
    return Shares(calibration["samples"], calibration["selection"], calibration["seed"], names)


def draw(total: int, shares: Shares) -> dict[str, list[int]]:
    """Ascending, disjoint indices into the training data, the same for the same seed and total.

    Where the training data is too small for the default numbers, both shares shrink in proportion.

    Raises:
        ProjectError: fewer samples than the user asked for by number, or fewer than two.
    """
    wanted = {"calibration": shares.calibration, "selection": shares.selection}
    if sum(wanted.values()) > total:
        fixed = sum(wanted[name] for name in shares.exact)
        open_names = [name for name in wanted if name not in shares.exact]
        room = total - fixed
        if room < len(open_names) or total < 2:
            names = " + ".join(f"data.calibration.{'samples' if n == 'calibration' else n}: {wanted[n]}" for n in wanted)
            raise ProjectError(f"the training data has {total} samples", f"{names} are needed", "Lower these numbers, or add data.")
        share = sum(wanted[name] for name in open_names)
        for name in open_names[:-1]:
            wanted[name] = min(max(1, wanted[name] * room // share), room - len(open_names) + 1)
        if open_names:
            wanted[open_names[-1]] = room - sum(wanted[name] for name in open_names[:-1])
    order = np.random.default_rng(shares.seed).permutation(total)
    ends = np.cumsum([wanted["calibration"], wanted["selection"]])
    return {"calibration": sorted(order[: ends[0]].tolist()), "selection": sorted(order[ends[0] : ends[1]].tolist())}


def collect_data(
    root: Path, datasets: Mapping[str, str], shares: Shares, casts: Sequence[str | None], folder: Path, seed: int = 0
) -> dict[str, Any]:
    """Write every share as arrays: `folder/<share>/input_0.npy …`, `labels.npy`; dimension 0 is the sample.

    Only the training samples that are drawn are read. An IterableDataset is walked through: twice for training data, to
    learn its length first. Global seeds are set before each dataset is made, so that random augmentation repeats.

    Args:
        root: the user's folder.
        datasets: `train` and `validation` -> `module:callable`.
        shares: what is drawn from train.
        casts: dtype per input, or None to keep the dataset's; empty for no override.
        folder: where to write.
        seed: for the global generators.

    Returns:
        `counts`, the `inputs` (dtype, shape without batch) and `labels` form, `train_samples`.

    Raises:
        ProjectError: see `open_dataset`, `samples`, `write_samples`, `draw`; or train and validation differ in form.
    """
    counts: dict[str, int] = {}
    seed_everything(seed)
    spec = datasets["validation"]
    validation = open_dataset(spec, root)
    known = length(spec, validation, root)
    counts["validation"] = write_samples(samples(spec, validation, root, None, casts), known, folder / "validation", spec)
    del validation
    seed_everything(seed)
    spec = datasets["train"]
    train = open_dataset(spec, root)
    total = length(spec, train, root) or _walked(spec, train, root)
    for name, indices in draw(total, shares).items():
        seed_everything(seed)
        counts[name] = write_samples(samples(spec, train, root, indices, casts), len(indices), folder / name, spec)
    forms = {share: _form(folder / share) for share in SHARES}
    for share in SHARES[1:]:
        if forms[share]["inputs"] != forms["validation"]["inputs"]:
            raise ProjectError(
                f"{datasets['train']!r} and {datasets['validation']!r} differ",
                f"inputs are {_spell(forms[share])} and {_spell(forms['validation'])}",
                "Give both datasets the same preprocessing.",
            )
    return {"counts": counts, "train_samples": total, **forms["validation"]}


def _walked(spec: str, dataset: Any, root: Path) -> int:
    total = sum(1 for _ in samples(spec, dataset, root, None, ()))
    if total == 0:
        raise ProjectError(f"{spec!r} has no samples", "the dataset is empty", "Check paths and splits in your data code.")
    return total


def _form(folder: Path) -> dict[str, Any]:
    def described(path: Path) -> dict[str, Any]:
        array = np.load(path, mmap_mode="r")
        return {"dtype": array.dtype.name, "shape": list(array.shape[1:])}

    count = len(list(folder.glob("input_*.npy")))
    return {"inputs": [described(folder / f"input_{i}.npy") for i in range(count)], "labels": described(folder / "labels.npy")}


def _spell(form: Mapping[str, Any]) -> str:
    return ", ".join(f"{item['dtype']}{tuple(item['shape'])}" for item in form["inputs"])
