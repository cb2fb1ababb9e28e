"""Files against the float model on training samples that neither calibration nor any choice has seen, more of them than validation has.

The float model was trained on these samples, so a drop is not what it is on a validation set: compare files with each other. How often a
file answers another class than the float file does needs no labels and counts what a drop nets out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepress.compress.project.collect import Shares, draw
from edgepress.compress.project.training import TrainingSamples
from edgepress.machine import cores
from edgepress.step import Result
from edgepress.steps.arrays import batches
from edgepress.targets.nouns import Artifact, Signature
from edgepress.validators.intervals import newcombe_paired
from edgepress.validators.runtimes import RUNTIMES

_BATCH = 64


@dataclass(frozen=True)
class Change:
    """A file beside the float file, in percent of the samples.

    Attributes:
        drop, low, high: of the accuracy, with its paired 95 % interval.
        other: another class than the float file's.
    """

    drop: float
    low: float
    high: float
    other: float


class Unseen:
    """Samples, and what files answer to them.

    Args:
        root: the case's folder, which has `data:train`.
        signature: of its model.
        runtime: that all files are for.
        shares: as the recipe draws them.
        count: of samples.
    """

    def __init__(self, root: Path, signature: Signature, runtime: str, shares: Shares, count: int) -> None:
        samples = TrainingSamples("data:train", root)
        drawn = draw(len(samples), shares)
        samples.without(np.array(drawn["calibration"] + drawn["selection"]))
        chosen = np.random.default_rng(shares.seed).permutation(len(samples))[:count]
        read = [samples[int(index)] for index in chosen]
        self._inputs = {spec.name: np.stack([inputs[i].numpy() for inputs, _ in read]) for i, spec in enumerate(signature.inputs)}
        self._labels = np.array([int(label) for _, label in read])
        self._runtime, self._signature = RUNTIMES.get(runtime)(), signature

    def __len__(self) -> int:
        return len(self._labels)

    def classes(self, export: Result) -> np.ndarray:
        """What a file answers to every sample."""
        artifact, name = Artifact.from_json(export.value["artifact"]), self._signature.outputs[0].name
        with self._runtime.open(artifact, export.folder / "artifact", cores()) as session:
            return np.concatenate([session.run(piece)[name].argmax(axis=1) for piece in batches(self._inputs, _BATCH)])

    def change(self, classes: np.ndarray, exact: np.ndarray) -> Change:
        """From what the float file answers to what another one does."""
        was, now, total = exact == self._labels, classes == self._labels, len(self)
        cells = [int(np.sum(cell)) for cell in (was & now, was & ~now, ~was & now, ~was & ~now)]
        low, high = newcombe_paired(*cells, confidence=0.95)
        return Change(100 * (cells[1] - cells[2]) / total, 100 * low, 100 * high, 100 * float(np.mean(classes != exact)))
