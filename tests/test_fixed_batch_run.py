"""A model whose forward() has the batch as a number, traced with `dynamic_batch: false`, through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project import digits, edgepress, report_of

pytest.importorskip("onnxruntime")

CHECKPOINT = {"factory": "model:digit_net", "checkpoint": "digits.safetensors", "dynamic_batch": False}
#: Quantizing by gradients, refining by GPTQ, biases and the latency with another batch in the recipe all meet the number.
QUANTIZE = [{"quantize": {"precision": "int8", "scheme": "static", "algorithms": ["gptq", "bias-correction"]}}]


@pytest.mark.slow
def test_it_is_quantized_measured_and_passes(tmp_path: Path) -> None:
    recipe = digits(tmp_path / "project", ["onnxruntime"], model=CHECKPOINT, compress=QUANTIZE, run={"batch": 8, "timing": "1s"})
    net = recipe.with_name("model.py")
    text = net.read_text()
    assert "torch.mean(x, dim=(2, 3))" in text
    net.write_text(text.replace("torch.mean(x, dim=(2, 3))", "torch.mean(x, dim=(2, 3)).view(int(image.shape[0]), -1)"))
    done = edgepress("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    (target,) = report_of(tmp_path / "run")["targets"]
    assert target["integer_share_of_macs"] > 0.9
    assert target["latency_ms"]["batch"] == 1, "the model takes no other"
