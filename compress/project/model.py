"""The user's trained model: factory plus checkpoint, or a whole program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgepress.compress.project.checkpoint import check_finite, fill, read_program, read_state_dict
from edgepress.compress.project.usercode import call_user, load_callable
from edgepress.targets.errors import ProjectError


@dataclass(frozen=True)
class ModelSpec:
    """Where a model comes from.

    Attributes:
        checkpoint: path, relative to the project's root.
        factory: `module:callable` returning an `nn.Module`; None for a .pt2.
        args: keyword arguments of the factory.
    """

    checkpoint: str
    factory: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)


def load_model(spec: ModelSpec, root: Path) -> nn.Module | ExportedProgram:
    """Build and fill the model: eval mode, float32 parameters without gradients.

    Raises:
        ProjectError: the factory is not found, raises, or returns no module; the checkpoint cannot be read or does not fit.
    """
    path = root / spec.checkpoint
    if path.suffix == ".pt2":
        program = read_program(path)
        check_finite(program.state_dict, path)
        return program
    if spec.factory is None:
        raise ProjectError(
            f"checkpoint {path.name!r} holds weights only", "no `model.factory` builds the model", "Name one, e.g. model:net."
        )
    state = read_state_dict(path)
    model = call_user(spec.factory, load_callable(spec.factory, root), root, spec.args)
    if not isinstance(model, nn.Module):
        raise ProjectError(f"{spec.factory!r} returned {type(model).__name__}", "a torch.nn.Module is needed", "Return the model itself.")
    fill(model, state, path)
    return model.eval().float().requires_grad_(False)


def count_parameters(model: nn.Module | ExportedProgram) -> int:
    """Number of trained values, buffers left out."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(program: ExportedProgram, arrays: Sequence[np.ndarray], batch: int = 1) -> int:
    """Multiply-accumulates of convolutions and matrix products (attention and recurrent layers included) for one sample.

    Args:
        program: positional inputs.
        arrays: real samples, one array of shape (n >= batch, ...) per input.
        batch: a size the program takes.
    """
    inputs = [torch.from_numpy(np.array(np.resize(a[:batch], (batch, *a.shape[1:])))) for a in arrays]
    counter = FlopCounterMode(display=False)
    # Fused kernels of attention and LSTMs are none of those that torch counts; convolutions are far slower without their library.
    fused = any(str(node.target).startswith("aten.lstm") for node in program.graph.nodes)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=not fused), counter:
        program.module()(*inputs)
    return int(counter.get_total_flops()) // 2 // batch
