"""Large embedding tables are integers in the files of the runtimes that can look them up, and answer as the float table does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.quantize import calibrate, render
from edgepress.compress.quantize.embeddings import SMALLEST_TABLE
from edgepress.exporters import EXPORTERS
from edgepress.exporters.base import ExportRequest
from edgepress.targets.nouns import Artifact, Scheme, Signature, Target, TensorSpec
from edgepress.targets.rules import rules_for
from edgepress.validators.runtimes import RUNTIMES

ROWS, WIDTH, TOKENS = 4096, 96, 6
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "coreml": "coremltools", "litert": "litert_torch"}
SIGNATURE = Signature((TensorSpec("ids", "int64", (None, TOKENS)),), (TensorSpec("logits", "float32", (None, 4)),))


class Sentences(nn.Module):
    """A table of 1.5 MB, one of 2 kB, two linear layers; with `tied`, the large table is also what scores its rows."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(ROWS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.up, self.head, self.tied = nn.Linear(WIDTH, 64), nn.Linear(64, 4), tied
        with torch.no_grad():
            self.words.weight.mul_(torch.rand(ROWS, 1) * 3)  # rows of different sizes

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(ids.clamp(max=TOKENS - 1))
        if self.tied:
            return nn.functional.linear(x, self.words.weight).mean(1)[:, :4]
        return self.head(torch.relu(self.up(x)).mean(1))


def program_of(tied: bool = False) -> tuple[torch.export.ExportedProgram, Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(0, ROWS, (64, TOKENS))
    return torch.export.export(Sentences(tied).eval(), (ids[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), ids


def exported(runtime: str, scheme: Scheme, folder: Path) -> tuple[Artifact, np.ndarray, np.ndarray]:
    """The artifact, what its runtime answers and what the float model does."""
    program, ids = program_of()
    folder.mkdir()
    torch.export.save(program, folder / "model.pt2")
    calibrate(program, [(ids,)]).save(folder / "statistics")
    target = Target("phone", runtime, "CPU", scheme.precision)
    request = ExportRequest(folder / "model.pt2", SIGNATURE, folder / "statistics", target, scheme, (ids[:4].numpy(),))
    artifact = EXPORTERS.get(runtime)().export(request, folder / "out")
    with RUNTIMES.get(runtime)().open(artifact, folder / "out") as session:
        found = session.run({"ids": ids.numpy()})["logits"]
    return artifact, found, program.module()(ids).detach().numpy()


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("runtime", PACKAGES)
def test_a_large_table_takes_a_quarter_of_its_bytes_and_answers_as_before(runtime: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES[runtime])
    artifact, found, exact = exported(runtime, Scheme("int8", "static"), tmp_path / runtime)
    assert bytes_of(tmp_path / runtime / "out") < 0.35 * 4 * ROWS * WIDTH
    assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    (line,) = (op for op in artifact.float_ops if op["op"] == "aten.embedding")
    assert line["count"] == 1 and "small" in line["reason"]


def test_weights_alone_in_integers_take_the_table_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    _, found, exact = exported("onnxruntime", Scheme("int8-weights", "weights"), tmp_path / "weights")
    assert bytes_of(tmp_path / "weights" / "out") < 0.35 * 4 * ROWS * WIDTH
    assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


def test_each_row_is_within_half_a_step_of_its_own_scale() -> None:
    program, ids = program_of()
    rendered = render(program, calibrate(program, [(ids,)]), rules_for("onnxruntime"), Scheme("int8", "static")).module
    tensors = dict(rendered.named_buffers())
    (integers,) = (value for value in tensors.values() if value.dtype == torch.int8 and value.shape == (ROWS, WIDTH))
    (scales,) = (value for value in tensors.values() if value.shape == (ROWS, 1))
    table = program.state_dict["words.weight"].detach()
    assert bool(((integers * scales - table).abs() <= 0.5001 * scales).all())
    assert bool((integers.abs().amax(1) == 127).all()), "a row does not use all of its integers"
    assert not any(value.shape == (ROWS, WIDTH) and value.dtype == torch.float32 for value in tensors.values())
    assert ROWS * WIDTH >= SMALLEST_TABLE > TOKENS * WIDTH and any(value.shape == (TOKENS, WIDTH) for value in rendered.parameters())


def test_a_table_that_something_else_reads_stays_float_and_the_report_says_so() -> None:
    program, ids = program_of(tied=True)
    rendered = render(program, calibrate(program, [(ids,)]), rules_for("onnxruntime"), Scheme("int8", "static"))
    (line,) = (op for op in rendered.float_ops if op["op"] == "aten.embedding" and "something else reads it" in op["reason"])
    assert line["count"] == 2
    assert not any(value.dtype == torch.int8 and value.shape == (ROWS, 1) for value in rendered.module.buffers())
