"""Pruning one stage: score the units, choose by budget, remove, and prove that nothing but the chosen was lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepress.targets.progress import progress, track

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

    from edgepress.compress.prune import Structure
    from edgepress.compress.prune.budget import Budget, Cost
    from edgepress.compress.prune.masks import Masks
    from edgepress.compress.prune.select import Selection, SelectSettings

_BATCH = 32
_ORACLE_SAMPLES = 4
#: Samples that score units; gradients of more change the order little and cost time.
_SCORING = 512
#: Where a stage keeps which weights stay zero.
MASKS = "masks.safetensors"


def prune(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the model of a stage smaller.

    Args:
        params: the keys of the recipe's `prune` step, `turn`, `turns`, `seed` and, for a latency budget, `table`; `inputs` names the
            folders of `model`, `original` (budgets are counted from it) and `data`.
        folder: receives `model.pt2`, `signature.json` and, for masks, `masks.safetensors`.

    Returns:
        The stage: `signature`, `parameters`, `macs`, `size_bytes`, and a `report`: what was removed, what is pinned and why, and the
        error of the proof.

    Raises:
        PruneError: the budget cannot be reached, or a pattern matches nothing.
    """
    from edgepress.compress.program import load_program
    from edgepress.steps.stage import save_stage

    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    program = load_program(inputs["model"] / "model.pt2")
    report: dict[str, Any] = {"kind": "prune", "budget": _budget_kind(params), "remarks": []}
    if params["blocks"] and params["turn"] == 1:
        program = _shortened(program, inputs, params["blocks"], report)
    if params["mask"] is not None:
        folder.mkdir(parents=True, exist_ok=True)
        _mask(program, params, folder, report)
    elif _budget_kind(params) is not None:
        program = _removed(program, params, inputs, report)
    return {**save_stage(program, inputs["model"], inputs["data"], folder), "report": report}


def sparsity_objective(task: Any, module: nn.Module, program: ExportedProgram, strength: float) -> Any:
    """The task's loss plus a growing penalty on what goes together, so that pruning finds it near zero."""
    from edgepress.compress.prune import analyse
    from edgepress.compress.prune.sparsity import GroupPenalty, SparseObjective, SparsitySettings

    return SparseObjective(task, GroupPenalty(module, analyse(program), SparsitySettings(strength=strength)))


def load_masks(folder: Path) -> Masks | None:
    """Which weights of a stage stay zero in training; None where it has no masks."""
    from safetensors.torch import load_file

    from edgepress.compress.prune.masks import Masks

    path = folder / MASKS
    return Masks(load_file(path)) if path.is_file() else None


def _shortened(program: ExportedProgram, inputs: dict[str, Path], count: int, report: dict[str, Any]) -> ExportedProgram:
    from edgepress.compress.prune.depth import shorten
    from edgepress.compress.train import task_loss

    progress("measuring residual blocks")
    program, removed = shorten(program, count, list(_batches(inputs["data"])), task_loss().loss)
    report["remarks"] += [f"residual block {block.name} removed: the loss grew by {growth:.3g}" for block, growth in removed]
    return program


