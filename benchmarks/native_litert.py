"""ai-edge-quantizer's own static int8, and its latency against ours in one interleaved window."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def quantize_static(float_model: Path, calibration: Mapping[str, np.ndarray], folder: Path) -> Path:
    """Quantize a float .tflite file as the tool's own recipe does (`static_wi8_ai8`: int8 weights per channel, int8 activations).

    Args:
        float_model: with a fixed batch of 1.
        calibration: input name -> samples (n, ...).
        folder: receives `ai_edge_quantizer.tflite`.
    """
    from ai_edge_quantizer import quantizer, recipe

    from edgepress.exporters.litert_convert import quiet

    count = len(next(iter(calibration.values())))
    samples = [{name: value[i : i + 1] for name, value in calibration.items()} for i in range(count)]
    with quiet():
        tool = quantizer.Quantizer(str(float_model), recipe.static_wi8_ai8())
        statistics = tool.calibrate({"serving_default": samples})
        content = tool.quantize(statistics).quantized_model
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ai_edge_quantizer.tflite"
    path.write_bytes(bytes(content))
    return path


def interpreter(path: Path, inputs: Mapping[str, np.ndarray]) -> Any:
    """An interpreter with one thread and the first sample in place."""
    from ai_edge_litert.interpreter import Interpreter

    from edgepress.validators.runtimes.tflite_io import boundary, stored

    loaded = Interpreter(str(path), num_threads=1)
    loaded.allocate_tensors()
    for name, (index, dtype, scale, zero_point) in boundary(loaded.get_signature_runner().get_input_details()).items():
        loaded.set_tensor(index, stored(name, inputs[name][:1], dtype, scale, zero_point))
    return loaded


def interleaved(paths: Sequence[Path], inputs: Mapping[str, np.ndarray], rounds: int = 100) -> list[float]:
    """Median milliseconds of each file, batch 1, one thread, in rounds of A B … B A."""
    loaded = [interpreter(path, inputs) for path in paths]
    times: list[list[float]] = [[] for _ in loaded]
    order = [*range(len(loaded)), *reversed(range(len(loaded)))]
    for turn in range(rounds + 5):
        for i in order:
            start = time.perf_counter()
            loaded[i].invoke()
            if turn >= 5:
                times[i].append((time.perf_counter() - start) * 1e3)
    return [float(np.median(row)) for row in times]


def compare(ours: Path, float_model: Path, calibration: Mapping[str, np.ndarray], folder: Path, rounds: int = 100) -> dict[str, float]:
    """Our int8 file, the tool's int8 file made from our float file, and the float file, in one window.

    Returns:
        Median milliseconds `ours`, `native`, `float`, and `ratio` = ours / native.
    """
    native = quantize_static(float_model, calibration, folder)
    ours_ms, native_ms, float_ms = interleaved([ours, native, float_model], calibration, rounds)
    return {"ours": ours_ms, "native": native_ms, "float": float_ms, "ratio": ours_ms / native_ms}


if __name__ == "__main__":
    files = [Path(argument) for argument in sys.argv[1:4]]
    with np.load(sys.argv[4], allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    print(compare(files[0], files[1], arrays, files[2]))
