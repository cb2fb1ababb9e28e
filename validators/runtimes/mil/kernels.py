"""Which ops of a program compute in integers, read from the types and the quantize/dequantize ops of the package."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from torch import Tensor

from edgepress.targets.nouns import KernelReport
from edgepress.validators.runtimes.mil.program import MilProgram, Step

SOURCE = "op dtypes and quantize/dequantize placement in the .mlpackage (not a device trace)"

#: Ops that are fed activations and constant weights, with the names of both.
_WEIGHTED = {"conv": ("x", "weight"), "conv_transpose": ("x", "weight"), "linear": ("x", "weight")}
_PRODUCTS = {"matmul": ("x", "y"), "scaled_dot_product_attention": ("query", "key", "value"), "einsum": ("values",)}
_RECURRENT = frozenset({"lstm", "rnn"})
_OTHER = frozenset(
    """abs add avg_pool batch_norm ceil clamped_relu clip cos cosh cumsum elu erf exp exp2 floor floor_div gelu instance_norm inverse
    l2_norm l2_pool layer_norm leaky_relu linear_activation local_response_norm log max_pool maximum minimum mod mul pow prelu real_div
    reduce_l1_norm reduce_l2_norm reduce_log_sum reduce_log_sum_exp reduce_max reduce_mean reduce_min reduce_prod reduce_sum
    reduce_sum_square relu relu6 resize resize_bilinear round rsqrt scaled_tanh sigmoid sigmoid_hard sign silu sin sinh softmax softplus
    softplus_parametric softsign sqrt square sub tan tanh threshold thresholded_relu upsample_bilinear""".split()  # noqa: SIM905
)
#: Ops that only move values: what comes out is as integer as what went in.
_MOVES = frozenset(
    """concat depth_to_space expand_dims flatten2d gather identity pad pixel_shuffle pixel_unshuffle reshape resize_nearest_neighbor
    reverse slice_by_index slice_by_size space_to_depth split squeeze stack tile transpose upsample_nearest_neighbor""".split()  # noqa: SIM905
)


def kernel_report(program: MilProgram) -> KernelReport:
    """Count compute ops by the type they run in.

    An op counts as int8 when everything it reads was dequantized from 8 bits: for convolutions and linear layers both
    activations and weights; for the rest, additionally, when all it feeds is a quantize op (so that an int8 kernel can
    write its result). Integer weights under float activations are float arithmetic and count as such.
    """
    reader = _Reader(program)
    lines: list[dict[str, Any]] = []
    macs: Counter[str] = Counter()
    for step in program.steps:
        kind = step.op.name
        if step.outputs[0].dtype not in ("fp16", "fp32") or (kind not in _WEIGHTED | _PRODUCTS and kind not in _OTHER | _RECURRENT):
            continue
        type_ = "int8" if reader.runs_in_integers(step) else step.outputs[0].dtype
        lines.append({"op": kind, "name": step.name, "type": type_})
        macs[type_] += multiply_accumulates(step, reader.shapes)
    counts = Counter(line["type"] for line in lines)
    total = sum(macs.values())
    share = macs["int8"] / total if total else None
    return KernelReport(counts["int8"], counts["fp16"], counts["fp32"], 0, share, SOURCE, tuple(lines))


def multiply_accumulates(step: Step, shapes: dict[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of a convolution, matrix product, attention or recurrent op; 0 for any other."""
    kind = step.op.name
    out = math.prod(step.outputs[0].shape)

    def shape(parameter: str) -> tuple[int, ...]:
        return shapes[step.sources[parameter][0]]

    if kind == "conv":
        return out * math.prod(shape("weight")[1:])
    if kind == "conv_transpose":
        return math.prod(shape("x")) * math.prod(shape("weight")[1:])
    if kind == "linear":
        return out * shape("weight")[-1]
    if kind == "matmul":
        return out * shape("x")[-2 if step.arguments.get("transpose_x", False) else -1]
    if kind == "einsum":
        return out * shapes[step.sources["values"][0]][-1]
    if kind == "scaled_dot_product_attention":
        scores = math.prod(shape("query")[:-1]) * shape("key")[-2]
        return scores * (shape("query")[-1] + shape("value")[-1])
    if kind in _RECURRENT:
        directions = 2 if "weight_ih_back" in step.sources else 1
        steps, batch = shape("x")[:2]
        return directions * steps * batch * (math.prod(shape("weight_ih")) + math.prod(shape("weight_hh")))
    return 0


class _Reader:
    """Follows values back to the op that made them and forward to the ops that read them."""

    def __init__(self, program: MilProgram) -> None:
        self.program = program
        self.producer = {out.name: step for step in program.steps for out in step.outputs}
        self.readers: dict[str, list[Step]] = {}
        for step in program.steps:
            for names in step.sources.values():
                for name in names:
                    self.readers.setdefault(name, []).append(step)
        self.shapes = {feature.name: feature.shape for feature in program.inputs}
        self.shapes |= {out.name: out.shape for step in program.steps for out in step.outputs}
        self.shapes |= {name: tuple(value.shape) for name, value in program.constants.items() if isinstance(value, Tensor)}

    def runs_in_integers(self, step: Step) -> bool:
        kind = step.op.name
        if kind in _WEIGHTED:
            return all(self._from_integers(step.sources[parameter][0]) for parameter in _WEIGHTED[kind])
        if kind in _PRODUCTS:
            return all(self._from_integers(name) for parameter in _PRODUCTS[kind] for name in step.sources[parameter])
        data = [name for names in step.sources.values() for name in names if name in self.producer]
        return bool(data) and all(self._from_integers(name) or self._fused(name) for name in data) and self._to_integers(step)

    def _from_integers(self, name: str) -> bool:
        """Was this value dequantized from 8 bits, possibly moved around since?"""
        if name in self.program.made_by:
            return self.program.made_by[name] in ("constexpr_affine_dequantize", "constexpr_blockwise_shift_scale", "dequantize")
        step = self.producer.get(name)
        if step is None:
            return False
        if step.op.name == "dequantize":
            return True
        return step.op.name in _MOVES and all(self._from_integers(source) for source in _moved(step))

    def _to_integers(self, step: Step) -> bool:
        readers = [reader for out in step.outputs for reader in self.readers.get(out.name, [])]
        return bool(readers) and all(
            reader.op.name == "quantize" or (reader.op.name in _MOVES | _OTHER and self._to_integers(reader)) for reader in readers
        )

    def _fused(self, name: str) -> bool:
        """An int8 op whose result only this op reads (a convolution before its activation): one kernel on the device."""
        step = self.producer.get(name)
        compute = step is not None and step.op.name in _WEIGHTED.keys() | _PRODUCTS.keys() | _OTHER
        return compute and step is not None and len(self.readers[name]) == 1 and self.runs_in_integers(step)


def _moved(step: Step) -> tuple[str, ...]:
    """The names of the values an op moves, without the integers that say how."""
    for parameter in ("x", "values"):
        if parameter in step.sources:
            return step.sources[parameter]
    return ()
