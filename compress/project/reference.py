"""What the float model computes on a share of the data: every later drop is counted from these outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from edgepress.compress.project.outputs import flatten
from edgepress.targets.errors import ProjectError
from edgepress.targets.progress import progress


def reference_outputs(
    program: ExportedProgram, arrays: Sequence[np.ndarray], batch: int = 64, fixed: int | None = None
) -> list[np.ndarray]:
    """Run the program over all samples.

    Args:
        program: positional inputs, flat outputs.
        arrays: one per input, dimension 0 the sample.
        batch: samples per call.
        fixed: the program's only batch size, or None; a last short batch is filled up by repeating its last sample.

    Returns:
        Every output over all samples; floats as float32.

    Raises:
        ProjectError: an output is NaN or infinite; the first such sample is named.
    """
    module = program.module()
    size, total = fixed or batch, len(arrays[0])
    whole: list[np.ndarray] = []
    with torch.no_grad():
        for start in range(0, total, size):
            progress("running the float model", start, total)
            piece = [np.array(a[start : start + size]) for a in arrays]
            real = len(piece[0])
            if fixed and real < fixed:
                piece = [np.concatenate([p, np.repeat(p[-1:], fixed - real, axis=0)]) for p in piece]
            outputs = [o[:real].float() if o.is_floating_point() else o[:real] for o in flatten(module(*map(torch.from_numpy, piece)))]
            if not whole:
                whole = [np.empty((total, *o.shape[1:]), o.numpy().dtype) for o in outputs]
            for kept, output in zip(whole, outputs, strict=True):
                kept[start : start + real] = output.numpy()
    _finite(whole)
    return whole


def load_share(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs and labels of one share, memory-mapped."""
    count = len(list(folder.glob("input_*.npy")))
    return [np.load(folder / f"input_{i}.npy", mmap_mode="r") for i in range(count)], np.load(folder / "labels.npy", mmap_mode="r")


def _finite(outputs: Sequence[np.ndarray]) -> None:
    for i, output in enumerate(outputs):
        if output.dtype.kind != "f":
            continue
        rows = np.isfinite(output).reshape(len(output), -1).all(axis=1)
        if not rows.all():
            raise ProjectError(
                f"the float model gives NaN or infinite values in output {i} on {int((~rows).sum())} of {len(rows)} samples",
                f"the first is sample {int(np.argmin(rows))}",
                "Check the checkpoint and the preprocessing.",
            )
