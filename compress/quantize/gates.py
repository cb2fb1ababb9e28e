"""SiLU and hard-swish as products with what they weigh their input by, for runtimes that have integer kernels for these two."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule

from edgepress.compress.quantize.attention import call
from edgepress.compress.quantize.placement import Placement

#: Kind -> name, op and kind of what its input is multiplied by.
_GATES: dict[str, tuple[str, OpOverload, str]] = {
    "silu": ("sigmoid", torch.ops.aten.sigmoid.default, "sigmoid"),
    "hard_swish": ("hardsigmoid", torch.ops.aten.hardsigmoid.default, "hard_sigmoid"),
}


def write_out_gates(module: GraphModule, placement: Placement, gated: Collection[str]) -> Placement:
    """Write quantized silus as products with a sigmoid, and hard-swishes as products with a hard sigmoid, in place.

    Args:
        module: the canonical graph.
        placement: which of its ops are quantized.
        gated: which of these kinds (`QuantRules.gated`).

    Returns:
        The placement of the new graph; a product has the name of the node it stands for.
    """
    kinds, tails, outputs = dict(placement.kinds), dict(placement.tails), set(placement.outputs)
    for node, found in [(node, kind) for node, kind in placement.kinds.items() if kind in gated]:
        value, (label, op, kind) = node.args[0], _GATES[found]
        with module.graph.inserting_before(node):
            gate = call(module, node, label, op, value)
            product = call(module, node, "", torch.ops.aten.mul.Tensor, value, gate)
        node.replace_all_uses_with(product)
        name = node.name
        module.graph.erase_node(node)
        product.name = name
        del kinds[node], tails[node]
        outputs.discard(node)
        kinds |= {gate: kind, product: "mul"}
        tails |= {gate: gate, product: product}
        outputs |= {gate, product}
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    kinds = dict(sorted(kinds.items(), key=lambda item: order[item[0]]))
    return replace(placement, kinds=kinds, tails=tails, outputs=frozenset(outputs))
