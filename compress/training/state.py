"""How far a training is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from edgepress.compress.training.config import TrainResult


@dataclass
class State:
    """What the loop knows, all of it JSON-able; part of every checkpoint. Fields that `TrainResult` has too mean the same.

    Attributes:
        epoch, step: the next step is number `step` of epoch `epoch`, both from 0.
        score: what the best weights scored: metric, or minus the mean training loss where nothing is evaluated.
        stale: epochs since the best one.
        seconds, stepping, waiting: wall time of training, of its steps, and of their waiting for data.
        epoch_seconds, loss: of the epoch under way; `loss` is the sum over its steps.
        stopped: empty while it goes on.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    epochs_done: float = 0
    score: float = -math.inf
    best: float | None = None
    best_epoch: float | None = None
    start: float | None = None
    last: float | None = None
    stale: int = 0
    seconds: float = 0.0
    stepping: float = 0.0
    waiting: float = 0.0
    epoch_seconds: float = 0.0
    loss: float = 0.0
    stopped: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def begin(self, metric: float | None) -> None:
        """Record the metric of the weights at the start, None where nothing is evaluated; NaN counts as worse than any number."""
        if metric is not None:
            self.best_epoch = 0
            if not math.isnan(metric):
                self.start = self.best = self.score = metric

    def close_epoch(self, loss: float, metric: float | None, rate: float) -> bool:
        """Record an epoch; says whether its weights are the best so far.

        Args:
            loss: mean over the epoch's steps.
            metric: of the weights after it; None where nothing is evaluated. NaN counts as worse than any number.
            rate: learning rate at its end.
        """
        score = -loss if metric is None else -math.inf if math.isnan(metric) else metric
        metric = None if metric is None or math.isnan(metric) else metric
        better = score > self.score
        self.stale = 0 if better else self.stale + 1
        if better:
            self.score = score
        if better and metric is not None:
            self.best, self.best_epoch = metric, self.epochs_done
        self.last = metric
        self.history.append({"epoch": self.epochs_done, "loss": loss, "metric": metric, "lr": rate, "seconds": self.epoch_seconds})
        self.epoch, self.step, self.loss, self.epoch_seconds = self.epoch + 1, 0, 0.0, 0.0
        return better

    def text(self, epochs: int, loss: float, share: float) -> str:
        """One line for people: epoch, loss, metric and time left, as far as they are known.

        Args:
            epochs: how many there will be.
            loss: of the last step.
            share: how much of the training is done, above 0 and up to 1.
        """
        parts = [f"training: epoch {self.epoch + 1} of {epochs}", f"loss {loss:.4g}"]
        metric = self.start if self.last is None else self.last
        if metric is not None:
            parts.append(f"metric {metric:.4g}")
        minutes, seconds = divmod(round(self.seconds * (1 / share - 1)), 60)
        parts.append(f"{minutes} min {seconds} s left" if minutes else f"{seconds} s left")
        return ", ".join(parts)

    def result(self) -> TrainResult:
        """What the caller of a training gets."""
        return TrainResult(
            best=self.best,
            last=self.last,
            best_epoch=self.best_epoch,
            start=self.start,
            epochs_done=self.epochs_done,
            steps=self.steps,
            history=tuple(self.history),
            waiting_share=self.waiting / self.stepping if self.stepping else 0.0,
            stopped=self.stopped,
            remarks=tuple(self.remarks),
        )
