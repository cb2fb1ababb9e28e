"""Quantization: one calibration, a rendering per runtime."""

from edgepress.compress.quantize.macs import count_macs, share_of_macs
from edgepress.compress.quantize.observers import OBSERVERS
from edgepress.compress.quantize.prepare import canonical_module, float_module
from edgepress.compress.quantize.render import Rendered, render
from edgepress.compress.quantize.statistics import Statistics, calibrate

__all__ = [
    "OBSERVERS",
    "Rendered",
    "Statistics",
    "calibrate",
    "canonical_module",
    "count_macs",
    "float_module",
    "render",
    "share_of_macs",
]
