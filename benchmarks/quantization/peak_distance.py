"""MiniLM in ONNX Runtime: how far it is from this machine's peak, and what attention that is written out gains.

    EDGEPRESS_CASES=… python benchmarks/quantization/peak_distance.py [--rounds N]

Batch 1, 1 thread, in turns. Times are processor time of the calling thread, which other work on the machine disturbs less than the clock on
the wall does; the peak is taken with the same clock. `torch's` is the file with torch's own lowering of the fused attention op.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch

from edgepress.compress.project.trace import TraceOptions, trace_model
from edgepress.compress.quantize import count_macs
from edgepress.exporters import onnx as lowering
from edgepress.exporters.base import ExportRequest
from edgepress.targets.nouns import Scheme, Target
from edgepress.validators.peak import measure_peak
from edgepress.validators.runtimes import RUNTIMES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=150)
    rounds = parser.parse_args().rounds
    folder = Path(os.environ.get("EDGEPRESS_CASES", "../shared/cases")) / "sst2"
    if not folder.is_dir():
        print(f"no folder {folder}: set EDGEPRESS_CASES to the folder of the real cases", file=sys.stderr)
        return 2
    sys.path.insert(0, str(folder))
    import model as case

    torch.manual_seed(0)  # random weights: they set no speed
    samples = [tensor.repeat(2, 1).numpy() for tensor in case.example_inputs()]
    traced = trace_model(case.minilm().eval(), samples, folder, TraceOptions())
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    shares: dict[str, float] = {}
    with TemporaryDirectory() as temporary:
        program = Path(temporary) / "model.pt2"
        torch.export.save(traced.program, program)
        for scheme in (Scheme("fp32", "float"), Scheme("int8", "dynamic")):
            target = Target("onnxruntime", "onnxruntime", "CPU", scheme.precision)
            request = ExportRequest(program, traced.signature, None, target, scheme, tuple(samples))
            for written, change in (("torch's", lambda program: program), ("ours", lowering.plain_model)):
                place = Path(temporary) / scheme.kind / written
                with mock.patch.object(lowering, "plain_model", change):
                    artifact = lowering.OnnxRuntimeExporter().export(request, place)
                session = RUNTIMES.get("onnxruntime")().open(artifact, place)
                names = [spec.name for spec in traced.signature.inputs]
                calls[scheme.label, written] = session.bind({n: a[:1] for n, a in zip(names, samples, strict=True)})
                shares[scheme.label] = session.kernels().int8_macs_share or 0.0
        times = np.array([[timed(call) for call in calls.values()] for _ in range(rounds + 5)])[5:]
    peak, macs = measure_peak(1, clock=time.thread_time_ns), count_macs(traced.program)
    print(f"peak: int8 {peak.int8_macs_per_s / 1e9:.1f}, fp32 {peak.fp32_macs_per_s / 1e9:.1f} GMAC/s ({peak.how})")
    for place, (label, written) in enumerate(calls):
        taken, shortest = times[:, place] / 1e6, peak.shortest_ms(macs, shares[label])
        ratio = np.median(times[:, place] / times[:, place - place % 2])
        print(
            f"{label:13s} {written:8s} fastest {taken.min():.2f} ms, median {np.median(taken):.2f} ms, over torch's {ratio:.3f},"
            f" off the peak {taken.min() / shortest:.2f}x (median {np.median(taken) / shortest:.2f}x)"
        )
    return 0


def timed(call: Callable[[], object]) -> int:
    start = time.thread_time_ns()
    call()
    return time.thread_time_ns() - start


if __name__ == "__main__":
    sys.exit(main())
