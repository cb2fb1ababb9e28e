"""How long the latency step measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepress.steps.measure import latency
from edgepress.targets.nouns import Artifact, Scheme, Signature, TensorSpec
from edgepress.validators import latency as windows


class Seen(Exception):
    """Ends a step where its plan is known."""


@pytest.mark.parametrize(("limit", "seconds"), [(None, 2.0), (1.05, 9.0)])
def test_a_window_takes_the_time_of_the_recipe_and_an_undecided_one_more(
    limit: float | None, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Any, **given: Any) -> None:
        raise Seen(given["limit"], given["plan"].seconds)

    monkeypatch.setattr(windows, "compare_opened", stop)
    signature = Signature((TensorSpec("x", "float32", (None, 2)),), (TensorSpec("y", "float32", (None, 2)),))
    artifact = Artifact("model.npz", "numpy", Scheme("fp32", "float"), signature).to_json()
    (tmp_path / "validation").mkdir()
    np.save(tmp_path / "validation" / "input_0.npy", np.zeros((8, 2), np.float32))
    params = {
        "runtime": "onnxruntime",
        "artifact": artifact,
        "reference": artifact,
        "signature": signature.to_json(),
        "threads": 1,
        "batch": 1,
    }
    params |= {"confidence": 0.95, "seconds": 2.0, "inputs": {name: str(tmp_path) for name in ("export", "float_export", "data")}}
    with pytest.raises(Seen) as seen:
        latency(params | ({} if limit is None else {"limit": limit}), tmp_path)
    assert seen.value.args == (limit, seconds)
