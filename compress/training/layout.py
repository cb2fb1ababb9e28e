"""What a batch and a module look like, and how the module's weights best lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgepress.compress.training.data import Batch
from edgepress.compress.training.modes import set_training
from edgepress.compress.training.objective import logits_of

_IMAGE_DIMENSIONS = 4


def image_like(inputs: tuple[Tensor, ...]) -> bool:
    """Is the first input a batch of images, float (N, C, H, W)?"""
    return bool(inputs[0].ndim == _IMAGE_DIMENSIONS and inputs[0].is_floating_point())


def class_count(module: nn.Module, example: Batch) -> int:
    """Columns of the module's output where labels are class numbers, 0 where they are not."""
    if example.labels is None or example.labels.is_floating_point():
        return 0
    return int(logits_of(_outputs(module, example.inputs)).shape[1])


def channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Lay convolution weights out channels last, where the module computes with them; says whether it did.

    The layout of weights carries over to all activations. Measured on 2 cores with AVX-512, a training step of ResNet-20 takes a quarter
    less time in float32 and a tenth less in bfloat16. A module that calls `view` where only `reshape` can serve fails with it, and keeps
    its layout.
    """
    if not (image_like(inputs) and any(parameter.ndim == _IMAGE_DIMENSIONS for parameter in module.parameters())):
        return False
    module.to(memory_format=torch.channels_last)
    try:
        _outputs(module, inputs)
    except RuntimeError:
        module.to(memory_format=torch.contiguous_format)
        return False
    return True


@torch.no_grad()  # type: ignore[untyped-decorator]
def _outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> object:
    set_training(module, False)
    device = next(module.parameters()).device
    return module(*(tensor.to(device) for tensor in inputs))
