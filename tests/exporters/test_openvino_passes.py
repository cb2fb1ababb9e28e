"""What passes put in place of operators that the CPU plugin computes wrongly gives what NumPy does, at every batch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

openvino = pytest.importorskip("openvino")

from openvino import opset13 as ops  # noqa: E402

from edgepress.exporters.openvino_passes import drop_repeated_roundings, keep_reduced_dimensions, part_extremes_from_rounding  # noqa: E402
from edgepress.validators.runtimes.openvino import core  # noqa: E402

SHAPE = (4, 6, 10, 3, 5)
AXES = [axes for count in (1, 2) for axes in itertools.combinations((1, 2, 3, 4), count)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(3, 5),
    st.sampled_from(AXES),
    st.sampled_from(["max", "mean", "min", "sum"]),
    st.booleans(),
    st.sampled_from(["multiplied", "added", "clipped and multiplied", "rounded and multiplied"]),
    st.data(),
)
def test_numbers_per_channel_behind_a_maximum_mean_or_sum(
    rank: int, axes: tuple[int, ...], name: str, keep: bool, behind: str, data: st.DataObject
) -> None:
    axes = tuple(axis for axis in axes if axis < rank)[: rank - 2] or (rank - 1,)
    images = np.random.default_rng(0).standard_normal(SHAPE[:rank]).astype(np.float32)
    wanted = getattr(np, name)(images, axis=axes, keepdims=keep)
    given_ = ops.parameter([-1, *images.shape[1:]], np.float32)
    node: Any = getattr(ops, f"reduce_{name}")(given_, np.array(axes), keep)
    channel = data.draw(st.sampled_from([axis for axis in range(1, wanted.ndim) if wanted.shape[axis] > 1]))
    numbers = np.linspace(0.2, 1.7, wanted.shape[channel], dtype=np.float32).reshape(
        [-1 if a == channel else 1 for a in range(wanted.ndim)]
    )
    if behind.startswith("clipped"):
        node, wanted = ops.relu(node), np.maximum(wanted, 0)
    if behind.startswith("rounded"):
        node = ops.fake_quantize(node, *(np.float32(bound) for bound in (-8, 7.9375, 0, 255)), 256)
        node = ops.multiply(ops.subtract(ops.convert(ops.convert(node, "u8"), "f32"), np.float32(128)), np.float32(1 / 16))
        wanted = np.clip(np.round(wanted * 16), -128, 127) / 16
    last, wanted = (ops.add(node, numbers), wanted + numbers) if behind == "added" else (ops.multiply(node, numbers), wanted * numbers)
    model = openvino.Model([ops.result(last)], [given_])
    keep_reduced_dimensions(model)
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    at_once, alone = compiled([images])[0], np.concatenate([compiled([image[None]])[0] for image in images])
    most = 0.12 if behind.startswith("rounded") else 1e-4  # sums in another order round to the other side
    assert np.abs(at_once - wanted).max() < most and np.abs(alone - wanted).max() < most


@pytest.mark.parametrize("between", [(), ("relu",), ("relu", "tanh")])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("shape", "axes"), [((16, 24), (1,)), ((24, 16), (2,)), ((4, 4, 24), (1, 2)), ((24, 4, 4), (2, 3))])
@pytest.mark.parametrize("name", ["max", "min"])
def test_a_maximum_is_rounded_when_all_values_are_compared(
    name: str, shape: tuple[int, ...], axes: tuple[int, ...], keep: bool, between: tuple[str, ...]
) -> None:
    numbers = np.random.default_rng(0)
    images, weight = numbers.standard_normal((5, *shape)).astype(np.float32), numbers.integers(-127, 128, (24, 6)).astype(np.int8)
    given_ = ops.parameter([-1, *shape], np.float32)
    node: Any = getattr(ops, f"reduce_{name}")(given_, np.array(axes), keep)
    found = getattr(np, name)(images, axis=axes)
    for each in between:
        node, found = getattr(ops, each)(node), np.maximum(found, 0) if each == "relu" else np.tanh(found)
    bounds = [np.float32(bound) for bound in (-1, 3, -1, 3)]
    grid = np.clip(np.round((found + 1) * 255 / 4), 0, 255) * 4 / 255 - 1
    scaled = ops.multiply(ops.convert(ops.constant(weight), np.float32), np.float32(0.01))
    rows = ops.reshape(ops.fake_quantize(node, *bounds, 256), np.array([-1, 24]), False)
    model = openvino.Model([ops.result(ops.matmul(rows, scaled, False, False))], [given_])
    part_extremes_from_rounding(model)
    answers = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([images])[0]
    wanted = grid.reshape(5, 24) @ (weight * np.float32(0.01))
    assert np.square(answers - wanted).sum() < 1e-3 * np.square(wanted).sum()  # a tanh may lie on the other side of a half


def rounded(value: Any, steps: float) -> Any:
    """A value as uint8 with zero point 128, and back."""
    node = ops.fake_quantize(value, *(np.float32(bound) for bound in (-128 / steps, 127 / steps, 0, 255)), 256)
    return ops.multiply(ops.subtract(ops.convert(ops.convert(node, "u8"), "f32"), np.float32(128)), np.float32(1 / steps))


def roundings(model: Any) -> int:
    return sum(op.get_type_name() == "FakeQuantize" for op in model.get_ordered_ops())


@pytest.mark.parametrize(
    ("beside", "steps", "left"),
    [("rounded alike", 16.0, 2), ("rounded alike", 8.0, 3), ("rounded otherwise", 16.0, 3), ("a constant", 16.0, 2), ("in float", 16.0, 2)],
)
def test_a_second_rounding_goes_where_all_that_is_joined_lies_on_its_grid(beside: str, steps: float, left: int) -> None:
    given_ = ops.parameter([-1, 4, 6], np.float32)
    other = {
        "rounded alike": lambda: rounded(ops.relu(given_), 16),
        "rounded otherwise": lambda: rounded(ops.relu(given_), 4),
        "a constant": lambda: ops.constant(np.full((1, 4, 6), 0.03, np.float32)),
        "in float": lambda: ops.relu(given_),
    }[beside]()
    joined = ops.concat([ops.transpose(rounded(given_, 16), np.array([0, 2, 1])), ops.transpose(other, np.array([0, 2, 1]))], 2)
    model = openvino.Model([ops.result(rounded(joined, steps))], [given_])
    image = np.random.default_rng(0).standard_normal((1, 4, 6)).astype(np.float32)
    before = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([image])[0]
    drop_repeated_roundings(model)
    assert roundings(model) == left
    np.testing.assert_array_equal(core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([image])[0], before)


def _repeated(value: Any) -> Any:
    for _ in range(60):  # 2^60 ways
        value = ops.add(value, value)
    return value


def test_values_that_meet_again_and_again_are_looked_at_once() -> None:
    given_ = ops.parameter([-1, 2, 2], np.float32)
    model = openvino.Model([ops.result(ops.reduce_max(_repeated(given_), np.array([2]), False))], [given_])
    model.add_results([ops.result(_repeated(ops.reduce_max(given_, np.array([2]), False)))])
    keep_reduced_dimensions(model)
    part_extremes_from_rounding(model)
    assert [op.get_type_name() for op in model.get_ordered_ops()].count("ReduceMax") == 2
