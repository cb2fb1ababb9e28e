"""Weights in 4 bits, group by group: round to nearest, GPTQ or AWQ; activations and arithmetic stay float."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgepress.compress.program import export_like, load_program
from edgepress.compress.quantize.embeddings import lookups, store_in_integers
from edgepress.compress.quantize.int4_awq import scale_inputs
from edgepress.compress.quantize.int4_gptq import gptq
from edgepress.compress.quantize.int4_grid import search_grid
from edgepress.compress.quantize.int4_layers import Layer, find_layers, float_reason
from edgepress.compress.quantize.int4_moments import Batches, second_moments
from edgepress.compress.quantize.int4_op import OP, Int4Weight, int4_layers, replace_layer
from edgepress.compress.quantize.prepare import finish, float_module
from edgepress.compress.quantize.reasons import summary
from edgepress.compress.quantize.render import Rendered
from edgepress.compress.quantize.unpacked import readers, store_weights
from edgepress.targets.errors import QuantizationError
from edgepress.targets.progress import track
from edgepress.targets.rules import INT4_GROUPS, INT4_METHODS, Int4Rules, QuantRules

Rounded = tuple[Layer, Int4Weight]
Moments = Iterable[tuple[Node, Tensor]]


@dataclass(frozen=True)
class Int4Options:
    """How to round.

    Attributes:
        rules: the groups and the symmetry a runtime's kernel takes.
        method: one of `INT4_METHODS`.
        group: consecutive inputs that share a scale, one of `INT4_GROUPS`.
        act_order: see `gptq`.

    Raises:
        QuantizationError: an unknown method or group.
    """

    rules: Int4Rules
    method: str = "gptq"
    group: int = 32
    act_order: bool = True

    def __post_init__(self) -> None:
        if self.method not in INT4_METHODS:
            raise QuantizationError(
                f"unknown method {self.method!r} of rounding to 4 bits", remedy=f"Use one of {', '.join(INT4_METHODS)}."
            )
        if self.group not in INT4_GROUPS:
            raise QuantizationError(f"groups of {self.group} are not known", remedy=f"Use one of {', '.join(map(str, INT4_GROUPS))}.")


@dataclass(frozen=True)
class Int4Result:
    """A model with 4-bit weights.

    Attributes:
        program: takes and returns what the float program does; its 4-bit layers are `edgepress::int4_linear` ops.
        groups: layer -> inputs per scale; differs from what was asked for where that does not divide the row.
    """

    program: ExportedProgram
    groups: dict[str, int]


def quantize_int4(program: ExportedProgram, options: Int4Options, batches: Batches | None = None) -> Int4Result:
    """Give every linear layer, and every matrix product with a constant, 4-bit weights.

    GPTQ and AWQ take second moments of what the float model's layers read, in as few passes as memory allows (`second_moments`).

    Args:
        program: float, eval mode.
        options: see `Int4Options`.
        batches: makes calibration batches, tuples of positional inputs; needed by `gptq` and `awq`.

    Raises:
        QuantizationError: no such layer, no calibration samples, or values that are not finite.
    """
    module = float_module(program)
    layers = find_layers(module, options.rules, options.group)
    if not layers:
        raise QuantizationError(
            "the model has nothing to store in 4 bits",
            "it has no linear layer or matrix product with a constant weight whose inputs divide into groups",
            "Ask for precision int8-weights.",
        )
    if options.method != "rtn" and batches is None:
        raise QuantizationError(f"method {options.method!r} needs calibration samples", "", "Give some, or use method: rtn.")
    groups = {layer.name: layer.group for layer in layers}
    for layer, weight in _rounded(module, layers, options, batches):
        replace_layer(module, layer.node, weight, layer.bias)
    return Int4Result(export_like(finish(module), program), groups)


def _rounded(module: GraphModule, layers: list[Layer], options: Int4Options, batches: Batches | None) -> list[Rounded]:
    symmetric = options.rules.symmetric
    if options.method == "rtn" or batches is None:
        return [(layer, search_grid(layer.weight, layer.group, symmetric).rounded(layer.weight)) for layer in layers]
    readers: dict[Node, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.source, []).append(layer)
    moments = track(second_moments(module, list(readers), batches), f"rounding by {options.method}")
    return (_by_gptq if options.method == "gptq" else _by_awq)(module, readers, moments, options)


def _by_gptq(module: GraphModule, readers: Mapping[Node, list[Layer]], moments: Moments, options: Int4Options) -> list[Rounded]:
    found = []
    for source, matrix in moments:
        for layer in readers[source]:
            grid = search_grid(layer.weight, layer.group, options.rules.symmetric, matrix.diagonal())
            found.append((layer, gptq(layer.weight, matrix, grid, options.act_order)))
    return found


def _by_awq(module: GraphModule, readers: Mapping[Node, list[Layer]], moments: Moments, options: Int4Options) -> list[Rounded]:
    """The scales go into the graph's own weights first; then all are rounded, their ranges clipped by what outputs lose (section 4.1)."""
    symmetric = options.rules.symmetric
    squares: dict[Node, Tensor] = {}
    for source, matrix in moments:
        now = scale_inputs(module, source, readers[source], matrix, symmetric)
        squares.update((layer.node, now) for layer in readers[source])
    layers = find_layers(module, options.rules, options.group)
    grids = [search_grid(layer.weight, layer.group, symmetric, squares[layer.node]) for layer in layers]
    return [(layer, grid.rounded(layer.weight)) for layer, grid in zip(layers, grids, strict=True)]


def render_int4(path: Path, rules: QuantRules) -> Rendered:
    """A saved program that `quantize_int4` made, ready for an exporter, tables and other large weights in int8, and what stays float.

    Raises:
        QuantizationError: it has no 4-bit layer.
    """
    module = float_module(load_program(path))
    if next(int4_layers(module), None) is None:
        raise QuantizationError("the program has no 4-bit weights", "it was not quantized", "Call quantize_int4 first.")
    groups = rules.int4.groups if rules.int4 else INT4_GROUPS
    tables = lookups(module, rules)
    nodes = [node for node in module.graph.nodes if node.op == "call_function" and node.target is not OP and node not in tables]
    stored = readers(module) if rules.unpacks else []
    lines = summary({node: float_reason(module, node, groups) for node in nodes})
    store_in_integers(module, tables)
    store_weights(module, {node.name for node in stored}, rules.fold_weights)
    return Rendered(module, lines)
