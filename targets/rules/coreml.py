"""Core ML (iOS 17 and later): int8 quantize/dequantize pairs and compressed constants."""

from __future__ import annotations

from edgepress.targets.rules import Int4Rules, QuantRules

RULES = QuantRules(
    runtime="coreml",
    activation_dtype="int8",
    activation_symmetric=False,
    activation_min=-128,
    activation_max=127,
    placement=frozenset(
        {"conv", "conv_transpose", "linear", "matmul", "add", "mul", "cat", "max_pool", "avg_pool", "mean", "softmax", "shape", "embedding"}
    ),
    precisions=(
        "fp32",
        "fp16",
        "int8",
        "int8-weights",
        "int4-weights",
        "mixed",
    ),
    unpacks=True,
    ladder=(
        "static",
        "static-matmul",
        "weights",
    ),
    unit_output=(1 / 256, -128),
    float_output=frozenset({"conv", "conv_transpose", "linear", "matmul"}),
    int4=Int4Rules(),
    float_bytes=2,
    smallest_scale=2.0**-16,  # in float16
)
