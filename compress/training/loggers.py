"""Loss, metric and learning rate to TensorBoard and MLflow."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from edgepress.targets.errors import TrainingError


class Loggers:
    """A context in which numbers go to the named loggers.

    Args:
        names: `tensorboard` writes event files to `folder/tensorboard`; `mlflow` a run where its own environment variables say, by default
            below the working directory.
        folder: of the training.
        settings: recorded once as the run's parameters.

    Raises:
        TrainingError: one is not installed; the message says how to get it.
    """

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        for name in names:
            if importlib.util.find_spec(name) is None:
                raise TrainingError(f"log is {name!r}", "it is not installed", f"pip install {name}")
        self._names, self._folder, self._settings = names, folder, settings
        self._board: Any = None
        self._mlflow: Any = None

    def __enter__(self) -> Loggers:
        if "tensorboard" in self._names:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._folder / "tensorboard"))
            self._board.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in self._settings.items()))
        if "mlflow" in self._names:
            import mlflow

            self._mlflow = mlflow
            mlflow.start_run(nested=mlflow.active_run() is not None)
            mlflow.log_params(dict(self._settings))
        return self

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Record the values that there are at an optimizer step."""
        known = {name: float(value) for name, value in values.items() if value is not None}
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(name, value, step)
        if self._mlflow is not None:
            self._mlflow.log_metrics(known, step=step)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._board is not None:
            self._board.close()
        if self._mlflow is not None:
            self._mlflow.end_run("FINISHED" if error is None else "FAILED")
