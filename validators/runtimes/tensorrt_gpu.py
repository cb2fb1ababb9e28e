"""An engine on its own GPU, through TensorRT's or TensorRT-RTX's Python runtime and the CUDA driver; nothing else is needed.

Written from the documentation of both (TensorRT 10 Python API, CUDA driver API); the machines it was written on have no GPU.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.exporters.tensorrt_build import MODULES, gpu_capability
from edgepress.targets.errors import ExecutionError
from edgepress.targets.nouns import KernelReport, Signature
from edgepress.validators.runtimes.base import Arrays, Session


class Cuda:
    """The few calls of the CUDA driver that moving arrays takes; every failure names the call and its error number."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *arguments: object) -> None:
        """One driver call.

        Raises:
            ExecutionError: it did not return CUDA_SUCCESS.
        """
        code = getattr(self._driver, name)(*arguments)
        if code:
            raise ExecutionError(f"{name} failed with CUDA error {code}", "", "Check the driver with nvidia-smi.")

    def allocate(self, size_bytes: int) -> int:
        """Device memory; its address."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size_bytes, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Give device memory back."""
        self.call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy an array to the device."""
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy from the device into an array."""
        self.call("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(address), ctypes.c_size_t(array.nbytes))


class EngineSession(Session):
    """An engine on the GPU of this machine.

    Args:
        engine: the engine file.
        library: `tensorrt` or `tensorrt-rtx`, which built it.
        signature: inputs and outputs.
        max_batch: the largest batch of its optimisation profile; larger ones run in pieces.
        kernels: reads the kernel report.

    Raises:
        ExecutionError: the library refuses the engine (another version, another GPU).
    """

    def __init__(self, engine: Path, library: str, signature: Signature, max_batch: int, kernels: Callable[[], KernelReport]) -> None:
        trt = importlib.import_module(MODULES[library])
        self.signature, self._max_batch, self._kernels = signature, max_batch, kernels
        self.executed_by = f"{library} {trt.__version__} on a GPU of compute capability {gpu_capability()}"
        self._cuda = Cuda()
        self._trt, self._runtime = trt, trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine: Any = self._runtime.deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            raise ExecutionError(f"{self.executed_by} refuses {engine.name}", "it was built with another version", "Run rebuild.sh.")
        self._context: Any = self._engine.create_execution_context()
        self._memory: dict[str, tuple[int, int]] = {}

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """As the base class, in pieces of at most the engine's largest batch."""
        total = len(next(iter(inputs.values())))
        starts = range(0, total, self._max_batch)
        pieces = [super(EngineSession, self).run({n: v[i : i + self._max_batch] for n, v in inputs.items()}) for i in starts]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _run_impl(self, inputs: Arrays) -> dict[str, np.ndarray]:
        results = self._place(inputs)
        self._execute()
        for name, array in results.items():
            self._cuda.download(array, self._memory[name][0])
        return {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in results.items()}

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """Inputs already on the GPU, outputs left there: a call runs the engine and waits for it."""
        self._place(inputs)
        return self._execute

    def kernels(self) -> KernelReport:
        """Read from the engine's own graph dump."""
        return self._kernels()

    def close(self) -> None:
        """Free the device memory."""
        for address, _ in self._memory.values():
            self._cuda.free(address)
        self._memory.clear()

    def _place(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Upload the inputs; returns arrays for the outputs."""
        for spec in self.signature.inputs:
            array = np.ascontiguousarray(inputs[spec.name], dtype=self._dtype(spec.name))
            self._context.set_input_shape(spec.name, array.shape)
            self._cuda.upload(self._buffer(spec.name, array.nbytes), array)
        results = {}
        for spec in self.signature.outputs:
            results[spec.name] = np.empty(tuple(self._context.get_tensor_shape(spec.name)), self._dtype(spec.name))
            self._buffer(spec.name, results[spec.name].nbytes)
        return results

    def _dtype(self, name: str) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        return dtype

    def _buffer(self, name: str, size_bytes: int) -> int:
        address, size = self._memory.get(name, (0, 0))
        if size < size_bytes or not address:
            if address:
                self._cuda.free(address)
            address, size = self._cuda.allocate(size_bytes), size_bytes
            self._memory[name] = (address, size)
        self._context.set_tensor_address(name, address)
        return address

    def _execute(self) -> None:
        if not self._context.execute_async_v3(0):
            raise ExecutionError(f"{self.executed_by} could not run the engine", "", "Run it once more with the library's own tool.")
        self._cuda.call("cuCtxSynchronize")
