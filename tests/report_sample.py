"""A report with every kind of target: passing, accepted, undecided, failing and lost."""

from __future__ import annotations

from typing import Any

SHA = "0123456789abcdef" * 4
ONNXRUNTIME = "onnxruntime 1.32.0 CPU"


SPREAD = {"candidate": [0.401, 0.412, 0.47], "reference": [1.28, 1.32, 1.51]}
CONDITIONS = {"cores": [0, 1], "mhz": [2445, 2445], "governor": None, "others": 0.031}


def gate(name: str, limit: str, observed: str, verdict: str = "pass", **more: Any) -> dict[str, Any]:
    return {"name": name, "limit": limit, "observed": observed, "interval": None, "verdict": verdict, "next_step": None, **more}


def target(name: str, **more: Any) -> dict[str, Any]:
    """A target that holds everything; `more` replaces fields."""
    return {
        "name": name,
        "device": "x86-64 CPU",
        "precision": "int8",
        "scheme": {"label": "int8 static", "kind": "static"},
        "status": "validated",
        "executed_by": ONNXRUNTIME,
        "error": None,
        "seconds": 12.5,
        "artifact": {"path": f"bundle/{name}/model.bin", "sha256": SHA, "size_bytes": 312_004},
        "metric": {"value": 0.9148, "drop": 0.12, "interval": [-0.05, 0.31], "samples": 10000},
        "parity": {"max_abs_error": 0.0321, "sqnr_db": 38.4, "argmax_agreement": 0.9991},
        "latency_ms": {
            "p50": 0.412,
            "p90": 0.455,
            "p99": None,
            "samples": 240,
            "threads": 1,
            "batch": 1,
            "conditions": CONDITIONS,
            "spread": SPREAD,
        },
        "latency_ratio": {"value": 0.312, "interval": [0.305, 0.322], "reference": "fp32 in the same runtime"},
        "peak_distance": {
            "value": 1.62,
            "shortest_ms": 0.254,
            "why": None,
            "integer_share": 1.0,
            "macs": 20_000_000,
            "int8_macs_per_s": 78.6e9,
            "fp32_macs_per_s": 45.2e9,
            "how": "the fastest run of matrix products",
        },
        "peak_memory_bytes": 61_800_448,
        "kernels": {"int8": 31, "fp16": 0, "fp32": 1, "unknown": 0, "float_share_of_macs": 0.0, "source": "optimized graph"},
        "integer_share_of_macs": 1.0,
        "gates": [
            gate("accuracy_drop", "at most 1.00 pp", "0.12 pp (-0.05 pp to 0.31 pp) on 10,000 validation samples", interval=[-0.05, 0.31]),
            gate("latency_ratio", "at most 0.800", "0.312 (0.305 to 0.322) on 240 latency pairs", interval=[0.305, 0.322]),
            gate("size", "at most 2.00 MB", "312.00 kB"),
        ],
        "tried": [
            {"scheme": {"label": "int8 static", "kind": "static"}, "drop_on_selection": 0.1, "held": True, "why": "within the margin"}
        ],
        "float_ops": [{"op": "aten.layer_norm", "count": 12, "reason": "no integer kernel in this runtime"}],
        "also_executed_by": [],
        "unmeasured": {},
        "facts": {"opset": 21, "runtime_minimum": "onnxruntime 1.20"},
        "signature": {
            "inputs": [{"name": "image", "dtype": "float32", "shape": [None, 3, 32, 32]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [None, 10]}],
        },
        **more,
    }


def not_executable(name: str, verdict: str) -> dict[str, Any]:
    """A target whose latency this machine cannot measure."""
    why = "the artifact's own runtime does not exist on this machine"
    return target(
        name,
        device="NVIDIA GPU" if name == "tensorrt" else "Apple device",
        executed_by=f"{ONNXRUNTIME} (same graph; engine not executed)",
        latency_ms=None,
        latency_ratio=None,
        peak_distance=None,
        peak_memory_bytes=None,
        unmeasured={"latency": why},
        gates=[
            gate("accuracy_drop", "at most 1.00 pp", "0.12 pp (-0.05 pp to 0.31 pp) on 10,000 validation samples", interval=[-0.05, 0.31]),
            gate("latency_ratio", "at most 0.800", "not measured", verdict, next_step="Run `edgepress bench` on the device."),
        ],
    )


