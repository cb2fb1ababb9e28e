"""Quantization: one calibration, a rendering per runtime."""

from edgepress.compress.quantize.int4 import Int4Options, Int4Result, quantize_int4, render_int4
from edgepress.compress.quantize.macs import count_macs
from edgepress.compress.quantize.observers import OBSERVERS
from edgepress.compress.quantize.pairs import with_pairs_in_place
from edgepress.compress.quantize.prepare import canonical_module, float_module, plain_model
from edgepress.compress.quantize.render import Rendered, render
from edgepress.compress.quantize.statistics import Statistics, calibrate

__all__ = [
    "OBSERVERS",
    "Int4Options",
    "Int4Result",
    "Rendered",
    "Statistics",
    "calibrate",
    "canonical_module",
    "count_macs",
    "float_module",
    "plain_model",
    "quantize_int4",
    "render",
    "render_int4",
    "with_pairs_in_place",
]
