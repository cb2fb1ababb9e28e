"""What a logarithm or a root reads: its small values count as much as the large ones, and 8 bits round them away.

The energies of a sound's bands differ by a factor of a million and more; nets read their logarithms. Over such a range all but the loudest
bands would be one integer.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import ACTIVATIONS, FOURIER, HEAVY, KINDS, SAME_VALUES, SOME_VALUES, is_float, op_name

REASON = "its logarithm or root is taken: small values count there, which 8 bits round away"
#: Why a product or a convolution is not quantized that is a Fourier transform.
TRANSFORM = "a Fourier transform: many of its results are small beside the largest, and 8 bits round them away"
_MAGNIFYING = frozenset(["log", "log10", "log1p", "log2", "sqrt"])
#: Ops on single values behind which a small value is still a small one.
_BETWEEN = (
    SAME_VALUES | SOME_VALUES | ACTIVATIONS | frozenset(["abs", "add", "cat", "div", "maximum", "mul", "neg", "pow", "square", "sub"])
)


def magnified_nodes(module: GraphModule) -> dict[Node, str]:
    """Fourier transforms, layers and products whose results a logarithm or a root reads, and the ops between: each with the reason it
    stays float."""
    found = {node: TRANSFORM for node in module.graph.nodes if FOURIER in node.meta}
    waiting = [node.args[0] for node in module.graph.nodes if _magnifies(node)]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Node) or node in found or not is_float(node):
            continue
        heavy = KINDS.get(op_name(node)) in HEAVY
        if heavy or op_name(node) in _BETWEEN:
            found[node] = REASON
            waiting += [] if heavy else node.all_input_nodes
    return found


def _magnifies(node: Node) -> bool:
    name = op_name(node)
    return name in _MAGNIFYING or (name == "pow" and isinstance(node.args[1], int | float) and 0 < node.args[1] < 1)
