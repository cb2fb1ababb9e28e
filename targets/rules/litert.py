"""LiteRT (TensorFlow Lite): int8 activations, float where XNNPACK has float kernels alone.

Products of two activations and softmax stay in float: XNNPACK takes neither in int8, and each one left to the built-in kernels cuts the
delegated graph in two (a small vision transformer takes 2.7 times its float time with them in integers, 0.6 without). Sigmoids it takes
where they write 0 to 255/256, tanh and leaky ReLUs anyhow: inverted bottlenecks with SiLU and squeeze and excitation take 0.72 of the time
that they take with sigmoids in float. Depthwise convolutions over more than 25 values have no kernel of XNNPACK's in either: those of 7x7
take 1.3 times their float time in integers, and a fifth of it as sums of smaller ones in float (`exporters/litert_windows.py`).
"""

from __future__ import annotations

from edgepress.targets.rules import Int4Rules, QuantRules

RULES = QuantRules(
    runtime="litert",
    activation_dtype="int8",
    activation_symmetric=False,
    activation_min=-128,
    activation_max=127,
    placement=frozenset(
        {"conv", "conv_transpose", "linear", "add", "mul", "cat", "max_pool", "avg_pool", "mean", "shape", "embedding"}
        | {"leaky_relu", "sigmoid", "silu", "tanh"}
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
        "dynamic",
        "weights",
    ),
    gated=frozenset({"silu"}),
    shared=frozenset({"shape", "max_pool", "avg_pool", "cat"}),
    clips=True,
    unit_output=(1 / 256, -128),
    fold_weights=False,
    float_windows={1: 25, 2: 25},
    int4=Int4Rules(symmetric=True, groups=(32, 64, 128, 256), rows=True),
)
