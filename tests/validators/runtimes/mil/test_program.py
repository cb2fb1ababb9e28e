from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools")

import torch
from coremltools.converters.mil.mil import Builder as mb

from edgepress.targets.errors import ExecutionError
from edgepress.validators.runtimes.mil.kernels import kernel_report
from edgepress.validators.runtimes.mil.registry import mil_op, operations
from tests.validators.runtimes.mil.one_op import normal, program


def test_every_known_op_is_tested() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    missing = [name for name in operations() if not re.search(rf"\b(reduce_)?{name.removeprefix('reduce_')}\b", text)]
    assert missing == []
    assert len(operations()) >= 140


def test_every_known_op_exists_in_coremltools() -> None:
    assert [name for name in operations() if not hasattr(mb, name)] == []


def test_two_implementations_of_one_op_are_refused() -> None:
    with pytest.raises(ValueError, match="'conv' is implemented twice"):
        mil_op("conv")(lambda x: x)


def test_an_unknown_op_names_itself_and_its_layer() -> None:
    with pytest.raises(ExecutionError, match=r"MIL op 'random_normal' \(layer 'noise'\) is not known"):
        program(lambda x: mb.add(x=x, y=mb.random_normal(shape=[2], name="noise")), [normal(2)])


def test_a_failing_op_names_itself_and_its_layer() -> None:
    built = program(lambda x: mb.exp(x=mb.matmul(x=x, y=x, name="product")), [normal(3, 3)])
    with pytest.raises(ExecutionError, match=r"MIL op 'matmul' \(layer 'product'\) failed"):
        built.run({"in0": torch.zeros(3, 2)})


def test_tensors_are_released_after_their_last_use() -> None:
    built = program(lambda x: mb.exp(x=mb.add(x=mb.relu(x=x, name="a"), y=np.float32(1), name="b"), name="c"), [normal(3)])
    assert [step.release for step in built.steps] == [("in0",), ("a",), ("b",)]
    watched = built.run({"in0": torch.ones(3)}, watch=True)
    assert list(watched) == ["a", "b", "c"]


def test_what_depends_on_no_input_is_computed_once() -> None:
    built = program(lambda x: mb.add(x=x, y=mb.exp(x=mb.fill(shape=[3], value=np.float32(1)))), [normal(3)])
    assert [step.op.name for step in built.steps] == ["add"]
    assert torch.allclose(built.run({"in0": torch.zeros(3)})[built.outputs[0].name], torch.full((3,), np.e))


def test_samples_keep_to_themselves_through_a_reshape_with_a_literal_batch() -> None:
    def build(x: object) -> object:
        return mb.softmax(x=mb.reshape(x=x, shape=[1, 12]), axis=-1)

    built, samples = program(build, [normal(1, 3, 4)]), torch.from_numpy(normal(5, 1, 3, 4))
    together = built.run_samples({"in0": samples})[built.outputs[0].name]
    assert torch.allclose(together, samples.reshape(5, 1, 12).softmax(-1))
    assert built.vectorized


def test_an_op_with_a_data_dependent_shape_runs_sample_by_sample() -> None:
    built = program(lambda x: mb.reduce_sum(x=mb.cast(x=mb.non_zero(x=x), dtype="fp32"), axes=[0]), [normal(4)])
    samples = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
    assert built.run_samples({"in0": samples})[built.outputs[0].name].tolist() == [[3.0], [3.0]]
    assert not built.vectorized


def test_multiply_accumulates_and_types_are_read_from_the_program() -> None:
    codes, scale = np.ones((8, 3, 3, 3), np.int8), np.full((8, 1, 1, 1), 0.1, np.float32)

    def build(x: object) -> object:
        q = mb.dequantize(input=mb.quantize(input=x, scale=np.float32(0.1), output_dtype="int8"), scale=np.float32(0.1))
        y = mb.relu(x=mb.conv(x=q, weight=mb.constexpr_blockwise_shift_scale(data=codes, scale=scale), name="integer"))
        y = mb.dequantize(input=mb.quantize(input=y, scale=np.float32(0.1), output_dtype="int8"), scale=np.float32(0.1))
        return mb.conv(x=y, weight=normal(4, 8, 1, 1), name="float")

    report = kernel_report(program(build, [normal(1, 3, 8, 8)]))
    types = {str(op["name"]): op["type"] for op in report.ops if op["op"] == "conv"}
    assert types == {"integer": "int8", "float": "fp32"}
    assert (report.int8, report.fp32, report.fp16, report.unknown) == (2, 1, 0, 0)  # the ReLU goes with its convolution
    integer, in_float = 8 * 36 * 27, 4 * 36 * 8
    assert report.int8_macs_share == pytest.approx(integer / (integer + in_float))
    assert "not a device trace" in report.source


def test_integer_weights_under_float_activations_are_float_arithmetic() -> None:
    codes, scale = np.ones((5, 6), np.int8), np.full((5, 1), 0.1, np.float32)
    built = program(lambda x: mb.linear(x=x, weight=mb.constexpr_blockwise_shift_scale(data=codes, scale=scale)), [normal(2, 6)])
    report = kernel_report(built)
    assert (report.int8, report.fp32, report.int8_macs_share) == (0, 1, 0.0)
