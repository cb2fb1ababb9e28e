"""What each layer's integers cost: the error at the model's outputs when that layer alone computes in integers, in 8 bits or fewer.

Batch by batch: the float model runs once, then for every layer only what depends on it runs again. The errors of several layers add up
well enough to choose between them (Dong et al. 2020, "HAWQ-V2", section 3.2); what is chosen is then measured.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.arithmetic import Arithmetic
from edgepress.compress.quantize.batches import fitting, only_batch
from edgepress.compress.quantize.embeddings import Rows, fills_bytes, lookups
from edgepress.compress.quantize.graph import HEAVY, answers_of, constant, evaluate, kind_of, layer_of
from edgepress.compress.quantize.integer_gptq import gptq
from edgepress.compress.quantize.layerwise import refine
from edgepress.compress.quantize.living import LIMIT_BYTES, bytes_of
from edgepress.compress.quantize.macs import macs_of
from edgepress.compress.quantize.placement import Placement
from edgepress.compress.quantize.quantizer import OUTPUT_AXIS
from edgepress.compress.quantize.render import placed
from edgepress.compress.quantize.sharing import TensorParameters
from edgepress.compress.quantize.statistics import Statistics
from edgepress.compress.quantize.weight_grid import weight_grid
from edgepress.targets.errors import QuantizationError
from edgepress.targets.nouns import Scheme
from edgepress.targets.progress import progress
from edgepress.targets.rules import SMALLEST_NARROW, QuantRules

#: Noise to signal where the outputs are NaN or infinite: worse than anything finite that is worth telling apart.
WORST = 1e6
#: Share of zeros up to which a weight can do without them.
_ZEROS = 0.01
#: Kind of a layer that looks rows of a table up.
TABLE = "embedding"


@dataclass(frozen=True)
class Sensitivity:
    """One layer that a rendering computes in integers, or one table that it stores in them.

    Attributes:
        node: its name in the canonical graph, which `Scheme.float_layers` takes.
        layer: the module of the user's model that makes it.
        kind: `conv`, `conv_transpose`, `linear`, `matmul` or `embedding`.
        macs_share: its share (0..1) of the multiply-accumulates of all such layers.
        weights: elements of its weight; 0 for a product of two activations.
        channels: scales of its integer weight.
        noise: mean square of an output's error over that of the output, with this layer alone in integers; the mean of all outputs of the
            model, so that none counts more for being larger (`graph.answers_of` where they are integers).
        int4_noise: the same with a weight of 4 bits; None where that was not asked for, or it can have none.
        int2_noise: the same with one of 2.
    """

    node: str
    layer: str
    kind: str
    macs_share: float
    weights: int
    channels: int
    noise: float
    int4_noise: float | None = None
    int2_noise: float | None = None

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise at the model's outputs; infinite where the integers change nothing."""
        return math.inf if self.noise <= 0 else -10 * math.log10(self.noise)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


def sensitivities(
    program: torch.export.ExportedProgram,
    statistics: Statistics,
    rules: QuantRules,
    scheme: Scheme,
    batches: Iterable[Sequence[Any]],
    narrow: Collection[int] = (),
    calibration: Callable[[], Iterable[Sequence[Any]]] | None = None,
) -> list[Sensitivity]:
    """Measure every heavy layer of a rendering.

    Args:
        program: float, eval mode.
        statistics: of the same program.
        rules: of one runtime.
        scheme: kind `static` or `static-matmul`.
        batches: samples, tuples of positional inputs. As many at a time are run as keep every activation within `LIMIT_BYTES`.
        narrow: bits below 8 that weights are measured with too, 4 or 2; with any, tables that are stored in integers are measured.
        calibration: gives other samples each time, on which GPTQ chooses weights in `narrow` bits, as it will: how much noise that saves
            differs from layer to layer, up to a hundredfold. Without any they are rounded to nearest.

    Returns:
        In the order of the graph. A weight that several layers share is counted where it is first read.

    Raises:
        QuantizationError: see `render`; no samples.
    """
    module, placement, parameters = placed(program, statistics, rules, scheme)
    alone = _Alone(module, placement, parameters, rules, lookups(module, rules) if narrow else [])
    ways = [(node, bits) for bits in (8, *narrow) for node in alone.layers if bits == 8 or alone.narrows(node, bits)]
    if calibration is not None:
        for bits in narrow:
            progress(f"weights in {bits} bits")
            layers = [node for node, given in ways if given == bits and not alone.is_table(node)]
            names = tuple(node.name for node in layers)
            chosen = replace(scheme, int4_layers=names) if bits == 4 else replace(scheme, int2_layers=names)
            alone.round(layers, bits, refine(program, statistics, rules, chosen, calibration(), [gptq]).corrections)
    noise, signal = {way: torch.zeros(len(alone.answers)).double() for way in ways}, torch.zeros(len(alone.answers)).double()
    with torch.no_grad():
        for index, inputs in enumerate(_pieces(module, batches)):
            progress(f"layers alone in integers, batch {index + 1}")
            exact = alone.exact(inputs)
            signal += _powers(exact[node] for node in alone.answers)
            for way in ways:
                noise[way] += _powers(alone.errors(*way, exact))
    heard = signal > 0
    if not heard.any():
        raise QuantizationError(
            "the sensitivity of layers cannot be measured",
            "there are no samples, or the model answers zero to all of them",
            "Set data.calibration.selection to 1 or more, and check the checkpoint.",
        )
    macs = macs_of(module)
    total = sum(macs.get(node, 0) for node in alone.layers) or 1
    seen: set[Node] = set()
    shares = {way: _bounded(float((noise[way][heard] / signal[heard]).mean())) for way in ways}
    found = []
    for node in alone.layers:
        weights, channels = _weights(module, rules, node, seen)
        four, two = (shares.get((node, bits)) if weights else None for bits in (4, 2))
        share = macs.get(node, 0) / total
        found.append(Sensitivity(node.name, layer_of(node), str(kind_of(node)), share, weights, channels, shares[node, 8], four, two))
    return found


