"""Run the model beside this file on its golden samples:  python run.py  (needs numpy and edgepress-numpy-target)."""

import json
import sys
from pathlib import Path

import numpy as np

from edgepress.targets.nouns import Artifact, Scheme, Signature, TensorSpec
from edgepress_numpy.runtime import NumpyRuntime

here = Path(__file__).parent
golden = json.loads((here / "golden.json").read_text())
inputs, expected = np.load(here / "golden_inputs.npz"), np.load(here / "golden_outputs.npz")
signature = Signature(
    tuple(TensorSpec(n, str(inputs[n].dtype), (None, *inputs[n].shape[1:])) for n in golden["inputs"]),
    tuple(TensorSpec(n, str(expected[n].dtype), (None, *expected[n].shape[1:])) for n in golden["outputs"]),
)
artifact = Artifact(golden["artifact"], "numpy", Scheme("fp32", "float"), signature)
outputs = NumpyRuntime().open(artifact, here).run({name: inputs[name] for name in golden["inputs"]})
same = all(np.allclose(outputs[n], expected[n], golden["rtol"], golden["atol"]) for n in golden["outputs"])
print("max error", max(float(np.abs(outputs[n] - expected[n]).max()) for n in golden["outputs"]), "ok" if same else "DIFFERS")
sys.exit(not same)
