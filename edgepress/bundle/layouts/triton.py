"""NVIDIA Triton's model repository: `<model>/config.pbtxt` and `<model>/1/<files>`.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_repository.html and model_configuration.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgepress.bundle.layouts.request import Request, artifact_files, link

#: Runtime -> Triton's backend.
BACKENDS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "tensorrt"}
#: The largest batch that was executed: validation runs in batches of this size (`edgepress.steps.execute`).
MAX_BATCH = 64
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bool": "TYPE_BOOL",
    **{f"{sign}int{bits}": f"TYPE_{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def lacks(entry: Mapping[str, Any]) -> str | None:
    """Why Triton cannot serve an artifact."""
    if entry["runtime"] not in BACKENDS:
        return f"Triton has no backend for {entry['runtime']}"
    if any(engine["library"] != "tensorrt" for engine in entry["artifact"]["facts"].get("engines", ())):
        return "Triton's TensorRT backend loads no TensorRT-RTX engine: build on a machine with TensorRT and a GPU"
    unknown = [spec["dtype"] for spec in (*entry["inputs"], *entry["outputs"]) if spec["dtype"] not in _TYPES]
    return f"Triton has no type for {unknown[0]}" if unknown else None


def write(request: Request) -> None:
    """One folder per artifact."""
    for entry in request.entries:
        name = request.model_name(entry)
        files = artifact_files(request.bundle, entry)
        for path, file in files.items():
            link(file, request.folder / name / "1" / path)
        (request.folder / name / "config.pbtxt").write_text(config(name, entry, list(files)), "utf-8", newline="\n")


def config(name: str, entry: Mapping[str, Any], files: Sequence[str]) -> str:
    """The text of config.pbtxt.

    Args:
        name: the model's name.
        entry: its entry in bundle.json.
        files: its file names.
    """
    specs = [*entry["inputs"], *entry["outputs"]]
    batched = all(spec["shape"] and spec["shape"][0] is None for spec in specs)
    largest = int(entry["artifact"]["facts"].get("max_batch", MAX_BATCH)) if batched else 0
    engines = entry["artifact"]["facts"].get("engines", ())
    main = engines[0]["file"] if engines else next(file for file in files if file.endswith((".onnx", ".xml")))
    lines = [f"name: {_text(name)}", f"backend: {_text(BACKENDS[entry['runtime']])}", f"max_batch_size: {largest}"]
    lines.append(f"default_model_filename: {_text(main)}")
    for direction in ("input", "output"):
        tensors = ",\n".join(_tensor(spec, batched) for spec in entry[f"{direction}s"])
        lines.append(f"{direction} [\n{tensors}\n]")
    if engines:
        names = ",\n".join(f"  {{ key: {_text(item['compute_capability'])} value: {_text(item['file'])} }}" for item in engines)
        lines.append(f"cc_model_filenames [\n{names}\n]")
    return "\n".join(lines) + "\n"


def _tensor(spec: Mapping[str, Any], batched: bool) -> str:
    shape = [-1 if size is None else size for size in spec["shape"][batched:]]
    # a tensor of one number per sample has no dimension left, which Triton has to be told apart from dims
    dims = f"dims: [ {', '.join(map(str, shape))} ]" if shape else "dims: [ 1 ] reshape: { shape: [ ] }"
    return f"  {{ name: {_text(spec['name'])} data_type: {_TYPES[spec['dtype']]} {dims} }}"


def _text(value: str) -> str:
    return json.dumps(value)
