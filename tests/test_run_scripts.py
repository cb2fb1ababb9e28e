"""The run.py of each bundle folder, executed as a device team would: in a folder of its own, by its own interpreter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgepress.exporters import tensorrt_build as build

onnx = pytest.importorskip("onnx")

TEMPLATES = Path(__file__).parent.parent / "edgepress" / "bundle" / "templates"
INPUTS = {"a": np.arange(8, dtype=np.float32).reshape(2, 4), "b": np.array([[1], [2]], dtype=np.int64)}
OUTPUTS = {"sum": INPUTS["a"] + INPUTS["b"], "half": INPUTS["a"] / 2}


def write_onnx(path: Path) -> None:
    """sum = a + float(b), half = a * 0.5."""
    helper, kind = onnx.helper, onnx.TensorProto
    nodes = [("Cast", ["b"], "float_b", {"to": kind.FLOAT}), ("Add", ["a", "float_b"], "sum", {}), ("Mul", ["a", "c"], "half", {})]
    made = [helper.make_node(op, inputs, [output], name=f"node_{output}", **more) for op, inputs, output, more in nodes]
    inputs = [helper.make_tensor_value_info("a", kind.FLOAT, ["n", 4]), helper.make_tensor_value_info("b", kind.INT64, ["n", 1])]
    outputs = [helper.make_tensor_value_info(name, kind.FLOAT, ["n", 4]) for name in OUTPUTS]
    graph = helper.make_graph(made, "graph", inputs, outputs, [onnx.numpy_helper.from_array(np.float32(0.5), "c")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))


def bundle(runtime: str, folder: Path) -> Path:
    """A bundle folder of one target, as edgepress writes it."""
    artifact = {"onnxruntime": "model.onnx", "openvino": "model", "tensorrt": "model"}[runtime]
    (folder / "model").mkdir()
    write_onnx(folder / ("model.onnx" if runtime == "onnxruntime" else "model/model.onnx"))
    if runtime == "openvino":
        openvino = pytest.importorskip("openvino")
        openvino.save_model(
            openvino.Core().read_model(folder / "model" / "model.onnx"), folder / "model" / "model.xml", compress_to_fp16=False
        )
    np.savez(folder / "golden_inputs.npz", **INPUTS)
    np.savez(folder / "golden_outputs.npz", **OUTPUTS)
    golden = {"artifact": artifact, "inputs": "golden_inputs.npz", "outputs": "golden_outputs.npz", "rtol": 1e-3, "atol": 1e-5}
    (folder / "golden.json").write_text(json.dumps(golden))
    shutil.copy(TEMPLATES / f"run_{runtime}.py", folder / "run.py")
    return folder


def run(folder: Path, *arguments: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run it from somewhere else, with edgepress out of reach and the packages in `without` made impossible to import."""
    block = f"import sys, runpy; sys.modules.update(dict.fromkeys({('edgepress', 'torch', *without)!r})); sys.argv = sys.argv[1:]"
    code = f"{block}; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(folder / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, check=False, timeout=120)


