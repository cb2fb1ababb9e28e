"""What each runtime executes in integers, as data: one module per runtime, one table of names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgepress.targets.errors import ConfigError
from edgepress.targets.nouns import Scheme
from edgepress.targets.registry import Registry

#: Kinds of op the quantizer knows how to place. `shape` stands for ops that move values without changing them.
OP_KINDS = frozenset(
    {"conv", "conv_transpose", "linear", "matmul", "add", "mul", "cat", "max_pool", "avg_pool", "mean", "softmax", "shape", "embedding"}
    | {"batch_norm", "hard_sigmoid", "hard_swish", "leaky_relu", "sigmoid", "silu", "tanh"}
)

#: Those of them that are products with a gate.
GATED_KINDS = frozenset({"hard_swish", "silu"})

#: Bits -> elements of the smallest weight that can have them: the nodes that unpack a smaller one take what they save.
SMALLEST_NARROW = {4: 256, 2: 2048}
#: Numbers of consecutive inputs that may share a scale of 4-bit weights.
INT4_GROUPS = (16, 32, 64, 128, 256)
#: How 4-bit weights are rounded: to nearest, with errors made good by later columns, or with inputs scaled by how much they matter.
INT4_METHODS = ("rtn", "gptq", "awq")
#: How the integers of one runtime are refined layer by layer, or block by block, after calibration, in this order; of those that round,
#: one at most.
ROUNDINGS = ("adaround", "gptq", "brecq")
REFINERS = ("lsq", *ROUNDINGS, "bias-correction")


@dataclass(frozen=True)
class Int4Rules:
    """What a runtime's kernel for linear layers with 4-bit weights takes.

    Attributes:
        symmetric: the zero point is the middle (8 of 0 to 15); else each group has one of its own.
        groups: sizes of groups it takes, of `INT4_GROUPS`.
        rows: it takes one scale for a whole row too.
    """

    symmetric: bool = False
    groups: tuple[int, ...] = INT4_GROUPS
    rows: bool = False


@dataclass(frozen=True)
class QuantRules:
    """One runtime's integer arithmetic: dtypes, symmetry, placement and the order in which schemes are tried.

    Attributes:
        runtime: the runtime's name.
        activation_dtype: `int8` or `uint8`.
        activation_symmetric: zero point 0 (the range is made symmetric) or calibrated.
        activation_min, activation_max: integer bounds of activations.
        weight_min, weight_max: integer bounds of int8 weights, symmetric.
        per_channel: op kinds whose weights have a scale per output channel; the rest have one per tensor.
        placement: op kinds that are quantized under the `static` scheme.
        quantize_outputs: Q/DQ on every op boundary (outputs too), not on the inputs of heavy ops alone.
        unit_output: fixed (scale, zero point) of what softmax and sigmoid give, or None where the range is calibrated.
        float_output: heavy op kinds whose integer kernel can write float; their output is rounded only where an integer op reads it.
        fused: op kinds that a kernel with weights computes before it rounds its output, besides clipping.
        gated: op kinds (silu, hard_swish) written as a product with their gate, since the runtime has integer kernels for these two.
        shared: op kinds whose inputs and output have one scale and zero point.
        clips: a clip between integers has a scale of its own all the same: rounding to it is the clip.
        decompose_attention: write fused attention as matmul, softmax, matmul, so that its matmuls run in integers.
        smooth: split outlier channels of what linear layers read, and scale them into the weights, where that lowers the error.
        fold_weights: store integer weights in the graph; False keeps float weights with a quantize node before use.
        ladder: kinds of scheme tried for `int8`, in this order; the first that holds is shipped.
        precisions: precisions the runtime has.
        multiple: channel counts that suit its kernels (pruning lands on multiples of it).
        int4: its kernel for 4-bit weights, None where it has none.
        centred_inputs: heavy op kinds whose integer kernel takes no zero point: what they read has it in the middle, or no negative values.
        added_in_pairs: `flattened` or `channels` where kernels add the products of two neighbours in 16 bits on some CPUs: neighbours in
            the window of a convolution, channels last, or channels of one position. Their weights keep to what fits.
        affine: sums and products with constants have integer kernels that are worth their roundings.
        rounded_before: names of float ops that are faster where layers before them write integers, centred ones, than floats.
        float_entry: a 2-D convolution of the model's input stays float where an output sums at most so many products, and few of the
            network's multiply-accumulates are its.
        float_windows: dimensions of a depthwise convolution -> values of the largest window that is not as one of `weight_only`.
        float_groups: inputs -> places. So is a convolution of groups of fewer inputs than one of these, with outputs of at least so many
            places, other than a depthwise one with an output for each input.
        beside: transposed convolutions are computed as convolutions whose outputs are put beside each other (`phases.py`). Those that
            cannot be, or would take twice as many products, are as those of `weight_only`.
        weight_only: op kinds without an integer kernel whose weights static schemes store in integers all the same.
        unpacks: weights of recurrent layers, and of products that are no linear layer, are stored in integers that loading a file unpacks.
        whole_splits: a tensor is taken apart in integers where all of its pieces are rounded: one that floats read is, if another is.
        float_bytes: bytes of one weight of a layer that a quantized artifact keeps in float.
        smallest_scale: a scale that the runtime keeps exactly enough to multiply by.
        static_bits: below 8, in which single layers of a static scheme can store weights, unpacked to 8 when the file is loaded.
    """

    runtime: str
    activation_dtype: str
    activation_symmetric: bool
    activation_min: int
    activation_max: int
    placement: frozenset[str]
    precisions: tuple[str, ...]
    ladder: tuple[str, ...]
    weight_min: int = -127
    weight_max: int = 127
    per_channel: frozenset[str] = frozenset({"conv", "conv_transpose", "linear"})
    quantize_outputs: bool = True
    unit_output: tuple[float, int] | None = None
    float_output: frozenset[str] = frozenset()
    gated: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset({"shape", "max_pool", "cat"})
    fused: frozenset[str] = frozenset()
    clips: bool = False
    decompose_attention: bool = True
    smooth: bool = True
    fold_weights: bool = True
    multiple: int = 8
    int4: Int4Rules | None = None
    centred_inputs: frozenset[str] = frozenset()
    added_in_pairs: str = ""
    affine: bool = True
    rounded_before: frozenset[str] = frozenset()
    float_entry: int = 0
    float_windows: Mapping[int, int] = field(default_factory=dict)
    float_groups: Mapping[int, int] = field(default_factory=dict)
    beside: bool = False
    weight_only: frozenset[str] = frozenset()
    unpacks: bool = False
    whole_splits: bool = False
    float_bytes: int = 4
    smallest_scale: float = 2.0**-28
    static_bits: tuple[int, ...] = ()

    def of(self, scheme: Scheme) -> QuantRules:
        """These rules with the bounds of weights, and the placement, that a scheme has.

        Integer kernels that saturate need a guard, float arithmetic with integer weights does not. TensorRT-RTX has
        kernels for 8-bit floats in matrix products alone (its documentation, "Working with Quantized Types").
        """
        if scheme.kind == "fp8":
            return replace(self, placement=frozenset({"linear", "matmul"}), quantize_outputs=False, smooth=False)
        if scheme.kind == "weights" or scheme.weight_bits == 8:
            return self.unguarded
        if scheme.weight_bits == 7:
            return replace(self.unguarded, weight_min=-63, weight_max=63)
        return self

    @property
    def unguarded(self) -> QuantRules:
        """With all integers for every weight, for what no saturating kernel multiplies."""
        return replace(self, added_in_pairs="")

    def __post_init__(self) -> None:
        named = self.placement | self.per_channel | self.float_output | self.shared | self.fused | self.centred_inputs | self.weight_only
        unknown = (named - OP_KINDS) | (self.gated - GATED_KINDS)
        if self.added_in_pairs not in ("", "flattened", "channels"):
            raise ConfigError(
                f"QuantRules of {self.runtime!r}: {self.added_in_pairs!r} is not a value of added_in_pairs",
                remedy="Use flattened, channels, or nothing.",
            )
        if unknown:
            raise ConfigError(
                f"QuantRules of {self.runtime!r} name unknown op kinds {sorted(unknown)}", remedy=f"Known: {sorted(OP_KINDS)}."
            )


RULES = Registry(
    "edgepress.rules",
    {
        "onnxruntime": "edgepress.targets.rules.onnxruntime:RULES",
        "openvino": "edgepress.targets.rules.openvino:RULES",
        "tensorrt": "edgepress.targets.rules.tensorrt:RULES",
        "coreml": "edgepress.targets.rules.coreml:RULES",
        "litert": "edgepress.targets.rules.litert:RULES",
    },
)


def rules_for(runtime: str) -> QuantRules:
    """The rules of one runtime.

    Raises:
        ConfigError: nobody registered rules for it.
    """
    rules: QuantRules = RULES.get(runtime)
    return rules
