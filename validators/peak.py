"""How far a latency is from the time that its multiply-accumulates take at this machine's peak.

The roofline's flat part (Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model", section 3), with the
roof measured and not read from a data sheet: the fastest matrix product at hand says what the processor does in this clock and with
these instructions.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from edgepress.targets.errors import MeasurementError

#: Rows, inner and columns of the products: large enough to keep every unit busy, small enough for a second-level cache and for runs of
#: under a millisecond, of which some are disturbed by nobody even on a shared core.
_SHAPES = ((64, 1536, 384), (256, 512, 256))
_LEAST_ROUNDS = 5
#: Scale of the products' integers.
_STEP = 0.02


@dataclass(frozen=True)
class Peak:
    """What one machine reaches on some threads.

    Attributes:
        int8_macs_per_s, fp32_macs_per_s: multiply-accumulates per second.
        how: what was timed, in words.
    """

    int8_macs_per_s: float
    fp32_macs_per_s: float
    how: str

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries."""
        return asdict(self)

    def shortest_ms(self, macs: float, integer_share: float) -> float:
        """Milliseconds that multiply-accumulates take when each runs at the peak of its arithmetic.

        Args:
            macs: of one call.
            integer_share: of them, 0..1, that run in 8-bit integers; the others run in float32.
        """
        return 1e3 * macs * (integer_share / self.int8_macs_per_s + (1 - integer_share) / self.fp32_macs_per_s)


@dataclass(frozen=True)
class _Product:
    arithmetic: str
    name: str
    macs: int
    call: Callable[[], object]


def measure_peak(threads: int, seconds: float = 1.0, clock: Callable[[], int] = time.perf_counter_ns) -> Peak:
    """Time PyTorch's matrix products in turns, every quantized backend that this processor has among them; the fastest run counts.

    Args:
        threads: of every product.
        seconds: no round starts later, but for the first few.
        clock: nanoseconds; a test hands in its own.

    Raises:
        MeasurementError: no quantized backend of PyTorch runs here.
    """
    import torch

    before = torch.get_num_threads(), torch.backends.quantized.engine
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch says that it will drop its quantized tensors
            products = [*_float_products(threads), *_integer_products(threads)]
            fastest = _fastest(products, seconds, clock)
    finally:
        torch.set_num_threads(before[0])
        torch.backends.quantized.engine = before[1]
    best: dict[str, tuple[float, str]] = {}
    for product, taken in zip(products, fastest, strict=True):
        rate = product.macs / (taken / 1e9)
        best[product.arithmetic] = max(best.get(product.arithmetic, (0.0, "")), (rate, product.name))
    if "int8" not in best:
        raise MeasurementError("the int8 peak of this machine cannot be taken", "no quantized backend of PyTorch runs on its processor")
    (integer, backend), (number, _) = best["int8"], best["fp32"]
    cores = f"{threads} thread{'' if threads == 1 else 's'}"
    how = f"the fastest run of PyTorch's matrix products on {cores}, int8 by {backend}, every result checked"
    return Peak(integer, number, how)


def _float_products(threads: int) -> list[_Product]:
    import torch

    def product(rows: int, inner: int, columns: int) -> _Product:
        left, right, result = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
        return _Product("fp32", "mm", rows * inner * columns, lambda: torch.mm(left, right, out=result))

    return [product(rows * threads, inner, columns) for rows, inner, columns in _SHAPES]


def _integer_products(threads: int) -> list[_Product]:
    """Of every backend that takes uint8 activations and int8 weights per channel, and multiplies them right."""
    import torch

    made = []
    for engine in torch.backends.quantized.supported_engines:
        for rows, inner, columns in _SHAPES:
            try:
                torch.backends.quantized.engine = engine
                made.append(_integer_product(engine, rows * threads, inner, columns))
            except (RuntimeError, MeasurementError):  # compiled in, and not for this processor
                continue
    return made


def _integer_product(backend: str, rows: int, inner: int, columns: int) -> _Product:
    """A product that PyTorch's current quantized backend packs ahead, its result checked: a fast kernel that computes nothing is no peak.

    Zero points of another type than int64, for example, are a scheme that FBGEMM takes and does not compute.

    Raises:
        RuntimeError: the backend refuses it.
        MeasurementError: the result is wrong.
    """
    import torch

    limit = 63 * _STEP  # 7 bits: without VNNI two products of 8 bits saturate
    weights = torch.randn(columns, inner).clamp(-limit, limit)
    weight = torch.quantize_per_channel(weights, torch.full((columns,), _STEP), torch.zeros(columns, dtype=torch.int64), 0, torch.qint8)
    left = torch.quantize_per_tensor(torch.randn(rows, inner), _STEP, 64, torch.quint8)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    found = torch.ops.quantized.linear(left, packed, 1.0, 128).dequantize()
    wanted = (left.dequantize() @ weight.dequantize().T).clamp(-128, 127)
    if float((found - wanted).abs().max()) > 1:
        raise MeasurementError(f"the int8 product of {backend} is wrong", "its time says nothing")
    return _Product("int8", backend, rows * inner * columns, lambda: torch.ops.quantized.linear(left, packed, 1.0, 128))


def _fastest(products: list[_Product], seconds: float, clock: Callable[[], int]) -> list[int]:
    """Nanoseconds of the fastest run of each."""
    fastest = [2**63] * len(products)
    deadline = clock() + int(seconds * 1e9)
    rounds = 0
    while rounds < _LEAST_ROUNDS or clock() < deadline:
        rounds += 1
        for which, product in enumerate(products):
            start = clock()
            product.call()
            fastest[which] = min(fastest[which], max(1, clock() - start))
    return fastest
