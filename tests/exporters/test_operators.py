"""Operators between integer layers that converters mistook or refused: files compute what their renderings do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepress.compress.portable import portable
from edgepress.compress.quantize import calibrate
from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.exporters.litert_one_dimension import convolve_in_two
from edgepress.targets.nouns import Scheme, Signature, Target, TensorSpec
from edgepress.validators.runtimes import RUNTIMES
from tests.exporters.litert_cases import sqnr_db

ROWS, TOKENS, WIDTH = 16, 6, 8


def windows(x: Tensor) -> Tensor:
    """(n, 6, 6, 8) with rows of windows exchanged with rows in them, and columns likewise."""
    return x.reshape(-1, 2, 3, 2, 3, 8).permute(0, 2, 1, 4, 3, 5).reshape(-1, 6, 6, 8)


def separable(x: Tensor) -> Tensor:
    """Separable attention between convolutions (Mehta and Rastegari 2022, section 3.1): one context for all places of a row."""
    scores, keys, values = x.split([1, 3, 4], 1)
    context = (F.pad(keys, (0, 0, 0, 0, 0, 1)) * scores.softmax(-1)).sum(-1, keepdim=True)
    return F.conv2d(F.relu(values) * context.expand_as(values), torch.eye(4)[..., None, None] + 0.1)


def scores(x: Tensor) -> Tensor:
    """(n, 1, 42): a linear layer over the constant places of a map, as many times as there are samples."""
    places, weight = torch.linspace(-1, 1, 126).reshape(1, 42, 3), torch.linspace(-2, 3, 3)[None]
    return F.linear(places.expand(x.shape[0], -1, -1), weight).mT


def blocks(x: Tensor) -> Tensor:
    """(n, 8, 2, 21): queries, keys and values of two heads in two blocks of each row, which make six dimensions."""
    qkv = F.linear(x.flatten(2).mT.reshape(x.shape[0], 2, 21, 8), torch.linspace(-1, 1, 96).reshape(12, 8))
    query, key, value = qkv.reshape(x.shape[0], 2, 21, 3, 2, 2).permute(3, 0, 4, 1, 2, 5).unbind(0)
    return torch.cat([query + key, query * value], -1)


def positions(x: Tensor) -> Tensor:
    """(n, 8, 42): attention scores of six dimensions, with something added for rows and for columns."""
    scores = x.reshape(-1, 2, 2, 2, 6, 7)
    return (scores + scores.sum(-1)[..., None] * 0.1 + scores.sum(-2)[..., None, :] * 0.1).reshape(-1, 8, 42).softmax(-1)


def turned(x: Tensor) -> Tensor:
    """(n, 8, 6, 7): every map turned by an angle that its mean says (Jaderberg et al. 2015)."""
    angle = x.mean((1, 2, 3))
    matrix = torch.stack([angle.cos(), -angle.sin(), angle * 0, angle.sin(), angle.cos(), angle * 0], -1).reshape(-1, 2, 3)
    return F.grid_sample(x, F.affine_grid(matrix, list(x.shape), align_corners=False), align_corners=False)


def attention(x: Tensor) -> Tensor:
    """(n, 8, 42): of queries, keys and values with channels first, as non-local blocks and diffusion models have them."""
    query, key, value = F.conv1d(x.flatten(2), torch.linspace(-0.5, 0.5, 192).reshape(24, 8, 1)).chunk(3, 1)
    return value @ (query.transpose(1, 2) @ key * 0.1).softmax(-1).transpose(1, 2)


def channels_last(x: Tensor) -> Tensor:
    """(n, 42, 8): a layer without a bias."""
    return F.linear(x.flatten(2).mT, torch.linspace(-1, 1, 64).reshape(8, 8))


Operator = Callable[[Tensor], Tensor]
#: Between a convolution (n, 8, 6, 7) and a linear layer.
ON_MAPS: dict[str, Operator] = {
    "normalize": lambda x: F.normalize(x, dim=1),
    "products of channels": lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2) * 0.1,
    "gather": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "one-hot": lambda x: F.one_hot(x.argmax(1), 8).permute(0, 3, 1, 2) * x,
    "below its range": lambda x: F.threshold(x, 0.1, -0.2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "nearest at another ratio": lambda x: F.interpolate(x, size=(11, 13)) + F.interpolate(F.interpolate(x, size=(3, 4)), size=(11, 13)),
    "nearest by a scale": lambda x: F.interpolate(x, scale_factor=1.3) + F.interpolate(x[:, :, 0], scale_factor=1.3)[:, :, None],
    "linear by a scale": lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, size=(9, 10), mode="bicubic"),
    "smoothed": lambda x: F.interpolate(x, size=(4, 9), mode="bilinear", antialias=True),
    "smoothed by cubic polynomials": lambda x: F.interpolate(x, scale_factor=0.6, mode="bicubic", antialias=True),
    "adaptive maxima over time": lambda x: F.adaptive_max_pool1d(x.flatten(2), 5),
    "turned": turned,
    "volumes": lambda x: F.group_norm(x.reshape(-1, 4, 2, 6, 7), 2).flatten(1, 2),
    "adaptive maxima": lambda x: F.adaptive_max_pool2d(x, (4, 3)),
    "the larger": lambda x: torch.hypot(torch.fmax(x, x.flip(1)), torch.fmin(x, x.flip(2))),
    "squares of boxes": lambda x: x.reshape(-1, 2, 4, 6, 7).sigmoid() ** 2,
    "repeated channels": lambda x: x.repeat(1, 2, 1, 1) * x.mean(1, keepdim=True),
    "largest": lambda x: x.flatten(2).topk(3).values,
    "windows": lambda x: F.fold(F.unfold(x, 3, padding=1), (6, 7), 3, padding=1),
    "windows of a convolution without a bias": lambda x: F.unfold(F.conv2d(x, torch.linspace(-1, 1, 64).reshape(8, 8, 1, 1)), 2, stride=2),
    "a dimension behind a layer without a bias": lambda x: channels_last(x).unsqueeze(-1) * torch.linspace(1, 2, 3),
    "layers without a bias stacked": lambda x: torch.stack([channels_last(x), channels_last(x) * 2], -1).amax(-1),
    "filled with a number": lambda x: F.pad(F.relu(x), (1, 2, 0, 1), value=-0.5),
    "circular": lambda x: F.pad(x, (2, 1, 0, 1), mode="circular"),
    "a small branch": lambda x: F.relu(x + torch.full((8, 1, 1), 1e-6) * F.gelu(x)) * x,
    "rests": lambda x: torch.sin(2 * torch.pi * (x % 1.0)),
    "moments": lambda x: torch.cat(torch.var_mean(x, dim=(2, 3), keepdim=True), 1),
    "similarity": lambda x: F.cosine_similarity(x, x.roll(1, 1), dim=1),
    "diagonal": lambda x: x.diagonal(1, 2, 3),
    "shrink": lambda x: F.hardshrink(x) + F.logsigmoid(x),
    "between": lambda x: torch.lerp(x, x.flip(1), 0.3),
    "frames": lambda x: x.flatten(2).unfold(2, 8, 4),
    "windows moved together": lambda x: windows(F.linear(windows(x[..., :6].permute(0, 2, 3, 1)), torch.eye(8) + 0.1)).permute(0, 3, 1, 2),
    "written out before a product": separable,
    "talking heads": lambda x: F.linear(x.permute(0, 2, 3, 1), torch.eye(8) + 0.1).permute(0, 3, 1, 2).softmax(-1).permute(0, 2, 3, 1),
    "heads of blocks": blocks,
    "positions of rows and columns": positions,
    "positions behind a convolution": lambda x: F.gelu(x.permute(0, 2, 3, 1) + torch.linspace(-1, 1, 336).reshape(6, 7, 8)),
    "largest of windows": lambda x: x.reshape(-1, 2, 2, 2, 6, 7).amax(3),
    "attention with channels first": attention,
    "positions for every sample": lambda x: x.flatten(2) * scores(x).softmax(-1),
}
#: Of embeddings (n, 6, 8), tokens (n, 6) and a mask (n, 6) of int64.
ON_TOKENS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "hidden by the lowest float": lambda e, _, m: (
        (e @ e.transpose(1, 2) + (1.0 - m.to(e.dtype))[:, None] * torch.finfo(e.dtype).min).softmax(-1) @ e
    ),
    "hidden by a mask of floats": lambda e, _, m: (
        (e @ e.transpose(1, 2) + torch.zeros_like(m == 0, dtype=torch.float32).masked_fill(m == 0, -torch.inf)[:, None]).softmax(-1) @ e
    ),
    "integers from a float": lambda e, _, m: e * (1.0 - m)[..., None] + e,
    "where the largest token is": lambda e, i, _: e[torch.arange(e.shape[0]), i.argmax(1)][:, None],
    "powers of integers": lambda e, i, m: e * (m**2 + i**0.5 + 2**m)[..., None] * 0.1,
    "either": lambda e, i, m: e * ((m > 0) ^ (i != 3))[..., None],
}


class OnMaps(nn.Module):
    def __init__(self, operator: Operator) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.operator, self.first = operator, nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Linear(self._between(torch.randn(2, 3, 6, 7)).shape[1], 5)

    def _between(self, x: Tensor) -> Tensor:
        return self.operator(self.first(x)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._between(x))


class OnTokens(nn.Module):
    def __init__(self, operator: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.operator, self.first, self.last = operator, nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.last(self.operator(self.first(tokens), tokens, mask).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.last = kind(6, 4, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(8, 5)

    def forward(self, steps: Tensor) -> Tensor:
        return self.last(self.layers(steps)[0][:, -1])


def computed(model: nn.Module, inputs: dict[str, Tensor], runtime: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the static int8 file gives, and what its rendering does; each of shape (n, 5)."""
    pytest.importorskip({"coreml": "coremltools", "litert": "litert_torch"}.get(runtime, runtime))
    samples = tuple(inputs.values())
    program = portable(torch.export.export(model.eval(), samples, dynamic_shapes=tuple({0: torch.export.Dim("n", min=1)} for _ in samples)))
    torch.export.save(program, folder / "model.pt2")
    calibrate(program, [samples]).save(folder / "statistics")
    specs = tuple(TensorSpec(name, str(x.dtype).removeprefix("torch."), (None, *x.shape[1:])) for name, x in inputs.items())
    arrays = {name: x.numpy() for name, x in inputs.items()}
    request = ExportRequest(
        folder / "model.pt2",
        Signature(specs, (TensorSpec("logits", "float32", (None, 5)),)),
        folder / "statistics",
        Target(runtime, runtime, "", "int8"),
        Scheme("int8", "static"),
        tuple(x[:4] for x in arrays.values()),
    )
    exporter = EXPORTERS.get(runtime)()
    artifact = exporter.export(request, folder / "out")
    (expected,), _ = exporter.compressed_outputs(request, list(arrays.values()))
    with RUNTIMES.get(runtime)().open(artifact, folder / "out") as session:
        return session.run(arrays)["logits"], expected


