from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import Builder as mb

from tests.validators.runtimes.mil.one_op import check, normal, positive

SPATIAL = {1: (9,), 2: (9, 8), 3: (5, 6, 7)}
REDUCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "reduce_sum": lambda x: x.sum((1, 3)),
    "reduce_mean": lambda x: x.mean((1, 3)),
    "reduce_max": lambda x: x.amax((1, 3)),
    "reduce_min": lambda x: x.amin((1, 3)),
    "reduce_prod": lambda x: x.prod(3).prod(1),
    "reduce_l1_norm": lambda x: x.abs().sum((1, 3)),
    "reduce_l2_norm": lambda x: torch.linalg.vector_norm(x, dim=(1, 3)),
    "reduce_sum_square": lambda x: (x * x).sum((1, 3)),
    "reduce_log_sum": lambda x: x.sum((1, 3)).log(),
    "reduce_log_sum_exp": lambda x: x.exp().sum((1, 3)).log(),
}


def channels(size: int) -> tuple[Any, Any]:
    array = positive(size)
    return array, torch.from_numpy(array)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_over_axes_keeping_them_or_not(name: str) -> None:
    x = positive(2, 3, 4, 5)
    expected = REDUCTIONS[name](torch.from_numpy(x))
    check(lambda v: getattr(mb, name)(x=v, axes=[1, -1]), expected, x)
    check(lambda v: getattr(mb, name)(x=v, axes=[1, 3], keep_dims=True), expected[:, None, :, None], x)


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_arg_reductions(name: str) -> None:
    x = normal(3, 4, 5)
    check(lambda v: getattr(mb, f"reduce_{name}")(x=v, axis=1), getattr(torch, name)(torch.from_numpy(x), 1), x)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution(rank: int, groups: int) -> None:
    x, weight, bias = normal(2, 4, *SPATIAL[rank]), normal(8, 4 // groups, *[3] * rank), normal(8)
    expected = (F.conv1d, F.conv2d, F.conv3d)[rank - 1](*map(torch.from_numpy, (x, weight, bias)), 2, 1, 1, groups)
    pads = [1] * 2 * rank
    check(lambda v: mb.conv(x=v, weight=weight, bias=bias, strides=[2] * rank, pad_type="custom", pad=pads, groups=groups), expected, x)


@pytest.mark.parametrize(("pad_type", "before", "after"), [("same", 0, 1), ("same_lower", 1, 0), ("valid", 0, 0)])
def test_convolution_padding_types(pad_type: str, before: int, after: int) -> None:
    x, weight = normal(1, 3, 8, 8), normal(4, 3, 3, 3)
    padded = F.pad(torch.from_numpy(x), (before, after, before, after))
    expected = F.conv2d(padded, torch.from_numpy(weight), stride=2)
    check(lambda v: mb.conv(x=v, weight=weight, strides=[2, 2], pad_type=pad_type), expected, x)


def test_convolution_with_dilation_and_uneven_padding() -> None:
    x, weight = normal(1, 3, 9, 9), normal(4, 3, 3, 3)
    expected = F.conv2d(F.pad(torch.from_numpy(x), (2, 1, 0, 3)), torch.from_numpy(weight), dilation=2)
    check(lambda v: mb.conv(x=v, weight=weight, dilations=[2, 2], pad_type="custom", pad=[0, 3, 2, 1]), expected, x)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolution(rank: int) -> None:
    x, weight, bias = normal(2, 4, *SPATIAL[rank]), normal(4, 3, *[3] * rank), normal(6)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    expected = function(*map(torch.from_numpy, (x, weight, bias)), 2, 1, 0, 2)
    pads = [1] * 2 * rank
    check(
        lambda v: mb.conv_transpose(x=v, weight=weight, bias=bias, strides=[2] * rank, pad_type="custom", pad=pads, groups=2), expected, x
    )


def test_transposed_convolution_with_an_output_shape() -> None:
    x, weight, bias = normal(1, 4, 5, 5), normal(4, 3, 3, 3), normal(3)
    expected = F.conv_transpose2d(*map(torch.from_numpy, (x, weight, bias)), 2, 1, 1)
    check(
        lambda v: mb.conv_transpose(
            x=v, weight=weight, bias=bias, strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], output_shape=[1, 3, 10, 10]
        ),
        expected,
        x,
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_pooling(rank: int) -> None:
    x = normal(2, 3, *SPATIAL[rank])
    t, pads = torch.from_numpy(x), [1] * 2 * rank
    largest, average = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1], (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    shape = {"kernel_sizes": [3] * rank, "strides": [2] * rank, "pad_type": "custom", "pad": pads}
    check(lambda v: mb.max_pool(x=v, **shape), largest(t, 3, 2, 1), x)
    check(lambda v: mb.avg_pool(x=v, **shape), average(t, 3, 2, 1), x)
    excluded = average(t, 3, 2, 1, count_include_pad=False)
    check(lambda v: mb.avg_pool(x=v, exclude_padding_from_average=True, **shape), excluded, x)


@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("size", [6, 7, 8])
def test_pooling_that_rounds_up_as_torch_does(size: int, excluded: bool) -> None:
    x = normal(1, 2, size, size)
    t = torch.from_numpy(x)
    shape = {"kernel_sizes": [3, 3], "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1], "ceil_mode": True}
    check(lambda v: mb.max_pool(x=v, **shape), F.max_pool2d(t, 3, 2, 1, ceil_mode=True), x)
    expected = F.avg_pool2d(t, 3, 2, 1, ceil_mode=True, count_include_pad=not excluded)
    check(lambda v: mb.avg_pool(x=v, exclude_padding_from_average=excluded, **shape), expected, x)


def test_l2_pooling() -> None:
    x = normal(2, 3, 8, 8)
    expected = (F.avg_pool2d(torch.from_numpy(x).square(), 2) * 4).sqrt()
    check(lambda v: mb.l2_pool(x=v, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"), expected, x)


def test_normalisation() -> None:
    x = normal(2, 4, 5, 6)
    t = torch.from_numpy(x)
    (g, gamma), (b, beta) = channels(4), (normal(4), torch.from_numpy(normal(4)))
    (m, mean), (v, variance) = (normal(4, seed=3), torch.from_numpy(normal(4, seed=3))), channels(4)
    eps = np.float32(1e-3)
    check(
        lambda u: mb.batch_norm(x=u, mean=m, variance=v, gamma=g, beta=b, epsilon=eps),
        F.batch_norm(t, mean, variance, gamma, beta, eps=1e-3),
        x,
    )
    check(lambda u: mb.instance_norm(x=u, gamma=g, beta=b, epsilon=eps), F.instance_norm(t, weight=gamma, bias=beta, eps=1e-3), x)
    expected = t / (t.square().sum((1, 2, 3), keepdim=True) + 1e-3).sqrt()
    check(lambda u: mb.l2_norm(x=u, epsilon=eps), expected, x)
    check(
        lambda u: mb.local_response_norm(x=u, size=3, alpha=np.float32(0.1), beta=np.float32(0.5), k=np.float32(2)),
        F.local_response_norm(t, 3, 0.1, 0.5, 2.0),
        x,
    )


@pytest.mark.parametrize("axes", [[3], [2, 3], [-1, -2]])
def test_layer_norm(axes: list[int]) -> None:
    x = normal(2, 4, 5, 6)
    shape = x.shape[4 - len(axes) :]
    gamma, beta = normal(*shape), normal(*shape, seed=4)
    expected = F.layer_norm(torch.from_numpy(x), shape, torch.from_numpy(gamma), torch.from_numpy(beta), 1e-5)
    check(lambda v: mb.layer_norm(x=v, axes=axes, gamma=gamma, beta=beta, epsilon=np.float32(1e-5)), expected, x)


def test_linear_and_matmul() -> None:
    x, weight, bias = normal(2, 3, 4), normal(5, 4), normal(5)
    t, w = torch.from_numpy(x), torch.from_numpy(weight)
    check(lambda v: mb.linear(x=v, weight=weight, bias=bias), F.linear(t, w, torch.from_numpy(bias)), x)
    y = normal(2, 4, 5)
    check(lambda a, b: mb.matmul(x=a, y=b), t @ torch.from_numpy(y), x, y)
    check(
        lambda a, b: mb.matmul(x=a, y=b, transpose_x=True, transpose_y=True),
        t.mT @ torch.from_numpy(normal(2, 6, 3)).mT,
        x,
        normal(2, 6, 3),
    )


def test_einsum() -> None:
    x, y = normal(2, 3, 4, 5), normal(2, 5, 4, 6)
    expected = torch.einsum("nchw,nwhu->nchu", torch.from_numpy(x), torch.from_numpy(y))
    check(lambda a, b: mb.einsum(values=(a, b), equation="nchw,nwhu->nchu"), expected, x, y)


@pytest.mark.parametrize("mask", ["none", "float", "bool"])
def test_attention(mask: str) -> None:
    q, k, v = normal(2, 2, 5, 8), normal(2, 2, 7, 8, seed=1), normal(2, 2, 7, 6, seed=2)
    tensors = [torch.from_numpy(a) for a in (q, k, v)]
    if mask == "none":
        check(lambda a, b, c: mb.scaled_dot_product_attention(query=a, key=b, value=c), F.scaled_dot_product_attention(*tensors), q, k, v)
        return
    m = normal(5, 7) if mask == "float" else normal(5, 7) > -0.5
    expected = F.scaled_dot_product_attention(*tensors, attn_mask=torch.from_numpy(m))
    check(lambda a, b, c, d: mb.scaled_dot_product_attention(query=a, key=b, value=c, attn_mask=d), expected, q, k, v, m)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm(direction: str) -> None:
    """torch orders the gates input, forget, cell, output; MIL input, forget, output, cell."""
    layer = torch.nn.LSTM(4, 3, bidirectional=direction == "bidirectional")
    order = np.r_[0:6, 9:12, 6:9]
    x, ways = normal(5, 2, 4), 2 if direction == "bidirectional" else 1
    h, c = normal(ways, 2, 3), normal(ways, 2, 3, seed=1)

    def weights(suffix: str) -> list[np.ndarray]:
        w_ih, w_hh, b_ih, b_hh = (
            getattr(layer, f"{n}_l0{suffix}").detach().numpy()[order] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        return [w_ih, w_hh, b_ih + b_hh]

    arguments = dict(zip(("weight_ih", "weight_hh", "bias"), weights(""), strict=True))
    if ways == 2:
        arguments |= dict(zip(("weight_ih_back", "weight_hh_back", "bias_back"), weights("_reverse"), strict=True))
    t = torch.from_numpy(x)
    with torch.no_grad():
        out, (h_n, c_n) = layer(t.flip(0) if direction == "reverse" else t, (torch.from_numpy(h), torch.from_numpy(c)))
    sequence = out.flip(0) if direction == "reverse" else out
    expected = [sequence, torch.cat(list(h_n), -1), torch.cat(list(c_n), -1)]
    side = [np.concatenate(list(state), -1) for state in (h, c)]
    check(
        lambda v, a, b: mb.lstm(x=v, initial_h=a, initial_c=b, direction=direction, output_sequence=True, **arguments), expected, x, *side
    )


def test_rnn_returns_the_last_step_alone_unless_asked() -> None:
    layer = torch.nn.RNN(4, 3)
    x, h = normal(5, 2, 4), normal(2, 3)
    w_ih, w_hh = layer.weight_ih_l0.detach().numpy(), layer.weight_hh_l0.detach().numpy()
    bias = (layer.bias_ih_l0 + layer.bias_hh_l0).detach().numpy()
    with torch.no_grad():
        out, _ = layer(torch.from_numpy(x), torch.from_numpy(h)[None])
    check(lambda v, a: mb.rnn(x=v, initial_h=a, weight_ih=w_ih, weight_hh=w_hh, bias=bias), [out[-1:], out[-1]], x, h)
