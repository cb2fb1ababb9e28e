"""A writer of real nodes in the place of complex ones, op by op; `complex_numbers.py` has the rules."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate, map_arg

from edgepress.compress.quantize.graph import FLOAT, PIECES, SAME_VALUES, constant, new_constant, op_name, value_of

aten = torch.ops.aten
#: Ops that do the same to both parts, of as many complex tensors as they take.
_LINEAR = (
    SAME_VALUES
    | PIECES
    | {"cat", "constant_pad_nd", "gather", "index", "index_select", "mean", "narrow", "neg"}
    | {"select", "select_scatter", "slice", "slice_scatter", "stack", "sum"}
)
#: Ops that make a tensor of one number.
_MAKERS = frozenset({"full", "full_like", "new_full", "new_ones", "new_zeros", "ones", "ones_like", "zeros", "zeros_like"})
#: How the names of the constants of Fourier transforms begin.
CONSTANTS = "fourier_constant"
#: Why transforms are not quantized.
TRANSFORM = "a Fourier transform: many of its results are small beside the largest, and 8 bits round them away"
#: Ops that multiply one operand by the other.
_PRODUCTS = frozenset({"bmm", "einsum", "matmul", "mm", "mul"})


class UnknownError(Exception):
    """A complex op that has no rule here."""


@dataclass(frozen=True)
class Pair:
    """A complex tensor or number. A part that is zero is None; not both are."""

    real: Any
    imaginary: Any


def has_complex(module: GraphModule) -> bool:
    """Does any node of a graph give complex numbers, or take the spectrum of a sound?"""
    return any(node.users and (_is_complex(node) or op_name(node) == "stft") for node in module.graph.nodes)


class Writer:
    """Adds real nodes beside the complex ones of a graph.

    Attributes:
        pairs: complex node -> its parts; node with several complex results -> a pair of nodes with as many.
        real: node that computed a real tensor from complex ones -> the node that does now.
        matrices: constants of transforms, and their nodes.
        origin: the node that is being written.
    """

    def __init__(self, module: GraphModule, rules: Mapping[str, Callable[..., Any]]) -> None:
        self.module, self.graph, self._rules = module, module.graph, rules
        self.pairs: dict[Node, Pair] = {}
        self.real: dict[Node, Any] = {}
        self.matrices: list[tuple[Tensor, Node]] = []
        self.origin: Node
        self._like = next(node for node in self.graph.nodes if hasattr(value_of(node), "fake_mode"))

    def write(self, node: Node) -> None:
        """Write one node's result with real tensors, if it or what it reads is complex.

        Raises:
            UnknownError: it has no rule.
        """
        reads = any(item in self.pairs for item in node.all_input_nodes)
        if not (reads or _is_complex(node) or op_name(node) == "stft"):
            return
        self.origin = node
        with self.graph.inserting_before(node):
            if node.op == "get_attr":
                tensor = constant(self.module, node)
                assert tensor is not None, "a complex get_attr holds a tensor"
                parts = (tensor.detach().real.contiguous(), tensor.detach().imag.contiguous())
                made = [new_constant(self.module, f"{node.name}_{index}", part, self._like) for index, part in enumerate(parts)]
                self.pairs[node] = Pair(*made)
            elif node.op != "call_function":
                raise UnknownError
            else:
                args, kwargs = self._operands((node.args, node.kwargs))
                self._keep(node, self._result(node, args, kwargs))

    def _result(self, node: Node, args: Any, kwargs: Mapping[str, Any]) -> Any:
        name = op_name(node)
        rule = self._rules.get(name)
        if rule is not None:
            return rule(self, *args, **kwargs)
        if name in _PRODUCTS:
            return self.product(node.target, args, kwargs)
        if name in ("add", "sub") and not kwargs:
            return self.sum(node.target, *map(pair_of, args))
        if node.target is operator.getitem or name in _LINEAR:
            return self._both(node.target, args, kwargs)
        if name in _MAKERS and not any(isinstance(item, complex) for item in args):
            return Pair(self.call(node.target, *args, **{**kwargs, "dtype": torch.float32}), None)
        return self._expanded(node)

    def _keep(self, node: Node, result: Any) -> None:
        if isinstance(result, Pair) and not _is_complex(node):  # the old form of `stft`
            result = self._rules["view_as_real"](self, result)
        if isinstance(result, Pair):
            self.pairs[node] = result
        else:
            self.real[node] = result

    def _operands(self, arguments: Any) -> Any:
        def operand(item: Any) -> Any:
            if isinstance(item, complex):
                return Pair(item.real or None, item.imag or None)
            return self.pairs.get(item, item) if isinstance(item, Node) else item

        return map_aggregate(arguments, operand)

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """A node with its value, before the one that it stands for.

        Raises:
            UnknownError: it takes no such arguments.
        """
        made = self.graph.create_node("call_function", target, args, kwargs, name=f"{self.origin.name}_part")
        made.meta = {key: item for key, item in self.origin.meta.items() if key in ("nn_module_stack", "stack_trace", "from_node")}
        fakes, named = map_arg((args, kwargs), value_of)
        try:
            with value_of(self._like).fake_mode, enable_python_dispatcher():
                made.meta["val"] = target(*fakes, **named)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UnknownError from error
        return made

    def _both(self, target: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Pair:
        """The op on the real parts, and on the imaginary ones."""
        operands = [item for item in _flat((args, kwargs)) if isinstance(item, Pair) or _is_float(item)]
        if not all(isinstance(item, Pair) for item in operands):
            raise UnknownError
        parts: list[Any] = []
        for side, filled in (("real", self.real_of), ("imaginary", self.imaginary_of)):
            if all(getattr(item, side) is None for item in operands):
                parts.append(None)
                continue
            chosen = map_aggregate((args, kwargs), lambda item, filled=filled: filled(item) if isinstance(item, Pair) else item)
            parts.append(self.call(target, *chosen[0], **chosen[1]))
        return Pair(*parts)

    def product(self, target: Callable[..., Any], args: Any, kwargs: Mapping[str, Any] = MappingProxyType({})) -> Pair:
        """(a + ib)(c + id) = ac - bd + i(ad + bc)."""
        listed = isinstance(args[-1], list | tuple)  # einsum's operands
        operands = list(args[-1] if listed else args)
        if len(operands) != 2:
            raise UnknownError
        left, right = map(pair_of, operands)

        def times(a: Any, b: Any) -> Any:
            if a is None or b is None:
                return None
            a, b = (b, a) if isinstance(a, int | float) else (a, b)
            return self.call(target, *args[:-1], [a, b], **kwargs) if listed else self.call(target, a, b, **kwargs)

        real = self._sum(aten.sub.Tensor, times(left.real, right.real), times(left.imaginary, right.imaginary))
        return Pair(real, self._sum(aten.add.Tensor, times(left.real, right.imaginary), times(left.imaginary, right.real)))

    def sum(self, target: Callable[..., Any], left: Pair, right: Pair) -> Pair:
        """Sum or difference of the parts."""
        parts = [self._sum(target, left.real, right.real), self._sum(target, left.imaginary, right.imaginary)]
        wanted = str(value_of(self.origin).shape)
        if any(isinstance(part, Node) and str(value_of(part).shape) != wanted for part in parts):
            raise UnknownError  # one that is alone is not spread over the other operand
        return Pair(*parts)

    def _sum(self, target: Callable[..., Any], left: Any, right: Any) -> Any:
        if right is None:
            return left
        if target is aten.sub.Tensor and not isinstance(left, Node):
            target, right = aten.add.Tensor, self.call(aten.neg.default, right)
        if left is None:
            return right
        return self.call(target, *((left, right) if isinstance(left, Node) else (right, left)))

    def real_of(self, x: Pair) -> Any:
        """The real part, zeros written out."""
        return self.call(aten.zeros_like.default, x.imaginary) if x.real is None else x.real

    def imaginary_of(self, x: Pair) -> Any:
        """The imaginary part, zeros written out."""
        return self.call(aten.zeros_like.default, x.real) if x.imaginary is None else x.imaginary

    def _expanded(self, node: Node) -> Any:
        """What torch computes an op by, written with real tensors."""
        if not isinstance(node.target, torch._ops.OpOverload) or not node.target.has_kernel_for_dispatch_key(
            torch._C.DispatchKey.CompositeImplicitAutograd
        ):
            raise UnknownError
        inputs = node.all_input_nodes

        def run(*values: Any) -> Any:
            given = dict(zip(inputs, values, strict=True))
            args, kwargs = map_arg((node.args, node.kwargs), given.__getitem__)
            return node.target(*args, **kwargs)

        with value_of(self._like).fake_mode, enable_python_dispatcher():
            inner = make_fx(run)(*(value_of(item) for item in inputs))
        made: dict[Node, Node] = {}
        places = iter(inputs)
        for each in inner.graph.nodes:
            if each.op == "placeholder":
                made[each] = next(places)
            elif each.op == "output":
                (result,) = each.all_input_nodes
                found = made[result]
            elif each.op == "call_function":
                made[each] = self.graph.node_copy(each, made.__getitem__)
                if made[each].target in (aten.view.default, aten._unsafe_view.default):  # strides of the parts differ
                    made[each].target = aten.reshape.default
                self.write(made[each])
                self.origin = node
            else:
                raise UnknownError
        return self.pairs.get(found, self.real.get(found, found))

    def matrix(self, tensor: Tensor) -> Node:
        """A constant of transforms, the same node for all that need it."""
        found = next((node for held, node in self.matrices if held.shape == tensor.shape and torch.equal(held, tensor)), None)
        if found is None:
            found = new_constant(self.module, f"{CONSTANTS}_{len(self.matrices)}", tensor, self._like)
            self.matrices.append((tensor, found))
        return found

    def fourier(self, target: Callable[..., Any], *args: Any) -> Node:
        """A product or a convolution with such a constant."""
        made = self.call(target, *args)
        made.meta[FLOAT] = TRANSFORM
        return made

    def halves(self, x: Node, dim: int) -> Pair:
        """The first half of a dimension, real parts, and the second."""
        middle = value_of(x).shape[dim] // 2
        return Pair(*(self.call(aten.slice.Tensor, x, dim, *ends) for ends in ((0, middle), (middle, 2 * middle))))


def _is_complex(node: Node) -> bool:
    value = value_of(node)
    return any(isinstance(item, Tensor) and item.is_complex() for item in (value if isinstance(value, list | tuple) else (value,)))


def _is_float(item: Any) -> bool:
    value = value_of(item) if isinstance(item, Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()


def pair_of(item: Any) -> Pair:
    """A complex tensor or number, or a real one as such."""
    return item if isinstance(item, Pair) else Pair(item, None)


def _flat(arguments: Any) -> list[Any]:
    found: list[Any] = []
    map_aggregate(arguments, found.append)
    return found
