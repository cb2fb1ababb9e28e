"""Floats of 8 bits (E4M3: Micikevicius et al. 2022, "FP8 Formats for Deep Learning", sections 3 and 4) for what matrix products read.

A tensor is divided by a scale that brings its largest magnitude to 448, the largest number of the format, and rounded. Small values keep
their relative accuracy there, so one scale per tensor does for weights too, and outliers cost the others little. Importing this module
registers the op `edgepress::fp8`, which exporters write as a quantize and a dequantize node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.attention import call
from edgepress.compress.quantize.placement import data_inputs

#: The largest finite number of E4M3.
LARGEST_FP8 = 448.0
#: Scales of tensors that are 0 throughout, and of smaller ones: still a normal number in float16.
_SMALLEST_SCALE = 2.0**-14


@torch.library.custom_op("edgepress::fp8", mutates_args=())  # type: ignore[untyped-decorator]
def fp8(x: Tensor, scale: float) -> Tensor:
    """The nearest of the numbers scale * E4M3, ties to even; beyond the largest it is that.

    Args:
        x: float32, any shape.
        scale: above 0.
    """
    return (x / scale).clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn).to(x.dtype) * scale


@fp8.register_fake  # type: ignore[untyped-decorator]
def _shape(x: Tensor, scale: float) -> Tensor:
    return torch.empty_like(x)


OP = torch.ops.edgepress.fp8.default


def round_to_fp8(module: GraphModule, kinds: Mapping[Node, str], largest: Callable[[Node], float]) -> None:
    """Round what products read, activations and weights, each tensor once.

    Args:
        module: the canonical graph, changed in place.
        kinds: linear layers and matrix products in graph order, see `Placement.kinds`.
        largest: largest magnitude of a tensor.
    """
    rounded: dict[Node, Node] = {}
    for node, kind in kinds.items():
        for source in dict.fromkeys([*data_inputs(node, kind), *(node.args[1:2] if kind == "linear" else ())]):
            if source not in rounded:
                scale = float(torch.tensor(max(largest(source) / LARGEST_FP8, _SMALLEST_SCALE)))
                with module.graph.inserting_before(node):
                    rounded[source] = call(module, node, f"{source.name}_fp8", OP, source, scale)
            node.replace_input_with(source, rounded[source])
