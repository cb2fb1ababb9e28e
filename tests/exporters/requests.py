"""Requests to export a net of images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgepress.compress.quantize import calibrate
from edgepress.exporters.base import ExportRequest
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec


def request_of(net: nn.Module, images: Tensor, runtime: str, scheme: Scheme, folder: Path) -> ExportRequest:
    """A net from `x` to `y`, traced and calibrated in `folder`; the first image is the sample."""
    with torch.no_grad():
        answer = net.eval()(images[:1])
    program = torch.export.export(net, (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, folder / "model.pt2")
    calibrate(program, [(images,)]).save(folder / "statistics")
    signature = Signature(
        (TensorSpec("x", "float32", (None, *images.shape[1:])),), (TensorSpec("y", "float32", (None, *answer.shape[1:])),)
    )
    target = Target("device", runtime, "CPU", scheme.precision)
    return ExportRequest(folder / "model.pt2", signature, folder / "statistics", target, scheme, (images[:1].numpy(),))
