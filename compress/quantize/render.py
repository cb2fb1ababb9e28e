"""One calibrated model, rendered in the integers of one runtime."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgepress.compress.quantize.corrections import apply_corrections
from edgepress.compress.quantize.embeddings import lookups, store_in_integers
from edgepress.compress.quantize.fp8 import round_to_fp8
from edgepress.compress.quantize.gates import write_out_gates
from edgepress.compress.quantize.graph import FLOAT, HEAVY, RANGE, constant, kind_of, root_of
from edgepress.compress.quantize.placement import WEIGHT_ONLY, Placement, place
from edgepress.compress.quantize.prepare import canonical_module, finish, float_module
from edgepress.compress.quantize.quantizer import RulesQuantizer, known_weight
from edgepress.compress.quantize.reasons import summary
from edgepress.compress.quantize.sharing import TensorParameters
from edgepress.compress.quantize.split_outliers import spread_outliers
from edgepress.compress.quantize.statistics import Statistics
from edgepress.compress.quantize.unpacked import STORED, mark_stored, readers, store_weights
from edgepress.compress.quantize.weight_grid import round_weights
from edgepress.targets.errors import QuantizationError
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import QuantRules

aten = torch.ops.aten


@dataclass(frozen=True)
class Rendered:
    """A quantized model.

    Attributes:
        module: same inputs and outputs as the float program, dynamic batch kept, with `quantized_decomposed` nodes of the runtime's dtype.
        float_ops: what stays float: `({"op": str, "count": int, "reason": str}, …)`.
    """

    module: GraphModule
    float_ops: tuple[Mapping[str, Any], ...]


def render(program: torch.export.ExportedProgram, statistics: Statistics | None, rules: QuantRules, scheme: Scheme) -> Rendered:
    """Quantize a float program for one runtime.

    Args:
        program: float, eval mode.
        statistics: from `calibrate` on the same program; not needed for `weights`.
        rules: what the runtime executes in integers.
        scheme: kind `static`, `static-matmul` (convolutions, linear layers and matrix products alone), `weights` or `fp8`.

    Returns:
        The same model for the same arguments, bit for bit.

    Raises:
        QuantizationError: another scheme, no statistics or those of another model, or nothing to quantize.
    """
    if scheme.kind == "weights":
        return _render_weights(program, rules)
    module, placement, parameters = placed(program, statistics, rules, scheme)
    if scheme.kind == "fp8":
        assert statistics is not None, "placed refuses that"
        round_to_fp8(module, placement.kinds, _largest(module, statistics))
        return Rendered(finish(module), summary(placement.reasons))
    tables = lookups(module, rules)
    quantizer = RulesQuantizer(rules, placement, parameters, known_weight(round_weights(module, placement, rules)))
    reasons = {**placement.reasons, **dict.fromkeys(_unpacked(module, rules, placement.reasons), STORED)}
    return _rendered(module, quantizer, rules, reasons, tables, scheme.narrow_layers)


def placed(
    program: torch.export.ExportedProgram, statistics: Statistics | None, rules: QuantRules, scheme: Scheme
) -> tuple[GraphModule, Placement, TensorParameters]:
    """The canonical float graph, which of its ops compute in integers, and with which scales; see `render`."""
    if not scheme.calibrated:
        raise QuantizationError(
            f"scheme {scheme.label!r} has no calibrated rendering", remedy="Use one of static, static-matmul, fp8, weights."
        )
    if statistics is None:
        raise QuantizationError(f"scheme {scheme.label!r} needs calibration statistics", remedy="Calibrate first.")
    module = canonical_module(program, rules.decompose_attention)
    _check_fit(module, statistics)
    _check_layers(module, scheme)
    if rules.smooth:
        spread_outliers(module, statistics, rules, scheme.float_layers)

    placement = place(module, rules, scheme.kind, _largest(module, statistics), scheme.float_layers, scheme.narrow_layers)
    if not any(kind in HEAVY for kind in placement.kinds.values()):
        raise _unplaced(placement.reasons)
    placement = write_out_gates(module, placement, rules.gated)
    apply_corrections(module, placement.kinds, statistics.corrections)
    return module, placement, TensorParameters(module, placement, rules, statistics)


def _largest(module: GraphModule, statistics: Statistics) -> Callable[[Node], float]:
    """The largest magnitude of a float tensor: of a constant, or seen in calibration."""

    def largest(node: Node) -> float:
        root = root_of(node)
        tensor = constant(module, root)
        if tensor is not None:
            return float(tensor.detach().abs().max()) if tensor.numel() else 0.0
        if RANGE in node.meta:
            return float(max(-node.meta[RANGE][0], node.meta[RANGE][1]))
        histogram = statistics.histograms.get(root.name)
        return math.inf if histogram is None else histogram.largest

    return largest


def _render_weights(program: torch.export.ExportedProgram, rules: QuantRules) -> Rendered:
    module = float_module(program)
    computed = [node for node in module.graph.nodes if node.op == "call_function"]
    reasons = {node: node.meta.get(FLOAT) or "float arithmetic; only weights are integers" for node in computed}
    layers = any(kind_of(node) in HEAVY - {"matmul"} and constant(module, node.args[1]) is not None for node in reasons)
    if not layers and not _unpacked(module, rules, reasons):
        raise _nothing(reasons)
    return _rendered(module, RulesQuantizer(rules), rules, reasons, lookups(module, rules))


def _rendered(
    module: GraphModule,
    quantizer: RulesQuantizer,
    rules: QuantRules,
    reasons: Mapping[Node, str],
    tables: Sequence[Node],
    narrow: Mapping[str, int] = MappingProxyType({}),
) -> Rendered:
    stored = _unpacked(module, rules, reasons)
    lines = summary({node: reason for node, reason in reasons.items() if node not in tables})
    names = {node.name for node in tables}
    converted = _converted(module, quantizer, rules)
    mark_stored(converted, {node.name for node, reason in reasons.items() if reason == WEIGHT_ONLY})
    if names:
        store_in_integers(converted, [node for node in converted.graph.nodes if node.name in names], narrow)
    if stored:
        store_weights(converted, {node.name for node in stored}, rules.fold_weights)
    return Rendered(converted, lines)


def _unpacked(module: GraphModule, rules: QuantRules, floats: Container[Node]) -> list[Node]:
    """Of the ops in float those whose weights are stored in integers."""
    return [node for node in readers(module) if node in floats] if rules.unpacks else []


def _converted(module: GraphModule, quantizer: RulesQuantizer, rules: QuantRules) -> GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_pt2e(module, quantizer)
        with torch.no_grad():
            for node in prepared.graph.nodes:  # activations have fixed parameters: only weights are left to observe
                if node.op == "call_module" and constant(prepared, node.args[0]) is not None:
                    prepared.get_submodule(str(node.target))(constant(prepared, node.args[0]))
        _retarget(prepared, aten.batch_norm.default, _batch_norm)
        converted: GraphModule = convert_pt2e(prepared, fold_quantize=rules.fold_weights)
        _retarget(converted, _batch_norm, aten.batch_norm.default)
    return converted


def _retarget(module: GraphModule, old: Callable[..., Tensor], new: Callable[..., Tensor]) -> None:
    for node in module.graph.find_nodes(op="call_function", target=old):
        node.target = new
    module.recompile()


def _batch_norm(*args: Any) -> Tensor:
    """A batch normalization that `convert_pt2e` does not know: it searches for those of training, by 96 patterns traced in ten seconds."""
    normalized: Tensor = aten.batch_norm.default(*args)
    return normalized


def _check_fit(module: GraphModule, statistics: Statistics) -> None:
    """Statistics of another model have other node names."""
    from edgepress.compress.quantize.statistics import recorded

    missing = [node.name for node in module.graph.nodes if recorded(node) and node.name not in statistics.histograms]
    if missing:
        raise QuantizationError(
            f"the statistics do not belong to this model: no tensor {missing[0]!r} in them",
            f"{len(missing)} are missing",
            "Calibrate this model.",
        )


def _check_layers(module: GraphModule, scheme: Scheme) -> None:
    """Layers to keep in float, or to store in 4 or 2 bits, exist."""
    names = {node.name for node in module.graph.nodes}
    ways = ((scheme.float_layers, "keep in float"), (scheme.int4_layers, "store in 4 bits"), (scheme.int2_layers, "store in 2 bits"))
    for layers, what in ways:
        unknown = sorted({*layers} - names)
        if unknown:
            raise QuantizationError(f"no layer {unknown[0]!r} to {what}", "the model has no node of that name", "Rank its layers again.")


def _nothing(reasons: Mapping[Node, str]) -> QuantizationError:
    ops = ", ".join(sorted({str(line["op"]) for line in summary(reasons)})[:6]) or "none"
    return QuantizationError(
        "the model has nothing to quantize",
        f"it has no convolution, linear layer or matrix product with an integer kernel; its ops: {ops}",
        "Ask for precision fp32 or fp16.",
    )


def _unplaced(reasons: Mapping[Node, str]) -> QuantizationError:
    """All layers stay float: the first one says why."""
    layers = [node for node in reasons if kind_of(node) in HEAVY]
    if not layers:
        return _nothing(reasons)
    others = f"; {len(layers) - 1} more stay float" if len(layers) > 1 else ""
    if all(reasons[layer] == WEIGHT_ONLY for layer in layers):
        return QuantizationError(
            "no layer of the model can compute in integers", f"{layers[0].name}: {WEIGHT_ONLY}{others}", "Ask for precision int8-weights."
        )
    return QuantizationError(
        "no layer of the model can be quantized",
        f"{layers[0].name}: {reasons[layers[0]]}{others}",
        "See whether calibration samples are preprocessed like the model's inputs, or ask for precision fp32 or fp16.",
    )
