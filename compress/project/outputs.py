"""What a model returns, flattened to named tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgepress.targets.errors import ProjectError


class FlatOutputs(nn.Module):  # type: ignore[misc]
    """The same model, returning a tuple of its output tensors (None left out) in place of a dictionary or nested tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Positional inputs, flat outputs."""
        leaves = pytree.tree_leaves(self.model(*inputs))
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def is_flat(output: Any) -> bool:
    """Is it a tensor, or a plain tuple or list of tensors?"""
    return isinstance(output, Tensor) or (type(output) in (tuple, list) and all(isinstance(o, Tensor) for o in output))


def flatten(output: Any) -> list[Tensor]:
    """The output tensors in positional order."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def output_names(output: Any, given: Sequence[str] | None = None) -> list[str]:
    """Names of the output tensors: those given, keys of a dictionary, `output`, or `output_0 …`.

    Args:
        output: what the model returned.
        given: the recipe's names.

    Raises:
        ProjectError: the model returns something else than tensors, none at all, or another number than was named.
    """
    leaves = [(path, leaf) for path, leaf in pytree.tree_flatten_with_path(output)[0] if leaf is not None]
    for path, leaf in leaves:
        if not isinstance(leaf, Tensor):
            place = pytree.keystr(path)
            raise ProjectError(
                f"the model's output{place} is {type(leaf).__name__}", "outputs are tensors", "Return tensors, in a tuple or a dictionary."
            )
    if not leaves:
        raise ProjectError("the model returns no tensor", "", "Return its output from forward().")
    if given is not None:
        if len(given) != len(leaves) or len(set(given)) != len(given):
            raise ProjectError(
                f"`model.outputs` is {', '.join(given)}", f"the model has {len(leaves)} outputs", "Name each once, in order."
            )
        return list(given)
    names = [_name(path, i, len(leaves)) for i, (path, _) in enumerate(leaves)]
    return names if len(set(names)) == len(names) else [f"output_{i}" for i in range(len(names))]


def _name(path: tuple[Any, ...], index: int, count: int) -> str:
    if not path or all(isinstance(step, pytree.SequenceKey) for step in path):
        return "output" if count == 1 else f"output_{index}"
    text = re.sub(r"\W+", "_", "_".join(str(getattr(step, "key", getattr(step, "name", getattr(step, "idx", step)))) for step in path))
    return text if re.match(r"[A-Za-z_]", text) else f"output_{text}"


def check_batched(outputs: Sequence[Tensor], names: Sequence[str], batch: int) -> None:
    """Dimension 0 of every output is the batch.

    Raises:
        ProjectError: names the output and its shape.
    """
    for name, tensor in zip(names, outputs, strict=True):
        if tensor.ndim == 0 or tensor.shape[0] != batch:
            raise ProjectError(
                f"output {name!r} has shape {tuple(tensor.shape)} for a batch of {batch}",
                "dimension 0 must be the batch",
                "Return one row per sample.",
            )


def largest_error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of any output, relative to that output's largest magnitude (at least 1e-3)."""
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        if b.numel() == 0:
            continue
        difference = (a.double() - b.double()).abs().max().item()
        if difference != difference:  # NaN on one side only is a difference; on both sides it is caught with the reference outputs
            difference = 0.0 if torch.equal(a.isnan(), b.isnan()) else float("inf")
        worst = max(worst, difference / max(b.double().abs().nan_to_num().max().item(), 1e-3))
    return worst
