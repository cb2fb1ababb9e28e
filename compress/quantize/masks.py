"""Attention masks must never enter a quantized range: one -3.4e38 would leave every real score on a single integer."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import PIECES, SAME_VALUES, is_float, kind_of, op_name

#: A tensor that reached this magnitude during calibration stays float: additive masks are -1e4, -1e9 or the lowest float, while real
#: activations of trained networks stay far below, and 8 bits over such a range would leave steps of 40 and more.
LARGEST = 5e3

#: Ops between a score and a softmax that may carry a mask.
_MASKING = frozenset(["add", "sub", "where", "masked_fill", "minimum", "maximum"])
_BETWEEN = _MASKING | SAME_VALUES | frozenset(["mul", "div", "clamp", "clamp_min", "slice", "pad", "constant_pad_nd", "cat", "to"])

REASON_SUM = "carries an attention mask: a mask value must not enter a quantized range"
REASON_SOFTMAX = "reads masked scores: a mask value must not enter a quantized range"


def masked_nodes(module: GraphModule) -> dict[Node, str]:
    """Softmaxes that read masked scores, and the ops between scores and softmax, each with the reason it stays float.

    Found by structure, not by value: calibration samples without padding show an all-zero mask, later ones do not.
    """
    found: dict[Node, str] = {}
    for node in module.graph.nodes:
        if op_name(node) not in ("softmax", "_softmax", "log_softmax"):
            continue
        cone = _cone(node)
        if any(map(_masks, cone)):
            found.update(dict.fromkeys(cone, REASON_SUM))
            found[node] = REASON_SOFTMAX
    return found


def _masks(node: Node) -> bool:
    """May an op bring a mask in? A sum does where one side is made by no layer: it is an input, a constant, a looked-up bias, a boolean."""
    if op_name(node) not in ("add", "sub"):
        return op_name(node) in _MASKING
    return not all(_of_layers(item) for item in node.args[:2] if isinstance(item, Node))


def _of_layers(node: Node) -> bool:
    """Does a tensor depend on what a layer computed, other than by a comparison?"""
    waiting, seen = [node], {node}
    while waiting:
        item = waiting.pop()
        if kind_of(item) in ("conv", "conv_transpose", "linear"):
            return True
        inputs = [source for source in item.all_input_nodes if source not in seen and (is_float(source) or op_name(source) in PIECES)]
        waiting += inputs
        seen.update(inputs)
    return False


def _cone(softmax: Node) -> list[Node]:
    """Float ops upstream of a softmax, up to whatever computes scores or reads inputs."""
    cone: dict[Node, None] = {}
    open_nodes = [softmax.args[0]]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, Node) and node not in cone and op_name(node) in _BETWEEN and is_float(node):
            cone[node] = None
            open_nodes.extend(node.all_input_nodes)
    return list(cone)