#: What torch.onnx has no function for either, or readers of ONNX compute otherwise.
WITHOUT_FUNCTION = [
    "a dimension behind a layer without a bias",
    "adaptive maxima",
    "adaptive maxima over time",
    "layers without a bias stacked",
    "smoothed",
    "smoothed by cubic polynomials",
    "the larger",
    "windows of a convolution without a bias",
]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", WITHOUT_FUNCTION)
def test_maps_in_onnx(name: str, runtime: str, tmp_path: Path) -> None:
    test_maps(name, runtime, tmp_path)


@pytest.mark.parametrize("runtime", ["coreml", "litert"])
@pytest.mark.parametrize("name", ON_MAPS)
def test_maps(name: str, runtime: str, tmp_path: Path) -> None:
    images = torch.randn(ROWS, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    found, expected = computed(OnMaps(ON_MAPS[name]), {"image": images}, runtime, tmp_path)
    assert sqnr_db(found, expected) > (30 if "linear" in name else 35)  # LiteRT interpolates in integers


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.ConvTranspose2d(8, 12, 3, 2, 1, output_padding=1, groups=4),
        lambda: nn.Sequential(nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ReLU(), nn.Conv2d(6, 4, 3)),
        lambda: nn.ConvTranspose2d(8, 6, 5, (3, 1), (1, 2), output_padding=(2, 0)),
        lambda: nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(8, 6, 4, 2, 1)),
    ],
)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "coreml", "litert"])
def test_transposed_convolutions(layer: Callable[[], nn.Module], runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(ROWS, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    found, expected = computed(OnMaps(layer()), {"image": images}, runtime, tmp_path)
    assert sqnr_db(found, expected) > 35


def test_transposed_convolutions_of_groups_in_a_row_store_integers_and_round_nothing_in_onnx_runtime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(ROWS, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    row = nn.Sequential(nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=2), nn.ReLU(), nn.ConvTranspose2d(12, 6, 4, 2, 1, groups=2), nn.ReLU())
    with torch.no_grad():
        row[0].weight[:, 0] *= 30  # shows one scale for all channels, which onnxruntime gives what it rounds itself
    found, expected = computed(OnMaps(row), {"image": images}, "onnxruntime", tmp_path)
    assert sqnr_db(found, expected) > 50
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    made = {name: node for node in graph.node for name in node.output}
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type == "ConvTranspose"]
    assert [stored[made[made[node.input[1]].input[0]].input[0]] for node in layers] == [onnx.TensorProto.INT8] * 2
    assert made[made[layers[1].input[0]].input[0]] is layers[0]  # through the ReLU


class InOneDimension(nn.Module):
    """Convolutions over time: a residual sum, gates of two halves of the channels, a concatenation, a part of the time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(16, 5, 3)
        self.gates = nn.ModuleList(nn.Conv1d(8, 16, 3, padding=2**place, dilation=2**place) for place in range(2))
        self.mixed = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(image.flatten(2)), 0.1)
        for gates, mixed in zip(self.gates, self.mixed, strict=True):
            a, b = gates(x).chunk(2, 1)
            x = x + mixed(torch.tanh(a) * torch.sigmoid(b))
        return self.last(torch.cat([x, F.relu(x)], 1)[:, :, 2:]).mean(2)


class WeightAtRunTime(nn.Module):
    """A convolution over time whose weight is the outer product of two others, between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 5, 3)
        self.left, self.right = nn.Parameter(torch.randn(8, 1, 1)), nn.Parameter(torch.randn(1, 8, 3) / 5)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.first(image.flatten(2)))
        return self.last(F.conv1d(x, self.left * self.right, padding=1)).mean(2)