def _mask(program: ExportedProgram, params: dict[str, Any], folder: Path, report: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    from edgepress.compress.prune.masks import MaskSettings, apply_masks, make_masks

    text, ignore = params["mask"], tuple(params["ignore"])
    if ":" in text:
        settings = MaskSettings(text, ignore=ignore)
    else:
        share = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
        settings = MaskSettings("unstructured", share * params["turn"] / params["turns"], ignore=ignore)
    masks = make_masks(program, settings)
    apply_masks(program.state_dict, masks)
    save_file({name: keep.contiguous() for name, keep in masks.keep.items()}, folder / MASKS)
    report["remarks"] += masks.report()


def _removed(program: ExportedProgram, params: dict[str, Any], inputs: dict[str, Path], report: dict[str, Any]) -> ExportedProgram:
    from edgepress.compress.prune import analyse, check, remove
    from edgepress.compress.prune.select import choose

    progress("finding what goes together")
    structure = analyse(program)
    budget, cost = _budget(params, inputs, program, structure)
    scored = _scores(params, inputs, program, structure, report)
    selection = choose(structure, scored, budget, _settings(params), cost)
    progress("removing")
    smaller = remove(program, structure, selection.removed)
    error = check(program, smaller, structure, selection.removed, _few(inputs))
    report |= _facts(params, structure, selection, error)
    return smaller


def _settings(params: dict[str, Any]) -> SelectSettings:
    from edgepress.compress.prune.select import KINDS, SelectSettings

    return SelectSettings(
        ranking=params["ranking"],
        multiple=params["multiple"],
        min_channels=params["min_channels"],
        max_sparsity=params["max_sparsity"],
        ignore=tuple(params["ignore"]),
        protect=tuple(params["protect"]),
        kinds=tuple(params["units"] or KINDS),
    )


def _budget_kind(params: dict[str, Any]) -> str | None:
    return next((name for name in ("speedup", "parameters", "size", "latency") if params[name] is not None), None)


def _budget(params: dict[str, Any], inputs: dict[str, Path], program: ExportedProgram, structure: Structure) -> tuple[Budget, Cost | None]:
    """The budget of this turn; shares and speed-ups are counted from the original, however many steps came before."""
    from edgepress.compress.program import load_program
    from edgepress.compress.prune import analyse
    from edgepress.compress.prune.budget import Budget, bytes_cost, cost_of
    from edgepress.compress.prune.latency import LatencyTable
    from edgepress.targets.errors import PruneError

    kind = _budget_kind(params)
    first = load_program(inputs["original"] / "model.pt2")
    whole_structure = analyse(first)
    nothing = np.zeros(whole_structure.unit_count, dtype=bool)
    cost: Cost | None = None
    if kind == "latency":
        table = LatencyTable.from_json(params["table"])
        cost, whole = table.cost(structure, program), table.cost(whole_structure, first)(nothing)
        final = Budget("latency", params["latency"]["ratio"] * whole)
    elif kind == "size":
        cost, whole = bytes_cost(program, structure), bytes_cost(first, whole_structure)(nothing)
        if params["size"] >= whole:
            raise PruneError(f"the budget is {params['size']:.0f} bytes", f"the model has {whole:.0f}", "Ask for less.")
        final = Budget("bytes", params["size"] / whole, whole)
    else:
        assert kind is not None
        whole = cost_of(whole_structure, kind)(nothing)
        final = Budget(kind, params[kind], whole)
    return final.steps(params["turns"], whole)[params["turn"] - 1], cost


def _scores(
    params: dict[str, Any], inputs: dict[str, Path], program: ExportedProgram, structure: Structure, report: dict[str, Any]
) -> np.ndarray:
    from edgepress.compress.prune.importance import Criterion, scores, without_scale
    from edgepress.compress.train import task_loss

    criterion = Criterion(params["criterion"], params["normalize"])
    if criterion.name == "bn_scale" and (families := without_scale(program, structure)):
        names = ", ".join(family.name for family in families[:5])
        report["remarks"].append(f"{len(families)} sets of channels have no batch norm and are ranked by l2: {names}")
    return scores(program, structure, criterion, _batches(inputs["data"]), task_loss().loss, params["seed"])


def _batches(data: Path) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    """The calibration share in batches, with labels."""
    import torch

    from edgepress.compress.project.reference import load_share

    arrays, labels = load_share(data / "calibration")
    for start in track(range(0, min(len(labels), _SCORING), _BATCH), "scoring"):
        rows = slice(start, min(start + _BATCH, _SCORING))
        yield [torch.from_numpy(np.array(a[rows])) for a in arrays], torch.from_numpy(np.array(labels[rows]))


def _few(inputs: dict[str, Path]) -> list[torch.Tensor]:
    import torch

    from edgepress.compress.project.reference import load_share

    arrays, _ = load_share(inputs["data"] / "calibration")
    return [torch.from_numpy(np.array(a[:_ORACLE_SAMPLES])) for a in arrays]


def _facts(params: dict[str, Any], structure: Structure, selection: Selection, error: float) -> dict[str, Any]:
    families = []
    for family in structure.families:
        lost = int(selection.removed[list(family.units)].sum())
        families.append({"name": family.name, "kind": family.kind, "units": len(family.units), "kept": len(family.units) - lost})
    return {
        "criterion": params["criterion"],
        "reached": selection.reached,
        "families": families,
        "pinned": [{"op": pin.op, "layer": pin.layer, "reason": pin.reason, "count": pin.count} for pin in structure.pinned],
        "largest_error": error,
    }
