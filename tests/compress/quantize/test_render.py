import dataclasses
import operator
from functools import cache

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

from edgepress.compress.quantize import Rendered, Statistics, calibrate, count_macs, float_module, render
from edgepress.compress.quantize.graph import HEAVY, kind_of
from edgepress.compress.quantize.unpacked import INTEGERS
from edgepress.targets.errors import QuantizationError
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import QuantRules, rules_for

from .decoder import decoder, tokens
from .nets import NETS, outputs_of, program_of, samples_of, share_of_macs

RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "coreml", "litert")
STATIC, MATMUL, WEIGHTS = Scheme("int8", "static"), Scheme("int8", "static-matmul"), Scheme("int8-weights", "weights")


@cache
def statistics_of(name: str) -> Statistics:
    return calibrate(program_of(name), [samples_of(name, 64)])


@cache
def rendered(name: str, runtime: str, scheme: Scheme = STATIC) -> Rendered:
    return render(program_of(name), statistics_of(name), rules_for(runtime), scheme)


def sqnr_db(name: str, module: GraphModule, count: int = 64) -> float:
    """Smallest signal to quantization noise ratio over the outputs."""
    inputs = samples_of(name, count)
    pairs = zip(outputs_of(program_of(name).module(), inputs), outputs_of(module, inputs), strict=True)
    return min(float(10 * torch.log10(a.square().sum() / (a - b).square().sum().clamp_min(1e-30))) for a, b in pairs)


def quantizers(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if str(node.target).startswith("quantized_decomposed.quantize")]


def readers(node: Node) -> set[str]:
    """Names of the ops that read a quantized tensor after its dequantize."""
    return {str(user.target).split(".")[1] for dequantize in node.users for user in dequantize.users if user.op == "call_function"}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETS)
def test_static_stays_close_to_float_and_computes_every_mac_in_integers(name: str, runtime: str) -> None:
    module = rendered(name, runtime).module
    assert sqnr_db(name, module) > 33  # lowest measured: 35.1 dB (dense, tensorrt)
    check_share(module, runtime)


def check_share(module: GraphModule, runtime: str) -> None:
    """Every layer computes in integers where the runtime's rules place it, products of activations too."""
    slow = any(str(node.target).endswith(INTEGERS) for node in module.graph.nodes)  # layers whose weights alone are integers
    if slow or {kind_of(node) for node in module.graph.nodes} & (HEAVY - rules_for(runtime).placement):
        assert 0.5 < share_of_macs(module) < 1.0
    else:
        assert share_of_macs(module) == 1.0


@pytest.mark.parametrize("name", ["residual", "vision-fused", "sentence-eager", "shared"])
def test_static_matmul_quantizes_what_products_read_and_nothing_else(name: str) -> None:
    module = rendered(name, "onnxruntime", MATMUL).module
    assert sqnr_db(name, module) > 33
    check_share(module, "onnxruntime")
    allowed = {"conv2d", "linear", "matmul", "quantize_per_tensor"}
    moving = {"view", "reshape", "transpose", "permute", "unsqueeze", "flatten", "select", "unbind", "relu", "relu_", "slice", "contiguous"}
    after_conv = {"add", "max_pool2d", "adaptive_avg_pool2d"}  # a convolution writes integers; float ops read them dequantized
    for node in quantizers(module):
        assert readers(node) <= allowed | moving | (after_conv if "conv" in str(node.args[0]) or "relu" in str(node.args[0]) else set())


@pytest.mark.parametrize("name", ["residual", "shuffle", "vision-fused", "sentence-sdpa"])
def test_weights_alone_leave_activations_in_float(name: str) -> None:
    module = render(program_of(name), None, rules_for("coreml"), WEIGHTS).module
    assert sqnr_db(name, module) > 38
    assert share_of_macs(module) == 0.0
    assert not quantizers(module)
    assert any(tensor.dtype == torch.int8 for tensor in module.state_dict().values())


