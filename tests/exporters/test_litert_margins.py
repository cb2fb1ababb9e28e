"""Margins that repeat a tensor's rows, in LiteRT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("litert_torch")

from edgepress.exporters.litert_decompositions import margins
from edgepress.exporters.litert_flatbuffer import TfliteFile
from tests.exporters.litert_cases import sqnr_db
from tests.exporters.test_operators import ROWS, OnMaps, computed

aten = torch.ops.aten


@pytest.mark.parametrize("padding", [(1, 2, 0, 3), (4, 0, 1, 1), (0, 0, 2, 0)])
@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_they_are_rows_one_by_one(mode: str, padding: tuple[int, ...]) -> None:
    table = margins()
    x = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    op = {"reflect": aten.reflection_pad2d.default, "replicate": aten.replication_pad2d.default}[mode]
    assert torch.equal(table[op](x, padding), F.pad(x, padding, mode=mode))
    if mode == "replicate":
        volume = x[:, None]
        assert torch.equal(table[aten.replication_pad3d.default](volume, [*padding, 1, 2]), F.pad(volume, (*padding, 1, 2), mode=mode))
        assert torch.equal(table[aten.replication_pad1d.default](x[0], padding[:2]), F.pad(x[0], padding[:2], mode=mode))
    assert table[op](x, [5, 0, 0, 0]) is NotImplemented  # many rows: the kernel


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_files_have_no_kernel_for_mirrors(mode: str, tmp_path: Path) -> None:
    images = torch.randn(ROWS, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    found, expected = computed(OnMaps(lambda x: F.pad(x, (1, 2, 0, 3), mode=mode)), {"image": images}, "litert", tmp_path)
    assert sqnr_db(found, expected) > 35
    kinds = {name for name, _ in TfliteFile((tmp_path / "out" / "model.tflite").read_bytes()).operators()}
    assert not kinds & {"MIRROR_PAD", "GATHER", "GATHER_ND"}


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_many_rows_are_left_to_the_converter(mode: str, tmp_path: Path) -> None:
    images = torch.randn(ROWS, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    found, expected = computed(OnMaps(lambda x: F.pad(x, (5, 0, 0, 0), mode=mode)), {"image": images}, "litert", tmp_path)
    assert sqnr_db(found, expected) > 35
