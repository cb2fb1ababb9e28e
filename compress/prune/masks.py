"""Zeros inside weights that keep their shape: unstructured, or N of every M inputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from edgepress.compress.quantize.graph import op_name
from edgepress.targets.errors import PruneError


@dataclass(frozen=True)
class MaskSettings:
    """Which weights become zero.

    Attributes:
        pattern: "unstructured", or "N:M": at most N of M consecutive inputs (channels of a convolution, at every place of its kernel) stay.
        sparsity: share of zeros of "unstructured", between 0 and 1; "N:M" has its own.
        scope: of "unstructured": "global" ranks the weights of all layers together, "layer" gives every layer the same share.
        ignore: layers left alone, as shell patterns on dotted names; a name covers the layers inside it.

    Raises:
        PruneError: an unknown pattern or scope, or a share out of range.
    """

    pattern: str = "2:4"
    sparsity: float = 0.5
    scope: str = "global"
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pattern != "unstructured" and not 0 < self.kept[0] < self.kept[1]:
            raise PruneError(f"unknown mask pattern {self.pattern!r}", "", "Use unstructured, or N:M with N below M, e.g. 2:4.")
        if not 0 < self.sparsity < 1:
            raise PruneError(f"sparsity is {self.sparsity:g}", "it must be between 0 and 1", "0.5 makes half of the weights zero.")
        if self.scope not in ("global", "layer"):
            raise PruneError(f"unknown scope {self.scope!r} of masks", "", "Use global or layer.")

    @property
    def kept(self) -> tuple[int, int]:
        """N and M of "N:M"; (0, 0) where the pattern is none."""
        match = re.fullmatch(r"(\d+):(\d+)", self.pattern)
        return (int(match[1]), int(match[2])) if match else (0, 0)


@dataclass(frozen=True)
class Masks:
    """Which weights stay.

    Attributes:
        keep: parameter name -> bool tensor of its shape, True where the weight stays.
        notes: layers that could not be masked, and why.
    """

    keep: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Share of zeros among the masked weights, 0 to 1."""
        total = sum(mask.numel() for mask in self.keep.values())
        return 1 - sum(int(mask.sum()) for mask in self.keep.values()) / total if total else 0.0

    def report(self) -> tuple[str, ...]:
        """Lines for the user: what became zero, and what that does not buy."""
        zeros = sum(int((~mask).sum()) for mask in self.keep.values())
        return (
            f"{zeros} of the weights of {len(self.keep)} layers are zero ({self.sparsity:.1%})",
            "shapes and multiply-accumulates are unchanged: a runtime without sparse kernels gets no faster",
            *self.notes,
        )


def make_masks(program: ExportedProgram, settings: MaskSettings | None = None) -> Masks:
    """Keep the weights of convolutions and linear layers that are largest in magnitude.

    Unstructured: Han et al. 2015, section 3. N:M: Mishra et al. 2021, section 4.1, along the inputs, as sparse tensor cores read them.

    Args:
        program: whose weights are ranked; it is not changed.
        settings: pattern and share.

    Raises:
        PruneError: a pattern of `ignore` matches no layer (names the nearest), or no weight can be masked.
    """
    settings = settings or MaskSettings()
    weights = _weights(program)
    ignored = matching_layers(settings.ignore, [name.rpartition(".")[0] for name in weights])
    weights = {name: value for name, value in weights.items() if name.rpartition(".")[0] not in ignored}
    n, m = settings.kept
    notes = [f"{name}: its {value.shape[1]} inputs are no multiple of {m}" for name, value in weights.items() if m and value.shape[1] % m]
    weights = {name: value for name, value in weights.items() if not m or value.shape[1] % m == 0}
    if not weights:
        raise PruneError("no weight can be masked", "; ".join(notes) or "there are no convolutions and linear layers left", "")
    if m:
        return Masks({name: _n_of_m(value, n, m) for name, value in weights.items()}, tuple(notes))
    if settings.scope == "layer":
        return Masks({name: _largest({name: value}, settings.sparsity)[name] for name, value in weights.items()})
    return Masks(_largest(weights, settings.sparsity))


def apply_masks(tensors: Mapping[str, Tensor], masks: Masks) -> None:
    """Write the zeros, in place.

    Args:
        tensors: of a module's or program's `state_dict`.
        masks: made for it.
    """
    with torch.no_grad():
        for name, keep in masks.keep.items():
            tensors[name].mul_(keep.to(tensors[name].device))


@contextmanager
def kept_masks(module: nn.Module, masks: Masks) -> Iterator[None]:
    """While the module trains, masked weights stay exactly zero.

    Their gradients are zeroed, so that no optimizer gathers momentum for them, and the zeros are written again before every forward pass
    and at the end, whatever the optimizer did.

    Args:
        module: whose parameters have the names of the masks.
        masks: made for it.
    """
    parameters = dict(module.named_parameters())
    named = {name: parameters[name] for name in masks.keep}
    handles: list[Any] = [module.register_forward_pre_hook(lambda *_: apply_masks(named, masks))]
    for name, keep in masks.keep.items():
        if named[name].requires_grad:
            handles.append(named[name].register_hook(lambda gradient, keep=keep: gradient * keep.to(gradient.device)))
    apply_masks(named, masks)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        apply_masks(named, masks)


def matching_layers(patterns: tuple[str, ...], layers: list[str]) -> set[str]:
    """The layers that patterns name: shell wildcards on dotted names; a name covers the layers inside it.

    Raises:
        PruneError: a pattern matches nothing; the nearest layers are named.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = {layer for layer in layers if fnmatchcase(layer, pattern) or fnmatchcase(layer, f"{pattern}.*")}
        if not hits:
            near = get_close_matches(pattern, sorted(layers), 3, 0.3) or sorted(layers)[:3]
            raise PruneError(f"no layer matches {pattern!r}", "", f"The nearest are {', '.join(near)}.")
        found |= hits
    return found


def _weights(program: ExportedProgram) -> dict[str, Tensor]:
    """The weights of convolutions (not transposed) and linear layers by name: outputs in dimension 0, inputs in dimension 1."""
    parameters = program.graph_signature.inputs_to_parameters
    found = {}
    for node in program.graph.nodes:
        if op_name(node) in ("conv1d", "conv2d", "conv3d", "linear") and len(node.args) > 1:
            weight = node.args[1]
            if isinstance(weight, Node) and weight.name in parameters:
                found[parameters[weight.name]] = program.state_dict[parameters[weight.name]].detach()
    return found


def _largest(weights: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Exactly the asked share of all these weights goes, rounded down; of equal weights the first."""
    sizes = torch.cat([value.abs().double().flatten() for value in weights.values()])
    keep = torch.ones_like(sizes, dtype=torch.bool)
    keep[torch.argsort(sizes, stable=True)[: int(sparsity * len(sizes))]] = False
    pieces = keep.split([value.numel() for value in weights.values()])
    return {name: piece.view(value.shape) for (name, value), piece in zip(weights.items(), pieces, strict=True)}


def _n_of_m(weight: Tensor, n: int, m: int) -> Tensor:
    moved = weight.abs().movedim(1, -1)
    groups = moved.reshape(-1, m)
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.topk(n, dim=1).indices, True)
    return keep.view(moved.shape).movedim(-1, 1).contiguous()