def test_a_convolution_whose_weight_is_computed_at_run_time_stays_as_it_is() -> None:
    images = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    model = WeightAtRunTime().eval()
    module = convolve_in_two(torch.export.export(model, (images,)).module())
    torch.testing.assert_close(module(images), model(images))
    names = [str(node.target) for node in module.graph.nodes]
    assert names.count("aten.conv1d.default") == 1 and names.count("aten.conv2d.default") == 2


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "coreml", "litert"])
def test_convolutions_over_one_dimension(runtime: str, tmp_path: Path) -> None:
    images = torch.randn(ROWS, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    found, expected = computed(InOneDimension(), {"image": images}, runtime, tmp_path)
    assert sqnr_db(found, expected) > 35
    if runtime == "litert":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(tmp_path / "out" / "model.tflite"))
        interpreter.allocate_tensors()
        names = [op["op_name"] for op in interpreter._get_ops_details()]
        assert names.count("CONV_2D") == 6 and names.count("TRANSPOSE") <= 2  # in and out


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "coreml", "litert"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers(kind: type[nn.RNNBase], runtime: str, tmp_path: Path) -> None:
    steps = torch.randn(ROWS, 7, 6, generator=torch.Generator().manual_seed(0))
    found, expected = computed(Recurrent(kind), {"steps": steps}, runtime, tmp_path)
    assert sqnr_db(found, expected) > 35


@pytest.mark.parametrize("runtime", ["onnxruntime", "coreml", "litert"])
@pytest.mark.parametrize("name", ON_TOKENS)
def test_tokens(name: str, runtime: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(TOKENS)[None] < torch.randint(2, TOKENS + 1, (ROWS, 1), generator=generator)).long()
    tokens = torch.randint(0, 20, (ROWS, TOKENS), generator=generator) * mask
    found, expected = computed(OnTokens(ON_TOKENS[name]), {"tokens": tokens, "mask": mask}, runtime, tmp_path)
    assert sqnr_db(found, expected) > 35
