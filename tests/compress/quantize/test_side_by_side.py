"""The float model and its rendering, tensor by tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgepress.compress.quantize import Int4Options, calibrate, quantize_int4
from edgepress.compress.quantize.layerwise import refine
from edgepress.compress.quantize.refiners import refiners_of
from edgepress.compress.quantize.side_by_side import SideBySide
from edgepress.targets.nouns import Scheme
from edgepress.targets.rules import Int4Rules, rules_for
from edgepress.validators.blame import compare_layers, worst_layers
from tests.compress.quantize.nets import outputs_of, program_of, samples_of
from tests.compress.quantize.test_sensitivity import SPOILT, STATIC, spoilt


def saved(program: torch.export.ExportedProgram, folder: Path) -> Path:
    path = folder / "model.pt2"
    torch.export.save(program, path)
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
@pytest.mark.parametrize("name", SPOILT)
def test_the_damage_starts_at_the_one_spoilt_layer(name: str, runtime: str, tmp_path: Path) -> None:
    program, statistics = spoilt(name)
    models = SideBySide.of(saved(program, tmp_path), statistics, rules_for(runtime), STATIC)
    worst = worst_layers(compare_layers(*models.answers(samples_of(name, 16))))[0]
    assert models.places()[worst.name] == (SPOILT[name][1], "conv2d") and worst.lost_db > 10


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("name", ["residual", "vision-fused", "sentence-sdpa"])
def test_what_answers_the_same_has_the_same_name_and_is_near(name: str, runtime: str, tmp_path: Path) -> None:
    """Also where weights were scaled, split or refined: that is no damage."""
    program, inputs = program_of(name), samples_of(name, 16)
    statistics = calibrate(program, [samples_of(name, 64)])
    scheme, rules = STATIC, rules_for(runtime)
    refined = refine(program, statistics, rules, scheme, [samples_of(name, 16)], refiners_of(["gptq"], 0))
    models = SideBySide.of(saved(program, tmp_path), refined, rules, scheme)
    for mine, theirs in zip(outputs_of(models.exact, inputs), outputs_of(program.module(), inputs), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4)
    exact, rendered = models.answers(inputs)
    found = compare_layers(exact, rendered)
    assert len(found) == len(exact) and all(layer.name == layer.matched for layer in found)
    assert min(layer.sqnr_db for layer in found) > 10


def test_a_rounded_tensor_is_the_one_that_is_read(tmp_path: Path) -> None:
    program, statistics = spoilt("residual")
    models = SideBySide.of(saved(program, tmp_path), statistics, rules_for("onnxruntime"), STATIC)
    inputs = samples_of("residual", 16)
    exact, rendered = models.answers(inputs)
    name = next(iter(exact))
    assert len(np.unique(rendered[name])) <= 256 < len(np.unique(exact[name]))


def test_layers_kept_in_float_lose_nothing_of_their_own(tmp_path: Path) -> None:
    program, statistics = spoilt("dense")
    path = saved(program, tmp_path)
    models = SideBySide.of(path, statistics, rules_for("onnxruntime"), STATIC)
    worst = worst_layers(compare_layers(*models.answers(samples_of("dense", 16))))[0]
    healed = SideBySide.of(path, statistics, rules_for("onnxruntime"), replace(STATIC, float_layers=(worst.name,)))
    after = {layer.name: layer for layer in compare_layers(*healed.answers(samples_of("dense", 16)))}
    assert after[worst.name].lost_db < 0.5 * worst.lost_db


def test_weights_alone_and_weights_of_4_bits_have_their_layers_too(tmp_path: Path) -> None:
    program, inputs = program_of("sentence-sdpa"), samples_of("sentence-sdpa", 8)
    path = saved(program, tmp_path)
    weights = SideBySide.of(path, None, rules_for("onnxruntime"), Scheme("int8-weights", "weights"))
    rounded = tmp_path / "rounded"
    rounded.mkdir()
    result = quantize_int4(program, Int4Options(Int4Rules(), "rtn", 16))
    int4 = SideBySide.of_int4(path, saved(result.program, rounded), rules_for("onnxruntime"))
    noise = {}
    for models in (weights, int4):
        found = compare_layers(*models.answers(inputs))
        named = {models.places()[layer.name][0]: layer for layer in found if models.places()[layer.name][1] == "linear"}
        assert set(result.groups) <= set(named)
        noise[models] = min(named[layer].sqnr_db for layer in result.groups)
    assert noise[weights] > noise[int4] + 10 > 15


def test_samples_are_as_many_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, statistics = spoilt("dense")
    models = SideBySide.of(saved(program, tmp_path), statistics, rules_for("onnxruntime"), STATIC)
    assert models.samples(32) == 32
    held = sum(value[:1].nbytes for value in models.answers(samples_of("dense", 1))[0].values())
    monkeypatch.setattr("edgepress.compress.quantize.side_by_side.LIMIT_BYTES", 2 * held * 5)
    assert models.samples(32) == 5
    monkeypatch.setattr("edgepress.compress.quantize.side_by_side.LIMIT_BYTES", 1)
    assert models.samples(32) == 1