def failing(name: str) -> dict[str, Any]:
    return target(
        name,
        scheme={"label": "int8 dynamic", "kind": "dynamic"},
        metric={"value": 0.8991, "drop": 1.69, "interval": [1.31, 2.08], "samples": 10000},
        integer_share_of_macs=0.94,
        gates=[
            gate(
                "accuracy_drop",
                "at most 1.00 pp",
                "1.69 pp (1.31 pp to 2.08 pp) on 10,000 validation samples",
                "fail",
                interval=[1.31, 2.08],
                next_step="Run `edgepress explain` to see which layers.",
            ),
            gate("latency_ratio", "at most 0.800", "0.312 (0.305 to 0.322) on 240 latency pairs", interval=[0.305, 0.322]),
            gate("size", "at most 2.00 MB", "312.00 kB"),
        ],
        tried=[
            {
                "scheme": {"label": "int8 static", "kind": "static"},
                "drop_on_selection": 11.6,
                "held": False,
                "why": "drop 11.6 pp, margin 1.0 pp",
            },
            {"scheme": {"label": "int8 dynamic", "kind": "dynamic"}, "drop_on_selection": 0.4, "held": True, "why": None},
        ],
        also_executed_by=[
            {"executed_by": "tflite-runtime 2.14.0", "error": "GATHER_ND version 5 is newer than this runtime (at most 4)"},
            {"executed_by": "another runtime", "metric": {"value": 0.8990, "drop": 1.70}},
        ],
    )


def lost(name: str, status: str = "failed") -> dict[str, Any]:
    absent = (
        "executed_by",
        "artifact",
        "metric",
        "parity",
        "latency_ms",
        "latency_ratio",
        "peak_distance",
        "peak_memory_bytes",
        "kernels",
        "scheme",
        "signature",
    )
    error = f"target {name!r} could not be exported: the converter was killed by SIGKILL. Its last words: out of memory"
    nothing: dict[str, Any] = dict.fromkeys(absent)
    return target(name, status=status, error=error, gates=[], tried=[], float_ops=[], facts={}, integer_share_of_macs=None, **nothing)


def report(*targets: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A report of `targets` (five of all kinds by default) with the verdict they amount to."""
    chosen = list(targets) or [
        target("onnxruntime"),
        not_executable("tensorrt", "accepted"),
        not_executable("coreml", "undecided"),
        failing("tflite"),
        lost("openvino"),
    ]
    verdicts = {g["verdict"] for t in chosen for g in t["gates"]} | {"error" for t in chosen if t["status"] in ("failed", "unsupported")}
    return {
        "schema": "edgepress/report/v1",
        "project": "cifar-resnet20",
        "verdict": next((v for v in ("error", "fail", "undecided") if v in verdicts), "pass"),
        "started": "2026-03-04T09:15:30+00:00",
        "seconds": 187.3,
        "environment": {
            "fingerprint": "9f2c51d0a7b3e846",
            "cpu": "AMD EPYC 9B14",
            "threads": 2,
            "packages": {"torch": "2.13.0", "onnxruntime": "1.32.0", "numpy": "2.3.1", "edgepress": "0.1.0"},
            "checkpoint_sha256": SHA,
            "config_sha256": SHA[::-1],
        },
        "reference": {
            "metric": {"name": "accuracy", "value": 0.916, "samples": 10000},
            "parameters": 272_474,
            "macs": 40_813_184,
            "size_bytes": 1_098_532,
        },
        "stages": [
            {"name": "original", "metric": 0.916, "parameters": 272_474, "macs": 40_813_184, "seconds": 9.1, "cached": True},
            {"name": "quantize int8", "metric": 0.9151, "parameters": 272_474, "macs": 40_813_184, "seconds": 21.0, "cached": False},
        ],
        "targets": chosen,
        "command": "edgepress run edgepress.yaml",
        **more,
    }
