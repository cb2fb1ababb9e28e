"""The layers of a program that cost time and can be timed alone: convolutions, linear layers and fused attention."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import SymInt, Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgepress.compress.prune.axes import Dim, axes_of
from edgepress.compress.prune.flow import call_of
from edgepress.compress.prune.structure import Structure
from edgepress.compress.quantize.graph import is_float, op_name, value_of

ATTENTION = "attention"
#: Op -> (argument of the input, of the weight, the weight's dimension that reads channels, the one that makes them).
_PRODUCTS = {
    **{f"conv{n}d": ("input", "weight", 1, 0) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": ("input", "weight", 0, 1) for n in (1, 2, 3)},
    "linear": ("input", "weight", 1, 0),
    "matmul": ("self", "other", 0, 1),
    "mm": ("self", "mat2", 0, 1),
    "addmm": ("mat1", "mat2", 0, 1),
}
_CONV_ARGUMENTS = ("stride", "padding", "output_padding", "dilation", "groups")


@dataclass(frozen=True)
class Configuration:
    """Everything a layer's time depends on; layers of one configuration are timed once.

    Attributes:
        op: `conv2d`, `conv_transpose1d`, ..., `linear` or `attention`.
        widths: of its (reading, making) side as the program has them: the sizes of the weight's dimensions, so that with groups one of
            them counts within a group; for attention (head dimension, heads).
        free: which of the two sides pruning can make narrower.
        input: shape of the input at the batch it is timed with, dimension 0 the batch; queries for attention.
        arguments: what else the call says; `kernel` holds the weight's further dimensions.
    """

    op: str
    widths: tuple[int, int]
    free: tuple[bool, bool]
    input: tuple[int, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """One line that tells configurations apart and that people can read."""
        sides = "+".join(side for side, free in zip(("in", "out"), self.free, strict=True) if free) or "none"
        shape = "x".join(map(str, self.input))
        return f"{self.op} {self.widths[0]}->{self.widths[1]} on {shape} free {sides} {json.dumps(self.arguments, sort_keys=True)}"

    @property
    def weight_size(self) -> int:
        """Numbers in the weight; 0 for attention."""
        return 0 if self.op == ATTENTION else math.prod((*self.widths, *self.arguments.get("kernel", ())))

    def step(self, side: int, multiple: int) -> int:
        """What a side's widths are multiples of: what its groups allow, and of it what the kernels like where that leaves a choice.

        Args:
            side: 0 reading, 1 making.
            multiple: of channels; heads are counted one by one.
        """
        if self.op == ATTENTION and side == 1:
            return max(1, self.widths[1] // int(self.arguments["key_heads"]))
        across = 0 if "transpose" in self.op else 1
        step = self.widths[side] // int(self.arguments.get("groups", 1)) if side == across and self.arguments.get("groups", 1) > 1 else 1
        both = math.lcm(step, multiple)
        return both if both < self.widths[side] else step


@dataclass(frozen=True)
class HeavyLayer:
    """One call of such a layer in a program.

    Attributes:
        name: the weight's name, which removing channels does not change; `#1`, `#2`, ... for further calls with the same weight.
            Attention has no weight and is `attention`, `attention#1`, ... in the order of the graph.
        node: name of the node.
        configuration: what its time depends on.
        reads: dimensions whose mean size is the width it reads: one, or the head dimensions of queries and of values.
        makes: the dimension whose size is the width it makes.
    """

    name: str
    node: str
    configuration: Configuration
    reads: tuple[Dim, ...]
    makes: Dim


def heavy_layers(program: ExportedProgram, structure: Structure, batch: int = 1) -> tuple[HeavyLayer, ...]:
    """The layers of a program that can be timed alone, in the order of the graph.

    Layers whose weight is computed, recurrent layers, and products of two activations outside fused attention are not among them.

    Args:
        program: float.
        structure: `analyse(program)`.
        batch: samples per call, for the shapes.
    """
    found: list[HeavyLayer] = []
    calls: dict[str, int] = {}
    for node in program.graph.nodes:
        layer = _layer(node, structure, batch)
        if layer is not None:
            calls[layer.name] = calls.get(layer.name, -1) + 1
            again = f"#{calls[layer.name]}" if calls[layer.name] else ""
            found.append(replace(layer, name=layer.name + again))
    return tuple(found)


def _layer(node: Node, structure: Structure, batch: int) -> HeavyLayer | None:
    op = op_name(node) if node.op == "call_function" and is_float(node) else ""
    if op == "scaled_dot_product_attention":
        call = call_of(node)
        ranks = {len(structure.flow.of(call[name])) for name in ("query", "key", "value")}
        return _attention(node, call, structure, batch) if ranks == {4} else None
    if op in _PRODUCTS:
        call = call_of(node)
        source, weight = call[_PRODUCTS[op][0]], call[_PRODUCTS[op][1]]
        if isinstance(weight, Node) and weight.name in structure.tensors.names and _can_stand_alone(op, source, weight):
            return _product(node, call, structure, batch)
    return None


def _can_stand_alone(op: str, source: Node, weight: Node) -> bool:
    ranks = len(value_of(source).shape), len(value_of(weight).shape)
    return ranks[0] == ranks[1] if op.startswith("conv") else ranks[0] >= 2 and ranks[1] == 2


def _product(node: Node, call: Mapping[str, Any], structure: Structure, batch: int) -> HeavyLayer:
    source, weight, reading, making = _PRODUCTS[op_name(node)]
    shape = [int(size) for size in value_of(call[weight]).shape]
    arguments: dict[str, Any] = {}
    if op_name(node).startswith("conv"):
        arguments = {key: _plain(call[key]) for key in _CONV_ARGUMENTS if key in call} | {"kernel": shape[2:]}
    dims = structure.flow.of(call[weight])
    configuration = Configuration(
        op_name(node) if arguments else "linear",
        (shape[reading], shape[making]),
        (_is_free(structure, dims[reading]), _is_free(structure, dims[making])),
        shape_at(value_of(call[source]), batch),
        arguments,
    )
    return HeavyLayer(structure.tensors.names[call[weight].name], node.name, configuration, (dims[reading],), dims[making])


def _attention(node: Node, call: Mapping[str, Any], structure: Structure, batch: int) -> HeavyLayer:
    query, key, value = (shape_at(value_of(call[each]), batch) for each in ("query", "key", "value"))
    mask = call["attn_mask"]
    arguments = {
        "keys": key[2],
        "key_heads": key[1],
        "value_width": value[3],
        "causal": bool(call["is_causal"]),
        "mask": str(value_of(mask).dtype).removeprefix("torch.") if isinstance(mask, Node) else None,
    }
    reads = structure.flow.of(call["query"])[-1], structure.flow.of(call["value"])[-1]
    makes = structure.flow.of(node)[1]
    free = any(_is_free(structure, dim) for dim in reads), _is_free(structure, makes)
    return HeavyLayer(ATTENTION, node.name, Configuration(ATTENTION, (query[3], query[1]), free, query, arguments), reads, makes)


def _is_free(structure: Structure, dim: Dim) -> bool:
    return any(structure.solution.codes(axis) is not None for axis in axes_of([dim]))


def _plain(value: Any) -> Any:
    """Numbers and lists of them, as JSON has them."""
    return value if isinstance(value, (str, int)) else [int(v) for v in value]


def shape_at(value: Tensor, batch: int) -> tuple[int, ...]:
    """A recorded shape with the batch, the only symbol there is, set to a number."""
    return tuple(
        int(size.node.expr.subs(dict.fromkeys(size.node.expr.free_symbols, batch))) if isinstance(size, SymInt) else size
        for size in value.shape
    )
