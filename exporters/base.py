"""The contract of every exporter; the public verb and the checks live here, backends write `_export_impl`."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepress.targets.errors import EdgepressError, ExportError, RuntimeUnavailable
from edgepress.targets.nouns import Artifact, Scheme, Signature, Support, Target
from edgepress.targets.rules import QuantRules, rules_for

if TYPE_CHECKING:
    from edgepress.compress.quantize import Rendered

_BATCH = 32
#: What switches a terminal's colours.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class ExportRequest:
    """Everything an exporter may read.

    Attributes:
        program: a saved `torch.export.ExportedProgram` (.pt2): float, eval mode, the batch in dimension 0.
        signature: its inputs and outputs in positional order; the artifact must use these names.
        statistics: calibration statistics (`compress.quantize.Statistics.load`), needed by static schemes.
        target: what to export for.
        scheme: how its precision is carried out.
        samples: for each input an array of shape (n >= 2, ...): real samples, for tracing and self-checks.
    """

    program: Path
    signature: Signature
    statistics: Path | None
    target: Target
    scheme: Scheme
    samples: tuple[np.ndarray, ...]

    @property
    def batch(self) -> int:
        """What a file is made for: the only batch of the model if it has one, the target's otherwise."""
        return self.signature.only_batch or self.target.batch


class Exporter(ABC):
    """Turns one snapshot into the file of one target."""

    runtime: str

    def __init__(self) -> None:
        self._rendered: Rendered | None = None

    @property
    def rules(self) -> QuantRules:
        """What the runtime executes in integers."""
        return rules_for(self.runtime)

    @abstractmethod
    def supports(self) -> Support:
        """Is the converter usable here? If not, what is missing and the command that installs it."""

    def export(self, request: ExportRequest, folder: Path) -> Artifact:
        """Write the artifact into `folder` and check what it promises.

        Returns:
            The artifact, its paths relative to `folder`.

        Raises:
            RuntimeUnavailable: the converter is missing.
            ExportError: it does not have the precision, refused an op, or broke a promise.
        """
        support = self.supports()
        if not support.usable:
            raise RuntimeUnavailable(
                f"target {request.target.name!r} cannot be exported here", support.missing or "", f"Run: {support.install}"
            )
        if request.scheme.precision not in self.rules.precisions:
            have = ", ".join(self.rules.precisions)
            raise ExportError(
                f"target {request.target.name!r} has no {request.scheme.precision}", f"its runtime has {have}", "Choose one of these."
            )
        for bits in {*request.scheme.narrow_layers.values()} - {*self.rules.static_bits}:
            have = ", ".join(map(str, (8, *self.rules.static_bits)))
            raise ExportError(
                f"target {request.target.name!r} cannot store single layers in {bits} bits",
                f"its runtime has {have} bits and float for the layers of a static scheme",
                f"Leave int{bits}_layers empty.",
            )
        from edgepress.exporters.decompositions import nodes_kept

        folder.mkdir(parents=True, exist_ok=True)
        try:
            with nodes_kept():
                artifact = self._export_impl(request, folder)
        except EdgepressError:
            raise
        except Exception as error:  # a foreign converter may raise anything; the target is lost, named, and nothing else
            raise ExportError(
                f"target {request.target.name!r} ({request.scheme.label}) could not be exported",
                f"{type(cause(error)).__name__}: {self.reason(error)}",
                self.remedy(error),
            ) from error
        self._check(request, artifact, folder)
        return artifact

    @abstractmethod
    def _export_impl(self, request: ExportRequest, folder: Path) -> Artifact: ...

    def rendered(self, request: ExportRequest) -> Rendered:
        """The model quantized in PyTorch by this runtime's rules (schemes `static`, `static-matmul`, `weights`); rendered once."""
        if self._rendered is None:
            from edgepress.compress.program import load_program
            from edgepress.compress.quantize import Statistics, render, render_int4

            if request.scheme.precision == "int4-weights":
                self._rendered = render_int4(request.program, self.rules)
                return self._rendered
            statistics = Statistics.load(request.statistics) if request.statistics else None
            self._rendered = render(load_program(request.program), statistics, self.rules.of(request.scheme), request.scheme)
        return self._rendered

    def compressed_outputs(self, request: ExportRequest, inputs: Sequence[np.ndarray]) -> tuple[list[np.ndarray], str]:
        """What the model that was exported computes in PyTorch: the artifact is compared with it.

        Args:
            request: as given to `export`, which ran before.
            inputs: positional inputs, each of shape (n, ...).

        Returns:
            Every output of shape (n, ...) in positional order, and which model that was.
        """
        import torch

        from edgepress.compress.program import load_program
        from edgepress.compress.quantize import with_pairs_in_place
        from edgepress.compress.quantize.batches import fitting

        if self._rendered is not None:
            module, source = with_pairs_in_place(self._rendered.module), "quantized PyTorch model"
        else:
            module, source = load_program(request.program).module(), "float PyTorch model"
        pieces, total = [], len(inputs[0])
        batches = ([np.array(x[start : start + _BATCH]) for x in inputs] for start in range(0, total, _BATCH))
        with torch.no_grad():
            for batch in fitting(module, batches):
                pieces.append([value.numpy() for value in torch.utils._pytree.tree_leaves(module(*batch))])
        return [np.concatenate(column)[:total] for column in zip(*pieces, strict=True)], source

    def reason(self, error: Exception) -> str:
        """What a converter's exception says, in a line."""
        return first_line(error)

    def remedy(self, error: Exception) -> str:
        """What a user can do about a converter's exception; backends name the op where they can."""
        return "Rewrite the op the message names, or take this target out of `targets:`."

    def _check(self, request: ExportRequest, artifact: Artifact, folder: Path) -> None:
        """What every artifact promises: its files exist, and its inputs have the names that were asked for."""
        for name in (artifact.path, *artifact.extra):
            if not (folder / name).exists():
                raise ExportError(f"target {request.target.name!r}: the exporter promised {name!r} and did not write it")
        wanted = [spec.name for spec in request.signature.inputs]
        got = [spec.name for spec in artifact.signature.inputs]
        if wanted != got:
            raise ExportError(f"target {request.target.name!r}: inputs are {got}, the model's are {wanted}")


def cause(error: BaseException) -> BaseException:
    """The exception that an exception was raised from in the end: converters wrap it in one that says which of their steps it was."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def first_line(error: BaseException) -> str:
    """The first non-empty line of the text of what caused an exception, without colours, at most 300 characters."""
    lines = [line.strip() for line in _COLOUR.sub("", str(cause(error))).splitlines() if line.strip()]
    return lines[0][:300] if lines else "(no message)"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep off the terminal what converters print, their progress and their warnings, while they are imported too; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
