"""Exports on disk and the report that goes with them, for bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgepress.bundle.npz import save_npz
from edgepress.bundle.write import Shipment, shipped_artifacts
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
    return report(*(makers[item.target](item.target, artifact=entries[item.target]) for item in shipped), lost("tflite"), **more)
