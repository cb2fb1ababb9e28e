from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

from edgepress.bundle.digest import digest
from edgepress.exporters.coreml import CoreMlExporter
from edgepress.targets.errors import ExecutionError
from edgepress.targets.nouns import Artifact
from edgepress.validators.runtimes import RUNTIMES
from edgepress.validators.runtimes.coreml import CoreMl, DeviceSession, ReferenceSession, on_mac
from tests.exporters.coreml_cases import case

RUN_SCRIPT = Path(__file__).parents[3] / "edgepress" / "bundle" / "templates" / "run_coreml.py"
off_mac = pytest.mark.skipif(on_mac(), reason="Core ML itself runs here")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    folder = tmp_path_factory.mktemp("coreml")
    return CoreMlExporter().export(case("attention").request("fp16"), folder), folder


def test_loading_the_module_imports_neither_torch_nor_coremltools() -> None:
    code = "import sys, edgepress.validators.runtimes.coreml; print([m for m in ('torch', 'coremltools') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@off_mac
def test_off_a_mac_reports_say_who_computed_and_that_time_cannot_be_taken(exported: tuple[Artifact, Path]) -> None:
    runtime = RUNTIMES.get("coreml")()
    assert runtime.timing_unavailable() == "latency of an .mlpackage needs a Mac"
    with runtime.open(*exported) as session:
        assert session.executed_by.startswith("Core ML reference executor (MIL op by op in torch, fp16 rounding), coremltools ")


@off_mac
def test_any_number_of_samples_runs_through_a_package_of_one(exported: tuple[Artifact, Path]) -> None:
    model = case("attention")
    with CoreMl().open(*exported) as session:
        assert session.signature.inputs[0].shape == (None, 8)
        whole = session.run(model.feeds())["output_0"]
        single = [session.run({name: value[i : i + 1] for name, value in model.feeds().items()})["output_0"] for i in range(6)]
    assert np.allclose(whole, np.concatenate(single), atol=1e-3)
    assert whole.dtype == np.float32


@off_mac
def test_a_package_of_four_takes_six_samples(tmp_path: Path) -> None:
    model = case("residual")
    artifact = CoreMlExporter().export(model.request("fp16", batch=4), tmp_path)
    with CoreMl().open(artifact, tmp_path) as session:
        found = session.run(model.feeds())["output_0"]
    assert found.shape == (6, 5)
    assert np.abs(found - model.expected()[0]).max() < 1e-2


@off_mac
def test_layers_are_named_after_the_torch_graph_without_the_precision_suffix(exported: tuple[Artifact, Path]) -> None:
    with CoreMl().open(*exported) as session:
        layers = session.layers(case("attention").feeds())
    assert layers is not None
    assert {"add", "gelu", "layer_norm"} <= set(layers)
    assert layers["layer_norm"].shape == (6, 8, 16)


@off_mac
def test_opening_and_running_a_package_changes_none_of_its_bytes(tmp_path: Path) -> None:
    artifact = CoreMlExporter().export(case("residual").request("fp16"), tmp_path)
    before = digest(tmp_path / artifact.path)
    with CoreMl().open(artifact, tmp_path) as session:
        session.run(case("residual").feeds())
    assert digest(tmp_path / artifact.path) == before


@off_mac
def test_a_damaged_package_is_an_execution_error(exported: tuple[Artifact, Path], tmp_path: Path) -> None:
    artifact, folder = exported
    shutil.copytree(folder / artifact.path, tmp_path / artifact.path)
    next((tmp_path / artifact.path).rglob("*.mlmodel")).write_bytes(b"not a model")
    with pytest.raises(ExecutionError, match=r"coreml cannot load 'model\.mlpackage'"):
        CoreMl().open(artifact, tmp_path)


