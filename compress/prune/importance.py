"""How much each unit matters: the criteria by which pruning ranks what it could remove."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from edgepress.compress.prune.budget import check_known
from edgepress.compress.prune.structure import Family, Structure
from edgepress.compress.quantize.graph import is_float, op_name
from edgepress.targets.errors import PruneError

CRITERIA = ("l1", "l2", "bn_scale", "taylor", "fisher", "activation", "random")
#: Criteria that look at data, and those of them that need a loss.
FROM_DATA = frozenset({"taylor", "fisher", "activation"})
FROM_LOSS = frozenset({"taylor", "fisher"})
NORMALISATIONS = ("mean", "max", "none")
#: Where a magnitude is looked for. Biases do not scale with the weights that a unit can be judged by.
_WEIGHT_ROLES = frozenset({"out", "in", "norm", "other"})
_SCALED_NORMS = frozenset({"batch_norm", "instance_norm", "group_norm", "layer_norm", "_native_batch_norm_legit_no_training"})
_READERS = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention", "einsum"})

#: (positional inputs, labels or None) of one batch.
Batch = tuple[Sequence[Tensor], Tensor | None]
#: (what the model returned, labels or None) -> scalar.
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Criterion:
    """How units are scored.

    Attributes:
        name: one of `CRITERIA`.
        normalise: per family, so that families can be ranked together: by the "mean" or the "max" of its scores, or "none".

    Raises:
        PruneError: an unknown name (the nearest is named).
    """

    name: str = "l2"
    normalise: str = "mean"

    def __post_init__(self) -> None:
        check_known("criterion", (self.name,), CRITERIA)
        check_known("normalisation", (self.normalise,), NORMALISATIONS)


def scores(
    program: ExportedProgram,
    structure: Structure,
    criterion: Criterion | str = "l2",
    batches: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Score every unit; the lowest are removed first.

    - "l1", "l2": sum of |w|, or square root of the sum of w^2, over every weight that goes with the unit, in all layers at once
      (Fang et al. 2023, section 3.3; per filter: Li et al. 2017, section 3.1).
    - "bn_scale": sum of |gamma| of its batch norms (Liu et al. 2017, section 3); "l2" for families of `without_scale`.
    - "taylor": (sum of w * g)^2 over its weights, summed over batches (Molchanov et al. 2019, equation 8, with the weights of a unit as
      one group).
    - "fisher": sum of (w * g)^2, summed over batches: the diagonal Fisher term (Theis et al. 2018, equation 6) with the gradients of
      batches in place of those of samples; small batches come closer to it.
    - "activation": mean |activation| where the unit is read by convolutions and matrix products (Molchanov et al. 2017, section 2.2).
    - "random": uniform, the control.

    Args:
        program: eval mode; it is not changed.
        structure: `analyse(program)`.
        criterion: a name stands for `Criterion(name)`.
        batches: for criteria of `FROM_DATA`, on the program's device.
        loss: for criteria of `FROM_LOSS`.
        seed: of "random".

    Returns:
        float64 (unit_count,), 0 or more; normalised per family.

    Raises:
        PruneError: batches or loss are missing, or a score is not finite.
    """
    chosen = Criterion(criterion) if isinstance(criterion, str) else criterion
    if chosen.name in FROM_DATA and batches is None:
        raise PruneError(f"criterion {chosen.name!r} needs samples", "", "Give batches of training data, or use 'l2'.")
    if chosen.name in FROM_LOSS and loss is None:
        raise PruneError(f"criterion {chosen.name!r} needs a loss", "", "Give the task's loss, or use 'activation'.")
    raw = _raw(program, structure, chosen.name, batches, loss, seed)
    if not np.isfinite(raw).all():
        bad = int((~np.isfinite(raw)).sum())
        raise PruneError(f"criterion {chosen.name!r} gives {bad} scores that are not finite", "", "Check weights, samples and loss.")
    return normalise(structure, raw, chosen.normalise)


def _raw(
    program: ExportedProgram, structure: Structure, name: str, batches: Iterable[Batch] | None, loss: Loss | None, seed: int
) -> np.ndarray:
    if name == "random":
        return np.random.default_rng(seed).uniform(size=structure.unit_count)
    if name in FROM_LOSS and batches is not None and loss is not None:
        return _from_gradients(program, structure, batches, loss, name == "taylor")
    if name == "activation" and batches is not None:
        return _from_activations(program, structure, batches)
    if name == "bn_scale":
        return _from_scales(program, structure)
    return _magnitudes(program, structure, 1 if name == "l1" else 2)


def normalise(structure: Structure, values: np.ndarray, how: str = "mean") -> np.ndarray:
    """Divide the scores of every family by their "mean" or "max"; a family of zeros stays so.

    Args:
        structure: whose units these are.
        values: float64 (unit_count,), 0 or more.
        how: one of `NORMALISATIONS`.

    Returns:
        float64 (unit_count,).
    """
    result = values.astype(np.float64)
    for family in structure.families if how != "none" else ():
        units = np.asarray(family.units)
        scale = result[units].mean() if how == "mean" else result[units].max()
        if scale > 0:
            result[units] /= scale
    return result


def weights_of(program: ExportedProgram) -> dict[str, Tensor]:
    """The program's floating-point parameters by name, without gradients."""
    names = set(program.graph_signature.inputs_to_parameters.values())
    return {name: value.detach() for name, value in program.state_dict.items() if name in names and value.is_floating_point()}


