"""Matrix products: linear, matmul and einsum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from edgepress.compress.prune.axes import Dim, Dims, Misfit
from edgepress.compress.prune.flow import Flow, call_of
from edgepress.compress.prune.rules.registry import rule


def contract(flow: Flow, node: Node, operands: Sequence[Dims], subscripts: Sequence[str], result: str) -> Dims:
    """Unify the dimensions that share a letter (a size of 1 is broadcast), as in Einstein notation; records the multiply-accumulates.

    In a product of two activations, what both share and keep are heads, and the rest are features of a head.
    """
    dims: dict[str, Dim] = {}
    for operand, letters in zip(operands, subscripts, strict=True):
        if len(operand) != len(letters):
            raise Misfit(f"an operand of {len(operand)} dimensions stands for {letters!r}")
        for dim, letter in zip(operand, letters, strict=True):
            known = dims.get(letter, ())
            dims[letter] = flow.space.unify(known, dim) if known and dim else known or dim
    if len(operands) > 1:
        flow.cost(node, list(dims.values()))
    if len(operands) == 2 and not any(flow.parameter(source) for source in node.all_input_nodes):
        shared = sorted(set(subscripts[0]) & set(subscripts[1]))
        for letter in shared:
            flow.mark(dims[letter], "heads" if letter in result else "head_dims")
        for letter in sorted(set(subscripts[1]) - set(shared)) if any(letter in result for letter in shared) else ():
            flow.mark(dims[letter], "head_dims")
    return tuple(dims[letter] for letter in result)


def add_bias(flow: Flow, bias: Any, dim: Dim) -> None:
    """A bias loses what its channels lose."""
    if isinstance(bias, Node) and dim:
        flow.space.unify(dim, flow.of(bias)[-1])
        flow.role(bias, ["bias"])


@rule("linear")
def linear(flow: Flow, node: Node) -> Dims:
    """x (..., in), weight (out, in) or (in,), bias (out,)."""
    call = call_of(node)
    x, weight = flow.of(call["input"]), flow.of(call["weight"])
    flow.role(call["weight"], ["out", "in"] if len(weight) == 2 else ["in"])
    out = "o" if len(weight) == 2 else ""
    batch = "abdefghjk"[: len(x) - 1]
    result = contract(flow, node, [x, weight], [f"{batch}i", f"{out}i"], f"{batch}{out}")
    add_bias(flow, call["bias"], result[-1] if result else ())
    return result


@rule("matmul", "bmm", "mm", "mv", "dot", "baddbmm", "addmm", "addbmm", "addmv")
def matmul(flow: Flow, node: Node) -> Dims:
    """(..., n, k) @ (..., k, m)."""
    call = call_of(node)
    values = [value for value in call.values() if isinstance(value, Node)]
    one, other = values[-2:]
    first, second = flow.of(one), flow.of(other)
    rows = "n" if len(first) > 1 else ""
    columns = "m" if len(second) > 1 else ""
    batch = "abcdefgh"[: max(len(first), len(second)) - 2] if max(len(first), len(second)) > 2 else ""
    ours, theirs = (batch[max(0, len(batch) - len(dims) + 2) :] if len(dims) > 2 else "" for dims in (first, second))
    result = contract(flow, node, [first, second], [f"{ours}{rows}k", f"{theirs}k{columns}"], f"{batch}{rows}{columns}")
    flow.role(other, [*["other"] * (len(second) - 2), "in", "out"] if columns else ["in"])
    flow.role(one, [*["other"] * (len(first) - 2), "out", "in"] if rows else ["in"])
    if len(values) > 2:
        flow.role(values[0], ["bias"] * len(flow.of(values[0])))
        return flow.broadcast([flow.of(values[0]), result])
    return result


@rule("einsum")
def einsum(flow: Flow, node: Node) -> Dims:
    """Einstein notation with explicit or implied result and an optional ellipsis."""
    call = call_of(node)
    left, arrow, result = str(call["equation"]).replace(" ", "").partition("->")
    subscripts, operands = left.split(","), [flow.of(tensor) for tensor in call["tensors"]]
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        result = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    spare = "".join(c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in left)
    wide = max((len(dims) - len(s.replace("...", "")) for dims, s in zip(operands, subscripts, strict=True) if "..." in s), default=0)
    names = spare[:wide]
    full = []
    for tensor, dims, letters in zip(call["tensors"], operands, subscripts, strict=True):
        count = len(dims) - len(letters.replace("...", ""))
        full.append(letters.replace("...", names[wide - count :] if count else ""))
        flow.role(tensor, ["out" if c in result else "in" for c in full[-1]])
    return contract(flow, node, operands, full, result.replace("...", names))


@rule("outer", "ger")
def outer(flow: Flow, node: Node) -> Dims:
    """(n,) and (m,) to (n, m)."""
    return (*flow.of(node.args[0]), *flow.of(node.args[1]))
