from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgepress.config import Config, TargetPlan, load, recipe
from edgepress.config_models import (
    GatesConfig,
    ModelConfig,
    RunConfig,
    TopLevel,
    keys_of,
)
from edgepress.config_steps import QuantizeConfig
from edgepress.targets.errors import ConfigError

MINIMAL = """\
project: tiny
model:
  factory: model:net
  checkpoint: net.safetensors
data:
  train: data:train
  validation: data:validation
metric: accuracy
targets:
  - onnxruntime
"""

INTERFACE = """\
project: cifar-resnet20
model:
  factory: model:resnet20
  args: {}
  checkpoint: resnet20.safetensors
data:
  train: data:train
  validation: data:validation
  calibration: {samples: 512, seed: 0}
metric: accuracy
compress:
  - quantize: {precision: int8, method: ptq}
targets:
  - onnxruntime
  - openvino
  - tensorrt: {compute_capability: ["8.6", "8.9"], unmeasured: {latency: accept}}
  - coreml: {minimum_os: iOS18, unmeasured: {latency: accept}}
  - tflite
gates:
  accuracy_drop: {max: 1.0pp, confidence: 0.95}
  latency_ratio: {max: 0.8}
  size: {max: 2MB}
  latency_p95: {max: 5ms}
  against_baseline: {accuracy_drop: 0.3pp, latency_ratio: 1.05, size: 1.02}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "edgepress.yaml"
    path.write_text(text)
    return path


def loaded(folder: Path, text: str) -> Config:
    return load(write(folder, text))


def planned(folder: Path, text: str) -> dict[str, TargetPlan]:
    return {plan.target.name: plan for plan in recipe(loaded(folder, text))}


def refused(folder: Path, text: str) -> str:
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        recipe(load(path))
    return str(caught.value).replace(str(folder) + "/", "")


def test_the_recipe_of_the_interface_loads_with_all_its_parts(tmp_path: Path) -> None:
    plans = planned(tmp_path, INTERFACE)
    assert list(plans) == ["onnxruntime", "openvino", "tensorrt", "coreml", "tflite"]
    assert {plan.target.precision for plan in plans.values()} == {"int8"}
    assert plans["tflite"].target.runtime == "litert" and plans["tflite"].second_runtime == "tflite-runtime"
    assert plans["tensorrt"].target.options == {"compute_capability": ("8.6", "8.9")}
    assert plans["coreml"].target.options == {"minimum_os": "iOS18"}
    assert plans["coreml"].accepted == {"latency"} and plans["openvino"].accepted == frozenset()
    gates = {gate.name: (gate.limit, gate.unit) for gate in plans["onnxruntime"].gates}
    assert gates == {
        "accuracy_drop": (1.0, "pp"),
        "latency_ratio": (0.8, "ratio"),
        "size": (2e6, "bytes"),
        "latency_p95": (5.0, "ms"),
        "baseline.accuracy_drop": (0.3, "pp"),
        "baseline.latency_ratio": (1.05, "ratio"),
        "baseline.size": (1.02, "ratio"),
    }


def test_a_drop_may_be_a_plain_number_only_in_the_metrics_own_unit(tmp_path: Path) -> None:
    gates = "gates:\n  accuracy_drop: {max: 0.05}\n  sqnr: {min: 20dB}\n  argmax_agreement: {min: 0.99}\n"
    text = MINIMAL.replace("metric: accuracy", "metric: mean_squared_error") + gates
    limits = [(g.name, g.limit, g.unit) for g in planned(tmp_path, text)["onnxruntime"].gates]
    assert limits == [("accuracy_drop", 0.05, ""), ("sqnr", 20.0, "dB"), ("argmax_agreement", 0.99, "")]
    assert "edgepress.yaml:12: gates.accuracy_drop.max: '0.05' has no unit. Write e.g. 0.05pp." in refused(tmp_path, MINIMAL + gates)
    own = MINIMAL.replace("- onnxruntime", "- onnxruntime:\n      gates: {accuracy_drop: {max: 1}}")
    assert "edgepress.yaml:11: targets[0].onnxruntime.gates.accuracy_drop.max: '1' has no unit. Write e.g. 1pp." in refused(tmp_path, own)
    baseline = MINIMAL + "gates:\n  against_baseline: {accuracy_drop: 0.3}\n"
    assert "gates.against_baseline.accuracy_drop: '0.3' has no unit" in refused(tmp_path, baseline)


def test_every_gate_is_one_the_validators_judge(tmp_path: Path) -> None:
    from edgepress.validators.gates import Gate

    for gate in planned(tmp_path, INTERFACE)["onnxruntime"].gates:
        assert Gate(**vars(gate)).name == gate.name


def test_without_a_quantize_step_targets_stay_fp32(tmp_path: Path) -> None:
    assert planned(tmp_path, MINIMAL)["onnxruntime"].target.precision == "fp32"


def test_defaults_are_those_of_the_documentation(tmp_path: Path) -> None:
    config = loaded(tmp_path, MINIMAL)
    assert config.root == tmp_path.resolve() and config.checkpoint == tmp_path.resolve() / "net.safetensors"
    assert (config.run.threads, config.run.batch) == (1, 1)
    assert (config.run.timeout, config.run.memory, config.run.timing) == (1800.0, 8 * 1024**3, 10.0)
    assert config.collect_params()["calibration"] == {"samples": 512, "selection": 512, "seed": 0}
    assert config.collect_params()["exact"] == []


def test_a_target_overrides_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    settings = "precision: fp16, device: Pixel 9, threads: 4, batch: 8, io: float, gates: {size: {max: 1MiB}, latency_ratio: off}"
    entry = f"  - tflite:field: {{{settings}}}\n"
    text = MINIMAL.replace("  - onnxruntime\n", "  - tflite\n" + entry) + "gates:\n  size: {max: 2MB}\n  latency_ratio: {max: 80%}\n"
    plans = planned(tmp_path, text)
    field = plans["tflite:field"]
    assert (field.target.precision, field.target.device, field.target.threads, field.target.batch) == ("fp16", "Pixel 9", 4, 8)
    assert field.target.runtime == "litert" and field.target.options == {"io": "float"}
    assert [(g.name, g.limit) for g in field.gates] == [("size", 1024.0**2)]
    assert [(g.name, g.limit) for g in plans["tflite"].gates] == [("latency_ratio", 0.8), ("size", 2e6)]


def test_root_is_where_modules_and_checkpoints_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "case").mkdir()
    monkeypatch.setenv("EP_CASES", str(tmp_path))
    assert loaded(tmp_path, "root: ${EP_CASES}/case\n" + MINIMAL).root == (tmp_path / "case").resolve()
    monkeypatch.delenv("EP_CASES")
    assert loaded(tmp_path, "root: ${EP_CASES:-.}/case\n" + MINIMAL).root == (tmp_path / "case").resolve()
    assert "edgepress.yaml:1: root: the environment variable EP_CASES is not set" in refused(tmp_path, "root: ${EP_CASES}/x\n" + MINIMAL)
    assert "edgepress.yaml:1: root: 'nowhere' is not a folder" in refused(tmp_path, "root: nowhere\n" + MINIMAL)


def test_an_expanded_variable_has_the_type_it_would_have_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EP_THREADS", "3")
    assert loaded(tmp_path, MINIMAL + "run:\n  threads: ${EP_THREADS}\n").run.threads == 3
    assert "'3' is not a whole number" in refused(tmp_path, MINIMAL + "run:\n  threads: '${EP_THREADS}'\n")
    assert loaded(tmp_path, MINIMAL.replace("tiny", "tiny") + 'root: "${EP_NONE:-.}"\n').root == tmp_path.resolve()
    assert "'${EP-X}' is not a variable" in refused(tmp_path, MINIMAL + "root: ${EP-X}\n")


def test_a_relative_config_path_works_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    write(tmp_path / "project", MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert load("project/edgepress.yaml").checkpoint == (tmp_path / "project" / "net.safetensors").resolve()


STEP = "compress:\n  - "
BAD = [
    (MINIMAL + "gates:\n  size: {max: 2}\n", "edgepress.yaml:12: gates.size.max: '2' has no unit. Write e.g. 2MB or 2MiB."),
    (MINIMAL + "gates:\n  accuracy_drop: {max: 5ms}\n", "edgepress.yaml:12: gates.accuracy_drop.max: '5ms' is a duration"),
    (MINIMAL + "gates:\n  accuracy_drop: {max: 1%}\n", "'1%' could mean a relative or an absolute change. Write e.g. 1pp."),
    (
        MINIMAL + "gates:\n  accuracy_drop:\n    max: 1pp\n    confidence: 1.5\n",
        "edgepress.yaml:14: gates.accuracy_drop.confidence: '1.5' is out",
    ),
    (
        MINIMAL + "gates:\n  acuracy_drop: {max: 1pp}\n",
        "edgepress.yaml:12: gates.acuracy_drop: unknown key 'acuracy_drop'. Did you mean 'accuracy_drop'?",
    ),
    (MINIMAL + "gates:\n  size: 2MB\n", "edgepress.yaml:12: gates.size: '2MB' is not a mapping. Keys here: max."),
    (MINIMAL + "gates:\n  size: {}\n", "edgepress.yaml:12: gates.size: the key 'max' is missing"),
    (MINIMAL + "gates:\n  latency_ratio: {max: 0}\n", "gates.latency_ratio.max: '0' is out of range. It should be greater than 0"),
    (MINIMAL + "gates:\n  against_baseline: {size: 1.02MB}\n", "'1.02MB' is a size, a ratio is needed"),
    (MINIMAL.replace("metric", "metrics"), "edgepress.yaml:8: metrics: unknown key 'metrics'. Did you mean 'metric'?"),
    (MINIMAL.replace("metric: accuracy\n", ""), "the key 'metric' is missing"),
    (MINIMAL.replace("  checkpoint: net.safetensors\n", ""), "edgepress.yaml:2: model: the key 'checkpoint' is missing"),
    (MINIMAL.replace("  factory: model:net\n", ""), "edgepress.yaml:2: model: `factory` is missing. 'net.safetensors' holds weights only"),
    (MINIMAL.replace("net.safetensors", "net.pt2"), "model: a .pt2 checkpoint is a whole program and needs no `factory`"),
    (MINIMAL.replace("net.safetensors", "net.onnx"), "model.checkpoint: 'net.onnx' is not a checkpoint edgepress reads"),
    (MINIMAL.replace("model:net", "model.net"), "edgepress.yaml:3: model.factory: 'model.net' is not `module:callable`"),
    (MINIMAL.replace("metric: accuracy", "metric: my metric"), "'my metric' is neither a torchmetrics name nor `module:callable`"),
    (MINIMAL.replace("project: tiny", "project: 5"), "project: '5' is not text. Write it in quotes."),
    (MINIMAL.replace("project: tiny", "project: ../x"), "'../x' cannot name files"),
    (
        MINIMAL.replace("project: tiny\n", "project: tiny\nproject: other\n"),
        "edgepress.yaml:2: the key 'project' stands twice. The first one is on line 1",
    ),
    (MINIMAL.replace("data:\n", "data:\n  test: data:test\n"), "edgepress.yaml:6: data.test: unknown key 'test'. Known: train"),
    (MINIMAL + "run:\n  threads: many\n", "edgepress.yaml:12: run.threads: 'many' is not a whole number"),
    (MINIMAL + "run:\n  threads: true\n", "run.threads: 'True' is not a whole number"),
    (MINIMAL + "run:\n  threads: 0\n", "run.threads: '0' is out of range. It should be greater than or equal to 1"),
    (MINIMAL + "run:\n  timeout: 600\n", "run.timeout: '600' has no unit. Write e.g. 600ms or 600s."),
    (MINIMAL + "seed: -1\n", "seed: '-1' is out of range"),
    (MINIMAL + "model: x\n", "the key 'model' stands twice"),
    (
        MINIMAL.replace("data:\n  train: data:train\n  validation: data:validation\n", "data: 3\n"),
        "edgepress.yaml:5: data: '3' is not a mapping",
    ),
    (
        MINIMAL.replace("- onnxruntime", "- onxruntime"),
        "edgepress.yaml:10: targets[0]: unknown target 'onxruntime'. Did you mean 'onnxruntime'?",
    ),
    (
        MINIMAL.replace("- onnxruntime", "- onnxruntime\n  - onnxruntime"),
        "edgepress.yaml:11: targets[1]: the target 'onnxruntime' stands twice",
    ),
    (MINIMAL.replace("- onnxruntime", "- onnxruntime: {opst: 21}"), "opst: unknown key 'opst'. Did you mean 'opset'?"),
    (
        MINIMAL.replace("- onnxruntime", "- openvino: {weight_bits: 6}"),
        "'6' is not a value of weight_bits. weight_bits: of int8 weights: 8, whole",
    ),
    (MINIMAL.replace("- onnxruntime", "- tflite: {weight_bits: 8}"), "weight_bits: unknown key"),
    (MINIMAL.replace("- onnxruntime", "- onnxruntime: {opset: 99}"), "'99' is not a value of opset. opset: ONNX opset, 18 to 23."),
    (MINIMAL.replace("- onnxruntime", "- tensorrt: {compute_capability: [8.6]}"), 'Write it in quotes: "8.6"'),
    (MINIMAL.replace("- onnxruntime", "- tensorrt: {compute_capability: []}"), "compute_capability is an empty list"),
    (MINIMAL.replace("- onnxruntime", "- tensorrt: {compute_capability: {a: 1}}"), "is neither text nor a whole number"),
    (
        MINIMAL.replace("- onnxruntime", "- coreml:\n      minimum_os: iOS3"),
        "edgepress.yaml:11: targets[0].coreml.minimum_os: 'iOS3' is not a value",
    ),
    (
        MINIMAL.replace("- onnxruntime", "- coreml:\n      unmeasured: {latency: yes}"),
        "coreml.unmeasured.latency: 'True' is not known. Write one of: accept, undecided.",
    ),
    (MINIMAL.replace("- onnxruntime", "- coreml:\n      unmeasured: {latency: acept}"), "Did you mean 'accept'?"),
    (MINIMAL.replace("- onnxruntime", "- coreml:\n      gates: {sise: off}"), "unknown key 'sise'. Did you mean 'size'?"),
    (
        MINIMAL.replace("- onnxruntime", "- coreml:\n      minimum_os: iOS18\n  - 7"),
        "edgepress.yaml:12: targets[1]: '7' is not a target. Write one of: onnxruntime",
    ),
    (MINIMAL.replace("- onnxruntime", "- coreml:\n      minimum_os: iOS18\n  - a b: 1"), "unknown target 'a b'"),
    (MINIMAL.replace("- onnxruntime", "- coreml: {}\n    minimum_os: iOS18"), "'minimum_os' stands beside 'coreml' instead of below it"),
    (MINIMAL.replace("- onnxruntime", "- tflite:é"), "'é' is not a label"),
    (
        MINIMAL.replace("- onnxruntime", "- onnxruntime: {precision: bf16}"),
        "target 'onnxruntime' has no bf16. Its runtime has fp32",
    ),
    (MINIMAL.replace("- onnxruntime", "- tensorrt: {precision: int9}"), "precision: 'int9' is not known. Did you mean 'int8'?"),
    (MINIMAL.replace("- onnxruntime", "- tensorrt: {precision: mixed}"), "target 'tensorrt' is mixed, and no quantize step gives a budget"),
    (MINIMAL + STEP + "quantize: {precision: mixed}\n", "quantize.precision: mixed needs a budget. Add e.g. `budget: {size: 0.5x}`"),
    (
        MINIMAL + STEP + "quantize: {algorithms: [brecq, adaround]}\n",
        "`brecq` and `adaround` in `algorithms` each choose how weights are rounded",
    ),
    (
        MINIMAL + STEP + "quantize: {precision: mixed, budget: {}}\n",
        "budget: no budget. Give one: `size: 0.5x`, `latency: 0.5x` or `accuracy_drop: 0.3pp`",
    ),
    (
        MINIMAL + STEP + "quantize: {precision: mixed, budget: {size: 0.5x, accuracy_drop: 1pp}}\n",
        "`size` and `accuracy_drop` are 2 budgets",
    ),
    (MINIMAL + STEP + "quantize: {precision: mixed, budget: {latncy: 0.5x}}\n", "unknown key 'latncy'"),
    (MINIMAL + STEP + "quantize: {budget: {size: 0.5x}}\n", "for precision mixed, and no target has it. Set precision: mixed"),
    (
        MINIMAL + STEP + "quantize: {precision: mixed, scheme: dynamic, budget: {size: 0.5x}}\n",
        "and scheme dynamic has none. Use scheme: auto, static or static-matmul",
    ),
    (MINIMAL + STEP + "quantize: {int2: true}\n", "`int2` lets layers of precision mixed have 2-bit weights, and no target has it"),
    (
        MINIMAL.replace("- onnxruntime", "- tflite") + STEP + "quantize: {precision: mixed, budget: {size: 0.2x}, int2: true}\n",
        "target 'tflite' cannot store single layers in 2 bits: precision mixed has 8 bits and float (fp32) there",
    ),
    (MINIMAL + STEP + "quantize: {int4: true}\n", "`int4` lets layers of precision mixed have 4-bit weights, and no target has it"),
    (
        MINIMAL.replace("- onnxruntime", "- onnxruntime\n  - coreml")
        + STEP
        + "quantize: {precision: mixed, budget: {size: 0.2x}, int4: true}\n",
        "target 'coreml' cannot store single layers in 4 bits: precision mixed has 8 bits and float (fp16) there; all its linear layers",
    ),
    (
        MINIMAL.replace("- onnxruntime", "- tensorrt") + STEP + "quantize: {precision: mixed, budget: {size: 0.2x}, int4: true}\n",
        "precision mixed has 8 bits and float (fp32) there. Leave `int4` out, or take tensorrt out",
    ),
    (
        MINIMAL + STEP + "quantize: {precision: fp16, fallback: true}\n",
        "`fallback` keeps layers of calibrated int8 in float, and no target",
    ),
    (MINIMAL + STEP + "quantize: {method: qat, fallback: true}\n", "method qat trains with all of them in integers. Use method: ptq"),
    (MINIMAL.replace("  - onnxruntime", "  onnxruntime: {}"), "edgepress.yaml:9: targets: '{'onnxruntime': {}}' is not a list"),
    (
        MINIMAL.replace("targets:\n  - onnxruntime", "targets: []"),
        "edgepress.yaml:9: targets: no target. Known: onnxruntime, openvino, tensorrt",
    ),
    (MINIMAL + STEP + "prune: {criterion: taylor}\n", "compress[0].prune: no budget. Give one of speedup, parameters, size, latency, mask"),
    (MINIMAL + STEP + "prune: {speedup: 2.0, mask: '2:4'}\n", "`speedup` and `mask` are two budgets. Keep one"),
    (MINIMAL + STEP + "prune: {speedup: 1.0}\n", "compress[0].prune.speedup: '1.0'"),
    (MINIMAL + STEP + "prune: {mask: half}\n", "compress[0].prune.mask: 'half' is no share of zeros. Write e.g. \"2:4\" or 50%."),
    (MINIMAL + STEP + "prune: {speedup: 2, latency: {target: openvino, ratio: 0.5x}}\n", "`speedup` and `latency` are two budgets"),
    (MINIMAL + STEP + "prune: {latency: {target: openvin, ratio: 0.5x}}\n", "'openvin' is not a target of this recipe. It has onnx"),
    (
        MINIMAL + STEP + "prune: {multiple: 4, latency: {target: onnxruntime, ratio: 0.5x}}\n",
        "prune.multiple: kept widths that are multiples of 4 have no predictable latency in onnxruntime",
    ),
    (MINIMAL + STEP + "prune: {speedup: 2, finetune: {epoch: 4}}\n", "finetune.epoch: unknown key 'epoch'. Did you mean 'epochs'?"),
    (MINIMAL + STEP + "distill: {epochs: 0}\n", "compress[0].distill.epochs: '0' is out of range"),
    (MINIMAL + STEP + "distill: {epochs: 1, loss: kdd}\n", "compress[0].distill.loss: unknown distillation loss 'kdd'. Did you mean 'kd'?"),
    (MINIMAL + STEP + "distill: {epochs: 1, schedule: cosin}\n", "schedule: 'cosin' is not known. Did you mean 'cosine'?"),
    (MINIMAL + STEP + "quantize\n  - distill: {epochs: 1}\n", "`distill` stands after quantize. Put quantize last"),
    (MINIMAL + STEP + "prune: {sped: 2.0}\n", "edgepress.yaml:12: compress[0].prune.sped: unknown key 'sped'. Did you mean 'speedup'?"),
    (MINIMAL + STEP + "quantise: {}\n", "unknown step 'quantise'. Did you mean 'quantize'?"),
    (MINIMAL + STEP + "quantize: {method: qt}\n", "compress[0].quantize.method: 'qt' is not known. Did you mean 'qat'?"),
    (MINIMAL + STEP + "quantize: {precision: int4-weights, group: 48}\n", "quantize.group: '48' is not known. Write one of: 16, 32, 64"),
    (MINIMAL + STEP + "quantize: {precision: int4-weights, method: qat}\n", "4-bit weights are not trained. Use rtn, gptq, awq"),
    (
        MINIMAL.replace("- onnxruntime", "- tensorrt") + STEP + "quantize: {precision: int4-weights}\n",
        "target 'tensorrt' has no int4-weights",
    ),
    (MINIMAL + STEP + "quantize: {method: gptq}\n", "method 'gptq' rounds 4-bit weights, and no target has them"),
    (MINIMAL + STEP + "quantize: {group: 64}\n", "`group` is of 4-bit weights, and no target has them"),
    (MINIMAL + STEP + "quantize: {observer: median}\n", "Write one of: auto, histogram, minmax, moving-average, percentile, entropy, mse."),
    (MINIMAL + STEP + "quantize\n  - quantize\n", "a second quantize step"),
    (MINIMAL.replace("- onnxruntime", "- openvino") + STEP + "quantize: {scheme: dynamic}\n", "target 'openvino' has no scheme 'dynamic'"),
    (MINIMAL + "compress: quantize\n", "compress: 'quantize' is not a list"),
    (
        MINIMAL.replace("  checkpoint", "  inputs: [image]\n  checkpoint"),
        "model.inputs[0]: 'image' is not a mapping. Keys here: name, dtype.",
    ),
    (MINIMAL.replace("  checkpoint", "  inputs: [{nam: image}]\n  checkpoint"), "Did you mean 'name'?"),
    (
        MINIMAL.replace("  checkpoint", "  inputs: [{dtype: float}]\n  checkpoint"),
        "model.inputs[0].dtype: 'float' is not known. Did you mean 'float32'?",
    ),
    ("", "is empty. Run `edgepress init DIR --example digits`"),
    ("# nothing\n", "is empty"),
    ("- a\n- b\n", "edgepress.yaml:1: '['a', 'b']' is not a mapping. Keys here: project"),
    ("just words\n", "edgepress.yaml:1: 'just words' is not a mapping"),
    ("project: tiny\nmodel:\n\tfactory: x\n", "edgepress.yaml:3: not valid YAML: a tab indents this line. Use spaces."),
    ("project: [tiny\nmodel: 3\n", "not valid YAML"),
    ("project: 'tiny\n", "not valid YAML"),
    ("project: !!python/object:os.system tiny\n" + MINIMAL, "the YAML tag 'tag:yaml.org,2002:python/object:os.system' is not supported"),
    ("? [a]\n: b\n", "a key is a list or a mapping"),
    ("a: &a {b: 1}\nc:\n  <<: *a\n", "merge keys (`<<`) are not supported"),
    ("a: &a [*a]\n", "an alias that contains itself"),
    (
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{c}: &{c} [{','.join(['*' + p] * 10)}]\n" for p, c in zip("abcde", "bcdef", strict=True)),
        "too large",
    ),
    ("[" * 5000, "not valid YAML"),
    ("a: \x01\n", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "fragment"), BAD)
def test_a_wrong_recipe_gets_one_line_that_says_where_and_what_to_write(tmp_path: Path, text: str, fragment: str) -> None:
    message = refused(tmp_path, text)
    assert fragment in message
    assert "\n" not in message


def test_the_first_of_several_problems_is_reported(tmp_path: Path) -> None:
    text = MINIMAL.replace("factory: model:net", "factory: 3") + "run:\n  threads: x\n"
    assert refused(tmp_path, text).startswith("edgepress.yaml:3: model.factory")


def test_a_missing_file_names_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL)
    with pytest.raises(ConfigError, match=r"other\.yaml does not exist\. Found there: edgepress\.yaml"):
        load(tmp_path / "other.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "no" / "folder.yaml")


def test_a_file_that_is_not_utf8_says_which_byte(tmp_path: Path) -> None:
    path = tmp_path / "edgepress.yaml"
    path.write_bytes("project: café\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"is not UTF-8: byte 12 is 0xe9\. Save it as UTF-8"):
        load(path)
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load(path).project == "tiny"


def test_loading_imports_neither_torch_nor_numpy_nor_a_runtime(tmp_path: Path) -> None:
    script = (
        "import sys; from edgepress.config import load, recipe; recipe(load(sys.argv[1])); "
        "bad = {'torch', 'numpy', 'onnx', 'onnxruntime', 'openvino', 'coremltools'} & set(sys.modules); assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", script, str(write(tmp_path, INTERFACE))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SECTIONS = {(): TopLevel, ("model",): ModelConfig, ("run",): RunConfig, ("gates",): GatesConfig}


@given(section=st.sampled_from(sorted(SECTIONS)), position=st.integers(0, 30), letter=st.sampled_from("aeioxz"), data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mistyped_key_is_always_answered_with_the_right_one(
    tmp_path: Path, section: tuple[str, ...], position: int, letter: str, data: st.DataObject
) -> None:
    keys = [key for key in keys_of(SECTIONS[section]) if len(key) > 4]
    right = data.draw(st.sampled_from(keys))
    wrong = right[: 1 + position % len(right)] + letter + right[1 + position % len(right) :]
    document = yaml.safe_load(MINIMAL)
    mapping = document
    for step in section:
        mapping = mapping.setdefault(step, {})
    mapping[wrong] = mapping.pop(right, {})
    message = refused(tmp_path, yaml.safe_dump(document, sort_keys=False))
    assert f"unknown key {wrong!r}" in message
    near = message.partition("Did you mean '")[2].partition("'")[0]
    assert near == right or near.startswith("latency_p")  # p50, p90, p95 and p99 are equally near to each other


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=12)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8
)


@given(key=st.sampled_from(keys_of(TopLevel)), value=trees)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_anywhere_loads_or_is_a_config_error(tmp_path: Path, key: str, value: object) -> None:
    document = {**yaml.safe_load(MINIMAL), key: value}
    try:
        recipe(loaded(tmp_path, yaml.safe_dump(document)))
    except ConfigError as error:
        assert str(error)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b"a: !!binary x")
@example(b"a: 0b_")
@example(b"a: 2020-99-99")
@example(b"%YAML 9.9\n---\na")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_load_or_are_a_config_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "edgepress.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load(path)


@given(
    st.fixed_dictionaries(
        {
            "precision": st.sampled_from(["fp16", "int8", "int8-weights"]),
            "observer": st.sampled_from(["auto", "histogram", "minmax", "entropy"]),
            "scheme": st.sampled_from(["auto", "static", "weights"]),
        }
    ),
    st.integers(1, 64),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_what_is_loaded(tmp_path: Path, quantize: dict[str, str], threads: int, seed: int) -> None:
    document = {**yaml.safe_load(MINIMAL), "compress": [{"quantize": quantize}], "run": {"threads": threads}, "seed": seed}
    config = loaded(tmp_path, yaml.safe_dump(document))
    assert isinstance(config.quantize, QuantizeConfig)
    layers = {"fallback": False, "budget": None, "int4": None, "int2": None}
    assert config.quantize.model_dump() == {
        **quantize,
        "method": "ptq",
        "group": 32,
        "max_drop": None,
        "qat": None,
        "algorithms": [],
        **layers,
    }
    assert (config.run.threads, config.seed) == (threads, seed)
