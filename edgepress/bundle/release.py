"""What a bundle says and holds beyond its artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Release:
    """Facts of a release that no report has.

    Attributes:
        license: of the checkpoint, an SPDX expression; None where the recipe does not state it.
        license_texts: files that lay beside the checkpoint; each is shipped under its name.
        datasets: the user's callables by use: `train`, `validation`.
        data: sha256 of the samples that were used, by name.
        statistics: the file `edgepress.bundle.inputs` wrote about the calibration inputs; None where there is none.
        layouts: keys of `edgepress.bundle.layouts.LAYOUTS`, in the order of the recipe.
    """

    license: str | None = None
    license_texts: tuple[Path, ...] = ()
    datasets: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    statistics: Path | None = None
    layouts: tuple[str, ...] = ()

    @property
    def license_files(self) -> list[str]:
        """Names of the licence texts in the bundle."""
        return [path.name for path in self.license_texts]
