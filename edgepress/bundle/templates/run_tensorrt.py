"""Run this model with TensorRT on an NVIDIA GPU; without one, its graph runs in ONNX Runtime.

    python run.py                                       replay the golden samples: 0 match, 1 differ, 2 cannot run here
    python run.py --inputs FILE.npz [--save OUT.npz]    run your own inputs

Needs: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings numpy (or tensorrt, where it built the engine)
"""

import argparse
import ctypes
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
Arrays = dict[str, Any]  # of numpy arrays by name


class Unusable(Exception):
    """What --inputs names is not what the model takes."""


def load(artifact: Path, outputs: list[str]) -> Callable[[Arrays], Arrays]:
    """The model as a function of its inputs: the engine of this machine's GPU, or the graph it was built from."""
    why = "the engines need an NVIDIA GPU and its driver, and this machine has none"
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        cuda = None
    if cuda and cuda.cuInit(0) == 0:
        engine, why = open_engine(artifact, cuda)
        if engine:
            return lambda inputs: run_engine(engine, cuda, inputs, outputs)
    graph = next(file for name in ("replay.onnx", "model.onnx") if (file := artifact / name).exists())  # bfloat16 has its own for CPUs
    if not importlib.util.find_spec("onnxruntime"):
        raise RuntimeError(f"{why}; to replay {graph.name} instead: pip install onnxruntime")
    print(f"{why}: replaying {graph.name}, the graph they were built from, in ONNX Runtime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # compute what the graph says, as the engine does
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return lambda inputs: dict(zip(outputs, session.run(outputs, inputs), strict=True))


def open_engine(folder: Path, cuda: Any) -> tuple[Any, str]:
    """The engine for this GPU and the TensorRT module that opened it, or None and why there is none."""
    device, context, number = ctypes.c_int(), ctypes.c_void_p(), [ctypes.c_int(), ctypes.c_int()]
    call(cuda.cuDeviceGet, ctypes.byref(device), 0)
    call(cuda.cuDevicePrimaryCtxRetain, ctypes.byref(context), device)
    call(cuda.cuCtxSetCurrent, context)
    for part, attribute in zip(number, (75, 76), strict=True):  # compute capability, major and minor
        call(cuda.cuDeviceGetAttribute, ctypes.byref(part), attribute, device)
    file = folder / f"sm{number[0].value}{number[1].value}.engine"
    if not file.exists():
        return None, f"no engine here fits this GPU ({file.stem})"
    for module in ("tensorrt_rtx_bindings", "tensorrt_rtx", "tensorrt"):
        if importlib.util.find_spec(module):
            trt = importlib.import_module(module)
            runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            engine = runtime.deserialize_cuda_engine(file.read_bytes())
            if engine:
                return (trt, runtime, engine), ""
    return None, f"no installed TensorRT opens {file.name}: rebuild.sh builds it for yours"


def run_engine(opened: Any, cuda: Any, inputs: Arrays, outputs: list[str]) -> Arrays:
    """Copy in, run, copy out, in pieces of at most the engine's largest batch."""
    trt, _, engine = opened
    context = engine.create_execution_context()
    most = engine.get_tensor_profile_shape(next(iter(inputs)), 0)[2][0]
    pieces: list[Arrays] = []
    for start in range(0, len(next(iter(inputs.values()))), most):
        memory = {}
        for name, value in inputs.items():
            piece = np.ascontiguousarray(value[start : start + most], trt.nptype(engine.get_tensor_dtype(name)))
            context.set_input_shape(name, piece.shape)
            memory[name] = allocate(cuda, context, name, piece.nbytes)
            call(cuda.cuMemcpyHtoD_v2, memory[name], piece.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(piece.nbytes))
        shapes = {name: tuple(context.get_tensor_shape(name)) for name in outputs}
        result = {name: np.empty(shape, trt.nptype(engine.get_tensor_dtype(name))) for name, shape in shapes.items()}
        memory |= {name: allocate(cuda, context, name, value.nbytes) for name, value in result.items()}
        if not context.execute_async_v3(0):
            raise RuntimeError("TensorRT could not run the engine")
        call(cuda.cuCtxSynchronize)
        for name, value in result.items():
            call(cuda.cuMemcpyDtoH_v2, value.ctypes.data_as(ctypes.c_void_p), memory[name], ctypes.c_size_t(value.nbytes))
        for address in memory.values():
            call(cuda.cuMemFree_v2, address)
        pieces.append(result)
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in outputs}


