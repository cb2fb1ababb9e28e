"""Reading a stored program: what is held ready for forked processes is given away once, and is the one that was asked for."""

from __future__ import annotations

from pathlib import Path

import torch

from edgepress.compress.program import hold, load_program


def stored(path: Path, weight: float) -> Path:
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(weight)
    torch.export.save(torch.export.export(layer, (torch.zeros(2, 1),)), path)
    return path


def weight_of(program: torch.export.ExportedProgram) -> float:
    return float(program.state_dict["weight"].detach())


def test_nobody_sees_what_another_changed(tmp_path: Path) -> None:
    path = stored(tmp_path / "model.pt2", 2.0)
    hold(path)
    first = load_program(path)
    with torch.no_grad():
        first.state_dict["weight"].fill_(7.0)
    assert weight_of(load_program(path)) == 2.0


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    hold(stored(tmp_path / "model.pt2", 2.0))
    stored(tmp_path / "new.pt2", 3.0).replace(tmp_path / "model.pt2")
    assert weight_of(load_program(tmp_path / "model.pt2")) == 3.0


def test_only_the_program_that_was_asked_for_is_given(tmp_path: Path) -> None:
    one, two = stored(tmp_path / "one.pt2", 1.0), stored(tmp_path / "two.pt2", 2.0)
    hold(one)
    hold(two)
    assert (weight_of(load_program(one)), weight_of(load_program(two))) == (1.0, 2.0)