def _bounded(noise: float) -> float:
    return min(noise, WORST) if math.isfinite(noise) else WORST


def _weights(module: GraphModule, rules: QuantRules, node: Node, seen: set[Node]) -> tuple[int, int]:
    """Elements and scales of what a node alone, or first, reads as its weight."""
    kind = str(kind_of(node))
    held = node.args[0] if kind == TABLE else node.args[1]
    weight = constant(module, held) if kind in (*OUTPUT_AXIS, TABLE) and held not in seen else None
    seen.add(held)
    if weight is None:
        return 0, 0
    return weight.numel(), len(weight) if kind == TABLE else int(weight.shape[OUTPUT_AXIS[kind]]) if kind in rules.per_channel else 1


def _pieces(module: GraphModule, batches: Iterable[Sequence[Any]]) -> Iterator[list[Tensor]]:
    """Batches, cut where all their activations together would not fit."""
    size = only_batch(module) or max(1, LIMIT_BYTES // max(sum(bytes_of(node) for node in module.graph.nodes), 1))
    for batch in fitting(module, batches):
        yield from map(list, zip(*(item.split(size) for item in batch), strict=True))


class _Alone:
    """The float model, and what changes in it when one layer computes in integers, or one of the lookups has its table in them."""

    def __init__(
        self, module: GraphModule, placement: Placement, parameters: TensorParameters, rules: QuantRules, tables: Sequence[Node]
    ) -> None:
        self._module, self._placement, self._rules = module, placement, rules
        self._arithmetic, self._tables = Arithmetic(placement, parameters, rules), frozenset(tables)
        self._rounded: dict[tuple[Node, int], Tensor] = {}
        self.layers = sorted([*tables, *(node for node, kind in placement.kinds.items() if kind in HEAVY)])
        self.answers = answers_of(module)
        self._after = {node: _dependents(node) for node in self.layers}

    def exact(self, inputs: Sequence[Tensor]) -> dict[Node, Any]:
        """Every value of the float model."""
        values: dict[Node, Any] = {}
        waiting = iter(inputs)
        for node in self._module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(waiting)
            elif node.op == "get_attr":
                values[node] = constant(self._module, node)
            elif node.op == "call_function":
                values[node] = evaluate(node, values)
        return values

    def narrows(self, layer: Node, bits: int) -> bool:
        """Can it have a weight, or a table, of 4 or 2 bits? 2 have no zero, which a sparse weight needs."""
        if layer in self._tables:
            return fills_bytes(layer, bits)
        weight = constant(self._module, layer.args[1]) if self._arithmetic.is_layer(layer) else None
        if weight is None or weight.numel() < SMALLEST_NARROW[bits]:
            return False
        return bits != 2 or (weight.numel() % 4 == 0 and float((weight == 0).float().mean()) <= _ZEROS)

    def is_table(self, layer: Node) -> bool:
        """Is it no layer but a lookup?"""
        return layer in self._tables

    def round(self, layers: Iterable[Node], bits: int, corrections: Mapping[str, np.ndarray]) -> None:
        """Give layers the weights that an algorithm chose for them."""
        for layer in layers:
            weight = corrections.get(f"{layer.name}.weight")
            if weight is not None:
                self._rounded[layer, bits] = torch.from_numpy(weight)

    def errors(self, layer: Node, bits: int, exact: dict[Node, Any]) -> list[Tensor]:
        """What `layer` in integers changes at the outputs, its weight in 8, 4 or 2 bits."""
        changed = {layer: self._changed(layer, bits, exact)}
        tail, kind = self._placement.tails.get(layer), self._placement.kinds.get(layer)
        values = ChainMap(changed, exact)
        # A kernel that can write float rounds its output only for integers that read it, and is not to blame for that.
        writes = tail in self._placement.outputs and self._rules.quantize_outputs and kind not in self._rules.float_output
        for node in self._after[layer]:
            if node is not layer:
                changed[node] = evaluate(node, values)
            if node is tail and writes:
                changed[node] = self._arithmetic.on_grid(node, changed[node])
        return [values[node] - exact[node] for node in self.answers]

    def _changed(self, layer: Node, bits: int, exact: dict[Node, Any]) -> Any:
        if layer not in self._tables and bits == 8:
            return self._arithmetic.computed(layer, exact, {})
        key = layer, bits
        if layer in self._tables:
            if key not in self._rounded:
                self._rounded[key] = Rows.of(exact[layer.args[0]].detach(), bits).dequantized()
            return evaluate(layer, ChainMap({layer.args[0]: self._rounded[key]}, exact))
        if key not in self._rounded:
            self._rounded[key] = weight_grid(layer, exact[layer.args[1]].detach(), self._rules, bits).nearest
        return self._arithmetic.computed(layer, exact, {layer: self._rounded[key]})


def _dependents(layer: Node) -> list[Node]:
    """The layer and every op whose value it changes, in the order of the graph."""
    found = {layer}
    for node in layer.graph.nodes:
        if node.op == "call_function" and any(item in found for item in node.all_input_nodes):
            found.add(node)
    return sorted(found)


def _powers(tensors: Iterable[Tensor]) -> Tensor:
    """Sum of squares of each."""
    return torch.stack([tensor.double().square().sum() for tensor in tensors])
