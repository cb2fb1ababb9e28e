"""Writes a model as an .npz: a list of ops in JSON, and the arrays they use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.bundle.npz import save_npz
from edgepress.exporters.base import Exporter, ExportRequest
from edgepress.targets.errors import ExportError
from edgepress.targets.nouns import Artifact, Support
from edgepress_numpy.ops import OPS


class NumpyExporter(Exporter):
    """Any graph whose ops are in `edgepress_numpy.ops`."""

    runtime = "numpy"

    def supports(self) -> Support:
        """NumPy is always there."""
        return Support(True, np.__version__)

    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact:
        import torch

        module = torch.export.load(request.program).module() if request.scheme.kind == "float" else self.rendered(request).module
        arrays: dict[str, np.ndarray] = {}
        lines: list[dict[str, Any]] = []
        for node in module.graph.nodes:
            lines += _line(node, module, arrays, request.target.name)
        save_npz(folder / "model.npz", {"ops": np.array(json.dumps(lines)), **arrays})
        float_ops = self.rendered(request).float_ops if request.scheme.kind != "float" else ()
        return Artifact("model.npz", request.target.name, request.scheme, request.signature, {"runtime_minimum": "numpy 1.26"}, float_ops)


def _line(node: Any, module: Any, arrays: dict[str, np.ndarray], target: str) -> list[dict[str, Any]]:
    """One graph node as at most one op; weights go to `arrays`."""
    if node.op == "get_attr":
        value = module
        for part in node.target.split("."):
            value = getattr(value, part)
        arrays[node.name] = value.detach().numpy()
        return []
    if node.op == "call_module" or (node.op == "call_function" and "sym_" in str(node.target)):
        return []  # input guards and symbolic sizes compute nothing
    if node.op == "placeholder":
        return [{"op": "input", "name": node.name}]
    if node.op == "output":
        return [{"op": "output", "args": _json(list(_leaves(node.args)))}]
    name = str(node.target).split(".")[-2] if hasattr(node.target, "overloadpacket") else str(node.target)
    if name not in OPS:
        raise ExportError(
            f"target {target!r} has no op {name!r}", node.meta.get("stack_trace", "").strip(), f"It has {', '.join(sorted(OPS))}."
        )
    return [{"op": name, "name": node.name, "args": _json(node.args), "kwargs": _json(node.kwargs)}]


def _leaves(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list | tuple) else [value]


def _json(value: Any) -> Any:
    """Arguments with graph nodes replaced by `{"ref": name}`; dtypes by their names, symbolic batch sizes by -1."""
    if isinstance(value, list | tuple):
        return [_json(v) for v in value]
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    if hasattr(value, "graph"):
        symbolic = value.op == "call_function" and "sym_" in str(value.target)
        return -1 if symbolic else {"ref": value.name}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value).removeprefix("torch.")
