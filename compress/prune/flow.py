"""What the rules work with: the labels of every tensor of a graph while they are being propagated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from edgepress.compress.prune.axes import Dim, Dims, Space, opaque
from edgepress.compress.prune.kept import Kept
from edgepress.compress.quantize.graph import layer_of, op_name, value_of

#: What a change of a call gets: what is kept, and the call's arguments by name. It returns the arguments that change.
Change = Callable[[Kept, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Edit:
    """How the arguments of one node change when units are removed; `target` replaces its operator."""

    node: str
    change: Change
    target: Any = None


@dataclass(frozen=True)
class Pinned:
    """Indices that are never removed because an operator does not allow it.

    Attributes:
        op: the operator, e.g. "layer_norm".
        layer: dotted path of the layer that calls it.
        reason: why, in words.
        count: how many independent indices it pinned.
    """

    op: str
    layer: str
    reason: str
    count: int


@dataclass(frozen=True)
class Tensors:
    """The tensors that a program holds.

    Attributes:
        names: placeholder name -> name of the parameter, buffer or constant.
        same: placeholder name -> the first placeholder that is the same tensor (tied weights have several).
        parameters: the first placeholder of every parameter.
    """

    names: Mapping[str, str]
    same: Mapping[str, str]
    parameters: tuple[str, ...]

    @classmethod
    def of(cls, program: ExportedProgram) -> Tensors:
        """The tensors of a program, in the order of its signature."""
        specs = [s for s in program.graph_signature.input_specs if isinstance(held(program, s.target), Tensor)]
        first: dict[Any, str] = {}
        same = {s.arg.name: first.setdefault(_identity(held(program, s.target)), s.arg.name) for s in specs}
        parameters = tuple(s.arg.name for s in specs if s.kind == InputKind.PARAMETER and same[s.arg.name] == s.arg.name)
        return cls({s.arg.name: str(s.target) for s in specs}, same, parameters)


def _identity(tensor: Tensor) -> Any:
    """Equal for tensors that are the same elements of one memory."""
    pointer = tensor.untyped_storage().data_ptr() or id(tensor)
    return pointer, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def held(program: ExportedProgram, name: str | None) -> Any:
    """What a program holds under this name: a parameter, a buffer (persistent or not) or a constant."""
    return program.state_dict.get(name, program.constants.get(name))


class Sizes:
    """Sizes as numbers: every symbol (the batch, a dynamic length) stands for a large prime of its own, so that it divides nothing else."""

    _FIRST = 10007

    def __init__(self) -> None:
        self.symbols: dict[Any, int] = {}
        self._known: dict[Any, int] = {}

    def __call__(self, size: Any) -> int:
        """An int of an int, a SymInt, or a node that computes one."""
        if isinstance(size, Node):
            size = value_of(size)
        if not isinstance(size, SymInt):
            return int(size)
        expression = size.node.expr
        if expression not in self._known:
            for symbol in sorted(expression.free_symbols, key=str):
                self.symbols.setdefault(symbol, _prime(max(self.symbols.values(), default=self._FIRST - 2) + 2))
            self._known[expression] = int(expression.subs(self.symbols))
        return self._known[expression]

    def static(self, count: int) -> int:
        """A product of sizes with every symbol set to 1."""
        for prime in self.symbols.values():
            while count and count % prime == 0:
                count //= prime
        return count


def _prime(start: int) -> int:
    while any(start % d == 0 for d in range(3, int(start**0.5) + 1, 2)):
        start += 2
    return start


@dataclass
class Flow:
    """The labels of every tensor so far, and what the rules record on the way.

    Attributes:
        dims: node name -> the dimensions of its tensor (a list of them where it returns several).
        edits: how calls change when units are removed.
        revalued: placeholder name -> function (kept, tensor) -> tensor, for constants that hold indices.
        roles: (placeholder name, dim) -> what the dimension is to its reader: "out" | "in" | "norm" | "bias".
        marks: dimensions known to be "heads", "head_dims", "groups" or "group_channels".
        costs: (node name, dimensions whose product is multiply-accumulates of the node).
        pinned: what was pinned, and why.
    """

    space: Space = field(default_factory=Space)
    sizes: Sizes = field(default_factory=Sizes)
    dims: dict[str, Any] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    revalued: dict[str, Callable[[Kept, Tensor], Tensor]] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    roles: dict[tuple[str, int], str] = field(default_factory=dict)
    marks: list[tuple[Dim, str]] = field(default_factory=list)
    costs: list[tuple[str, Sequence[Dim]]] = field(default_factory=list)
    pinned: list[Pinned] = field(default_factory=list)

    def of(self, argument: Any) -> Dims:
        """The dimensions of a tensor argument; a Python number has none."""
        return self.dims.get(argument.name, ()) if isinstance(argument, Node) else ()

    def shape(self, argument: Any, item: int | None = None) -> tuple[int, ...]:
        """The shape of a node's tensor (or of its item-th), in numbers."""
        value = value_of(argument) if isinstance(argument, Node) else argument
        value = value if item is None else value[item]
        return tuple(self.sizes(s) for s in value.shape) if isinstance(value, Tensor) else ()

    def pin(self, node: Node, dims: Iterable[Dim], reason: str) -> None:
        """Never remove an index of these dimensions, because of this node."""
        before = self.space.labels.pins
        for dim in dims:
            self.space.pin(dim)
        count = self.space.labels.pins - before
        if count:
            self.pinned.append(Pinned(op_name(node), layer_of(node), reason, count))

    def pinned_like(self, node: Node) -> Any:
        """The pinned dimensions of a node's result."""
        value = value_of(node)
        if isinstance(value, (list, tuple)):
            return [tuple(opaque(s) for s in self.shape(node, i)) for i in range(len(value))]
        return tuple(opaque(s) for s in self.shape(node))

    def broadcast(self, operands: Sequence[Dims]) -> Dims:
        """Align dimensions from the right and unify them; a size of 1 takes the others' indices."""
        rank = max((len(dims) for dims in operands), default=0)
        result: list[Dim] = []
        for position in range(-rank, 0):
            merged: Dim = ()
            for dims in operands:
                dim = dims[position] if -position <= len(dims) else ()
                merged = self.space.unify(merged, dim) if merged and dim else merged or dim
            result.append(merged)
        return tuple(result)

    def group(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """See `Space.group`."""
        return self.space.group(dim, sizes)

    def change(self, node: Node, change: Change, target: Any = None) -> None:
        """Record how a call's arguments change when units are removed."""
        self.edits.append(Edit(node.name, change, target))

    def parameter(self, argument: Any) -> tuple[str, list[int]] | None:
        """(the placeholder that an argument is but for transposes, which of its dimensions each dimension is); None for an activation."""
        order = list(range(len(self.of(argument))))
        while isinstance(argument, Node) and op_name(argument) in ("t", "transpose", "permute", "numpy_T"):
            order = _permuted(argument, order)
            argument = argument.args[0]
        return (argument.name, order) if isinstance(argument, Node) and argument.op == "placeholder" else None

    def role(self, argument: Any, roles: Sequence[str]) -> None:
        """Say what the dimensions of a parameter are to its reader, from the first one on."""
        name, order = self.parameter(argument) or ("", [])
        for dim, role in zip(order, roles, strict=False):
            self.roles.setdefault((name, dim), role)

    def mark(self, dim: Dim, kind: str) -> None:
        """Say what the indices of a dimension are."""
        self.marks.append((dim, kind))

    def cost(self, node: Node, dims: Sequence[Dim]) -> None:
        """The product of these dimensions adds to the node's multiply-accumulates."""
        self.costs.append((node.name, dims))

    def constant(self, argument: Any) -> tuple[str, Tensor] | None:
        """The placeholder and value of a constant that only this argument's chain of copies reads; None for anything else."""
        while isinstance(argument, Node) and len(argument.users) == 1:
            if argument.op == "placeholder":
                value = self.constants.get(argument.name)
                return None if value is None else (argument.name, value)
            if op_name(argument) not in ("lift_fresh_copy", "detach", "alias", "clone", "to", "contiguous", "detach_"):
                return None
            argument = argument.args[0]
        return None


def _permuted(node: Node, order: list[int]) -> list[int]:
    """Which dimension of the permuted tensor each of `order` is in the tensor before."""
    rank = len(order)
    source = list(range(rank))
    if op_name(node) == "permute":
        source = [int(d) % rank for d in node.args[1]]
    elif op_name(node) == "transpose":
        one, other = (int(d) % rank for d in node.args[1:3])
        source[one], source[other] = source[other], source[one]
    else:
        source.reverse()
    return [source[d] for d in order]


def call_of(node: Node) -> dict[str, Any]:
    """The arguments of a call by their names in the operator's schema, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return dict(node.kwargs)
    schema = node.target._schema.arguments
    values = {a.name: a.default_value for a in schema}
    return values | {a.name: v for a, v in zip(schema, node.args, strict=False)} | dict(node.kwargs)