@pytest.fixture(params=["onnxruntime", "openvino", "tensorrt"])
def runtime(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("openvino" if request.param == "openvino" else "onnxruntime")
    return str(request.param)


def test_golden_samples_match(runtime: str, tmp_path: Path) -> None:
    done = run(bundle(runtime, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if "max error" in line]
    assert [line.split(":")[0] for line in lines] == ["sum", "half"]
    assert all("match" in line for line in lines)


@pytest.mark.parametrize("change", ["value", "nan", "shape"])
def test_another_output_is_found_and_named(runtime: str, change: str, tmp_path: Path) -> None:
    folder = bundle(runtime, tmp_path)
    half = OUTPUTS["half"].copy()
    half[1, 2] += np.nan if change == "nan" else 0.01
    np.savez(folder / "golden_outputs.npz", sum=OUTPUTS["sum"], half=half[:1] if change == "shape" else half)
    done = run(folder)
    assert done.returncode == 1
    assert "half: max error" in done.stdout and done.stdout.count("DIFFERS") == 1


def test_own_inputs_run_and_are_saved(runtime: str, tmp_path: Path) -> None:
    folder = bundle(runtime, tmp_path)
    np.savez(tmp_path / "mine.npz", a=np.ones((5, 4), np.float64), b=np.full((5, 1), 3, np.int32))  # dtypes are adapted
    done = run(folder, "--inputs", str(tmp_path / "mine.npz"), "--save", str(tmp_path / "out.npz"))
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as saved:
        assert np.array_equal(saved["sum"], np.full((5, 4), 4.0)) and saved["half"].shape == (5, 4)
    assert "sum: float32 (5, 4)" in done.stdout


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"a": np.ones((2, 4)), "c": np.ones((2, 1))}, "mine.npz has no array 'b', only a, c"),
        ({"a": np.ones(4), "b": np.ones((4, 1), int)}, "'a' in {} is float64 (4,)"),
        ({"a": np.ones((2, 4)), "b": np.ones((2, 1))}, "'b' in {} is float64 (2, 1)"),
        ({"a": np.array([["x"] * 4]), "b": np.ones((1, 1), int)}, "'a' in {} is <U1 (1, 4)"),
        ({"a": np.ones((2, 4)), "b": np.ones((3, 1), int)}, "hold 2 and 3 samples"),
        ({"a": np.ones((0, 4)), "b": np.ones((0, 1), int)}, "hold 0 samples"),
        ({"a": np.ones((2, 5)), "b": np.ones((2, 1), int)}, "cannot run here: "),
        (np.ones((2, 4)), "cannot read {}: it is no .npz of numbers"),
        (b"junk", "cannot read {}: it is no .npz of numbers"),
        (None, "cannot read {}: No such file or directory"),
    ],
)
def test_unsuitable_inputs_are_one_line_that_says_what_the_model_takes(runtime: str, tmp_path: Path, given: object, why: str) -> None:
    folder, file = bundle(runtime, tmp_path), tmp_path / "mine.npz"
    if isinstance(given, dict):
        np.savez(file, **given)
    elif isinstance(given, bytes):
        file.write_bytes(given)
    elif given is not None:
        with file.open("wb") as sink:
            np.save(sink, given)
    done = run(folder, "--inputs", str(file))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]  # some runtimes log a line of their own before
    assert why.format(file) in line and line.endswith("; the model takes a: float32 (N, 4), b: int64 (N, 1)")


def test_outputs_that_cannot_be_saved_are_no_difference(runtime: str, tmp_path: Path) -> None:
    done = run(bundle(runtime, tmp_path), "--save", str(tmp_path / "nowhere" / "out.npz"))
    assert done.returncode == 2
    assert done.stderr == f"cannot write {tmp_path / 'nowhere' / 'out.npz'}: No such file or directory\n"


@pytest.mark.parametrize("name", ["golden.json", "golden_inputs.npz"])
def test_missing_golden_samples_are_no_difference(runtime: str, tmp_path: Path, name: str) -> None:
    folder = bundle(runtime, tmp_path)
    (folder / name).unlink()
    done = run(folder)
    assert done.returncode == 2 and done.stderr.startswith("cannot run here: FileNotFoundError") and done.stderr.count("\n") == 1


def test_a_missing_runtime_is_one_line_and_exit_2(runtime: str, tmp_path: Path) -> None:
    done = run(bundle(runtime, tmp_path), without=("onnxruntime", "openvino"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "pip install" in done.stderr


def test_a_damaged_artifact_is_said_in_one_line_and_exit_2(runtime: str, tmp_path: Path) -> None:
    folder = bundle(runtime, tmp_path)
    for path in (*folder.glob("model.*"), *(folder / "model").iterdir()):
        path.write_bytes(b"damaged")
    done = run(folder)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("cannot run here: ")  # some runtimes log a line of their own before
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(build.gpu_capability() is not None, reason="this machine has an NVIDIA GPU")
def test_tensorrt_says_that_the_engine_did_not_run(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    first = run(bundle("tensorrt", tmp_path)).stdout.splitlines()[0]
    assert "need an NVIDIA GPU" in first and "replaying model.onnx" in first
