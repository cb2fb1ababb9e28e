"""OpenVINO's CPU plugin: uint8 activations, int8 weights.

Without VNNI two 8-bit products saturate, for the reason given in the rules of ONNX Runtime. Neighbours are channels of one position here,
the last of an odd number by itself, and depthwise convolutions are exact. Single channels and odd numbers of them in groups have other
neighbours in other kernels: their weights keep to 7 bits.

Products of two activations stay in float: the plugin fuses matmul, softmax, matmul of an attention into one float kernel, which is
faster than integer products with a softmax and roundings between them (MiniLM, 64 tokens, AVX-512 VNNI: 0.41 against 0.51 of fp32).
The kernel can read queries and keys as int8 with zero point 0, as NNCF places them: of the time with floats that takes 0.98 on MiniLM, and
1.05 to 1.07 on vision transformers of 65 tokens where one layer makes both. Without VNNI the plugin leaves that kernel, which takes 1.02,
and its pairs of products saturate: up to 0.46 off in outputs of 0.58 (ONEDNN_MAX_CPU_ISA=AVX512_CORE, queries and keys at the ends of
their ranges). A file is to be right on every CPU, so it is not done.

Other rules, each with the net of benchmarks/quantization/structure_nets.py that shows it, and our time over that of NNCF's file without and
with it: a transposed convolution that reads integers with a zero point is computed in float, so that signed ranges have it in the middle
and become signed integers (upsampler: 1.58, 1.03). In front of a group normalization the layout changes, slowly in floats (group norm:
3.95, 1.00). Sums and products with constants are computed within other kernels, in float (dense: 1.20, 1.09). A batch norm that follows no
layer is part of the rounding behind it, whose kernel reads integers: maps can be joined and added as integers (dense: 1.09, 1.01).

A depthwise convolution with several outputs for each input stays in float: between two pointwise layers of 64 channels one with two takes
1.51 of the float net's time in integers, 0.93 so (a script that is not kept).

A first convolution stays in integers: in float, as in ONNX Runtime, it leaves less noise (ResNet-20 0.00054 instead of 0.00063) in the same
time, but a U-Net takes 1.04 with it.
"""

from __future__ import annotations

from edgepress.targets.rules import Int4Rules, QuantRules

RULES = QuantRules(
    runtime="openvino",
    activation_dtype="uint8",
    activation_symmetric=False,
    activation_min=0,
    activation_max=255,
    placement=frozenset(
        {"conv", "conv_transpose", "linear", "add", "mul", "batch_norm", "cat", "max_pool", "avg_pool", "mean", "shape", "embedding"}
    ),
    precisions=(
        "fp32",
        "fp16",
        "bf16",
        "int8",
        "int8-weights",
        "int4-weights",
        "mixed",
    ),
    ladder=(
        "static",
        "static-matmul",
        "weights",
    ),
    fused=frozenset({"hard_swish", "silu"}),
    float_output=frozenset({"conv", "conv_transpose", "linear"}),
    centred_inputs=frozenset({"conv_transpose"}),
    added_in_pairs="channels",
    affine=False,
    rounded_before=frozenset({"group_norm"}),
    unpacks=True,
    float_groups={2: 1},
    int4=Int4Rules(),
    static_bits=(4, 2),
)
