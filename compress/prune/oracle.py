"""The proof of a removal: zeros in place of what was removed give the same outputs as the smaller program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from edgepress.compress.prune.axes import Dims
from edgepress.compress.prune.flow import held
from edgepress.compress.prune.kept import Kept
from edgepress.compress.prune.structure import Structure
from edgepress.compress.quantize.graph import op_name
from edgepress.targets.errors import PruneError

#: Relative differences up to this size come from another order of sums.
TOLERANCE = 1e-5


def masked_outputs(program: ExportedProgram, structure: Structure, removed: np.ndarray, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run the whole program with zeros at every removed index of every tensor.

    Args:
        program: the program that was analysed; it is not changed.
        structure: `analyse(program)`.
        removed: bool (unit_count,).
        inputs: positional inputs.

    Returns:
        The user's outputs, flat.
    """
    user = iter(inputs)
    operands = []
    for spec in program.graph_signature.input_specs:
        tensor = next(user) if spec.target is None else held(program, spec.target)
        operands.append(tensor.detach().clone() if isinstance(tensor, Tensor) else tensor)
    with torch.no_grad():
        results = _Masked(program, structure, structure.kept(removed)).run(*operands)
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    return [r for r, kind in zip(results, kinds, strict=True) if kind == OutputKind.USER_OUTPUT and isinstance(r, Tensor)]


class _Masked(Interpreter):  # type: ignore[misc]
    def __init__(self, program: ExportedProgram, structure: Structure, kept: Kept) -> None:
        super().__init__(program.graph_module)
        self._dims, self._sizes, self._kept = structure.flow.dims, structure.flow.sizes, kept
        self._symbols: dict[int, int] = {}

    def run_node(self, node: Node) -> Any:
        """Run one node, then zero what is removed of its result."""
        result = super().run_node(node)
        if node.op == "output":
            return result
        if node.op == "placeholder" and isinstance(result, Tensor):
            self._learn(node, result)
        dims = self._dims.get(node.name, ())
        in_place = op_name(node).endswith("_") and not op_name(node).endswith("__")
        if isinstance(result, Tensor):
            return self._zeroed(result, dims, in_place)
        if isinstance(dims, list):
            zeroed = [self._zeroed(r, d, False) if isinstance(r, Tensor) else r for r, d in zip(result, dims, strict=True)]
            return type(result)(zeroed) if type(result) in (list, tuple) else tuple(zeroed)
        return result

    def _learn(self, node: Node, tensor: Tensor) -> None:
        """The real sizes of the symbols."""
        for size, real in zip(node.meta["val"].shape, tensor.shape, strict=True):
            prime = self._sizes(size)
            if prime in self._sizes.symbols.values():
                self._symbols[prime] = real

    def _zeroed(self, tensor: Tensor, dims: Dims, in_place: bool) -> Tensor:
        for position, dim in enumerate(dims):
            if all(self._kept.axis(axis) is None for axis in dim):
                continue
            gone = torch.zeros(1, dtype=torch.bool)
            for axis in dim:
                kept = self._kept.axis(axis)
                mask = torch.zeros(self._real(axis.size), dtype=torch.bool) if kept is None else torch.from_numpy(~kept)
                gone = (gone[:, None] | mask[None, :]).reshape(-1)
            gone = gone.to(tensor.device).reshape(-1, *[1] * (tensor.dim() - position - 1))
            tensor = tensor.masked_fill_(gone, 0) if in_place else tensor.masked_fill(gone, 0)
        return tensor

    def _real(self, size: int) -> int:
        for prime, real in self._symbols.items():
            if size % prime == 0:
                size = size // prime * real
        return size


def check(program: ExportedProgram, smaller: ExportedProgram, structure: Structure, removed: np.ndarray, inputs: Sequence[Tensor]) -> float:
    """Compare a smaller program with the masked original.

    Returns:
        The largest relative error: per output, the largest difference over the largest value.

    Raises:
        PruneError: it is above `TOLERANCE`, or not a number.
    """
    expected = masked_outputs(program, structure, removed, inputs)
    with torch.no_grad():
        actual = [leaf for leaf in pytree.tree_leaves(smaller.module()(*inputs)) if isinstance(leaf, Tensor)]
    worst = 0.0
    for number, (want, got) in enumerate(zip(expected, actual, strict=True)):
        if want.shape != got.shape:
            raise PruneError(f"output {number} has shape {tuple(got.shape)} after the removal", f"it had {tuple(want.shape)} before")
        error = _relative_error(want, got)
        if not error <= TOLERANCE:
            raise PruneError(
                f"output {number} of the smaller model is off by {error:.1e} of its size",
                f"it must equal the original with zeros in place of what was removed, to {TOLERANCE:.0e}",
                "This is a defect of a pruning rule: protect the layers, and report the model.",
            )
        worst = max(worst, error)
    return worst


def _relative_error(want: Tensor, got: Tensor) -> float:
    if not want.numel():
        return 0.0
    want, got = want.double(), got.double()
    scale = float(want.abs().max())
    return float((want - got).abs().max()) / (scale or 1.0)
