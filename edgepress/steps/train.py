"""Training between two stages: fine-tuning, distillation, and training towards sparsity."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepress.targets.nouns import Scheme, Signature

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from edgepress.compress.distill import Teacher
    from edgepress.compress.project.training import TrainingSamples
    from edgepress.compress.train import TrainConfig

_BATCH = 256


def train(params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train a staged model on the user's data.

    Args:
        params: `kind` (`finetune`, `distill`, `sparsity`, `qat`), `train_config`, `root`, `train`, `shares`, `model_inputs`, `metric`,
            `factory`, `args`, `scratch`; for distillation `loss`, `temperature`, `task`, `task_loss`, `teacher`, `layers`; for sparsity
            `strength`; for `qat` `runtime` and `scheme`. `inputs` names the folders of `model`, `original`, `data`, `reference` and, for
            `qat`, `calibration`.
        folder: receives `model.pt2` and `signature.json`.

    Returns:
        The stage: `signature`, `parameters`, `macs`, `size_bytes`, a `report` of the training, and its `timing`.

    Raises:
        TrainingError: the settings or the data do not fit.
    """
    from edgepress.compress.program import load_program
    from edgepress.compress.project.usercode import code_digest, seed_everything
    from edgepress.compress.train import TrainConfig, together
    from edgepress.compress.train import train as fit
    from edgepress.steps.stage import save_stage

    config = TrainConfig(**{**params["train_config"], **{key: tuple(params["train_config"][key]) for key in ("augment", "log")}})
    inputs = {name: Path(path) for name, path in params["inputs"].items()}
    seed_everything(config.seed)
    program = load_program(inputs["model"] / "model.pt2")
    module, finish = _trainee(params, inputs, program)
    data, judged = _data(params, inputs["data"])
    objective, notes = _objective(params, inputs, config, module, data)
    evaluate = _evaluation(params, inputs, judged)
    state = Path(params["scratch"]) / f"training-{code_digest(Path(params['root']))[:16]}"
    with _kept_zeros(inputs["model"], module, folder), together(config, "edgepress.steps.train:train", params):
        result = fit(module, data, objective, config, state, evaluate)
    if hasattr(objective, "close"):
        objective.close()
    value = save_stage(finish(), inputs["model"], inputs["data"], folder)
    report = {
        "kind": params["kind"],
        "samples": len(data),
        "epochs": result.epochs_done,
        "steps": result.steps,
        "stopped": result.stopped,
        "best_epoch": result.best_epoch,
        "history": [{name: number for name, number in row.items() if name != "seconds"} for row in result.history],
        "remarks": [*notes, *result.remarks],
    }
    timing = {"waiting_share": result.waiting_share, "epochs": [row["seconds"] for row in result.history]}
    return {**value, "report": report, "timing": timing}


def _trainee(params: dict[str, Any], inputs: dict[str, Path], program: ExportedProgram) -> tuple[nn.Module, Callable[[], ExportedProgram]]:
    """What is trained, and how a program is made of it."""
    from edgepress.compress.train import to_program, trainable

    if params["kind"] == "qat":
        from edgepress.compress.quantize import Statistics
        from edgepress.compress.quantize.qat import simulate
        from edgepress.targets.rules import rules_for

        statistics = Statistics.load(inputs["calibration"] / "statistics")
        scheme = Scheme(**params["scheme"])
        simulation = simulate(program, statistics, rules_for(params["runtime"]).of(scheme), scheme)
        return simulation.module, lambda: simulation.program(program)
    module = trainable(program)
    return module, lambda: to_program(module, program)


def _kept_zeros(model: Path, module: nn.Module, folder: Path) -> AbstractContextManager[None]:
    """Masked weights stay zero, in this training and in the next."""
    from edgepress.compress.prune.masks import kept_masks
    from edgepress.steps.prune import MASKS, load_masks

    masks = load_masks(model)
    if masks is None:
        return nullcontext()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model / MASKS, folder / MASKS)
    return kept_masks(module, masks)


def _data(params: dict[str, Any], collected: Path) -> tuple[TrainingSamples, np.ndarray]:
    """The training samples, and the rows of the selection share that judge between epochs."""
    from edgepress.compress.project.collect import draw, shares_of
    from edgepress.compress.project.training import TrainingSamples, held_out

    casts = [item["dtype"] for item in params["model_inputs"] or ()]
    data = TrainingSamples(params["train"], Path(params["root"]), casts)
    judged = np.arange(len(np.load(collected / "selection" / "labels.npy", mmap_mode="r")))
    if params["shares"] is not None:
        shares = shares_of(params["shares"]["calibration"], params["shares"]["exact"])
        judged = held_out(len(data), shares)
        data.without(np.asarray(draw(len(data), shares)["selection"])[judged])
    return data, judged


