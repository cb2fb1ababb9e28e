"""Quantization: one calibration, a rendering per runtime."""
