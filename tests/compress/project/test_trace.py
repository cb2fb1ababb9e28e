from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

from edgepress.compress.program import export_like
from edgepress.compress.project.model import count_macs
from edgepress.compress.project.reference import reference_outputs
from edgepress.compress.project.steps import check_labels, reference, trace
from edgepress.compress.project.trace import Traced, TraceOptions, trace_model
from edgepress.compress.quantize import calibrate
from edgepress.compress.quantize import count_macs as count_macs_of_graph
from edgepress.targets.errors import ProjectError
from edgepress.targets.nouns import Signature, TensorSpec

from .conftest import Write

ROWS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
IDS = np.arange(15, dtype=np.int64).reshape(5, 3)


def traced(model: nn.Module, *arrays: np.ndarray, **options: object) -> Traced:
    return trace_model(model.eval(), arrays, Path(__file__).parent, TraceOptions(**options))  # type: ignore[arg-type]


def refused(model: nn.Module, *arrays: np.ndarray, **options: object) -> str:
    with pytest.raises(ProjectError) as caught:
        traced(model, *(arrays or (ROWS,)), **options)
    return str(caught.value)


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 4), nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, scale: float = 1.0) -> Tensor:
        weights = attention_mask.float().unsqueeze(-1)
        return self.head((self.embedding(input_ids) * weights).mean(1)) * scale


class Heads(nn.Module):
    def forward(self, image: Tensor) -> dict[str, object]:
        return {"logits": image * 2, "hidden": (image.sum(1), None, image + 1)}


def test_names_dtypes_and_shapes_come_from_forward_and_a_sample() -> None:
    result = traced(Text(), IDS, np.ones_like(IDS))
    assert result.signature == Signature(
        (TensorSpec("input_ids", "int64", (None, 3)), TensorSpec("attention_mask", "int64", (None, 3))),
        (TensorSpec("output", "float32", (None, 2)),),
    )
    assert result.program.module()(torch.from_numpy(IDS[:1]), torch.ones(1, 3, dtype=torch.int64)).shape == (1, 2)


def test_dictionaries_are_flattened_by_key_and_none_is_left_out() -> None:
    result = traced(Heads(), ROWS)
    assert [(s.name, s.shape) for s in result.signature.outputs] == [("logits", (None, 3)), ("hidden_0", (None,)), ("hidden_2", (None, 3))]
    flat = result.program.module()(torch.from_numpy(ROWS))
    torch.testing.assert_close(flat[2], torch.from_numpy(ROWS) + 1)


def test_the_recipe_may_name_inputs_and_outputs() -> None:
    result = traced(Heads(), ROWS, inputs=["pixels"], outputs=["a", "b", "c"])
    assert [s.name for s in (*result.signature.inputs, *result.signature.outputs)] == ["pixels", "a", "b", "c"]
    assert "`model.outputs` is a: the model has 3 outputs" in refused(Heads(), ROWS, outputs=["a"])
    assert "input names x, x repeat" in refused(Text(), IDS, IDS * 0 + 1, inputs=["x", "x"])


def test_one_sample_is_enough_and_any_number_of_inputs_may_be_taken() -> None:
    class Sum(nn.Module):
        def forward(self, *parts: Tensor) -> Tensor:
            return parts[0] + parts[1]

    assert [s.name for s in traced(Sum(), ROWS[:1], ROWS[:1]).signature.inputs] == ["input_0", "input_1"]


def test_macs_count_attention_too() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    x = np.ones((3, 2, 5, 8), np.float32)
    assert count_macs(traced(Attention(), x).program, [x]) == 2 * (2 * 5 * 5 * 8)


