"""One layer as a model of its own, at any widths, for timing it away from the model it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from edgepress.compress.prune.heavy import ATTENTION, Configuration
from edgepress.targets.nouns import Signature, TensorSpec


class Convolutions(nn.Module):  # type: ignore[misc]
    """Copies of a convolution that read one input; their sum is the output, for kernels add in place where outputs would be copied.

    Args:
        configuration: of a convolution.
        widths: (reading, making) side of the weight.
        copies: how many.
    """

    def __init__(self, configuration: Configuration, widths: tuple[int, int], copies: int) -> None:
        super().__init__()
        reads, makes = widths
        settings = dict(configuration.arguments)
        kernel = settings.pop("kernel")
        transposed = "transpose" in configuration.op
        # whole groups go when the side that holds all groups gets narrower
        settings["groups"] = max(1, settings["groups"] * (reads if transposed else makes) // configuration.widths[0 if transposed else 1])
        shape = (reads, makes, *kernel) if transposed else (makes, reads, *kernel)
        outputs = makes * settings["groups"] if transposed else makes
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape) / reads) for _ in range(copies))
        self.biases = nn.ParameterList(nn.Parameter(torch.randn(outputs)) for _ in range(copies))
        self.settings, self.function = settings, getattr(F, configuration.op)
        self.inputs = (torch.randn(configuration.input[0], reads if transposed else reads * settings["groups"], *configuration.input[2:]),)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, channels, ...) -> (batch, channels, ...)."""
        results = [self.function(x, weight, bias, **self.settings) for weight, bias in zip(self.weights, self.biases, strict=True)]
        total: Tensor = results[0]
        for result in results[1:]:
            total = total + result
        return total


class Linears(nn.Module):  # type: ignore[misc]
    """Copies of a linear layer that read one input, each with an output of its own.

    Args:
        configuration: of a linear layer.
        widths: (in, out) features.
        copies: how many.
    """

    def __init__(self, configuration: Configuration, widths: tuple[int, int], copies: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*widths) for _ in range(copies))
        self.inputs = (torch.randn(*configuration.input[:-1], widths[0]),)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (..., in) -> copies of (..., out)."""
        return [layer(x) for layer in self.layers]


class Attentions(nn.Module):  # type: ignore[misc]
    """Copies of fused attention with queries of their own over the same keys, values and mask.

    Args:
        configuration: of attention.
        widths: (head dimension, heads).
        copies: how many.
    """

    def __init__(self, configuration: Configuration, widths: tuple[int, int], copies: int) -> None:
        super().__init__()
        size, heads = widths
        batch, all_heads, length, all_size = configuration.input
        said = configuration.arguments
        self.copies, self.causal, self.masked = copies, said["causal"], said["mask"] is not None
        groups = all_heads // said["key_heads"]
        self.shared = groups > 1
        key_heads, value_size = max(1, heads // groups), max(1, said["value_width"] * size // all_size)
        self.inputs: tuple[Tensor, ...] = tuple(torch.randn(batch, heads, length, size) for _ in range(copies))
        self.inputs += (torch.randn(batch, key_heads, said["keys"], size), torch.randn(batch, key_heads, said["keys"], value_size))
        if self.masked:
            visible = torch.ones if said["mask"] == "bool" else torch.zeros
            self.inputs += (visible(batch, 1, length, said["keys"], dtype=getattr(torch, said["mask"])),)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Queries (batch, heads, length, size) per copy, keys, values, perhaps a mask -> one output per copy."""
        key, value = inputs[self.copies : self.copies + 2]
        mask = inputs[-1] if self.masked else None
        return [
            F.scaled_dot_product_attention(query, key, value, mask, is_causal=self.causal, enable_gqa=self.shared)
            for query in inputs[: self.copies]
        ]


class Nothing(nn.Module):  # type: ignore[misc]
    """A model whose call is all there is to time: it clamps one number."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.inputs = (torch.zeros(batch, 1),)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, 1) -> (batch, 1)."""
        return F.relu(x)


def layer_module(configuration: Configuration, widths: tuple[int, int], copies: int) -> nn.Module:
    """The module of a configuration at some widths; `inputs` holds tensors it can be called with."""
    if configuration.op == ATTENTION:
        return Attentions(configuration, widths, copies)
    return (Linears if configuration.op == "linear" else Convolutions)(configuration, widths, copies)


def save_program(module: Any, path: Path) -> tuple[Signature, tuple[np.ndarray, ...]]:
    """Export a module with a dynamic batch as the pipeline's models are.

    Args:
        module: with `inputs`.
        path: of the `.pt2` file.

    Returns:
        Its signature, and for each input a sample of shape (n >= 2, ...).
    """
    inputs = tuple(tensor if len(tensor) > 1 else tensor.repeat(2, *[1] * (tensor.dim() - 1)) for tensor in module.inputs)
    axes: Any = tuple({0: Dim("batch", min=1)} for _ in inputs)
    starred = isinstance(module, Attentions)
    with torch.no_grad():
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=(axes,) if starred else axes)
        outputs = torch.utils._pytree.tree_leaves(module(*inputs))
    torch.export.save(program, path)
    return Signature(_specs("x", inputs), _specs("y", outputs)), tuple(tensor.numpy() for tensor in inputs)


def _specs(letter: str, tensors: Sequence[Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(f"{letter}{i}", str(t.dtype).removeprefix("torch."), (None, *t.shape[1:])) for i, t in enumerate(tensors))
