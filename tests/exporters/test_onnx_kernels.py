"""Operators written as what ONNX Runtime has kernels for answer as those that they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from edgepress.exporters.onnx_kernels import fuse_silus, pool_means, sum_hard_sigmoids, write_mish  # noqa: E402

BYTES = np.arange(256, dtype=np.uint8)


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], read: tuple[int, list[object]], made: tuple[int, int]) -> bytes:
    """A model of `x` and `y`: element type and shape of what it reads, element type and rank of what it makes."""
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", *read)],
        [helper.make_tensor_value_info("y", made[0], [None] * made[1])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    return data


def answer(model: bytes, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    found: np.ndarray = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return found


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


def hard_sigmoid(step: float, point: int, scale: float, zero: int, slope: float, offset: float) -> bytes:
    """A HardSigmoid from bytes to bytes."""
    node = onnx.helper.make_node
    constants = {"s": np.float32(step), "z": np.uint8(point), "s2": np.float32(scale), "z2": np.uint8(zero)}
    nodes = [
        node("DequantizeLinear", ["x", "s", "z"], ["a"]),
        node("HardSigmoid", ["a"], ["b"], alpha=slope, beta=offset),
        node("QuantizeLinear", ["b", "s2", "z2"], ["y"]),
    ]
    return model_of(nodes, constants, (onnx.TensorProto.UINT8, [256]), (onnx.TensorProto.UINT8, 1))


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1e-3, 0.1),
    st.integers(0, 255),
    st.floats(0.55, 1.0),
    st.sampled_from([(1 / 6, 0.5), (0.2, 0.5), (0.1, 0.25)]),
)
def test_a_hard_sigmoid_of_bytes_is_a_sum_that_is_clipped(tmp_path_factory, step, point, reach, line) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("sigmoid") / "model.onnx"
    path.write_bytes(hard_sigmoid(step, point, reach / 255, 0, *line))
    before = answer(path.read_bytes(), BYTES).astype(int)
    sum_hard_sigmoids(path)
    assert operators(path.read_bytes()).count("Add") == 1 and "HardSigmoid" not in operators(path.read_bytes())
    after = answer(path.read_bytes(), BYTES).astype(int)
    exact = np.clip(line[0] * (BYTES.astype(float) - point) * np.float32(step) + line[1], 0, 1) / np.float32(reach / 255)
    ties = np.abs(exact - np.floor(exact) - 0.5) < 1e-3
    assert np.array_equal(after[~ties], before[~ties]) and np.abs(after - before).max() <= 1


@pytest.mark.parametrize(
    ("scale", "zero", "why"),
    [(1.2 / 255, 0, "1 is not the largest integer"), (1 / 255, 3, "0 is not the smallest"), (0.4 / 255, 0, "the zero point does not fit")],
)
def test_a_hard_sigmoid_that_rounding_would_not_clip_stays(scale: float, zero: int, why: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(hard_sigmoid(0.05, 128, scale, zero, 1 / 6, 0.5))
    sum_hard_sigmoids(path)
    assert operators(path.read_bytes()) == ["DequantizeLinear", "HardSigmoid", "QuantizeLinear"], why


def mean(axes: list[int], keep: int, rank: int, integers: bool) -> bytes:
    """A ReduceMean of floats, or from bytes to bytes."""
    node = onnx.helper.make_node
    made = rank if keep else rank - len(axes)
    constants = {"axes": np.array(axes, np.int64), "s": np.float32(0.02), "z": np.uint8(7), "s2": np.float32(0.01), "z2": np.uint8(3)}
    reduce = node("ReduceMean", ["a" if integers else "x", "axes"], ["b" if integers else "y"], keepdims=keep)
    shape: list[object] = ["batch", 3, *[5] * (rank - 2)]
    if not integers:
        return model_of([reduce], {"axes": constants["axes"]}, (onnx.TensorProto.FLOAT, shape), (onnx.TensorProto.FLOAT, made))
    nodes = [node("DequantizeLinear", ["x", "s", "z"], ["a"]), reduce, node("QuantizeLinear", ["b", "s2", "z2"], ["y"])]
    return model_of(nodes, constants, (onnx.TensorProto.UINT8, shape), (onnx.TensorProto.UINT8, made))


@pytest.mark.parametrize("integers", [False, True], ids=["floats", "bytes"])
@pytest.mark.parametrize("keep", [1, 0], ids=["kept", "dropped"])
@pytest.mark.parametrize(("axes", "rank"), [([2, 3], 4), ([-1, -2], 4), ([2], 3), ([3, 2, 4], 5)])
def test_a_mean_over_all_positions_is_a_pool(axes: list[int], rank: int, keep: int, integers: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(mean(axes, keep, rank, integers))
    draw = np.random.default_rng(0)
    shape = (2, 3, *[5] * (rank - 2))
    x = draw.integers(0, 256, shape, np.uint8) if integers else draw.standard_normal(shape).astype(np.float32)
    before = answer(path.read_bytes(), x)
    pool_means(path)
    after = answer(path.read_bytes(), x)
    assert "GlobalAveragePool" in operators(path.read_bytes()) and before.shape == after.shape
    assert np.abs(after.astype(float) - before).max() <= (1 if integers else 1e-5)


@pytest.mark.parametrize(("axes", "rank"), [([1], 4), ([2], 4), ([1, 2, 3], 4), ([1], 2), ([2, 3], 5)])
def test_other_means_stay(axes: list[int], rank: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(mean(axes, 1, rank, integers=False))
    pool_means(path)
    assert operators(path.read_bytes()) == ["ReduceMean"]


@pytest.mark.parametrize(("second", "fused"), [("a", True), ("c", False)], ids=["silu", "another product"])
def test_a_silu_of_integers_is_one_kernel(second: str, fused: bool, tmp_path: Path) -> None:
    node = onnx.helper.make_node
    constants = {"s": np.float32(0.05), "z": np.uint8(100), "s2": np.float32(0.03), "z2": np.uint8(10)}
    nodes = [
        node("DequantizeLinear", ["x", "s", "z"], ["a"]),
        node("DequantizeLinear", ["x", "s2", "z"], ["c"]),
        node("Sigmoid", ["a"], ["b"]),
        node("Mul", [second, "b"], ["m"]),
        node("QuantizeLinear", ["m", "s2", "z2"], ["y"]),
    ]
    path = tmp_path / "model.onnx"
    path.write_bytes(model_of(nodes, constants, (onnx.TensorProto.UINT8, [256]), (onnx.TensorProto.UINT8, 1)))
    before = answer(path.read_bytes(), BYTES).astype(int)
    fuse_silus(path)
    assert ("QuickGelu" in operators(path.read_bytes())) == fused
    assert np.abs(answer(path.read_bytes(), BYTES).astype(int) - before).max() <= (1 if fused else 0)


def test_mish_takes_one_exponential(tmp_path: Path) -> None:
    model = model_of([onnx.helper.make_node("Mish", ["x"], ["y"])], {}, (onnx.TensorProto.FLOAT, [2001]), (onnx.TensorProto.FLOAT, 1))
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    write_mish(path)
    assert operators(path.read_bytes()).count("Exp") == 1 and "Mish" not in operators(path.read_bytes())
    x = np.linspace(-100, 100, 2001, dtype=np.float32)
    exact = x * np.tanh(np.log1p(np.exp(np.minimum(x.astype(np.float64), 50))))
    np.testing.assert_allclose(answer(path.read_bytes(), x), exact, rtol=1e-5, atol=1e-30)
