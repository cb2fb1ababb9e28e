from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepress.validators.runtimes.tensorrt import engine_report
from edgepress.validators.runtimes.tensorrt_plan import PlanOp, graph_texts, read_plan


def framed(text: str, length: int | None = None) -> bytes:
    """A text as an engine holds it: marker, version, length."""
    body = text.encode()
    return b"NLYM\xa1\xda\x1e\x00" + (len(body) if length is None else length).to_bytes(8, "little") + body


def plan_text(statements: str, types: dict[str, str], header: str = "accelerators={sm86 }") -> str:
    tensors = "\n".join(f'  tensor={{ alignment=128 dims={{ 1 }} name="{name}" offset=0 type={kind} }}' for name, kind in types.items())
    return f"header {{\n  {header}\n}}\ndescriptors {{\n{tensors}\n}}\nmain {{\n label bb1: \n{statements}\n}}\n"


def statement(kind: str, name: str, inputs: list[str], outputs: list[str], layers: list[str], more: str = "") -> str:
    def quoted(names: list[str]) -> str:
        return "".join(f'"{n}" ' for n in names)

    words = ("input_args", "output_args") if kind in ("function", "runtime_fusion") else ("input", "output")
    listed = "\x1f".join(f"[ONNX Layer: {layer}]" for layer in layers)
    label = name if kind in ("function", "runtime_fusion") else f'"{name}"'
    parts = f"{words[1]}={{{quoted(outputs)}}} {words[0]}={{{quoted(inputs)}}}"
    return f'  {kind}={{ name={label} {parts} {more}stream=0 layers="{listed}" }}'


TYPES = {"x": "float", "q": "int8", "w": "int8", "h": "half", "v": "half", "y": "float", "n": "int64", "{odd}_shape": "int64"}


@pytest.mark.parametrize(
    ("kind", "name", "inputs", "outputs", "expected"),
    [
        ("corrltn", "conv", ["q", "w", "y"], ["y"], ("matrix", "int8")),
        ("fully_connected", "fc", ["h", "v"], ["h"], ("matrix", "fp16")),
        ("fully_connected", "fc", ["x", "w"], ["y"], ("matrix", "fp32")),  # int8 weights, float arithmetic
        ("fully_connected", "fc", ["lost", "w"], ["y"], ("matrix", "unknown")),
        ("fully_connected", "fc", [], [], ("matrix", "unknown")),
        ("maxpool", "pool", ["q", "y"], ["q"], ("pooling", "int8")),
        ("function", "__myl_MulAddRelu", ["{odd}_shape", "h", "n"], ["q"], ("pointwise", "fp16")),
        ("function", "__myl_MulAddRelu", ["q", "x"], ["q"], ("pointwise", "fp32")),
        ("function", "_gemm_mha_v2", ["h", "v", "n"], ["h"], ("matrix", "fp16")),
        ("function", "_gemm_mha_v2", ["q", "w", "n"], ["q"], ("matrix", "int8")),
        ("function", "_gemm_mha_v2", ["q", "w", "x", "q"], ["q"], ("matrix", "int8")),  # x is the mask
        ("function", "_gemm_mha_v2", ["q", "h", "w"], ["h"], ("matrix", "unknown")),
        ("runtime_fusion", "__myl_FcAdd", ["w", "lost"], ["y"], ("matrix", "int8")),
    ],
)
def test_the_type_of_a_kernel_is_that_of_what_it_computes_on(
    kind: str, name: str, inputs: list[str], outputs: list[str], expected: tuple[str, str]
) -> None:
    plan = framed(plan_text(statement(kind, name, inputs, outputs, ["node_1", "node_2"]), TYPES))
    assert read_plan(plan) == [PlanOp(expected[0], name, ("node_1", "node_2"), expected[1])]


@pytest.mark.parametrize("name", ["__myl_CastGath", "__myl_ReshTran", "__myl_ConcTranReshEtc"])
def test_kernels_that_only_move_values_are_left_out(name: str) -> None:
    assert read_plan(framed(plan_text(statement("function", name, ["x"], ["y"], ["n"]), TYPES))) == []
    assert read_plan(framed(plan_text(statement("copy", "c", ["x"], ["y"], ["n"]), TYPES))) == []


