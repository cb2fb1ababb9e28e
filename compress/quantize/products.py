"""Products with a constant matrix, however they are written, become linear layers: rounding, pruning of copies and kernels know those."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.attention import call
from edgepress.compress.quantize.folding import constant_node
from edgepress.compress.quantize.graph import FLOAT, constant, evaluate, is_float, op_name, value_of

aten = torch.ops.aten
#: Ops that may transpose a matrix.
_TURNS = frozenset({"t", "transpose", "swapaxes", "permute", "numpy_T"})


def products_to_linear(module: GraphModule) -> None:
    """`addmm`, `x @ w` and `einsum` with a constant become linear layers, in place, with what moves dimensions around them."""
    for node in list(module.graph.nodes):
        name = op_name(node)
        if name in ("addmm", "matmul", "mm") and not node.kwargs and FLOAT not in node.meta:
            _matrix_product(module, node, name)
        elif name == "einsum":
            _contraction(module, node)


def _matrix_product(module: GraphModule, node: Node, name: str) -> None:
    """A bias added or not, as GPT-2 and CLIP write them."""
    x, factor = node.args[-2:]
    bias = node.args[0] if name == "addmm" else None
    turned = _transposed(module, factor)
    weight, added = constant(module, factor if turned is None else turned), constant(module, bias)
    if weight is None or weight.dim() != 2 or not is_float(x) or x.op == "get_attr" or value_of(x).dim() < 2:
        return
    if bias is not None and (added is None or added.shape != value_of(node).shape[-1:]):
        return
    made = constant_node(module, node, f"{node.name}.weight", weight.detach().t().contiguous()) if turned is None else turned
    node.target, node.args = aten.linear.default, (x, made) if bias is None else (x, made, bias)


def _transposed(module: GraphModule, factor: Node) -> Node | None:
    """The constant matrix that a node is the transpose of: others read it as it is, as an embedding that is tied to the last layer."""
    source = factor.args[0] if op_name(factor) in _TURNS else None
    weight = constant(module, source)
    if weight is None or weight.dim() != 2:
        return None
    return source if evaluate(factor, {source: torch.empty(2, 3)}).shape == (3, 2) else None


def _contraction(module: GraphModule, node: Node) -> None:
    """An einsum of a tensor and a constant that share the dimensions they sum over and no others."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    if "." in equation or "->" not in equation or len(operands) != 2:
        return
    left, result = equation.split("->")
    labels = left.split(",")
    place = 1 if constant(module, operands[1]) is not None else 0
    x, factor, of_x, of_weight = operands[1 - place], operands[place], labels[1 - place], labels[place]
    weight = constant(module, factor)
    if weight is None or not is_float(x) or constant(module, x) is not None or not all(len(set(each)) == len(each) for each in labels):
        return
    summed = [label for label in of_weight if label in of_x]
    kept, made = [label for label in of_x if label not in summed], [label for label in of_weight if label not in summed]
    if not (summed and kept and made) or set(summed) & set(result) or sorted(kept + made) != sorted(result):
        return
    order = [of_weight.index(label) for label in made + summed]
    rows = weight.detach().permute(order)
    matrix = constant_node(module, node, f"{node.name}.weight", rows.flatten(len(made)).flatten(0, len(made) - 1).contiguous())
    with module.graph.inserting_before(node):
        found = _permuted(module, node, x, [of_x.index(label) for label in kept + summed])
        if len(summed) > 1:
            found = call(module, node, "summed", aten.flatten.using_ints, found, len(kept), -1)
        found = call(module, node, "linear", aten.linear.default, found, matrix)
        if len(made) > 1:
            found = call(module, node, "outputs", aten.unflatten.int, found, -1, list(rows.shape[: len(made)]))
        found = _permuted(module, node, found, [(kept + made).index(label) for label in result])
    node.replace_all_uses_with(found)
    module.graph.erase_node(node)


def _permuted(module: GraphModule, origin: Node, x: Node, order: list[int]) -> Node:
    return x if order == sorted(order) else call(module, origin, "permuted", aten.permute.default, x, order)
