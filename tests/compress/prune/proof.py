"""What every wiring must show: the smaller program equals the original with zeros in place of what was removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgepress.compress.prune import Structure, analyse, check, remove
from edgepress.compress.quantize import count_macs
from edgepress.compress.quantize.graph import op_name

BATCHES = (1, 2, 5)


def export(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
    """A program with a dynamic batch; weights and statistics are random, so that nothing cancels by accident."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5
            tensor.copy_(noise + 1 if "running_var" in name else noise)
    shapes = tuple({0: Dim("batch", min=1)} for _ in inputs)
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)


def removals(structure: Structure) -> Iterator[np.ndarray]:
    """Valid removals: half of every family, a single unit, and a random share; drawn otherwise for every number of units."""
    half = np.zeros(structure.unit_count, dtype=bool)
    for family in structure.families:
        half[list(family.units[::2])] = True
    yield valid(structure, half, np.random.default_rng(0))
    random = np.random.default_rng(structure.unit_count)
    single = np.zeros(structure.unit_count, dtype=bool)
    single[random.integers(structure.unit_count)] = True
    assert structure.smallest(single) > 0, "a unit that empties a layer by itself"
    yield single
    yield valid(structure, random.random(structure.unit_count) < random.choice([0.2, 0.5, 0.9]), random)


def valid(structure: Structure, removed: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Keep more, in random order, until something is left everywhere."""
    removed = removed.copy()
    for unit in random.permutation(np.flatnonzero(removed)):
        if structure.smallest(removed) > 0:
            break
        removed[unit] = False
    return removed


def kinds(structure: Structure) -> Counter[str]:
    """How many units there are of each kind."""
    return Counter({kind: sum(len(f.units) for f in structure.families if f.kind == kind) for kind in {f.kind for f in structure.families}})


def prove(module: nn.Module, *inputs: Tensor, double: bool = True) -> Structure:
    """Analyse, remove in several ways, and compare at several batch sizes; inputs have a batch of 2 or more."""
    if double:
        module = module.double()
        inputs = tuple(i.double() if i.is_floating_point() else i for i in inputs)
    program = export(module, *inputs)
    structure = analyse(program)
    assert structure.unit_count, [str(p) for p in structure.pinned]
    whole = np.zeros(structure.unit_count, dtype=bool)
    assert structure.parameters(whole) == sum(p.numel() for p in module.parameters())
    for number, removed in enumerate(removals(structure)):
        smaller = remove(program, structure, removed)
        for batch in BATCHES if number == 0 else (2,):
            check(program, smaller, structure, removed, [_rows(i, batch) for i in inputs])
        expect_counts(smaller, structure, removed)
        if number == 0 and not any(op_name(node) == "einsum" for node in smaller.graph.nodes):
            assert structure.macs(removed) == count_macs(smaller)
        if removed.any():
            assert structure.parameters(removed) < structure.parameters(whole)
    return structure


def expect_counts(smaller: ExportedProgram, structure: Structure, removed: np.ndarray) -> None:
    """The structure foretells the parameters and multiply-accumulates of the smaller program."""
    unique = {id(p): p.numel() for p in smaller.parameters()}
    assert structure.parameters(removed) == sum(unique.values())
    again = analyse(smaller)
    assert structure.macs(removed) == again.macs(np.zeros(again.unit_count, dtype=bool))
    assert structure.macs(removed) == sum(structure.layer_macs(removed).values())


def _rows(tensor: Tensor, batch: int) -> Tensor:
    return tensor[torch.arange(batch) % len(tensor)]
