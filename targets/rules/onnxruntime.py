"""ONNX Runtime on x86 CPUs: QLinear* kernels want uint8 activations with Q/DQ on every op boundary."""

from __future__ import annotations

from edgepress.targets.rules import QuantRules

RULES = QuantRules(
    runtime="onnxruntime",
    activation_dtype="uint8",
    activation_symmetric=False,
    activation_min=0,
    activation_max=255,
    placement=frozenset(
        {"conv", "conv_transpose", "linear", "matmul", "add", "mul", "cat", "max_pool", "avg_pool", "mean", "softmax", "shape"}
    ),
    precisions=(
        "fp32",
        "fp16",
        "int8",
        "int8-weights",
    ),
    ladder=(
        "static",
        "static-matmul",
        "dynamic",
        "weights",
    ),
    softmax_output=(1 / 256, 0),
)
