"""What converters and Lightning Fabric are kept from doing leaves them whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

HIDES = """
import sys
from edgepress.exporters.coreml_import import coremltools
tools = coremltools()
assert tools is coremltools() and callable(tools.convert)
assert not {"sklearn", "transformers"} & set(sys.modules), "imported all the same, or left hidden"
import sklearn
from torch import nn
from edgepress.compress.train import TrainConfig
from edgepress.compress.training.fabric import make_fabric
assert make_fabric(TrainConfig(), nn.Linear(1, 1)).world_size == 1
assert "torchmetrics" not in sys.modules, "imported all the same, or left hidden"
import torchmetrics
"""


@pytest.mark.slow
def test_coremltools_and_fabric_come_without_other_frameworks_which_can_be_imported_later() -> None:
    for name in ("coremltools", "sklearn"):
        pytest.importorskip(name)
    done = subprocess.run([sys.executable, "-c", HIDES], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_functions_of_the_onnx_library_say_what_their_source_says() -> None:
    pytest.importorskip("onnxscript")
    from onnxscript.function_libs.torch_lib.ops import core

    from edgepress.exporters.onnx_library import library_unparsed

    function = core.aten_abs
    parsed = function.function_ir
    with library_unparsed():
        quick = function.function_ir
        assert type(quick) is not type(parsed)
        assert (quick.domain, quick.name) == (parsed.domain, parsed.name)
        assert [value.name for value in quick.inputs] == [value.name for value in parsed.inputs]
    assert type(function.function_ir) is type(parsed)


def test_rules_that_are_tried_on_their_own_operator_alone_rewrite_the_same() -> None:
    pytest.importorskip("onnxscript")
    import torch

    from edgepress.exporters.onnx_library import rules_by_operator

    class Net(torch.nn.Module):
        """Ops that rules of rewriting know: shapes that cancel out, an addition of zero, a reshape of a reshape."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.reshape(-1, 4, 3).reshape(-1, 12).unsqueeze(1).squeeze(1) + 0.0).transpose(0, 1).transpose(0, 1) * 1.0

    program = torch.export.export(Net().eval(), (torch.randn(2, 12),))
    plain = torch.onnx.export(program, dynamo=True, verbose=False)
    with rules_by_operator():
        quick = torch.onnx.export(program, dynamo=True, verbose=False)
    assert plain is not None and quick is not None
    assert plain.model_proto.graph.SerializeToString() == quick.model_proto.graph.SerializeToString()


def test_a_core_ml_program_is_not_checked_while_it_is_made_and_is_once_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("coremltools")
    import torch
    from coremltools.converters.mil.mil import Program

    from edgepress.exporters.coreml import _convert
    from edgepress.targets.nouns import Scheme, Signature, TensorSpec

    checked: list[Program] = []
    monkeypatch.setattr(Program, "validate", lambda program, check_essential_scope=False: checked.append(program))
    program = torch.export.export(torch.nn.ReLU().eval(), (torch.randn(1, 4),)).run_decompositions({})
    spec = TensorSpec("x", "float32", (1, 4))
    model = _convert(program, Signature((spec,), (TensorSpec("y", "float32", (1, 4)),)), "iOS18", Scheme("fp16", "float"))
    assert checked == [model._mil_program]
