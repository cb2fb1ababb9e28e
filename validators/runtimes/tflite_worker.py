"""Runs one .tflite file in tflite-runtime, in an environment of its own: standard library, numpy and tflite_runtime, nothing of ours.

    python -I tflite_worker.py MODEL THREADS

Messages go both ways on stdin and stdout: 8 bytes of length, then an .npz archive whose array "header" is JSON text. Requests:
{"do": "run"} with the stored inputs as arrays named by tensor index; {"do": "ops"}. The first answer comes unasked:
{"ready": true, ...} or {"error": text, "unsupported": [ops]}.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import runpy
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np


def send(stream: Any, header: dict[str, Any], arrays: dict[str, Any] | None = None) -> None:
    """Write one message."""
    buffer = io.BytesIO()
    np.savez(buffer, header=np.array(json.dumps(header)), **(arrays or {}))
    content = buffer.getvalue()
    stream.write(struct.pack("<Q", len(content)) + content)
    stream.flush()


def receive(stream: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Read one message: its header and its arrays; None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    size = struct.unpack("<Q", head)[0]
    content = stream.read(size)
    if len(content) < size:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(str(arrays.pop("header"))), arrays


def boundary(details: dict[str, Any]) -> dict[str, Any]:
    """Tensor index, type, scale and zero point of inputs or outputs by name."""
    return {
        name: [int(item["index"]), np.dtype(item["dtype"]).name, float(item["quantization"][0]), int(item["quantization"][1])]
        for name, item in details.items()
    }


def ops(interpreter: Any) -> dict[str, Any]:
    """Every op and every tensor."""
    tensors = {
        int(item["index"]): {"name": item["name"], "dtype": np.dtype(item["dtype"]).name, "shape": [int(n) for n in item["shape"]]}
        for item in interpreter.get_tensor_details()
    }
    nodes = [
        {"op_name": op["op_name"], "inputs": [int(i) for i in op["inputs"]], "outputs": [int(i) for i in op["outputs"]]}
        for op in interpreter._get_ops_details()
    ]
    return {"tensors": tensors, "ops": nodes}


def load(path: str, threads: int, answers: Any) -> tuple[Any, dict[str, Any]] | None:
    """The interpreter and its outputs; None after an answer that says why there is none."""
    interpreter_class = importlib.import_module("tflite_runtime.interpreter").Interpreter
    try:
        interpreter = interpreter_class(path, num_threads=threads)
        interpreter.allocate_tensors()
        runner = interpreter.get_signature_runner()
        outputs = boundary(runner.get_output_details())
        send(answers, {"ready": True, "inputs": boundary(runner.get_input_details()), "outputs": outputs})
    except Exception as error:  # whatever the runtime raises is an answer
        # by path: this folder must stay off sys.path, it has a tflite_runtime.py of its own
        probe = runpy.run_path(str(Path(__file__).with_name("tflite_probe.py")))
        missing = probe["unsupported"](Path(path).read_bytes(), interpreter_class)
        send(answers, {"error": f"{type(error).__name__}: {error}", "unsupported": missing})
        return None
    return interpreter, outputs


def main(path: str, threads: int) -> None:
    """Answer requests until the stream ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the runtime prints must not mix with the answers
    loaded = load(path, threads, answers)
    while loaded is not None:
        message = receive(sys.stdin.buffer)
        if message is None:
            return
        interpreter, outputs = loaded
        header, arrays = message
        try:
            if header["do"] == "ops":
                send(answers, ops(interpreter))
                continue
            for index, value in arrays.items():
                interpreter.set_tensor(int(index), value)
            interpreter.invoke()
            send(answers, {"done": True}, {name: interpreter.get_tensor(place[0]) for name, place in outputs.items()})
        except Exception as error:  # whatever the runtime raises is an answer
            send(answers, {"error": f"{type(error).__name__}: {error}", "unsupported": []})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
