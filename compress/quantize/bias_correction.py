"""Empirical bias correction (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2
and appendix D; Finkelstein et al. 2019, "Fighting Quantization Bias With Bias").

Rounding shifts the mean of what a channel answers; the shift is measured on calibration samples and taken off the bias.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from edgepress.compress.quantize.layer import Layer


def correct_bias(layer: Layer) -> Layer:
    """Add to the bias what the quantized layer's answers lack, per output channel, averaged over samples and positions by their weights.

    The means are taken before the activation, with the inputs that the quantized model gives this layer: what layers before it
    left of their own shift is corrected here too.
    """
    others = [dim for dim in range(layer.target.dim()) if dim != layer.channels]
    missing = layer.target - layer.answer
    if layer.weights is not None:
        missing = missing * layer.weights.unsqueeze(layer.channels)
    lacking = missing.mean(dim=others, dtype=torch.float64)
    bias = lacking if layer.bias is None else layer.bias.double() + lacking
    return replace(layer, bias=bias.float())