class MacModel:
    """Stands in for coremltools' MLModel on a Mac: the reference executor behind `predict`, one batch at a time."""

    def __init__(self, session: ReferenceSession) -> None:
        self.session = session

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert [(v.dtype, v.shape) for v in inputs.values()] == [(np.int32, (1, 8)), (np.int32, (1, 8))]
        return {name: value.astype(np.float16) for name, value in self.session.run(inputs).items()}


def test_on_a_mac_the_device_predicts_sample_by_sample(exported: tuple[Artifact, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import coremltools as ct

    artifact, folder = exported
    reference = ReferenceSession(folder / artifact.path, artifact.signature)
    asked: dict[str, Any] = {}

    def model(path: str, compute_units: Any) -> MacModel:
        asked["units"] = compute_units
        return MacModel(reference)

    monkeypatch.setattr(ct.models, "MLModel", model)
    with DeviceSession(folder / artifact.path, artifact.signature, "CPU_ONLY") as session:
        found = session.run(case("attention").feeds())["output_0"]
    assert asked["units"] == ct.ComputeUnit.CPU_ONLY
    assert found.dtype == np.float32
    assert np.allclose(found, reference.run(case("attention").feeds())["output_0"], atol=1e-3)
    assert session.executed_by.startswith("Core ML (CPU_ONLY)")


def bundle(exported: tuple[Artifact, Path], folder: Path) -> Path:
    """What a device team gets: the package, golden samples and run.py."""
    artifact, source = exported
    shutil.copytree(source / artifact.path, folder / artifact.path)
    shutil.copy(RUN_SCRIPT, folder / "run.py")
    np.savez(folder / "golden_inputs.npz", **{name: value[:3] for name, value in case("attention").feeds().items()})
    np.savez(folder / "golden_outputs.npz", output_0=case("attention").expected()[0][:3])
    facts = {"artifact": artifact.path, "inputs": "golden_inputs.npz", "outputs": "golden_outputs.npz", "rtol": 1e-3, "atol": 1e-2}
    (folder / "golden.json").write_text(json.dumps(facts))
    return folder / "run.py"


@off_mac
def test_run_py_checks_the_package_and_says_that_core_ml_needs_a_mac(exported: tuple[Artifact, Path], tmp_path: Path) -> None:
    script = bundle(exported, tmp_path)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    said = [line for line in done.stderr.splitlines() if "Core ML needs a Mac" in line]
    assert len(said) == 1 and "model.mlpackage is readable" in said[0]


@pytest.mark.parametrize(("error", "code"), [(0.0, 0), (1.0, 1)])
def test_run_py_compares_with_the_golden_outputs(error: float, code: int, exported: tuple[Artifact, Path], tmp_path: Path) -> None:
    """With a coremltools of its own beside it that answers as a Mac would."""
    script = bundle(exported, tmp_path)
    (tmp_path / "coremltools.py").write_text(
        "import sys, types, numpy as np\nsys.platform = 'darwin'\n"
        "def feature(name):\n"
        "    array = types.SimpleNamespace(shape=[2, 8])\n"
        "    return types.SimpleNamespace(name=name, type=types.SimpleNamespace(multiArrayType=array))\n"
        "class MLModel:\n"
        "    def __init__(self, path, skip_model_load):\n"
        "        self.given = 0\n"
        "    def get_spec(self):\n"
        "        return types.SimpleNamespace(description=types.SimpleNamespace(input=[feature('ids'), feature('mask')]))\n"
        "    def predict(self, inputs):\n"
        "        assert all(v.shape == (2, 8) and v.dtype == np.int32 for v in inputs.values())\n"
        "        want = np.load('golden_outputs.npz')['output_0'][self.given:self.given + 2]\n"
        "        self.given += 2\n"
        f"        return {{'output_0': np.concatenate([want, want])[:2] + {error}}}\n"
        "models = types.SimpleNamespace(MLModel=MLModel)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    early = "import coremltools, runpy; runpy.run_path('run.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith(f"output_0: max error {error:.3g}")
    assert script.exists()
