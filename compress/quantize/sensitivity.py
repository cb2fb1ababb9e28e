"""How much each layer's integers cost: the error at the model's outputs when that layer alone computes in integers.

Batch by batch: the float model runs once, then for every layer only what depends on it runs again. The errors of several layers add up
well enough to choose between them (Dong et al. 2020, "HAWQ-V2", section 3.2); what is chosen is then measured.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.arithmetic import Arithmetic, call
from edgepress.compress.quantize.graph import HEAVY, constant, is_float, kind_of, layer_of
from edgepress.compress.quantize.living import LIMIT_BYTES, bytes_of
from edgepress.compress.quantize.macs import macs_of
from edgepress.compress.quantize.placement import Placement
from edgepress.compress.quantize.quantizer import OUTPUT_AXIS
from edgepress.compress.quantize.render import placed
from edgepress.compress.quantize.sharing import TensorParameters
from edgepress.compress.quantize.statistics import Statistics
from edgepress.targets.errors import QuantizationError
from edgepress.targets.nouns import Scheme
from edgepress.targets.progress import progress
from edgepress.targets.rules import QuantRules

#: Noise to signal where the outputs are NaN or infinite: worse than anything finite that is worth telling apart.
WORST = 1e6


@dataclass(frozen=True)
class Sensitivity:
    """One layer that a rendering computes in integers.

    Attributes:
        node: its name in the canonical graph, which `Scheme.float_layers` takes.
        layer: the module of the user's model that makes it.
        kind: `conv`, `conv_transpose`, `linear` or `matmul`.
        macs_share: its share (0..1) of the multiply-accumulates of all such layers.
        weights: elements of its weight; 0 for a product of two activations.
        channels: scales of its integer weight.
        noise: mean square of an output's error over that of the output, with this layer alone in integers; the mean of all outputs of the
            model, so that none counts more for being larger.
    """

    node: str
    layer: str
    kind: str
    macs_share: float
    weights: int
    channels: int
    noise: float

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
) -> list[Sensitivity]:
    """Measure every heavy layer of a rendering.

    Args:
        program: float, eval mode.
        statistics: of the same program.
        rules: of one runtime.
        scheme: kind `static` or `static-matmul`.
        batches: samples, tuples of positional inputs. As many at a time are run as keep every activation within `LIMIT_BYTES`.

    Returns:
        In the order of the graph. A weight that several layers share is counted where it is first read.

    Raises:
        QuantizationError: see `render`; no samples.
    """
    module, placement, parameters = placed(program, statistics, rules, scheme)
    alone = _Alone(module, placement, parameters, rules)
    noise, signal = {node: torch.zeros(len(alone.answers)).double() for node in alone.layers}, torch.zeros(len(alone.answers)).double()
    with torch.no_grad():
        for index, inputs in enumerate(_pieces(module, batches)):
            progress(f"layers alone in integers, batch {index + 1}")
            exact = alone.exact(inputs)
            signal += _powers(exact[node] for node in alone.answers)
            for node in alone.layers:
                noise[node] += _powers(alone.errors(node, exact))
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
    shares = {node: float((noise[node][heard] / signal[heard]).mean()) for node in alone.layers}
    return [_described(module, rules, node, macs.get(node, 0) / total, shares[node], seen) for node in alone.layers]


def _described(module: GraphModule, rules: QuantRules, node: Node, share: float, noise: float, seen: set[Node]) -> Sensitivity:
    kind = str(kind_of(node))
    weight = constant(module, node.args[1]) if kind in OUTPUT_AXIS and node.args[1] not in seen else None
    seen.add(node.args[1])
    channels = 0 if weight is None else int(weight.shape[OUTPUT_AXIS[kind]]) if kind in rules.per_channel else 1
    bounded = noise if math.isfinite(noise) else WORST
    return Sensitivity(node.name, layer_of(node), kind, share, 0 if weight is None else weight.numel(), channels, min(bounded, WORST))


def _pieces(module: GraphModule, batches: Iterable[Sequence[Any]]) -> Iterator[list[Tensor]]:
    """Batches, cut where all their activations together would not fit."""
    size = max(1, LIMIT_BYTES // max(sum(bytes_of(node) for node in module.graph.nodes), 1))
    for batch in batches:
        yield from map(list, zip(*(torch.as_tensor(item).split(size) for item in batch), strict=True))


class _Alone:
    """The float model, and what changes in it when one layer computes in integers."""

    def __init__(self, module: GraphModule, placement: Placement, parameters: TensorParameters, rules: QuantRules) -> None:
        self._module, self._placement, self._rules = module, placement, rules
        self._arithmetic = Arithmetic(placement, parameters, rules)
        self.layers = [node for node, kind in placement.kinds.items() if kind in HEAVY]
        self.answers = [item for item in next(n for n in module.graph.nodes if n.op == "output").all_input_nodes if is_float(item)]
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
                values[node] = call(node, values)
        return values

    def errors(self, layer: Node, exact: dict[Node, Any]) -> list[Tensor]:
        """What `layer` in integers changes at the outputs."""
        changed = {layer: self._arithmetic.computed(layer, exact, {})}
        tail = self._placement.tails[layer]
        values, kind = ChainMap(changed, exact), self._placement.kinds[layer]
        # A kernel that can write float rounds its output only for integers that read it, and is not to blame for that.
        writes = tail in self._placement.outputs and self._rules.quantize_outputs and kind not in self._rules.float_output
        for node in self._after[layer]:
            if node is not layer:
                changed[node] = call(node, values)
            if node is tail and writes:
                changed[node] = self._arithmetic.on_grid(node, changed[node])
        return [values[node] - exact[node] for node in self.answers]


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
