"""The contract of every native quantizer; the public verb and the checks live here, backends write `_quantize_impl`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from edgepress.exporters.base import cause, first_line
from edgepress.targets.errors import EdgepressError, ExportError
from edgepress.targets.nouns import Artifact, Scheme, Support, Target


@dataclass(frozen=True)
class NativeRequest:
    """Everything a native quantizer may read: nothing of edgepress's own quantization is in it.

    Attributes:
        source: the float artifact of the target, its paths relative to `folder`.
        folder: where the float export wrote it.
        target: what the file is for.
        scheme: its `kind` is one of the quantizer's `kinds`, its `tool` the quantizer.
        calibration: every input by name, of shape (samples, ...).
    """

    source: Artifact
    folder: Path
    target: Target
    scheme: Scheme
    calibration: Mapping[str, np.ndarray]

    @property
    def path(self) -> Path:
        """The float artifact itself."""
        return self.folder / self.source.path

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Calibration samples as the float artifact takes them: its batch where that is a number, else `size`; its dtypes.

        A last batch that would be short of a fixed one is left out.
        """
        specs = self.source.signature.inputs
        fixed = specs[0].shape[0]
        step, total = fixed or size, len(self.calibration[specs[0].name])
        for start in range(0, total - (fixed or 1) + 1, step):
            yield {spec.name: self.calibration[spec.name][start : start + step].astype(spec.dtype) for spec in specs}


@dataclass(frozen=True)
class Written:
    """What a native quantizer left in its folder.

    Attributes:
        names: of its files and folders there, the one that a runtime loads first.
        facts: of the artifact, where they are others than the float one's.
    """

    names: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


class NativeQuantizer(ABC):
    """Turns the float file of one target into an integer one, with the runtime's own tool at its own defaults.

    Attributes:
        runtime: whose files it reads and writes.
        package: the distribution it comes with.
        extra: the extra of edgepress that installs it.
        kinds: the kinds of scheme it offers, in the order of trial (`targets.nouns.SCHEMES`).
        base_precision: precision of the float file it starts from.
    """

    runtime: str
    package: str
    extra: str
    kinds: tuple[str, ...]
    base_precision: str = "fp32"

    def supports(self) -> Support:
        """Is its package installed? If not, the command that does it."""
        try:
            return Support(True, version(self.package))
        except PackageNotFoundError:
            return Support(False, None, f"{self.package} is not installed", f"pip install 'edgepress[{self.extra}]'")

    def quantize(self, request: NativeRequest, folder: Path) -> Artifact:
        """Write the integer file into `folder`.

        Returns:
            The artifact, its paths relative to `folder`; its inputs and outputs are those of the float one.

        Raises:
            ExportError: the tool refused the model, or wrote nothing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        try:
            written = self._quantize_impl(request, folder)
        except EdgepressError:
            raise
        except Exception as error:  # a foreign tool may raise anything; this candidate is lost, named, and nothing else
            raise ExportError(
                f"{request.scheme.tool} could not quantize the model", f"{type(cause(error)).__name__}: {first_line(error)}"
            ) from error
        for name in written.names:
            if not (folder / name).exists():
                raise ExportError(f"{request.scheme.tool} promised {name!r} and did not write it")
        tool = f"{request.scheme.tool} ({self.package} {self.supports().version})"
        facts = {**request.source.facts, **written.facts, "quantizer": tool}
        return replace(request.source, path=written.names[0], scheme=request.scheme, facts=facts, float_ops=(), extra=written.names[1:])

    @abstractmethod
    def _quantize_impl(self, request: NativeRequest, folder: Path) -> Written:
        """Write the files into `folder`."""
