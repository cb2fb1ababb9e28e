"""Fused attention."""

from __future__ import annotations

import math

from torch.fx import Node

from edgepress.compress.prune.axes import Dims, size_of
from edgepress.compress.prune.flow import Flow, call_of
from edgepress.compress.prune.rules.registry import rule


@rule("scaled_dot_product_attention")
def attention(flow: Flow, node: Node) -> Dims:
    """query (..., H, L, E), key (..., Hkv, S, E), value (..., Hkv, S, Ev), mask broadcast to (..., H, L, S).

    Heads go together, as do the E of query and key; with `enable_gqa` the query's heads are Hkv x G. The default scale 1 / sqrt(E) is
    written out, for the products are divided by what they were trained with.
    """
    call = call_of(node)
    query, key, value = (flow.of(call[name]) for name in ("query", "key", "value"))
    flow.pin(node, [key[-2], value[-2]], "softmax runs over these positions")
    flow.space.unify(query[-1], key[-1])
    batch = flow.broadcast([key[:-2], value[:-2]])
    if call["enable_gqa"] and len(batch) and batch[-1]:
        shared, within = flow.group(query[-3], (size_of(batch[-1]), size_of(query[-3]) // size_of(batch[-1])))
        batch = (*batch[:-1], (*flow.space.unify(shared, batch[-1]), *within))
    batch = flow.broadcast([query[:-2], batch])
    if isinstance(call["attn_mask"], Node):
        batch = flow.broadcast([(*batch, (), ()), (*flow.of(call["attn_mask"])[:-2], (), ())])[:-2]
        flow.pin(node, flow.of(call["attn_mask"])[-2:], "positions are not removed")
    for dim in batch:
        flow.mark(dim, "heads")
    flow.mark(query[-1], "head_dims")
    flow.mark(value[-1], "head_dims")
    if call["scale"] is None:
        scale = 1 / math.sqrt(flow.shape(call["query"])[-1])
        flow.change(node, lambda kept, call: {"scale": scale})
    for features in (query[-1], value[-1]):
        flow.cost(node, [*batch, query[-2], key[-2], features])
    return (*batch, query[-2], value[-1])
