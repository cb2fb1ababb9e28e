"""TensorRT and TensorRT-RTX: symmetric int8; the parser rejects uint8 and non-zero zero points."""

from __future__ import annotations

from edgepress.targets.rules import QuantRules

RULES = QuantRules(
    runtime="tensorrt",
    activation_dtype="int8",
    activation_symmetric=True,
    activation_min=-127,
    activation_max=127,
    placement=frozenset(
        {"conv", "conv_transpose", "linear", "matmul", "add", "mul", "cat", "max_pool", "avg_pool", "mean", "softmax", "shape"}
    ),
    precisions=(
        "fp32",
        "fp16",
        "bf16",
        "fp8",
        "int8",
        "int8-weights",
        "mixed",
    ),
    ladder=(
        "static",
        "static-matmul",
        "weights",
    ),
    unit_output=(1 / 127, 0),
    fused=frozenset({"hard_swish", "silu"}),
    float_output=frozenset({"linear", "matmul"}),
)