def sum_by_unit(structure: Structure, values: Mapping[str, np.ndarray], roles: frozenset[str] | None = None) -> np.ndarray:
    """Add up a value of every weight over the weights that go with each unit.

    A weight that goes with several units (a head and a head dimension, say) counts for each of them.

    Args:
        structure: where the units are.
        values: parameter name -> float64 array of its shape; parameters left out count nothing.
        roles: of footprints that count; None for all.

    Returns:
        float64 (unit_count,).
    """
    total = np.zeros(structure.unit_count)
    sums: dict[tuple[str, int], np.ndarray] = {}
    for footprint in structure.footprints:
        if footprint.tensor not in values or (roles is not None and footprint.role not in roles):
            continue
        key = (footprint.tensor, footprint.dim)
        if key not in sums:
            array = values[footprint.tensor]
            sums[key] = array.sum(axis=tuple(i for i in range(array.ndim) if i != footprint.dim))
        total += np.bincount(footprint.unit, weights=sums[key][footprint.index], minlength=structure.unit_count)
    return total


def _magnitudes(program: ExportedProgram, structure: Structure, power: int) -> np.ndarray:
    values = {name: np.abs(_array(value)) ** power for name, value in weights_of(program).items()}
    return np.asarray(sum_by_unit(structure, values, _WEIGHT_ROLES) ** (1 / power))


def _array(value: Tensor) -> np.ndarray:
    return np.asarray(value.double().cpu().numpy())


def _scales(program: ExportedProgram) -> dict[str, np.ndarray]:
    """The gammas of batch norms (and norms alike) by name."""
    parameters = program.graph_signature.inputs_to_parameters
    found = {}
    for node in program.graph.nodes:
        if op_name(node) not in _SCALED_NORMS:
            continue
        place = 2 if op_name(node) in ("group_norm", "layer_norm") else 1
        weight = node.args[place] if len(node.args) > place else node.kwargs.get("weight")
        if isinstance(weight, Node) and weight.name in parameters:
            found[parameters[weight.name]] = np.abs(_array(program.state_dict[parameters[weight.name]].detach()))
    return found


def without_scale(program: ExportedProgram, structure: Structure) -> tuple[Family, ...]:
    """Families with no batch norm (or other norm with a scale per channel), for which "bn_scale" falls back to "l2"."""
    return _unscaled(structure, sum_by_unit(structure, {name: np.ones_like(value) for name, value in _scales(program).items()}))


def _unscaled(structure: Structure, counts: np.ndarray) -> tuple[Family, ...]:
    return tuple(family for family in structure.families if not counts[list(family.units)].all())


def _from_scales(program: ExportedProgram, structure: Structure) -> np.ndarray:
    scales = _scales(program)
    result = sum_by_unit(structure, scales)
    without = _unscaled(structure, sum_by_unit(structure, {name: np.ones_like(value) for name, value in scales.items()}))
    magnitudes = _magnitudes(program, structure, 2) if without else result
    for family in without:
        result[list(family.units)] = magnitudes[list(family.units)]
    return result


def _from_gradients(program: ExportedProgram, structure: Structure, batches: Iterable[Batch], loss: Loss, together: bool) -> np.ndarray:
    module: GraphModule = program.module(check_guards=False)
    weights = {name: value.clone().requires_grad_() for name, value in weights_of(program).items()}
    total = np.zeros(structure.unit_count)
    for inputs, labels in _some(batches):
        outputs = torch.func.functional_call(module, weights, tuple(inputs))
        gradients = torch.autograd.grad(loss(outputs, labels), list(weights.values()), allow_unused=True)
        products = {
            name: _array(value.detach() * gradient)
            for (name, value), gradient in zip(weights.items(), gradients, strict=True)
            if gradient is not None
        }
        if together:
            total += sum_by_unit(structure, products) ** 2
        else:
            total += sum_by_unit(structure, {name: value**2 for name, value in products.items()})
    return total


def _some(batches: Iterable[Batch]) -> Iterable[Batch]:
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise PruneError("importance got no samples", "", "Give at least one batch of training data.")


def _from_activations(program: ExportedProgram, structure: Structure, batches: Iterable[Batch]) -> np.ndarray:
    recorder = _Activations(program.module(check_guards=False), structure)
    with torch.no_grad():
        for inputs, _ in _some(batches):
            recorder.run(*inputs)
    read, anywhere = (np.divide(total, np.maximum(count, 1)) for total, count in (recorder.read, recorder.anywhere))
    return np.where(recorder.read[1] > 0, read, anywhere)


class _Activations(Interpreter):  # type: ignore[misc]
    """Adds up mean |activation| per unit, where it is read by a product, and anywhere (for units that no product reads)."""

    def __init__(self, module: nn.Module, structure: Structure) -> None:
        super().__init__(module)
        self._structure = structure
        self.read = (np.zeros(structure.unit_count), np.zeros(structure.unit_count))
        self.anywhere = (np.zeros(structure.unit_count), np.zeros(structure.unit_count))

    def run_node(self, node: Node) -> Any:
        """Run one node and look at its output."""
        result = super().run_node(node)
        if node.op != "call_function" or not is_float(node) or not isinstance(result, Tensor):
            return result
        sums = (self.read, self.anywhere) if any(_reads(user) for user in node.users) else (self.anywhere,)
        for dim, (index, unit) in enumerate(self._structure.activations(node.name)):
            if len(unit):
                means = _array(result.abs().mean(dim=[i for i in range(result.ndim) if i != dim]))
                for total, count in sums:
                    total += np.bincount(unit, weights=means[index], minlength=len(total))
                    count += np.bincount(unit, minlength=len(count))
        return result


def _reads(node: Node) -> bool:
    return op_name(node) in _READERS or op_name(node).startswith("conv")
