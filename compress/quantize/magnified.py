"""What a logarithm or a root reads: its small values count as much as the large ones, and 8 bits round them away.

The energies of a sound's bands differ by a factor of a million and more; nets read their logarithms. Over such a range all but the loudest
bands would be one integer.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import ACTIVATIONS, FLOAT, HEAVY, KINDS, SAME_VALUES, SOME_VALUES, is_float, kind_of, op_name

REASON = "its logarithm or root is taken: small values count there, which 8 bits round away"
_MAGNIFYING = frozenset(["log", "log10", "log1p", "log2", "sqrt"])
#: Ops on single values behind which a small value is still a small one.
_BETWEEN = SAME_VALUES | SOME_VALUES | ACTIVATIONS | {"abs", "add", "cat", "div", "maximum", "mul", "neg", "pow", "square", "sub"}


def keep_magnified(module: GraphModule) -> None:
    """Mark the layers and products whose results a logarithm or a root reads, and the arithmetic between, as ops that stay float.

    OpenVINO rounds what a layer with weights in integers reads, so such a layer keeps floats in every scheme.
    """
    waiting, seen = [node.args[0] for node in module.graph.nodes if _magnifies(node)], set[Node]()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Node) or node in seen or not is_float(node):
            continue
        seen.add(node)
        heavy = KINDS.get(op_name(node)) in HEAVY
        if heavy or op_name(node) in _BETWEEN:
            waiting += [] if heavy else node.all_input_nodes
            if kind_of(node) not in (None, "shape"):
                node.meta[FLOAT] = REASON


def _magnifies(node: Node) -> bool:
    name = op_name(node)
    return name in _MAGNIFYING or (name == "pow" and isinstance(node.args[1], int | float) and 0 < node.args[1] < 1)
