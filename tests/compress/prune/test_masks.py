"""Zeros inside weights: which ones, and that training keeps them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgepress.compress.prune.masks import MaskSettings, apply_masks, kept_masks, make_masks
from edgepress.targets.errors import PruneError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def program() -> ExportedProgram:
    return torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: Dim("batch", min=1)},))


def test_two_of_every_four_inputs_stay_and_they_are_the_largest() -> None:
    source = program()
    masks = make_masks(source, MaskSettings("2:4"))
    assert sorted(masks.keep) == ["body.0.weight", "head.weight"]
    for name, keep in masks.keep.items():
        groups = keep.movedim(1, -1).reshape(-1, 4)
        assert (groups.sum(1) == 2).all()
        sizes = source.state_dict[name].abs().movedim(1, -1).reshape(-1, 4)
        kept, gone = sizes[groups].view(-1, 2), sizes[~groups].view(-1, 2)
        assert (kept.min(1).values >= gone.max(1).values).all()
    assert masks.sparsity == 0.5


def test_the_report_names_what_could_not_be_masked_and_promises_no_speed() -> None:
    lines = make_masks(program()).report()
    assert "308 of the weights of 2 layers are zero (50.0%)" in lines[0]
    assert "a runtime without sparse kernels gets no faster" in lines[1]
    assert lines[2] == "stem.weight: its 3 inputs are no multiple of 4"


def test_a_global_share_ranks_all_layers_together_and_a_local_one_each() -> None:
    source = program()
    together = make_masks(source, MaskSettings("unstructured", 0.7))
    assert together.sparsity == pytest.approx(0.7, abs=1e-3)
    kept = torch.cat([source.state_dict[name].abs()[keep] for name, keep in together.keep.items()])
    gone = torch.cat([source.state_dict[name].abs()[~keep] for name, keep in together.keep.items()])
    assert kept.min() >= gone.max()
    for keep in make_masks(source, MaskSettings("unstructured", 0.7, scope="layer")).keep.values():
        assert 1 - keep.float().mean().item() == pytest.approx(0.7, abs=1 / keep.numel() + 1e-6)


def test_equal_weights_still_give_the_asked_share() -> None:
    source = program()
    for value in source.state_dict.values():
        value.data.fill_(1)
    assert make_masks(source, MaskSettings("unstructured", 0.25)).sparsity == pytest.approx(0.25, abs=1e-3)
    assert make_masks(source, MaskSettings("1:4")).sparsity == 0.75


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_training_keeps_the_zeros_and_moves_the_rest(optimizer: type[torch.optim.Optimizer]) -> None:
    source = program()
    masks = make_masks(source)
    module = source.module(check_guards=False).requires_grad_(True)
    steps = optimizer(module.parameters(), lr=0.05, weight_decay=0.1)
    before = {name: module.get_parameter(name).detach().clone() for name in masks.keep}
    steps.zero_grad()
    module(torch.ones(1, 3, 8, 8)).sum().backward()  # gradients from before the masks: the optimizer may remember anything
    steps.step()
    with kept_masks(module, masks):
        for _ in range(3):
            steps.zero_grad()
            module(torch.randn(4, 3, 8, 8)).square().mean().backward()
            steps.step()
    for name, keep in masks.keep.items():
        value = module.get_parameter(name)
        assert (value[~keep] == 0).all()
        assert (value[keep] != before[name][keep]).all()


def test_hooks_are_gone_afterwards() -> None:
    source = program()
    masks = make_masks(source)
    module = source.module(check_guards=False).requires_grad_(True)
    with kept_masks(module, masks):
        pass
    with torch.no_grad():
        module.get_parameter("head.weight").fill_(1)
    module(torch.randn(1, 3, 8, 8))
    assert (module.get_parameter("head.weight") == 1).all()


def test_masks_are_written_into_a_state() -> None:
    source = program()
    masks = make_masks(source)
    state = {name: value.detach().clone() for name, value in source.state_dict.items()}
    apply_masks(state, masks)
    assert (state["head.weight"] == source.state_dict["head.weight"] * masks.keep["head.weight"]).all()
    assert (state["stem.weight"] == source.state_dict["stem.weight"]).all()


def test_ignored_layers_stay_whole_and_unknown_ones_are_named() -> None:
    assert list(make_masks(program(), MaskSettings(ignore=("body",))).keep) == ["head.weight"]
    with pytest.raises(PruneError, match=r"no layer matches 'hea'.*head"):
        make_masks(program(), MaskSettings(ignore=("hea",)))
    with pytest.raises(PruneError, match="no weight can be masked"):
        make_masks(program(), MaskSettings(ignore=("*",)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "4:2"}, "'4:2'.*2:4"),
        ({"pattern": "random"}, "'random'"),
        ({"sparsity": 1.0}, "sparsity is 1"),
        ({"scope": "all"}, "'all'"),
    ],
)
def test_wrong_settings_say_what_is_right(settings: dict[str, object], message: str) -> None:
    with pytest.raises(PruneError, match=message):
        MaskSettings(**settings)  # type: ignore[arg-type]
