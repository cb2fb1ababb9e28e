"""Attention in the canonical graph: its scale folded into the query projection, the fused op written out where rules place its matmuls."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import SAME_VALUES, constant, new_constant, op_name, set_attribute, value_of

aten = torch.ops.aten
SDPA = "scaled_dot_product_attention"
#: What a masked score is lowered by: exp(-3e4) is zero in every float format, and the value itself fits float16.
MASKED = -30000.0


def fold_attention_scales(module: GraphModule) -> None:
    """Multiply the weight of the query projection by the attention scale, so that no op of its own is left for it.

    Done where the query is a linear layer whose output only this attention reads.
    """
    for node in module.graph.nodes:
        if op_name(node) != SDPA:
            continue
        scale = _argument(node, 6, "scale")
        if scale is None:
            scale = 1.0 / math.sqrt(value_of(node.args[0]).shape[-1])
        alone = node.args[0] not in node.args[1:]  # queries that are keys too would be scaled twice
        if scale != 1.0 and alone and _fold_into_projection(module, node.args[0], float(scale)):
            node.args = node.args[:6]
            node.kwargs = {**node.kwargs, "scale": 1.0}


def _fold_into_projection(module: GraphModule, query: Node, scale: float) -> bool:
    """Walk back over ops that only move values to a linear layer of constant weight, and scale that."""
    node = query
    while op_name(node) in SAME_VALUES and len(node.users) == 1:
        node = node.args[0]
    if op_name(node) != "linear" or len(node.users) != 1:
        return False
    tensors = node.args[1:3]
    if any(constant(module, item) is None or len(item.users) != 1 for item in tensors if item is not None):
        return False
    for item in tensors:
        tensor = constant(module, item)
        if tensor is not None:
            set_attribute(module, str(item.target), tensor * scale)
    return True


def decompose_attention(module: GraphModule) -> None:
    """Write every fused attention as matmul, (mask), softmax, matmul.

    Left fused: grouped queries, and causal masks over a dynamic length.
    """
    masks: dict[Node | tuple[int, int], Node] = {}
    for node in decomposable(module):
        _write_out(module, node, masks)


def decomposable(module: GraphModule) -> list[Node]:
    """What `decompose_attention` would write out."""
    return [node for node in module.graph.nodes if op_name(node) == SDPA and _writable(node)]


def _writable(node: Node) -> bool:
    lengths = (value_of(node.args[0]).shape[-2], value_of(node.args[1]).shape[-2])
    causal = _argument(node, 5, "is_causal")
    return not _argument(node, 7, "enable_gqa") and (not causal or all(isinstance(n, int) for n in lengths))


def _argument(node: Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _write_out(module: GraphModule, node: Node, masks: dict[Node | tuple[int, int], Node]) -> None:
    """softmax(query @ key^T * scale + mask) @ value (Vaswani et al. 2017, section 3.2.1).

    Args:
        module: whose graph it is.
        node: the fused op.
        masks: those that were made for the ops before it: a model's mask, or the size of a causal one -> what is added to scores.
    """
    query, key, value = node.args[:3]
    scale = _argument(node, 6, "scale")
    if scale is None:
        scale = 1.0 / math.sqrt(value_of(query).shape[-1])
    mask = _argument(node, 3, "attn_mask")
    with module.graph.inserting_before(node):
        turned = call(module, node, "key", aten.transpose.int, key, -2, -1)
        scores = call(module, node, "scores", aten.matmul.default, query, turned)
        if scale != 1.0:
            scores = call(module, node, "scaled", aten.mul.Tensor, scores, scale)
        if _argument(node, 5, "is_causal"):
            scores = call(module, node, "masked", aten.add.Tensor, scores, _causal_mask(module, node, masks))
        elif mask is not None:
            scores = call(module, node, "masked", aten.add.Tensor, scores, _additive(module, node, mask, masks))
        weights = call(module, node, "softmax", aten.softmax.int, scores, -1)
        result = call(module, node, "", aten.matmul.default, weights, value)
    node.replace_all_uses_with(result)
    name = node.name
    module.graph.erase_node(node)
    result.name = name


def _causal_mask(module: GraphModule, node: Node, masks: dict[Node | tuple[int, int], Node]) -> Node:
    """One constant for all layers of the same lengths."""
    size = value_of(node.args[0]).shape[-2], value_of(node.args[1]).shape[-2]
    if size not in masks:
        name = f"causal_mask_{size[0]}_{size[1]}"
        masks[size] = new_constant(module, name, torch.full(size, MASKED).triu(1), node)
    return masks[size]


def _additive(module: GraphModule, node: Node, mask: Node, masks: dict[Node | tuple[int, int], Node]) -> Node:
    """A boolean mask as 0 and `MASKED`, a float mask with `MASKED` in the place of less: -inf alone in a row would make it NaN.

    It is made once for all layers that share it.
    """
    if mask not in masks:
        masks[mask] = _shifted(module, node, mask) if value_of(mask).dtype == torch.bool else _bounded(module, mask)
    return masks[mask]


def _shifted(module: GraphModule, node: Node, mask: Node) -> Node:
    with module.graph.inserting_after(mask):
        number = call(module, mask, "float", aten.to.dtype, mask, value_of(node).dtype)
    with module.graph.inserting_after(number):
        shifted = call(module, mask, "shifted", aten.sub.Tensor, number, 1.0)
    with module.graph.inserting_after(shifted):
        return call(module, mask, "additive", aten.mul.Tensor, shifted, -MASKED)


def _bounded(module: GraphModule, mask: Node) -> Node:
    held = constant(module, mask)
    if held is not None and bool((held >= MASKED).all()):
        return mask
    with module.graph.inserting_after(mask):
        if held is not None:
            return new_constant(module, f"{mask.name}_bounded", held.detach().clamp_min(MASKED), mask)
        return call(module, mask, "bounded", aten.clamp_min.default, mask, MASKED)


def call(module: GraphModule, origin: Node, suffix: str, target: Any, *arguments: Any) -> Node:
    """Add a call at the graph's insertion point, with its fake value, named after and traced to the node it stands for."""
    name = f"{origin.name}_{suffix}" if suffix else f"{origin.name}_result"
    node = module.graph.create_node("call_function", target, tuple(arguments), name=name)
    node.meta = {
        key: item for key, item in origin.meta.items() if key in ("nn_module_stack", "stack_trace", "source_fn_stack", "from_node")
    }
    fakes = [value_of(argument) if isinstance(argument, Node) else argument for argument in arguments]
    with value_of(origin).fake_mode:
        node.meta["val"] = target(*fakes)
    return node
