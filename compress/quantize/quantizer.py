"""A torchao PT2E quantizer that knows no runtime: what it annotates comes from rules, a placement and fixed parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
)

from edgepress.compress.quantize.graph import constant, is_float, kind_of
from edgepress.compress.quantize.placement import Placement, data_inputs
from edgepress.compress.quantize.sharing import TensorParameters
from edgepress.targets.rules import QuantRules

_KEY = "quantization_annotation"
#: Dimension of a weight that counts output channels.
OUTPUT_AXIS = {"conv": 0, "linear": 0, "conv_transpose": 1}
#: Bits -> highest integer, of 8, of a weight with fewer; the lowest is its opposite. 2 bits have its odd integers alone: -3, -1, 1 and 3.
NARROW_END = {4: 7, 2: 3}


def observed_weight(smallest: float) -> Callable[[Node, bool], Any]:
    """Makes observers of the constant weights of layers, with no scale below `smallest`."""
    return lambda node, per_channel: (PerChannelMinMaxObserver if per_channel else MinMaxObserver).with_args(eps=smallest)


class _KnownScale:
    """Mixed into an observer: it gives one scale whatever it sees."""

    def __init__(self, scale: Tensor, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._scale = scale

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return self._scale, torch.zeros_like(self._scale, dtype=torch.int64)


class KnownScaleObserver(_KnownScale, MinMaxObserver):  # type: ignore[misc]
    """Of a whole weight."""


class PerChannelKnownScaleObserver(_KnownScale, PerChannelMinMaxObserver):  # type: ignore[misc]
    """torchao tells by the name whether an observer takes a channel axis."""


def known_weight(scales: Mapping[Node, Tensor]) -> Callable[[Node, bool], Any]:
    """Makes observers of weights whose scales are known: layer -> scale, with as many elements as there are."""

    def observer(node: Node, per_channel: bool) -> Any:
        return (PerChannelKnownScaleObserver if per_channel else KnownScaleObserver).with_args(scale=scales[node].flatten())

    return observer


class RulesQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates weights, and activations where a placement is given.

    Args:
        rules: the runtime's dtypes, bounds and per-channel kinds.
        placement: which ops compute in integers; None quantizes weights alone.
        parameters: scale and zero point of every activation; None with a placement of None.
        weight: (layer, per channel) -> what makes an observer of its quantized weight, or simulates it; torchao's min-max observers by
            default.
    """

    def __init__(
        self,
        rules: QuantRules,
        placement: Placement | None = None,
        parameters: TensorParameters | None = None,
        weight: Callable[[Node, bool], Any] | None = None,
    ) -> None:
        super().__init__()
        self._rules, self._placement, self._parameters = rules, placement, parameters
        self._maker = weight or observed_weight(rules.smallest_scale)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write a quantization annotation to every node that takes or makes integers."""
        if self._placement is None or self._parameters is None:
            for node in model.graph.nodes:
                weight = self._weight(model, node, self._rules)
                if weight:
                    _write(node, weight, None)
            return model
        for node, kind in self._placement.kinds.items():
            inputs = {item: self._activation(item) for item in data_inputs(node, kind) if is_float(item)}
            tail = self._placement.tails[node]
            output = self._activation(tail) if tail in self._placement.outputs else None
            _write(node, {**inputs, **self._weight(model, node, self._rules)}, output if tail is node else None)
            if tail is not node:
                _write(tail, {}, output)
        for node in self._placement.weight_only:
            _write(node, self._weight(model, node, self._rules.unguarded), None)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: the placement already did."""

    def _activation(self, node: Node) -> FixedQParamsQuantizationSpec:
        assert self._parameters is not None
        parameters, rules = self._parameters.of(node), self._rules
        return FixedQParamsQuantizationSpec(
            dtype=getattr(torch, rules.activation_dtype),
            scale=parameters.scale,
            zero_point=parameters.zero_point,
            quant_min=rules.activation_min,
            quant_max=rules.activation_max,
            qscheme=torch.per_tensor_symmetric if rules.activation_symmetric else torch.per_tensor_affine,
        )

    def _weight(self, model: GraphModule, node: Node, rules: QuantRules) -> dict[Node, QuantizationSpecBase]:
        kind = kind_of(node)
        if kind not in OUTPUT_AXIS or constant(model, node.args[1]) is None:
            return {}
        channels = kind in rules.per_channel
        end = NARROW_END.get(self._placement.bits.get(node, 8) if self._placement else 8)
        lowest, highest = (rules.weight_min, rules.weight_max) if end is None else (-end, end)
        spec = QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=self._maker(node, channels),
            quant_min=lowest,
            quant_max=highest,
            qscheme=torch.per_channel_symmetric if channels else torch.per_tensor_symmetric,
            ch_axis=OUTPUT_AXIS[kind] if channels else None,
        )
        return {node.args[1]: spec}


def _write(node: Node, inputs: dict[Node, QuantizationSpecBase], output: QuantizationSpecBase | None) -> None:
    node.meta[_KEY] = QuantizationAnnotation(input_qspec_map=inputs, output_qspec=output, _annotated=True)