def test_a_runtime_fusion_is_read_from_its_own_text() -> None:
    outer = plan_text(statement("runtime_fusion", "__myl_FcAdd", ["w", "x", "y"], ["y"], ["fc"], "binary=1 "), TYPES)
    inner = [
        plan_text(statement("fully_connected", f"fc{i}", ["a", "b"], ["y"], []), {"a": kind, "b": "int8"}, "accelerators={*}")
        for i, kind in enumerate(("float", "int8"))
    ]
    assert read_plan(b"\x00".join(framed(text) for text in (outer, *inner))) == [PlanOp("matrix", "__myl_FcAdd", ("fc",), "int8")]


@pytest.mark.parametrize(
    "plan", [b"", b"NLYM", b"\x00" * 4096, b"NLYM" * 50, b"\xff" * 20, framed("header {", 1 << 60), framed("no header", 3)]
)
def test_bytes_without_a_dump_give_no_kernels(plan: bytes) -> None:
    assert graph_texts(plan) == []
    assert read_plan(plan) == []


GOOD = framed(plan_text("\n".join(statement("corrltn", f"conv{i}", ["q", "w"], ["y"], [f"c{i}"]) for i in range(4)), TYPES))


@given(st.binary(max_size=400), st.integers(0, len(GOOD)), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_no_damage_makes_the_parser_raise(noise: bytes, at: int, cut: int) -> None:
    for plan in (noise, GOOD[:at], GOOD[:at] + noise + GOOD[at + cut :], GOOD[:16] + noise + GOOD[16:]):
        assert all(op.type in ("int8", "fp16", "fp32", "unknown") for op in read_plan(plan))


@given(st.text(max_size=300))
@settings(max_examples=60, deadline=None)
def test_no_text_makes_the_parser_raise(text: str) -> None:
    read_plan(framed(f"header {{\n{text}\n}}\nmain {{\n{text}\n corrltn={{ name={text} input={{{text}}} }}\n}}\n"))


def test_an_unreadable_engine_is_reported_as_unknown_and_never_as_zero_float_ops() -> None:
    report = engine_report([], {"conv": 100, "relu": 0}, "sm86.engine")
    assert (report.int8, report.fp16, report.fp32, report.unknown) == (0, 0, 0, 2)
    assert report.int8_macs_share is None
    assert engine_report([], {}, "sm86.engine").unknown == 1


def test_the_share_counts_multiply_accumulates_by_the_kernel_that_took_them() -> None:
    ops = [
        PlanOp("matrix", "conv", ("conv", "q1"), "int8"),
        PlanOp("matrix", "__mye1+__mye2", ("fc", "fc2"), "fp32"),
        PlanOp("pointwise", "__myl_Mul", ("conv", "q1"), "fp32"),  # rescales the convolution
        PlanOp("pointwise", "__myl_Relu", ("conv", "relu"), "fp32"),
    ]
    report = engine_report(ops, {"conv": 300, "fc": 50, "fc2": 50, "relu": 0}, "sm86.engine")
    assert report.int8_macs_share == pytest.approx(0.75)
    assert (report.int8, report.fp32) == (1, 2)


@pytest.mark.parametrize("ops", [[PlanOp("matrix", "conv", (), "int8")], [PlanOp("matrix", "conv", ("fc",), "unknown")]])
def test_the_share_is_unknown_where_one_product_is(ops: list[PlanOp]) -> None:
    assert engine_report(ops, {"conv": 1, "fc": 1}, "e").int8_macs_share is None


@cache
def real_engine() -> bytes:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("tensorrt_rtx_bindings")
    from edgepress.exporters import tensorrt_build as build

    arrays = {"scale": np.float32(0.1), "zero": np.int8(0), "weights": np.ones((4, 4), np.int8)}
    names = [("QuantizeLinear", ["x", "scale", "zero"], "q"), ("DequantizeLinear", ["q", "scale", "zero"], "d")]
    names += [("DequantizeLinear", ["weights", "scale", "zero"], "w"), ("MatMul", ["d", "w"], "y")]
    nodes = [onnx.helper.make_node(op, inputs, [output], name=f"node_{output}") for op, inputs, output in names]
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 4]) for n in ("x", "y")]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "graph", value[:1], value[1:], constants)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), str(path))
        return build.build_engine(path, {"x": (4,)}, build.BatchRange.around(1), "8.6").plan


def test_a_real_engine_tells_that_its_product_is_int8() -> None:
    matrix = [op for op in read_plan(real_engine()) if op.kind == "matrix"]
    assert [(op.type, "node_y" in op.layers) for op in matrix] == [("int8", True)]


def test_a_truncated_real_engine_tells_nothing() -> None:
    engine = real_engine()
    assert read_plan(engine[: engine.find(b"main {") + 10]) == []
