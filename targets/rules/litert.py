"""LiteRT (TensorFlow Lite): int8 activations with the fixed softmax scale its kernel demands."""

from __future__ import annotations

from edgepress.targets.rules import Int4Rules, QuantRules

RULES = QuantRules(
    runtime="litert",
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
    ladder=(
        "static",
        "static-matmul",
        "dynamic",
        "weights",
    ),
    softmax_output=(1 / 256, -128),
    shared=frozenset({"shape", "max_pool", "avg_pool", "cat"}),
    fold_weights=False,
    int4=Int4Rules(symmetric=True, groups=(32, 64, 128, 256), rows=True),
)
