import subprocess
import sys

import numpy as np
import pytest

from edgepress.targets.errors import MeasurementError
from edgepress.targets.nouns import Artifact, KernelReport, Scheme, Signature, Support, TensorSpec
from edgepress.validators.memory import peak_memory, resident_peak_bytes
from edgepress.validators.runtimes.base import Runtime, Session

SIGNATURE = Signature((TensorSpec("x", "float32", (None, 2)),), (TensorSpec("y", "float32", (None, 2)),))
ARTIFACT = Artifact("double.npy", "toy", Scheme("fp32", "float"), SIGNATURE)


class Doubling(Session):
    signature = SIGNATURE
    executed_by = "numpy"

    def __init__(self, seen):
        self.seen = seen

    def _run_impl(self, inputs):
        self.seen.append(inputs["x"].copy())
        return {"y": inputs["x"] * 2}

    def kernels(self):
        return KernelReport(0, 0, 1, 0, None, "toy")


class Toy(Runtime):
    name = "toy"

    def __init__(self, ballast=0):
        self.ballast, self.seen = ballast, []

    def supports(self):
        return Support(True)

    def _open_impl(self, artifact, folder, threads):
        self.held = np.ones(self.ballast, np.uint8)
        return Doubling(self.seen)


def test_it_runs_what_it_was_asked_to_run(tmp_path):
    toy = Toy()
    found = peak_memory(tmp_path, ARTIFACT.to_json(), toy, [np.arange(6, dtype=np.float32).reshape(3, 2)], batch=2, inferences=3)
    assert found.inferences == 3 and [piece[:, 0].tolist() for piece in toy.seen] == [[0, 2], [4, 0], [2, 4]]
    assert 0 < found.baseline_bytes <= found.peak_bytes


def test_a_fresh_process_sees_what_the_artifact_costs(tmp_path):
    code = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[1]); import test_memory as t;"
        "from edgepress.validators.memory import peak_memory;"
        "found = peak_memory('.', t.ARTIFACT, t.Toy(50_000_000), {'x': np.ones((1, 2), np.float32)});"
        "print(found.peak_bytes - found.baseline_bytes)"
    )
    here = __file__.rpartition("/")[0]
    grown = int(subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, check=True).stdout)
    assert 45_000_000 < grown < 80_000_000


def test_the_high_water_mark_is_read_in_bytes(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t  9999 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1 kB\n")
    assert resident_peak_bytes(tmp_path / "status") == 2048 * 1024


def test_without_proc_the_operating_system_is_asked(tmp_path):
    assert resident_peak_bytes(tmp_path / "absent") > 1_000_000


@pytest.mark.parametrize("samples", [{}, {"x": np.zeros((0, 2), np.float32)}])
def test_no_samples_is_an_error(tmp_path, samples):
    with pytest.raises(MeasurementError, match="at least one sample"):
        peak_memory(tmp_path, ARTIFACT, Toy(), samples)
