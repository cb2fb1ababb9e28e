"""Where and with what a run was made."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgepress.bundle.digest import sha256
from edgepress.config import Config
from edgepress.machine import cores, cpu_name, fingerprint

#: Packages whose versions a report states, where they are installed.
PACKAGES = (
    "edgepress",
    "torch",
    "torchao",
    "torchmetrics",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "tensorrt-rtx-cu13-libs",
    "coremltools",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "nncf",
    "nvidia-modelopt",
)


def environment(config: Config) -> dict[str, Any]:
    """Where and with what a run was made."""
    return {
        "fingerprint": fingerprint(),
        "cpu": cpu_name(),
        "threads": cores(),
        "packages": package_versions(),
        "checkpoint_sha256": sha256(config.checkpoint),
        "config_sha256": sha256(config.path),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that matter, of those that are installed."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return packages
