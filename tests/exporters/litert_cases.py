"""Small models as .tflite files, exported once per test session."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import ClassVar

import numpy as np

from edgepress.exporters.base import ExportRequest
from edgepress.exporters.litert import LiteRtExporter
from edgepress.targets.nouns import Artifact, Scheme, Target
from edgepress.validators.runtimes.litert import LiteRt
from tests.exporters.tensorrt_models import case


def request(name: str, precision: str, kind: str, options: Mapping[str, object] | None = None, batch: int = 1) -> ExportRequest:
    model = case(name)
    target = Target("tflite", "litert", "CPU", precision, dict(options or {}), batch=batch)
    statistics = model.statistics if kind.startswith("static") else None
    return ExportRequest(model.program, model.signature, statistics, target, Scheme(precision, kind), model.samples)


class CachingExporter(LiteRtExporter):
    """Converts the float model, and each static rendering, once per test session."""

    files: ClassVar[dict[tuple[object, ...], bytes]] = {}

    def _converted(self, request: ExportRequest) -> bytes:
        scheme = request.scheme.kind if request.scheme.kind.startswith("static") else "float"
        key = (request.program, scheme, request.target.batch)
        if key not in self.files:
            self.files[key] = super()._converted(request)
        elif scheme != "float":
            self.rendered(request)
        return self.files[key]


@cache
def exported(name: str, precision: str, kind: str, io: str = "float", batch: int = 1) -> tuple[Artifact, Path]:
    """The artifact and the folder it is in."""
    folder = Path(mkdtemp(prefix="edgepress-test-"))
    return CachingExporter().export(request(name, precision, kind, {"io": io}, batch), folder), folder


def run(name: str, precision: str, kind: str, io: str = "float", batch: int = 1) -> np.ndarray:
    """Outputs of the exported model in LiteRT on all samples."""
    artifact, folder = exported(name, precision, kind, io, batch)
    with LiteRt().open(artifact, folder) as session:
        return session.run(case(name).feeds())["logits"]


def sqnr_db(got: np.ndarray, want: np.ndarray) -> float:
    """Signal to quantization noise ratio in dB."""
    return float(10 * np.log10((want.astype(np.float64) ** 2).sum() / ((got.astype(np.float64) - want) ** 2).sum()))