class BiasedAttention(nn.Module):
    """Attention with a learnt bias, its heads joined by `.contiguous().view()`: with gradients its kernel gives other strides."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.zeros(1, 2, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        heads = [layer(x).view(-1, 5, 2, 4).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        joined = F.scaled_dot_product_attention(*heads, attn_mask=self.bias.abs())
        return torch.add(joined.transpose(1, 2).contiguous().view(-1, 5, 8), 1.0).relu_().flatten(1)


def test_a_traced_model_runs_with_gradients_whatever_strides_its_kernels_choose(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((4, 5, 8)).astype(np.float32)
    program = trace_model(BiasedAttention().eval(), [rows], tmp_path).program
    module, inputs = program.module(), torch.from_numpy(rows)
    module(inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert torch.equal(module(inputs), export_like(module, program).module()(inputs))
    calibrate(program, [(inputs,)], "auto")


class Reshapes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(int(x.shape[0]), -1)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class BatchSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 1 else x


class Neighbours(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


class Lengths(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x, 3


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


class ByName(nn.Module):
    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return x * mask


@pytest.mark.parametrize(
    ("model", "arrays", "fragments"),
    [
        (Reshapes(), (ROWS,), ["works only at the batch size it was traced with", "`model.dynamic_batch: false`"]),
        (Branches(), (ROWS,), ["cannot be exported (test_trace.py:", "branches on the values of a tensor", "`torch.where`"]),
        (BatchSize(), (ROWS,), ["outputs at batch size 1 differ", "depends on the batch size"]),
        (Neighbours(), (ROWS,), ["outputs at batch size 1 differ", "on other samples in the batch"]),
        (Random(), (ROWS,), ["gives different outputs for the same inputs", "nn.Dropout"]),
        (Mean(), (ROWS,), ["output 'output' has shape () for a batch of 5", "dimension 0 must be the batch"]),
        (Lengths(), (ROWS,), ["the model's output[1] is int", "Return tensors"]),
        (Nothing(), (ROWS,), ["the model returns no tensor"]),
        (ByName(), (ROWS, ROWS), ["forward() takes (x, mask): mask can only be given by name"]),
        (Text(), (IDS,), ["forward() takes (input_ids, attention_mask, scale): the dataset yields 1 inputs"]),
        (nn.Linear(3, 2), (ROWS, ROWS), ["forward() takes (input): the dataset yields 2 inputs"]),
        (nn.Linear(4, 2), (ROWS,), ["the model failed on inputs float32(5, 3)", "RuntimeError: mat1 and mat2 shapes cannot be multiplied"]),
        (nn.Linear(3, 2), (IDS,), ["the model failed on inputs int64(5, 3)"]),
    ],
)
def test_a_model_that_cannot_be_traced_says_why_and_what_to_change(
    model: nn.Module, arrays: tuple[np.ndarray, ...], fragments: list[str]
) -> None:
    message = refused(model, *arrays)
    for fragment in fragments:
        assert fragment in message
    assert "\n" not in message


def test_a_fixed_batch_is_one_sample_and_runs_sample_by_sample() -> None:
    result = traced(Reshapes(), ROWS, dynamic_batch=False)
    assert result.signature.inputs[0].shape == (1, 3) and result.signature.outputs[0].shape == (1, 3)
    np.testing.assert_array_equal(reference_outputs(result.program, [ROWS], fixed=1)[0], ROWS)


def test_a_program_keeps_its_dynamic_batch_and_a_fixed_one_must_be_accepted() -> None:
    model = nn.Linear(3, 2).eval()
    dynamic = torch.export.export(model, (torch.randn(2, 3),), dynamic_shapes=({0: Dim("batch", min=1)},))
    assert trace_model(dynamic, [ROWS], Path()).signature.inputs[0] == TensorSpec("input", "float32", (None, 3))
    fixed = torch.export.export(model, (torch.randn(4, 3),))
    with pytest.raises(ProjectError, match=r"the program has a fixed batch of 4: a dynamic one is needed.*dynamic_batch: false"):
        trace_model(fixed, [ROWS], Path())
    kept = trace_model(fixed, [ROWS], Path(), TraceOptions(dynamic_batch=False))
    assert kept.signature.inputs[0].shape == (4, 3)
    expected = model(torch.from_numpy(ROWS)).detach().numpy()
    np.testing.assert_allclose(reference_outputs(kept.program, [ROWS], fixed=4)[0], expected, atol=1e-6)
    with pytest.raises(ProjectError, match=r"the program's input 'input' is float32\(3,\) per sample: the dataset yields int64\(3,\)"):
        trace_model(dynamic, [IDS], Path())
    with pytest.raises(ProjectError, match=r"the program takes \(input\): the dataset yields 2 inputs"):
        trace_model(dynamic, [ROWS, ROWS], Path())


def test_outputs_that_are_no_numbers_name_the_first_sample() -> None:
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x)

    rows = np.abs(ROWS)
    program = traced(Log(), rows).program
    rows[3, 1] = 0
    with pytest.raises(ProjectError, match="NaN or infinite values in output 0 on 1 of 5 samples: the first is sample 3"):
        reference_outputs(program, [rows], batch=2)


def test_labels_out_of_range_name_sample_value_and_classes() -> None:
    signature = Signature((), (TensorSpec("output", "float32", (None, 10)),))
    check_labels(np.array([0, 9, -100]), signature, "accuracy")
    check_labels(np.array([0, 99]), signature, "metric:mine")
    check_labels(np.array([0.5, 99.0]), signature, "accuracy")
    with pytest.raises(ProjectError, match=r"label 10 of sample 1 is out of range: the model has 10 classes, labels 0 to 9; 2 of 3 labels"):
        check_labels(np.array([3, 10, -1]), signature, "accuracy")


def test_the_steps_write_program_signature_and_outputs(write: Write, tmp_path: Path) -> None:
    root = write("model.py", "from torch import nn\ndef net(): return nn.Linear(3, 2)\n")
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    save_file(model.state_dict(), root / "net.safetensors")
    for share in ("validation", "selection"):
        (tmp_path / "data" / share).mkdir(parents=True)
        np.save(tmp_path / "data" / share / "input_0.npy", ROWS)
        np.save(tmp_path / "data" / share / "labels.npy", np.array([0, 1, 1, 0, 1]))
    params = {
        "root": str(root),
        "factory": "model:net",
        "args": {},
        "checkpoint": "net.safetensors",
        "model_inputs": None,
        "model_outputs": None,
    }
    params |= {"dynamic_batch": True, "metric": "accuracy", "seed": 0, "inputs": {"data": str(tmp_path / "data")}}
    facts = trace(params, tmp_path / "model")
    assert (facts["parameters"], facts["macs"]) == (8, 6) and facts["size_bytes"] == (root / "net.safetensors").stat().st_size
    assert json.loads((tmp_path / "model" / "signature.json").read_text()) == json.loads(json.dumps(facts["signature"]))
    trace(params, tmp_path / "again")
    assert (tmp_path / "model" / "model.pt2").read_bytes() == (tmp_path / "again" / "model.pt2").read_bytes()
    inputs = {"data": str(tmp_path / "data"), "model": str(tmp_path / "model")}
    assert reference({"metric": "accuracy", "inputs": inputs}, tmp_path / "reference")["counts"] == {"validation": 5, "selection": 5}
    got = np.load(tmp_path / "reference" / "validation" / "output_0.npy")
    np.testing.assert_allclose(got, model(torch.from_numpy(ROWS)).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_multiply_accumulates_of_recurrent_layers_are_counted_at_every_step(kind: type[nn.RNNBase], gates: int) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = kind(6, 10, bidirectional=True, batch_first=True)  # type: ignore[arg-type]  # torch types its modes

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.steps(x)[0]

    x = np.zeros((3, 7, 6), np.float32)
    program = traced(Steps(), x).program
    assert count_macs(program, [x]) == count_macs_of_graph(program) == 7 * 2 * gates * 10 * (6 + 10)
