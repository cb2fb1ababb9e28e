"""Our static int8 against each runtime's own post-training quantizer: interleaved latency and accuracy in one window.

    EDGEPRESS_CASES=… python benchmarks/native_quantizers.py [--runtime onnxruntime|openvino|litert]... [--pairs N]

CIFAR-10 ResNet-20, 512 training images for every quantizer, batch 1, 1 thread. Printed ratios are int8 latency over the other
side's latency in ABBA order with a 95 % bootstrap interval; drops are in percentage points on the whole validation set.
A runtime is added with one function in `RIVALS` that writes the rival's file and gives it as an Artifact.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from edgepress.compress.quantize import calibrate
from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.targets.nouns import Artifact, Scheme, Signature, Target, TensorSpec
from edgepress.validators.latency import LatencyPlan, compare_latency
from edgepress.validators.runtimes import RUNTIMES
from edgepress.validators.runtimes.base import Session

CALIBRATION, BATCH = 512, 32


@dataclass(frozen=True)
class Case:
    """ResNet-20 with its data; `calibration` and `validation` are float32 (n, 3, 32, 32)."""

    program: Path
    statistics: Path
    signature: Signature
    calibration: np.ndarray
    validation: np.ndarray
    labels: np.ndarray

    def request(self, runtime: str, precision: str, kind: str) -> ExportRequest:
        target = Target(runtime, runtime, "x86-64 CPU", precision)
        return ExportRequest(self.program, self.signature, self.statistics, target, Scheme(precision, kind), (self.calibration[:4],))


def load_case(folder: Path, scratch: Path) -> Case:
    from safetensors.torch import load_file

    modules = {}
    for name in ("model", "data"):
        spec = importlib.util.spec_from_file_location(f"case_{name}", folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[name])
    model = modules["model"].resnet20()
    model.load_state_dict(load_file(folder / "resnet20.safetensors"))
    train, (images, labels) = modules["data"].train().tensors[0], modules["data"].validation().tensors
    calibration = train[np.random.default_rng(0).permutation(len(train))[:CALIBRATION]].numpy()
    example = (torch.from_numpy(calibration[:2]),)
    program = torch.export.export(model.eval(), example, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, scratch / "model.pt2")
    batches = [(calibration[i : i + BATCH],) for i in range(0, CALIBRATION, BATCH)]
    calibrate(program, batches).save(scratch / "statistics")
    signature = Signature((TensorSpec("input", "float32", (None, 3, 32, 32)),), (TensorSpec("logits", "float32", (None, 10)),))
    return Case(scratch / "model.pt2", scratch / "statistics", signature, calibration, images.numpy(), labels.numpy())


def onnxruntime_static(case: Case, float_artifact: Artifact, folder: Path, reduce_range: bool = False) -> Artifact:
    """onnxruntime.quantization.quantize_static, Q/DQ, uint8 activations, int8 weights per channel."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"input": case.calibration[i : i + BATCH]} for i in range(0, CALIBRATION, BATCH)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    prepared, path = folder / "prepared.onnx", folder / f"native_{reduce_range}.onnx"
    quant_pre_process(str(folder / float_artifact.path), str(prepared))
    quantization.quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return replace(float_artifact, path=path.name)


def onnxruntime_static_7bit(case: Case, float_artifact: Artifact, folder: Path) -> Artifact:
    """The same with reduce_range, which its documentation advises where the CPU has no VNNI."""
    return onnxruntime_static(case, float_artifact, folder, reduce_range=True)


def nncf_static(case: Case, float_artifact: Artifact, folder: Path) -> Artifact:
    """nncf.quantize on the OpenVINO model, its defaults."""
    import nncf
    import openvino

    model = openvino.Core().read_model(folder / float_artifact.path / "model.xml")
    dataset = nncf.Dataset([case.calibration[i : i + 1] for i in range(CALIBRATION)])
    quantized = nncf.quantize(model, dataset, subset_size=CALIBRATION)
    written = folder / "nncf"
    written.mkdir()
    openvino.save_model(quantized, written / "model.xml", compress_to_fp16=False)
    return replace(float_artifact, path=written.name)