def _evaluation(params: dict[str, Any], inputs: dict[str, Path], rows: np.ndarray) -> Callable[[nn.Module], float]:
    """The recipe's metric on training samples kept apart; higher is better."""
    import torch

    from edgepress.compress.project.outputs import flatten
    from edgepress.steps.arrays import batches, load_inputs, load_outputs
    from edgepress.steps.score import metric_of_step

    signature = Signature.from_json(_signature(inputs["model"]))
    labels = np.load(inputs["data"] / "selection" / "labels.npy")[rows]
    samples = {name: value[rows] for name, value in load_inputs(inputs["data"] / "selection", signature).items()}
    reference = {name: value[rows] for name, value in load_outputs(inputs["reference"] / "selection", signature).items()}
    bound = metric_of_step(params).bind(reference, labels)
    fixed = signature.inputs[0].shape[0]

    def evaluate(module: nn.Module) -> float:
        pieces = []
        with torch.no_grad():
            for piece in batches(samples, fixed or _BATCH):
                pieces.append([o.float().numpy() for o in flatten(module(*(torch.from_numpy(v.copy()) for v in piece.values())))])
        outputs = {spec.name: np.concatenate(column) for spec, column in zip(signature.outputs, zip(*pieces, strict=True), strict=True)}
        value = bound.value(outputs)
        return value if bound.higher_is_better else -value

    return evaluate


def _objective(
    params: dict[str, Any], inputs: dict[str, Path], config: TrainConfig, module: nn.Module, data: TrainingSamples
) -> tuple[Any, list[str]]:
    """What training minimises, and what the user should know about it."""
    from edgepress.compress.train import task_loss

    task = task_loss(_task(params), config.label_smoothing)
    if params["kind"] == "sparsity":
        from edgepress.compress.program import load_program
        from edgepress.steps.prune import sparsity_objective

        return sparsity_objective(task, module, load_program(inputs["model"] / "model.pt2"), params["strength"]), []
    if params.get("loss") is None:
        return task, []
    return _distillation(params, inputs, config, module, data, task)


def _distillation(
    params: dict[str, Any], inputs: dict[str, Path], config: TrainConfig, module: nn.Module, data: TrainingSamples, task: Any
) -> tuple[Any, list[str]]:
    import torch

    from edgepress.compress.distill import (
        CachedTeacher,
        DistillObjective,
        DistillSettings,
        EnsembleTeacher,
        cache_outputs,
        may_cache,
        parse_loss,
    )
    from edgepress.compress.train import follows

    weight = params.get("task", 1.0)
    layers = params.get("layers", "auto")
    pairs = None if layers == "auto" else tuple((student, teacher) for student, teacher in layers)
    loss = _fitting(data) if params["loss"] == "auto" else params["loss"]
    settings = DistillSettings(parse_loss(loss), task_weight=weight, temperature=params["temperature"], pairs=pairs, seed=config.seed)
    teachers = _teachers(params, inputs)
    teacher: Teacher = teachers[0] if len(teachers) == 1 else EnsembleTeacher(teachers)
    notes = [f"teacher: {', '.join(params.get('teacher') or ['the original'])}"]
    if may_cache(config.augment, ("features",) if settings.needs_features else ()) and config.epochs >= 1:
        cache = Path(params["scratch"]) / "teacher"
        teacher = CachedTeacher(cache) if follows() else cache_outputs(teacher, data, cache)
        notes.append("the teacher's outputs were computed once")
    example = tuple(torch.stack(column) for column in zip(*(data[row][0] for row in range(2)), strict=True))
    return DistillObjective(module, teacher, example, settings, task.loss if weight > 0 else None), notes


def _fitting(data: TrainingSamples) -> str:
    """Classes are learnt from the teacher's probabilities; what is no number of a class, from its outputs as they are."""
    return "mse" if data[0][1].is_floating_point() else "kd"


def _teachers(params: dict[str, Any], inputs: dict[str, Path]) -> list[Any]:
    from edgepress.compress.distill import ModuleTeacher
    from edgepress.compress.program import load_program
    from edgepress.compress.project.model import ModelSpec, load_model

    if not params.get("teacher"):
        return [ModuleTeacher(load_program(inputs["original"] / "model.pt2"))]
    root = Path(params["root"])
    specs = [ModelSpec(name, None if name.endswith(".pt2") else params["factory"], params["args"]) for name in params["teacher"]]
    return [ModuleTeacher(load_model(spec, root)) for spec in specs]


def _task(params: dict[str, Any]) -> Any:
    """The task's loss: its name, or the user's callable."""
    from edgepress.compress.project.usercode import load_callable

    name = params.get("task_loss", "auto")
    return load_callable(name, Path(params["root"])) if ":" in name else name


def _signature(model: Path) -> Any:
    return json.loads((model / "signature.json").read_text())
