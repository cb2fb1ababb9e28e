"""Numbers that half precision does not have, in programs for Core ML: what hides is brought within it, factors stay as they are.

coremltools leaves an operator with a constant beyond half precision in single precision, where its result is what the model means:
`x * 1e-4 * 1e5`. A mask that it leaves there becomes -inf behind it, and numbers from 1e38 on it takes for infinite: NaN where nothing is
to be hidden, and in rows in which everything is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgepress.compress.quantize.graph import SAME_VALUES, op_name

#: The largest number of half precision, and what hides in place of larger ones: it also does where two masks are added.
_HALF, _HIDES = float(torch.finfo(torch.float16).max), 32752.0
#: From here on a number is infinite to coremltools.
_INFINITE = 1e38

_MOVES = SAME_VALUES | frozenset({"cat", "embedding", "gather", "index", "index_select", "narrow", "select", "slice", "stack"})
#: Operators whose numbers become values beside others, or are added to them.
_HIDING = _MOVES | frozenset(
    """add constant_pad_nd fill fmax fmin full full_like index_fill index_put masked_fill masked_scatter maximum minimum nan_to_num new_full
    pad rsub scalar_tensor scaled_dot_product_attention scatter sub threshold to _to_copy tril triu where""".split()  # noqa: SIM905
)
#: Operators that make whole numbers of whole numbers.
_KEEP_WHOLE = (_MOVES - {"embedding"}) | frozenset(
    """abs add arange clamp constant_pad_nd full full_like lift_fresh_copy masked_fill maximum minimum mul neg new_full new_ones new_zeros
    ones ones_like pad rsub sub to _to_copy tril triu where zeros zeros_like""".split()  # noqa: SIM905
)


def within_half(program: ExportedProgram) -> ExportedProgram:
    """Bring numbers that hide within half precision; in place.

    Masks are made of such: `(1 - mask) * torch.finfo(torch.float32).min` is -inf times zero there, where nothing is to be hidden. A factor
    of whole numbers hides too: times a number beyond half precision they are zero or beyond it.
    """
    held = _Held(program)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if not (isinstance(node.target, torch._ops.OpOverload) and isinstance(value, torch.Tensor) and value.is_floating_point()):
            continue
        numbers = [isinstance(argument.type, torch.NumberType) for argument in node.target._schema.arguments]
        whole = [float(v) if type(v) is int and number else v for v, number in zip(node.args, numbers, strict=False)]
        changed = tuple(_within(v) if isinstance(v, float) and _hides(node, v, held) else v for v in whole)
        if any(a is not b for a, b in zip(changed, whole, strict=True)):
            node.args = changed
    for node, tensor in held.tensors.items():
        if not tensor.is_floating_point():
            continue
        beyond = (tensor.abs() > _HALF) & tensor.isfinite()
        if beyond.any() and all(_hides(user, math.inf, held) for user in node.users):
            held.replace(node, torch.where(beyond, tensor.sign() * _HIDES, tensor).detach())
    return program


class _Held:
    """The tensors of a program by the nodes that stand for them."""

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self._names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
        self._stores: tuple[dict[str, Any], ...] = (program.state_dict, program.constants)
        found = ((node, self._store(node).get(self._names.get(node.name, ""))) for node in program.graph.nodes if node.op == "placeholder")
        self.tensors = {node: value for node, value in found if isinstance(value, torch.Tensor)}

    def _store(self, node: Node) -> dict[str, Any]:
        return next((store for store in self._stores if self._names.get(node.name) in store), {})

    def replace(self, node: Node, tensor: torch.Tensor) -> None:
        self._store(node)[self._names[node.name]] = self.tensors[node] = tensor


def _within(value: float) -> float:
    return math.copysign(_HIDES, value) if _HALF < abs(value) < math.inf else value


def _hides(node: Node, number: float, held: _Held) -> bool:
    """Does an operator take a number, or a tensor with such, to hide something, not to compute with it?"""
    if op_name(node) == "mul":
        return _INFINITE <= abs(number) < math.inf or any(_whole(item, held) for item in node.all_input_nodes if item not in held.tensors)
    return op_name(node) in _HIDING


def _whole(node: Node, held: _Held) -> bool:
    """Are these whole numbers, or what an input leaves of one, as a mask does?"""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return True
    if node in held.tensors:
        return bool((held.tensors[node] == held.tensors[node].round()).all())
    if op_name(node) == "rsub" and _moved(node.args[0]).op == "placeholder":
        return True
    if op_name(node) not in _KEEP_WHOLE or any(isinstance(v, float) and not v.is_integer() for v in node.args):
        return False
    return all(_whole(item, held) for item in node.all_input_nodes)


def _moved(node: Node) -> Node:
    """The tensor whose values a node holds."""
    while op_name(node) in _MOVES or op_name(node) in ("to", "_to_copy"):
        node = node.all_input_nodes[0]
    return node