def ai_edge_static(case: Case, float_artifact: Artifact, folder: Path) -> Artifact:
    """ai-edge-quantizer's own recipe static_wi8_ai8: int8 weights per channel, int8 activations; float at the boundary, as ours."""
    from ai_edge_quantizer import quantizer, recipe

    tool = quantizer.Quantizer(str(folder / float_artifact.path), recipe.static_wi8_ai8())
    statistics = tool.calibrate({"serving_default": [{"input": case.calibration[i : i + 1]} for i in range(CALIBRATION)]})
    path = folder / "ai_edge_quantizer.tflite"
    path.write_bytes(bytes(tool.quantize(statistics).quantized_model))
    return replace(float_artifact, path=path.name)


Rival = Callable[[Case, Artifact, Path], Artifact]
RIVALS: dict[str, dict[str, Rival]] = {
    "onnxruntime": {"quantize_static": onnxruntime_static, "quantize_static reduce_range": onnxruntime_static_7bit},
    "openvino": {"nncf.quantize": nncf_static},
    "litert": {"ai-edge-quantizer static": ai_edge_static},
}


def accuracy(session: Session, case: Case) -> float:
    correct = 0
    for start in range(0, len(case.labels), 250):
        outputs = session.run({"input": case.validation[start : start + 250]})["logits"]
        correct += int((outputs.argmax(1) == case.labels[start : start + 250]).sum())
    return correct / len(case.labels)


def measure(runtime: str, case: Case, scratch: Path, pairs: int) -> list[dict[str, object]]:
    """One row per rival and one for fp32: our static int8 is the candidate of every ratio."""
    folder, exporter, opener = scratch / runtime, EXPORTERS.get(runtime)(), RUNTIMES.get(runtime)()
    float_artifact = exporter.export(case.request(runtime, "fp32", "float"), folder)
    ours_artifact = exporter.export(case.request(runtime, "int8", "static"), folder / "ours")
    sessions = {"edgepress static": opener.open(ours_artifact, folder / "ours"), "fp32": opener.open(float_artifact, folder)}
    for name, rival in RIVALS[runtime].items():
        sessions[name] = opener.open(rival(case, float_artifact, folder), folder)
    sample = {"input": case.validation[:1]}
    calls = {name: session.bind(sample) for name, session in sessions.items()}
    values = {name: accuracy(session, case) for name, session in sessions.items()}
    plan = LatencyPlan(min_pairs=pairs, max_pairs=pairs, seconds=240)
    rows: list[dict[str, object]] = []
    for name in [name for name in sessions if name != "edgepress static"]:
        result = compare_latency(calls["edgepress static"], calls[name], plan=plan)
        rows.append(
            {
                "runtime": runtime,
                "against": name,
                "ratio": round(result.ratio, 3),
                "interval": [round(bound, 3) for bound in result.interval],
                "pairs": result.pairs,
                "ours_ms": round(float(np.median(result.candidate_ms)), 3),
                "its_ms": round(float(np.median(result.reference_ms)), 3),
                "our_drop_pp": round(100 * (values["fp32"] - values["edgepress static"]), 2),
                "its_drop_pp": round(100 * (values["fp32"] - values[name]), 2),
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", action="append", choices=sorted(RIVALS), help="default: all")
    parser.add_argument("--pairs", type=int, default=400, help="interleaved pairs per ratio")
    arguments = parser.parse_args()
    cases = Path(os.environ.get("EDGEPRESS_CASES", "../shared/cases")) / "cifar10"
    if not cases.is_dir():
        print(f"no folder {cases}: set EDGEPRESS_CASES to the folder of the real cases", file=sys.stderr)
        return 2
    with TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        case = load_case(cases, scratch)
        for runtime in arguments.runtime or RIVALS:
            for row in measure(runtime, case, scratch, arguments.pairs):
                print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