@pytest.mark.parametrize("name", ["sentence-sdpa", "sentence-eager"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_mask_never_enters_a_quantized_range(name: str, runtime: str) -> None:
    result = rendered(name, runtime)
    for node in quantizers(result.module):
        if isinstance(node.args[1], float):
            assert node.args[1] * 256 < 100
        assert "softmax" not in readers(node)
    if "softmax" in rules_for(runtime).placement:
        assert any("mask" in line["reason"] and line["op"] == "aten.softmax" for line in result.float_ops)


def test_a_mask_that_calibration_never_saw_is_still_kept_out() -> None:
    name = "sentence-sdpa"
    ids, mask = samples_of(name, 64)
    unpadded = calibrate(program_of(name), [(ids, torch.ones_like(mask))])
    module = render(program_of(name), unpadded, rules_for("litert"), STATIC).module
    assert sqnr_db(name, module) > 25


class Gated(nn.Module):
    """Halves of what a convolution computes, one of which goes through an op without an integer kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.first(x).chunk(2, 1)
        return self.second(torch.tanh(left) * torch.sigmoid(right))


def test_pieces_of_one_tensor_are_taken_apart_together_in_integers() -> None:
    """ONNX Runtime splits integers where all pieces are rounded alike, and turns them into floats first where one is not."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    program = torch.export.export(Gated().eval(), (x[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    result = render(program, calibrate(program, [(x,)]), rules_for("onnxruntime"), STATIC)
    assert "aten.tanh" in {line["op"] for line in result.float_ops}
    pieces = [node for node in result.module.graph.nodes if node.target is operator.getitem]
    roundings = {(str(user.target), *user.args[1:3]) for node in pieces for user in node.users}
    assert len(pieces) == 2
    assert [target for target, *_ in roundings] == ["quantized_decomposed.quantize_per_tensor.default"]


class Beside(nn.Module):
    """A learnt constant, one for every sample, beside what a convolution computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.learnt = nn.Parameter(3 * torch.randn(1, 4, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        computed = torch.relu(self.first(x))
        return self.second(torch.cat([self.learnt.expand(x.shape[0], -1, -1, -1), computed], 1))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_constant_that_is_repeated_for_every_sample_is_rounded_by_its_own_range(runtime: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    program = torch.export.export(Beside().eval(), (x[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    result = render(program, calibrate(program, [(x,)]), rules_for(runtime), STATIC)
    assert "aten.cat" not in {line["op"] for line in result.float_ops}
    wanted, got = program.module()(x), result.module(x)
    assert 10 * torch.log10(wanted.square().mean() / (got - wanted).square().mean()) > 33


@pytest.mark.parametrize("name", ["residual", "vision-fused", "sentence-sdpa", "shared"])
def test_the_batch_stays_dynamic(name: str) -> None:
    module, inputs = rendered(name, "litert").module, samples_of(name, 3)
    batch = torch.export.Dim("batch", min=1, max=256)
    program = torch.export.export(module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    for count in (1, 5):
        more = samples_of(name, count)
        for a, b in zip(outputs_of(program.module(), more), outputs_of(module, more), strict=True):
            assert len(a) == count
            torch.testing.assert_close(a, b)


def test_inputs_and_outputs_keep_their_structure() -> None:
    result = rendered("shared", "coreml").module(*samples_of("shared", 4))
    assert list(result) == ["sum", "product"]
    assert result["product"].shape == (4, 1)


@pytest.mark.parametrize("scheme", [STATIC, WEIGHTS])
def test_the_same_model_and_statistics_give_the_same_bytes(scheme: Scheme) -> None:
    first, second = (render(program_of("inverted"), statistics_of("inverted"), rules_for("litert"), scheme) for _ in range(2))
    assert first.module.code == second.module.code
    assert first.float_ops == second.float_ops
    a, b = first.module.state_dict(), second.module.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", ["residual", "dense", "vision-explicit"])
def test_unsigned_and_signed_renderings_are_bit_identical(name: str) -> None:
    signed = dataclasses.replace(rules_for("litert"), fold_weights=True, float_output=frozenset())
    unsigned = dataclasses.replace(signed, activation_dtype="uint8", activation_min=0, activation_max=255, unit_output=(1 / 256, 0))
    inputs = samples_of(name, 8)
    results = [outputs_of(render(program_of(name), statistics_of(name), rules, STATIC).module, inputs) for rules in (signed, unsigned)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_tensors_that_must_share_a_scale_do() -> None:
    """TFLite's kernels of concatenation, padding and pooling read and write one scale."""
    module = rendered("dense", "litert").module
    for node in module.graph.nodes:
        if str(node.target) in ("aten.cat.default", "aten.pad.default", "aten.avg_pool2d.default", "aten.upsample_nearest2d.vec"):
            scales = {item.args[1:3] for item in node.all_input_nodes} | {user.args[1:3] for user in node.users}
            assert len(scales) == 1


def test_softmax_writes_the_scale_its_kernel_demands() -> None:
    module = rendered("vision-fused", "coreml").module
    softmaxes = [node for node in module.graph.nodes if str(node.target) == "aten.softmax.int"]
    assert len(softmaxes) == 2
    assert all(user.args[1:3] == (1 / 256, -128) for node in softmaxes for user in node.users)


def test_attention_stays_fused_where_the_rules_say_so() -> None:
    rules = dataclasses.replace(rules_for("openvino"), decompose_attention=False)
    result = render(program_of("vision-fused"), statistics_of("vision-fused"), rules, STATIC)
    assert {"aten.scaled_dot_product_attention"} <= {line["op"] for line in result.float_ops}
    assert sqnr_db("vision-fused", result.module) > 33
    assert 0.5 < share_of_macs(result.module) < 1.0


def test_residual_sums_between_float_ops_stay_float() -> None:
    lines = {line["op"]: line for line in rendered("vision-fused", "onnxruntime").float_ops}
    assert lines["aten.add"]["count"] == 5 and "neighbours" in lines["aten.add"]["reason"]
    assert {"aten.layer_norm", "aten.gelu"} <= set(lines)
    assert rendered("residual", "onnxruntime").float_ops == ()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_norm_that_is_written_out_stays_float_as_a_fused_one_does(runtime: str) -> None:
    program, samples = decoder(), tokens(64, 1)
    statistics = calibrate(program, [(samples,)])
    static, matmul = (render(program, statistics, rules_for(runtime), scheme) for scheme in (STATIC, MATMUL))
    norms = [line for line in static.float_ops if "normalization" in line["reason"]]
    assert [(line["op"], line["count"]) for line in norms] == [("aten.mul", 5)]  # the factors behind them only have float neighbours
    exact, *found = (outputs_of(module, (samples,))[0] for module in (program.module(), static.module, matmul.module))
    errors = [float((output - exact).square().sum()) for output in found]
    assert errors[0] < 1.2 * errors[1]  # with the norms in integers 1.5 times


class Woven(nn.Module):
    """Two layers whose answers are added to each other again and again, and answered."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x), self.second(x)
        for _ in range(40):  # a hundred million ways back
            a, b = b, (a + b) * 0.6
        return b


def test_sums_that_meet_again_and_again_are_looked_at_once() -> None:
    images = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Woven().eval(), (images,))
    placed = render(program, calibrate(program, [(images,)]), rules_for("onnxruntime"), STATIC)
    assert share_of_macs(placed.module) == 1.0


def test_weights_have_a_scale_per_output_channel_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = dataclasses.replace(rules_for("tensorrt"), per_channel=frozenset())
    module = render(program_of("shuffle"), statistics_of("shuffle"), rules, STATIC).module
    assert not any("per_channel" in str(node.target) for node in module.graph.nodes)
    channels = [n for n in rendered("shuffle", "tensorrt").module.graph.nodes if "dequantize_per_channel" in str(n.target)]
    assert len(channels) == 4


class Elementwise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x) + 1


def _exported(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))


@pytest.mark.parametrize("scheme", [STATIC, MATMUL, WEIGHTS])
def test_a_model_with_nothing_to_quantize_says_so(scheme: Scheme) -> None:
    program = _exported(Elementwise(), torch.randn(2, 4))
    with pytest.raises(QuantizationError, match=r"nothing to quantize.*aten\.gelu"):
        render(program, calibrate(program, [(torch.randn(4, 4),)]), rules_for("coreml"), scheme)


def test_a_model_whose_ranges_no_integer_holds_names_the_layer_and_the_range() -> None:
    samples = tuple(1e4 * sample for sample in samples_of("dense", 64))
    with pytest.raises(QuantizationError, match=r"no layer of the model can be quantized: \w+: reaches .* in calibration") as error:
        render(program_of("dense"), calibrate(program_of("dense"), [samples]), rules_for("onnxruntime"), STATIC)
    assert "preprocessed" in error.value.remedy


def test_missing_and_foreign_statistics_and_unknown_schemes_are_errors() -> None:
    rules: QuantRules = rules_for("litert")
    with pytest.raises(QuantizationError, match="needs calibration"):
        render(program_of("dense"), None, rules, STATIC)
    with pytest.raises(QuantizationError, match="do not belong"):
        render(program_of("residual"), statistics_of("dense"), rules, STATIC)
    with pytest.raises(QuantizationError, match="no calibrated rendering"):
        render(program_of("dense"), None, rules, Scheme("int8", "dynamic"))


class Products(nn.Module):
    """Layers written as products with a matrix: `addmm`, as GPT-2 has them, and `@`, as CLIP projects."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias, self.projection = (nn.Parameter(torch.randn(shape)) for shape in ((8, 16), (16,), (16, 4)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.addmm(self.bias, x.reshape(-1, 8), self.weight).reshape(-1, 5, 16)
        return torch.relu(hidden) @ self.projection


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_products_with_a_constant_matrix_are_linear_layers(runtime: str) -> None:
    samples = torch.randn(64, 5, 8, generator=torch.Generator().manual_seed(0))
    program = _exported(Products(), samples[:2])
    with torch.no_grad():
        exact = program.module()(samples)
        torch.testing.assert_close(float_module(program)(samples), exact)
    module = render(program, calibrate(program, [(samples,)]), rules_for(runtime), STATIC).module
    weights = render(program, None, rules_for(runtime), WEIGHTS).module
    assert share_of_macs(module) == 1.0
    for rendering in (module, weights):
        assert sum("dequantize_per_channel" in str(node.target) for node in rendering.graph.nodes) == 2
    with torch.no_grad():
        assert 10 * torch.log10(exact.square().sum() / (module(samples) - exact).square().sum()) > 33


class Huge(nn.Module):
    """A product whose input reaches 1e9, beside one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(torch.tanh(x) * 1e9) * 1e-9


def test_a_range_that_8_bits_cannot_hold_stays_float_with_its_value_in_the_reason() -> None:
    program = _exported(Huge(), torch.randn(2, 4))
    result = render(program, calibrate(program, [(torch.randn(64, 4),)]), rules_for("litert"), STATIC)
    assert any(line["op"] == "aten.linear" and "e+0" in line["reason"] for line in result.float_ops)
    assert share_of_macs(result.module) == 0.5


class Dead(nn.Module):
    """A layer whose output is zero on every sample, and a tensor that is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.dead, self.live = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        nn.init.zeros_(self.dead.weight)
        nn.init.constant_(self.dead.bias, -1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.live(x) + torch.relu(self.dead(x))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_all_zero_tensors_and_weights_work(runtime: str) -> None:
    program, inputs = _exported(Dead(), torch.randn(2, 3, 4, 4)), torch.randn(16, 3, 4, 4)
    module = render(program, calibrate(program, [(inputs,)]), rules_for(runtime), STATIC).module
    with torch.no_grad():
        expected, got = program.module()(inputs), module(inputs)
    assert torch.isfinite(got).all()
    assert (expected - got).abs().max() < 0.05


@pytest.mark.parametrize("name", NETS)
def test_the_float_module_computes_what_the_program_does(name: str) -> None:
    module, inputs = float_module(program_of(name)), samples_of(name, 5)
    for a, b in zip(outputs_of(program_of(name).module(), inputs), outputs_of(module, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert not any("batch_norm" in str(node.target) or "dropout" in str(node.target) for node in module.graph.nodes)


class Branched(nn.Module):
    """Batch norms that fold into no layer: of a convolution that others read, and of the tokens of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.cheap = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.mix, self.tokens = nn.Linear(9, 6), nn.BatchNorm1d(6)
        for norm in (self.norm, self.tokens):
            nn.init.uniform_(norm.running_var, 0.3, 1.5)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.weight, 0.5, 1.5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        primary = self.conv(x)
        tokens = torch.cat([primary, primary[:, :2]], 1).flatten(2)
        return self.cheap(primary) + self.norm(primary), self.tokens(self.mix(tokens))


def test_a_batch_norm_changes_no_layer_that_others_read() -> None:
    torch.manual_seed(0)
    net, inputs = Branched().eval(), torch.randn(64, 3, 5, 5)
    program = _exported(net, inputs[:2])
    result = render(program, calibrate(program, [(inputs,)]), rules_for("onnxruntime"), STATIC)
    with torch.no_grad():
        for want, plain, got in zip(net(inputs), float_module(program)(inputs), result.module(inputs), strict=True):
            torch.testing.assert_close(plain, want, atol=1e-5, rtol=1e-4)
            assert 10 * torch.log10(want.square().sum() / (want - got).square().sum()) > 30


def test_rendering_batch_norms_traces_no_patterns_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)]
    net, inputs = nn.Sequential(*layers).eval(), torch.randn(64, 3, 5, 5)
    program = _exported(net, inputs[:2])
    statistics = calibrate(program, [(inputs,)])
    monkeypatch.setattr("torchao.quantization.pt2e.qat_utils._get_aten_graph_module_for_pattern", None)  # ten seconds of calls
    module = render(program, statistics, rules_for("onnxruntime"), STATIC).module
    assert len(module.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)) == 1
    with torch.no_grad():
        want, got = net(inputs), module(inputs)
    assert 10 * torch.log10(want.square().sum() / (want - got).square().sum()) > 30


def test_macs_of_one_sample_are_counted() -> None:
    convolutions = 16 * 16 * 8 * 3 * 9 + 2 * 8 * 8 * 8 * 8 * 9 + 4 * 4 * (16 * 8 * 9 + 16 * 16 * 9 + 16 * 8)
    assert count_macs(program_of("residual")) == convolutions + 16 * 5
    assert count_macs(program_of("vision-fused")) == count_macs(program_of("vision-explicit"))
    assert count_macs(program_of("shuffle")) == 256 * (8 * 27 + 4 * 2 * 9) + 256 * 8 * 3 * 4 + 1024 * 12
