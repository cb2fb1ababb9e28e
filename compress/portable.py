"""Rewrites of a traced program to what every runtime computes, with the same values."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgepress.compress.portable_products import look_up, measure_distances, multiply_twice
from edgepress.compress.portable_windows import AVERAGES, DIVIDED, NAMED, covers_its_input, divide, fold, number, pad, windows_of
from edgepress.compress.rewriting import arguments_of, call, take_place

aten = torch.ops.aten

#: From here on a softplus is what it is of, in floats.
_LINEAR = 20
#: Second names of operators, with the same overloads and arguments -> the first.
_ALIASES = {
    "absolute": "abs",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "linalg_matmul": "matmul",
    "moveaxis": "movedim",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "special_exp2": "exp2",
    "special_expit": "sigmoid",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "subtract": "sub",
    "true_divide": "div",
}


def portable(program: ExportedProgram) -> ExportedProgram:
    """The program, changed in place to what runs elsewhere too, with the same values.

    Tracing writes a reshape as a view where the strides it saw allow one. Kernels choose strides of their own: that of attention with a
    mask gives others as soon as gradients are asked for. Such views become reshapes. An average over a window as large as its input, or
    larger, which `ceil_mode` allows and other frameworks refuse, becomes a mean; one that divides by a number of its own, a multiple of
    one that does not. Margins of convolutions that have a name become numbers. A softplus that is linear from a threshold on is chosen
    between. Integers taken from a float (`1.0 - mask`) become floats first. Windows put side by side (`fold`), which only ONNX has an
    operator for, become permutations and, where windows overlap, sums; margins that continue at the other side, and negative ones, become
    slices. Bags of as many rows of a table each (`EmbeddingBag` of a matrix) become rows that are looked up, and their sum, mean or
    maximum; a bilinear form becomes a linear layer, a product and a sum; distances (`cdist`) become differences, or products of matrices
    as torch computes many of them. A tensor written in the code is detached when it is made and needs no more of it. Second names of
    operators become the first.
    """
    for node in list(program.graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload):
            node.target = _first_name(node.target)
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        elif node.target in AVERAGES and covers_its_input(node):
            axes = list(range(-len(windows_of(node)), 0))
            node.target, node.args, node.kwargs = aten.mean.dim, (node.args[0], axes, True), {}
        elif node.target in DIVIDED:
            divide(node)
        elif node.target in NAMED:
            number(node)
        elif node.target is aten.softplus.default:
            _bend(node)
        elif node.target is aten.detach_.default and node.args[0].target is aten.lift_fresh_copy.default:
            take_place(node.args[0], node)
        elif node.target is aten.rsub.Scalar:
            _promote(node)
        elif node.target is aten.col2im.default:
            fold(node)
        elif node.target in (aten.pad.default, aten.constant_pad_nd.default):
            pad(node)
        elif node.target is aten.embedding_bag.padding_idx:
            look_up(node)
        elif node.target is aten.bilinear.default:
            multiply_twice(node)
        elif node.target in (aten.cdist.default, aten._cdist_forward.default):
            measure_distances(node)
    program.graph_module.recompile()
    return program


def _promote(node: Node) -> None:
    """Give a node the floats that its integers become in it, which torch.onnx looks for among its second operands alone."""
    result = node.meta["val"].dtype
    if node.args[0].meta["val"].dtype != result:
        with node.graph.inserting_before(node):
            node.update_arg(0, call(node.graph, aten.to.dtype, node.args[0], result))


def _bend(node: Node) -> None:
    """Choose between a softplus and what it is of, where it is linear from a lower number on than torch leaves away."""
    x, beta, threshold = arguments_of(node)
    if threshold >= _LINEAR or beta <= 0:
        return
    with node.graph.inserting_before(node):
        smooth = call(node.graph, aten.softplus.default, x, beta)
        result = call(node.graph, aten.where.self, call(node.graph, aten.gt.Scalar, x, threshold / beta), x, smooth)
    take_place(result, node)


def _first_name(op: torch._ops.OpOverload) -> torch._ops.OpOverload:
    name = op._opname.removesuffix("_")
    if op.namespace != "aten" or name not in _ALIASES:
        return op
    found: torch._ops.OpOverload = getattr(getattr(torch.ops.aten, op._opname.replace(name, _ALIASES[name])), op._overloadname)
    return found
