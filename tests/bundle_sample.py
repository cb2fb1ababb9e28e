"""Exports on disk and the report that goes with them, for bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.bundle.inputs import NAME, reference_statistics
from edgepress.bundle.npz import save_npz
from edgepress.bundle.release import Release
from edgepress.bundle.write import Shipment, shipped_artifacts, write_bundle
from edgepress.targets.nouns import Artifact, Scheme, Signature, TensorSpec
from tests.report_sample import lost, not_executable, report, target

SIGNATURE = Signature((TensorSpec("image", "float32", (None, 4)),), (TensorSpec("logits", "float32", (None, 3)),))
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 10


def golden(folder: Path) -> Path:
    folder.mkdir(parents=True)
    image = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    save_npz(folder / "golden_inputs.npz", {"image": image})
    save_npz(folder / "golden_outputs.npz", {"logits": image @ WEIGHT})
    return folder


def shipments(root: Path) -> list[Shipment]:
    """One artifact that is a file, one that is a folder with a further file beside it."""
    (root / "a").mkdir(parents=True)
    (root / "a/model.onnx").write_bytes(b"onnx" * 100)
    (root / "b/model.mlpackage/Data").mkdir(parents=True)
    (root / "b/model.mlpackage/Manifest.json").write_text("{}")
    (root / "b/model.mlpackage/Data/weights.bin").write_bytes(bytes(range(256)))
    (root / "b/graph.onnx").write_bytes(b"graph")
    samples = golden(root / "golden")
    parents = {"checkpoint": "ab" * 32, "program": "cd" * 32}
    file = Artifact("model.onnx", "onnxruntime", Scheme("int8", "static"), SIGNATURE, {"opset": 21, "runtime_minimum": "1.20"})
    folder = Artifact(
        "model.mlpackage",
        "coreml",
        Scheme("int8", "weights"),
        SIGNATURE,
        {"minimum_os": "iOS18"},
        ({"op": "x", "count": 1, "reason": "y"},),
        ("graph.onnx",),
    )
    return [
        Shipment("onnxruntime", "onnxruntime", file, root / "a", samples, parents),
        Shipment("coreml", "a-runtime-nobody-has", folder, root / "b", samples, parents, "pixels / 255"),
    ]


def report_of(shipped: list[Shipment], **more: Any) -> dict[str, Any]:
    """A report with these targets and one that was lost."""
    entries = shipped_artifacts(shipped)
    makers = {"onnxruntime": target, "coreml": lambda name, **fields: not_executable(name, "accepted") | fields}
    made = (makers.get(item.target, target)(item.target, artifact=entries[item.target]) for item in shipped)
    return report(*made, lost("tflite"), **more)


def served(root: Path) -> list[Shipment]:
    """The two of `shipments`, one for OpenVINO, and two engines: of TensorRT and of TensorRT-RTX."""
    shipped = shipments(root)
    (root / "c/model").mkdir(parents=True)
    (root / "c/model/model.xml").write_text("<net/>")
    (root / "c/model/model.bin").write_bytes(b"weights")
    samples, parents = shipped[0].golden, shipped[0].parents
    openvino = Artifact("model", "openvino", Scheme("int8", "static"), SIGNATURE, {"format": "openvino-ir"})
    shipped.append(Shipment("openvino", "openvino", openvino, root / "c", samples, parents))
    for name, library in (("tensorrt", "tensorrt"), ("tensorrt:rtx", "tensorrt-rtx")):
        folder = root / library
        (folder / "model").mkdir(parents=True)
        (folder / "model/sm86.engine").write_bytes(library.encode())
        (folder / "model/model.onnx").write_bytes(b"graph")
        facts = {"engines": [{"file": "sm86.engine", "compute_capability": "8.6", "library": library, "version": "1"}], "max_batch": 16}
        engine = Artifact("model", name, Scheme("int8", "static"), SIGNATURE, facts)
        shipped.append(Shipment(name, "tensorrt", engine, folder, samples, parents))
    return shipped


def calibration(samples: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs whose level differs from sample to sample, as that of real ones does."""
    dice = np.random.default_rng(seed)
    return {"image": (dice.normal(size=(samples, 4)) + dice.normal(size=(samples, 1))).astype(np.float32)}


def release(root: Path, **more: Any) -> Release:
    """Everything a release can have; `more` replaces fields."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "LICENSE").write_text("Terms of the sample.\n")
    (root / NAME).write_text(json.dumps(reference_statistics(calibration()), sort_keys=True))
    data = {"samples": "ef" * 32}
    datasets = {"train": "data:train", "validation": "data:validation"}
    facts: dict[str, Any] = {"license": "Apache-2.0", "license_texts": (root / "LICENSE",), "datasets": datasets, "data": data}
    facts |= {"statistics": root / NAME, "layouts": ("triton", "ovms", "oci")}
    return Release(**facts | more)


def full_run(root: Path, **more: Any) -> Path:
    """A RUN_DIR whose bundle has everything."""
    shipped = served(root / "store")
    data = report_of(shipped)
    write_bundle(root / "run", data, shipped, release(root / "release", **more))
    (root / "run/report.json").write_text(json.dumps(data))
    return root / "run"
