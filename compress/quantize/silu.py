"""SiLU as a product with a sigmoid, for runtimes that have integer kernels for these two."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.fx import GraphModule

from edgepress.compress.quantize.attention import call
from edgepress.compress.quantize.placement import Placement


def write_out_silu(module: GraphModule, placement: Placement) -> Placement:
    """Write every quantized silu as a product with a sigmoid, in place: runtimes have integer kernels for these two.

    Returns:
        The placement of the new graph; a product has the name of the silu it stands for.
    """
    kinds, tails, outputs = dict(placement.kinds), dict(placement.tails), set(placement.outputs)
    for node in [node for node, kind in placement.kinds.items() if kind == "silu"]:
        (value,) = node.args
        with module.graph.inserting_before(node):
            gate = call(module, node, "sigmoid", torch.ops.aten.sigmoid.default, value)
            product = call(module, node, "", torch.ops.aten.mul.Tensor, value, gate)
        node.replace_all_uses_with(product)
        name = node.name
        module.graph.erase_node(node)
        product.name = name
        del kinds[node], tails[node]
        outputs.discard(node)
        kinds |= {gate: "sigmoid", product: "mul"}
        tails |= {gate: gate, product: product}
        outputs |= {gate, product}
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    kinds = dict(sorted(kinds.items(), key=lambda item: order[item[0]]))
    return replace(placement, kinds=kinds, tails=tails, outputs=frozenset(outputs))
