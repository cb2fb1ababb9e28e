"""ONNX Runtime on x86 CPUs: QLinear* kernels want uint8 activations with Q/DQ on every op boundary.

Where the CPU has no VNNI, the kernels add two uint8 x int8 products in 16 bits (vpmaddubsw), and two products of 255 x 127 saturate
there. Neighbours in an output's sum therefore come to 128 at most (`saturation.py`). Which are neighbours was found by executing layers
with VNNI and without (benchmarks/quantization/exact_sums.py): a window is a row, channels last, and depthwise convolutions are exact
whatever their weights are.

The parts of a concat keep ranges of their own (QLinearConcat rescales them): a shared range with negative values would keep a
ReLU that writes into it from fusing with the sum or convolution before it.

Sigmoids and leaky ReLUs between integer layers have kernels (QLinearSigmoid, QLinearLeakyRelu). Hard-swish is a product with a hard
sigmoid, which is a sum that rounding clips, and means over positions are pools (`exporters/onnx_kernels.py`). SiLU computes in float
between integers, since ONNX Runtime has one kernel for it (QuickGelu), and a QLinearSigmoid with a QLinearMul is slower than a pair of
conversions.
With these and a first convolution in float, inverted bottlenecks with SiLU and squeeze and excitation take 1.05 of float instead of 1.66
(benchmarks/quantization/structures.py, squeeze-excite).

A first convolution of few channels (3x3 of an image's three: 27 products) stays in float. Its integer kernel gathers three bytes at a
time, and the image would be rounded first: ResNet-20 takes 0.945 of the time of its own quantizer's file, which rounds it
(benchmarks/quantization/peers.py). Of 147 products (7x7) the integer kernel is faster.

Transposed convolutions have none, and are convolutions whose outputs are put beside each other (`exporters/onnx_transposed.py`): between
two pointwise layers of 64 channels one of 4x4 at stride 2 takes 0.2 of its time in float. Those that cannot be stay float, and their
weight is stored in integers and turned into floats when the file is loaded. So do convolutions of small groups, whose kernel takes them
one after the other (4 inputs each: 1.90 of float with them in integers, 0.92 without; 8 inputs each: 1.11 and 0.86 for images of 32x32,
0.87 and 1.00 of 8x8; a depthwise one with two outputs for each input: 5.4 and 0.8), and depthwise ones over more than 25 values of images
(over time the float kernel is the slow one). Averages of windows are depthwise convolutions and repeated places copies of rows: with the
kernels for these two 3x3 averages take 3.5 of float instead of 0.74, nearest neighbours 1.06 instead of 0.72 (scripts that are not kept).

Split takes integers apart where all pieces are rounded alike, and floats, more slowly, where one is not (gated convolutions: 0.716 of the
float model's time instead of 0.766; benchmarks/quantization/structures.py, temporal).

Products of two activations stay in float: rounding both factors takes longer than the integer product saves (a vision transformer of 65
tokens, AVX2: 0.95 of float against 1.18; MiniLM, 64 tokens: 0.98 of the file with integer products).
"""

from __future__ import annotations

from edgepress.targets.rules import Int4Rules, QuantRules

RULES = QuantRules(
    runtime="onnxruntime",
    activation_dtype="uint8",
    activation_symmetric=False,
    activation_min=0,
    activation_max=255,
    placement=frozenset(
        {"conv", "conv_transpose", "linear", "add", "mul", "cat", "max_pool", "avg_pool", "mean", "shape", "embedding"}
        | {"hard_sigmoid", "hard_swish", "leaky_relu", "sigmoid", "silu"}
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
    gated=frozenset({"hard_swish"}),
    shared=frozenset({"shape", "max_pool"}),
    float_output=frozenset({"linear"}),
    float_entry=32,
    float_windows={2: 25},
    float_groups={8: 1, 16: 256},
    beside=True,
    unpacks=True,
    whole_splits=True,
    added_in_pairs="flattened",
    int4=Int4Rules(),
    static_bits=(4, 2),
)