def allocate(cuda: Any, context: Any, name: str, size: int) -> ctypes.c_uint64:
    """Device memory for one input or output."""
    address = ctypes.c_uint64()
    call(cuda.cuMemAlloc_v2, ctypes.byref(address), ctypes.c_size_t(size))
    context.set_tensor_address(name, address.value)
    return address


def call(function: Any, *arguments: object) -> None:
    """One call of the CUDA driver."""
    code = function(*arguments)
    if code:
        raise RuntimeError(f"{function.__name__} failed with CUDA error {code}")


def main() -> int:
    """Replay the golden samples, or run the arrays of --inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=Path, help="your own inputs: an .npz with one array per input, batch first")
    parser.add_argument("--save", type=Path, help="write the outputs to this .npz")
    options = parser.parse_args()
    takes = ""
    try:
        golden = json.loads((HERE / "golden.json").read_text("utf-8"))
        samples = dict(np.load(HERE / golden["inputs"], allow_pickle=False))
        expected = dict(np.load(HERE / golden["outputs"], allow_pickle=False))
        if options.inputs:
            takes = f"; the model takes {described(samples)}"
            samples = read(options.inputs, samples)
        outputs = load(HERE / golden["artifact"], list(expected))(samples)
    except Unusable as error:
        return stop(f"{error}{takes}")
    except ImportError as error:
        return stop(f"{error}: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings numpy")
    except Exception as error:  # a runtime's exceptions share no base class
        return stop(f"cannot run here: {type(error).__name__}: {' '.join(str(error).split())[:300]}{takes}")
    if options.save:
        try:
            np.savez(options.save, **outputs)
        except OSError as error:
            return stop(f"cannot write {options.save}: {error.strerror or error}")
    return show(outputs) if options.inputs else compare(outputs, expected, golden["rtol"], golden["atol"])


def read(file: Path, like: Arrays) -> Arrays:
    """The arrays of an .npz, in the types of the golden samples."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            given = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # of a file that is no .npz NumPy says that it may hold pickles
        why = getattr(error, "strerror", None) or "it is no .npz of numbers"
        raise Unusable(f"cannot read {file}: {why}") from error
    for name, golden in like.items():
        if name not in given:
            raise Unusable(f"{file} has no array {name!r}, only {', '.join(given) or 'none'}")
        if given[name].ndim != golden.ndim or not np.can_cast(given[name].dtype, golden.dtype, "same_kind"):
            raise Unusable(f"{name!r} in {file} is {given[name].dtype} {given[name].shape}")
    counts = sorted({len(given[name]) for name in like})
    if len(counts) > 1 or not counts[0]:
        raise Unusable(f"the arrays in {file} hold {' and '.join(map(str, counts))} samples, N has to be one number above 0")
    return {name: given[name].astype(golden.dtype) for name, golden in like.items()}


def described(samples: Arrays) -> str:
    """Name, type and shape of each input."""
    return ", ".join(f"{name}: {value.dtype} ({', '.join(['N', *map(str, value.shape[1:])])})" for name, value in samples.items())


def compare(outputs: Arrays, expected: Arrays, rtol: float, atol: float) -> int:
    """One line per output; 0 where every |output - golden| <= atol + rtol * |golden|, else 1."""
    matches = True
    for name, want in expected.items():
        got = outputs[name]
        same_shape = got.shape == want.shape
        error = np.abs(got.astype("f8") - want) if same_shape else np.array([np.nan])
        match = bool(same_shape and (error <= atol + rtol * np.abs(want)).all())  # NaN never matches
        print(f"{name}: max error {error.max(initial=0):.3g}, {'match' if match else 'DIFFERS'} (rtol {rtol:g}, atol {atol:g})")
        matches = matches and match
    return 0 if matches else 1


def show(outputs: Arrays) -> int:
    """Print what came out."""
    for name, value in outputs.items():
        print(f"{name}: {value.dtype} {value.shape}\n{value}")
    return 0


def stop(reason: str) -> int:
    """Say in one line why nothing ran."""
    print(reason, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
