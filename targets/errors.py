"""Every exception edgepress raises on purpose.

EdgepressError                exit code 2 at the command line, one line, no traceback
├── ConfigError               edgepress.yaml: unknown key, wrong type, unit or range
├── ProjectError              the user's side: model factory, checkpoint, data, metric
├── QuantizationError         a model or a request the quantizer cannot honour
├── PruneError                a model or a request the pruner cannot honour
├── TrainingError             training that cannot start, go on or be resumed
├── ExportError               a converter refused or crashed: names target, op, remedy
├── RuntimeUnavailable        a runtime that is not installed or cannot exist on this machine
├── ExecutionError            a runtime failed while loading or running an artifact
├── MeasurementError          evidence that could not be taken
├── IsolationError            a child process crashed, hung, or ate its memory limit
│   └── LimitError            it ran past its timeout or over its memory limit
└── IntegrityError            a stored or shipped file does not have the bytes it should have
"""

from __future__ import annotations


class EdgepressError(Exception):
    """An error with the three parts a person needs.

    Args:
        what: the fact, with the offending value.
        why: the cause, where it is known.
        remedy: what to do next.
    """

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what, why, remedy)
        self.what, self.why, self.remedy = what, why, remedy

    def __str__(self) -> str:
        text = self.what.rstrip(".")
        if self.why:
            text += f": {self.why.rstrip('.')}"
        return f"{text}. {self.remedy}" if self.remedy else f"{text}."


class ConfigError(EdgepressError):
    """edgepress.yaml is wrong; the message names file, line, value and the nearest valid key.

    Args:
        what, why, remedy: see `EdgepressError`.
        kind: `unreadable`, `unknown-key` or `invalid`.
        line: from 1; None where the file has none.
        place: keys and list positions from the top of the file to what is wrong.
    """

    def __init__(
        self,
        what: str,
        why: str = "",
        remedy: str = "",
        *,
        kind: str = "invalid",
        line: int | None = None,
        place: tuple[str | int, ...] = (),
    ) -> None:
        super().__init__(what, why, remedy)
        self.kind, self.line, self.place = kind, line, place


class ProjectError(EdgepressError):
    """The user's model, checkpoint, data or metric cannot be used as it is."""


class QuantizationError(EdgepressError):
    """The model or the requested scheme cannot be quantized as asked."""


class TrainingError(EdgepressError):
    """A training cannot start, go on or be resumed as asked."""


class PruneError(EdgepressError):
    """The model or the requested removal cannot be pruned as asked."""


class ExportError(EdgepressError):
    """A converter could not produce the artifact of one target."""


class RuntimeUnavailable(EdgepressError):
    """A runtime is not installed, or cannot exist on this machine."""


class ExecutionError(EdgepressError):
    """A runtime could not load or run an artifact."""


class MeasurementError(EdgepressError):
    """Evidence could not be taken."""


class IsolationError(EdgepressError):
    """A child process crashed, hung past its timeout, or went over its memory limit."""


class LimitError(IsolationError):
    """A child process ran past its timeout or over its memory limit: with a larger one it may end."""


class IntegrityError(EdgepressError):
    """A file does not have the bytes its record promises."""
