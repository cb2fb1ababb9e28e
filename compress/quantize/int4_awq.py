"""AWQ: inputs that matter are scaled up in the weights before rounding, and down where they come from (Lin et al. 2023, section 3.2).

Multiplying column c of the weights by s_c and dividing channel c of what they read by s_c changes nothing in float, but gives that
column a grid s_c times finer. The paper takes s_c = mean|x_c| ** a; here it is the root mean square, which the second moments hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.attention import call
from edgepress.compress.quantize.folding import replace_weight
from edgepress.compress.quantize.graph import constant, op_name, set_attribute, value_of
from edgepress.compress.quantize.int4_grid import search_grid
from edgepress.compress.quantize.int4_layers import Layer
from edgepress.compress.quantize.int4_op import constant_node

#: Exponents tried; the paper searches the same interval.
EXPONENTS = tuple(step / 20 for step in range(20))
#: Rows of the weights that the search looks at; bounds its time.
_ROWS = 512
#: Where the division costs a multiplication of its own, the error has to fall below this share of what it was.
_WORTH = 0.9


def scale_inputs(module: GraphModule, source: Node, layers: Sequence[Layer], moments: Tensor, symmetric: bool) -> Tensor:
    """Move the scale of the channels of one tensor into the layers that read it, in place, where that lowers their output error.

    The division goes into the op that makes the tensor where that has weights, and is a multiplication of its own elsewhere.

    Args:
        module: float graph.
        source: the tensor.
        layers: all that are to be rounded and read it.
        moments: (channels, channels), mean of x x^T of the tensor.
        symmetric: of the grid.

    Returns:
        (channels,) mean square of each channel that the layers read now.
    """
    factors = _search(layers, moments, symmetric, plain_share=1.0)
    if factors is not None and not _fold(module, source, {layer.node for layer in layers}, factors):
        factors = _search(layers, moments, symmetric, plain_share=_WORTH)
        if factors is not None:
            _multiply(module, source, layers, factors)
    if factors is None:
        return moments.diagonal()
    for layer in layers:
        scaled = layer.weight * factors
        replace_weight(module, layer.node, scaled if op_name(layer.node) == "linear" else scaled.T.contiguous(), None)
    return moments.diagonal() / factors.square()


def _search(layers: Sequence[Layer], moments: Tensor, symmetric: bool, plain_share: float) -> Tensor | None:
    """The factors of the channels with the smallest output error, None where no rescaling falls below a share of the plain error."""
    size = moments.diagonal().sqrt()
    size = size.clamp(min=float(size.max()) * 1e-4)
    best: Tensor | None = None
    least = float("inf")
    for exponent in EXPONENTS:
        factors = size**exponent
        factors = factors / (factors.max() * factors.min()).sqrt()
        error = sum(_error(layer, factors, moments, symmetric) for layer in layers)
        if exponent == 0.0:
            least = error * plain_share
        elif error < least:
            least, best = error, factors
    return best


def _error(layer: Layer, factors: Tensor, moments: Tensor, symmetric: bool) -> float:
    """Squared error of the outputs over some rows of a weight, rounded to the nearest of the scaled grid."""
    rows = layer.weight[:: max(1, len(layer.weight) // _ROWS)]
    scaled = rows * factors
    lost = search_grid(scaled, layer.group, symmetric, clip=False).rounded(scaled).dequantized() / factors - rows
    return float((lost @ moments * lost).sum())


def _multiply(module: GraphModule, source: Node, layers: Sequence[Layer], factors: Tensor) -> None:
    """Divide by the factors in an op of its own, for these layers alone."""
    after = source.next
    while after.op == "placeholder":
        after = after.next
    with module.graph.inserting_before(after):
        inverse = constant_node(module, source, f"{source.name}_awq_inverse", 1.0 / factors)
        scaled = call(module, source, "awq", torch.ops.aten.mul.Tensor, source, inverse)
    for layer in layers:
        layer.node.replace_input_with(source, scaled)


def _fold(module: GraphModule, node: Node, readers: set[Node], factors: Tensor) -> bool:
    """Divide what a node makes by the factors, through weights of its own or of what it multiplies; False where it has none."""
    if set(node.users) != readers:
        return False
    name = op_name(node)
    if name in ("layer_norm", "rms_norm"):
        return _divide(module, node, node.args[2:4] if name == "layer_norm" else node.args[2:3], factors)
    if name == "linear":
        return _divide(module, node, node.args[1:3], factors)
    if name == "mul" and node.args[0] is not node.args[1]:
        constants = [item for item in node.args if constant(module, item) is not None]
        if constants:
            return _divide(module, node, constants[:1], factors)
        return any(
            isinstance(item, Node) and value_of(item).shape == value_of(node).shape and _fold(module, item, {node}, factors)
            for item in node.args
        )
    return False


def _divide(module: GraphModule, node: Node, tensors: Sequence[Node | None], factors: Tensor) -> bool:
    """Divide the constants that a node applies per channel; the channels are the rows of a matrix, and the entries of a vector."""
    values = [(item, constant(module, item)) for item in tensors if item is not None]
    if not values or tensors[0] is None:
        return False
    if any(value is None or item.users.keys() != {node} or value.shape[:1] != factors.shape for item, value in values):
        return False
    if any(value.ndim > 1 and op_name(node) != "linear" for _, value in values if value is not None):
        return False
    for item, value in values:
        assert value is not None
        set_attribute(module, str(item.target), (value.detach() / (factors[:, None] if value.ndim > 1 else factors)).to(value.dtype))
    return True
