"""AdaRound (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", sections 3.3 and 4).

Rounding every weight to the nearest integer is not what keeps a layer's answers nearest: errors of different weights can cancel. Each
weight learns whether to go up or down, by the answers of its layer on calibration samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.fx import Node

from edgepress.compress.quantize.layer import Layer
from edgepress.compress.quantize.learnt_rounding import RoundingOptions, Task, learn_rounding


@dataclass(frozen=True)
class AdaRound:
    """Rounds a layer's weights up or down by what its answers lose, activation included; a refiner of `layerwise.refine`.

    The layer reads what the quantized layers before it give, and is compared with the float model's answers (asymmetric
    reconstruction, equation 25). Where rounding to nearest is better after all on the same samples, the layer keeps it.

    Args:
        seed: of the samples that steps draw.
        options: see `RoundingOptions`.
    """

    seed: int
    options: RoundingOptions = field(default_factory=RoundingOptions)

    def __call__(self, layer: Layer) -> Layer:
        """The layer with other integers, each at most one away from its nearest."""

        def error(weights: Mapping[Node, Tensor], index: Tensor) -> Tensor:
            return replace(layer.of(index), rounded=weights[layer.node]).error()

        positions = layer.target[0].numel() // layer.target.shape[layer.channels]
        task = Task(layer.name, {layer.node: layer.grid}, len(layer.inputs), positions, error)
        learnt = learn_rounding(task, self.seed, self.options)
        return layer if learnt is None else replace(layer, rounded=learnt[layer.node])
