"""Complex tensors become pairs of real ones: of five runtimes one computes with complex numbers, and that in few operators.

Rotary embeddings written with `view_as_complex`, spectra of sounds, layers that filter in the frequency domain: their graphs become ones of
real tensors with the same values, and Fourier transforms what `fourier.py` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from edgepress.compress.quantize import fourier
from edgepress.compress.quantize.complex_parts import Pair, UnknownError, Writer, has_complex, pair_of
from edgepress.compress.quantize.graph import constant, value_of

aten = torch.ops.aten


def write_out_complex(module: GraphModule) -> None:
    """Put real tensors in the place of complex ones, in place.

    The graph stays as it is where an input or an output of the model is complex, or an op has no rule: converters say what they lack.
    """
    if not has_complex(module):
        return
    known = set(module.graph.nodes)
    writer = Writer(module, _RULES)
    try:
        for node in list(module.graph.nodes):
            writer.write(node)
    except UnknownError:
        for node in reversed(module.graph.nodes):
            if node not in known:
                module.graph.erase_node(node)
        return
    for node, found in writer.real.items():
        node.replace_all_uses_with(found)


def _transformed(writer: Writer, x: Any, dim: int, size: int, writes_complex: bool, forward: bool, onesided: bool, scale: float) -> Any:
    """A transform along one dimension."""
    pair = Pair(writer.real_of(x), x.imaginary) if isinstance(x, Pair) else Pair(x, None)
    last = value_of(pair.real).dim() - 1
    real, imaginary = (
        part if part is None or dim % (last + 1) == last else writer.call(aten.transpose.int, part, dim, last)
        for part in (pair.real, pair.imaginary)
    )
    if not isinstance(size, int) or value_of(real).dtype != torch.float32:
        raise UnknownError
    reads_complex = imaginary is not None or not writes_complex
    matrix = fourier.product(size, reads_complex, writes_complex, forward, onesided, scale)
    if reads_complex and imaginary is None:
        imaginary = writer.call(aten.zeros_like.default, real)
    read = writer.call(aten.cat.default, [real, imaginary], -1) if reads_complex else real
    result: Any = writer.fourier(aten.matmul.default, read, writer.matrix(matrix))
    result = writer.halves(result, last) if writes_complex else Pair(result, None)
    parts = (
        part if part is None or dim % (last + 1) == last else writer.call(aten.transpose.int, part, dim, last)
        for part in (result.real, result.imaginary)
    )
    return Pair(*parts)


def _sizes(x: Any, dims: list[int]) -> list[int]:
    shape = value_of((x.real or x.imaginary) if isinstance(x, Pair) else x).shape
    sizes = [shape[dim] for dim in dims]
    if not all(isinstance(size, int) for size in sizes):
        raise UnknownError
    return sizes


def _real_to_complex(writer: Writer, x: Any, dims: list[int], normalization: int, onesided: bool) -> Any:
    sizes = _sizes(x, dims)
    result = _transformed(writer, x, dims[-1], sizes[-1], True, True, onesided, fourier.factor(sizes, normalization))
    for dim, size in zip(dims[:-1], sizes[:-1], strict=True):
        result = _transformed(writer, result, dim, size, True, True, False, 1.0)
    return result


def _complex_to_complex(writer: Writer, x: Any, dims: list[int], normalization: int, forward: bool) -> Any:
    sizes, scale = _sizes(x, dims), 1.0
    for dim, size in zip(dims, sizes, strict=True):
        scale = fourier.factor(sizes, normalization) if dim == dims[-1] else 1.0
        x = _transformed(writer, x, dim, size, True, forward, False, scale)
    return x


def _complex_to_real(writer: Writer, x: Any, dims: list[int], normalization: int, last_dim_size: int) -> Any:
    sizes = [*_sizes(x, dims[:-1]), last_dim_size]
    for dim, size in zip(dims[:-1], sizes[:-1], strict=True):
        x = _transformed(writer, x, dim, size, True, False, False, 1.0)
    return _transformed(writer, x, dims[-1], last_dim_size, False, False, True, fourier.factor(sizes, normalization)).real


def _stft(
    writer: Writer,
    x: Any,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Any = None,
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
    **centre: Any,
) -> Any:
    """Padding of the signal at both ends has been written by `torch.stft` itself."""
    if isinstance(x, Pair) or value_of(x).dim() != 2 or value_of(x).dtype != torch.float32 or centre or align_to_window:
        raise UnknownError
    held = _window(writer, window, win_length or n_fft)
    before, kernels = fourier.short_time_kernels(held, n_fft, onesided is not False, normalized)
    after = n_fft - before - kernels.shape[-1]
    heard = writer.call(aten.slice.Tensor, x, 1, before, value_of(x).shape[1] - after) if before or after else x
    sound = writer.call(aten.unsqueeze.default, heard, 1)
    return writer.halves(writer.fourier(aten.conv1d.default, sound, writer.matrix(kernels), None, [hop_length or n_fft // 4]), 1)


def _istft(
    writer: Writer,
    x: Any,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Any = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Any:
    parts = [writer.real_of(x), writer.imaginary_of(x)]
    shape = value_of(parts[0]).shape
    frames = shape[-1]
    if return_complex or len(shape) != 3 or not isinstance(frames, int):
        raise UnknownError
    onesided = shape[1] != n_fft if onesided is None else onesided
    held, hop = _window(writer, window, win_length or n_fft), hop_length or n_fft // 4
    kernels = writer.matrix(fourier.inverse_kernels(held, n_fft, onesided, normalized))
    squares = fourier.centred(held, n_fft).square()[None, None]
    sums = torch.nn.functional.conv_transpose1d(torch.ones(1, 1, frames), squares, stride=hop)
    begin = n_fft // 2 if center else 0
    end = begin + length if length is not None else sums.shape[-1] - begin
    if end > sums.shape[-1]:
        raise UnknownError
    spectrum = writer.call(aten.cat.default, parts, 1)
    sound = writer.fourier(aten.conv_transpose1d.default, spectrum, kernels, None, [hop])
    cut = writer.call(aten.slice.Tensor, writer.call(aten.squeeze.dims, sound, [1]), 1, begin, end)
    return writer.call(aten.mul.Tensor, cut, writer.matrix((1 / sums[0, :, begin:end]).contiguous()))


def _window(writer: Writer, window: Any, length: int) -> Tensor:
    held = torch.ones(length) if window is None else constant(writer.module, window)
    if held is None or held.dtype != torch.float32:
        raise UnknownError
    return held.detach()


def _view_as_real(writer: Writer, x: Pair) -> Any:
    return writer.call(aten.stack.default, [writer.real_of(x), writer.imaginary_of(x)], -1)


def _magnitude(writer: Writer, x: Pair) -> Any:
    if x.real is None or x.imaginary is None:
        return writer.call(aten.abs.default, x.real or x.imaginary)
    squares = (writer.call(aten.mul.Tensor, part, part) for part in (x.real, x.imaginary))
    return writer.call(aten.sqrt.default, writer.call(aten.add.Tensor, *squares))


def _quotient(writer: Writer, x: Any, y: Any) -> Any:
    if isinstance(y, Pair):  # x / y = x conj(y) / |y|^2
        x = writer.product(aten.mul.Tensor, (x, _conjugate(writer, y)))
        magnitude = _magnitude(writer, y)
        y = writer.call(aten.mul.Tensor, magnitude, magnitude)
    return Pair(*(None if part is None else writer.call(aten.div.Tensor, part, y) for part in (x.real, x.imaginary)))


def _conjugate(writer: Writer, x: Pair) -> Pair:
    return Pair(x.real, None if x.imaginary is None else writer.call(aten.neg.default, x.imaginary))


def _cast(writer: Writer, x: Any, *args: Any, **kwargs: Any) -> Any:
    wanted = [item for item in (*args, *kwargs.values()) if isinstance(item, torch.dtype)]
    if wanted not in ([], [torch.complex64]) or not (isinstance(x, Pair) or value_of(x).dtype == torch.float32):
        raise UnknownError
    return pair_of(x)


def _copied(_: Writer, x: Pair, source: Any) -> Any:
    """What is written over a tensor of its shape, as functional graphs have it."""
    shapes = [str(value_of(each.real or each.imaginary).shape) for each in (x, pair_of(source))]
    if shapes[0] != shapes[1]:
        raise UnknownError
    return pair_of(source)


def _polar(writer: Writer, magnitude: Any, angle: Any) -> Pair:
    parts = [writer.call(op, angle) for op in (aten.cos.default, aten.sin.default)]
    return Pair(*(part if magnitude is None else writer.call(aten.mul.Tensor, magnitude, part) for part in parts))


def _exponential(writer: Writer, x: Pair) -> Pair:
    return _polar(writer, None if x.real is None else writer.call(aten.exp.default, x.real), writer.imaginary_of(x))


#: Name of an op -> what writes it, given a writer and the op's arguments with pairs in the place of complex nodes.
_RULES: dict[str, Callable[..., Any]] = {
    "_conj": _conjugate,
    "_conj_physical": _conjugate,
    "_fft_c2c": _complex_to_complex,
    "_fft_c2r": _complex_to_real,
    "_fft_r2c": _real_to_complex,
    "_to_copy": _cast,
    "abs": _magnitude,
    "angle": lambda writer, x: writer.call(aten.atan2.default, writer.imaginary_of(x), writer.real_of(x)),
    "complex": lambda writer, real, imaginary: Pair(real, imaginary),
    "conj": _conjugate,
    "conj_physical": _conjugate,
    "copy": _copied,
    "div": _quotient,
    "exp": _exponential,
    "imag": lambda writer, x: writer.imaginary_of(x),
    "istft": _istft,
    "polar": _polar,
    "real": lambda writer, x: writer.real_of(x),
    "resolve_conj": lambda writer, x: x,
    "resolve_neg": lambda writer, x: x,
    "rsub": lambda writer, x, y: writer.sum(aten.sub.Tensor, pair_of(y), pair_of(x)),
    "stft": _stft,
    "to": _cast,
    "view_as_complex": lambda writer, x: Pair(*(writer.call(aten.select.int, x, -1, index) for index in (0, 1))),
    "view_as_real": _view_as_real,
}
