"""Task losses by name, by labels, and the user's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepress.compress.train import Objective, task_loss
from edgepress.targets.errors import TrainingError

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2])
FLOATS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
SHARES = FLOATS.softmax(1)


def loss(spec: Any, labels: Tensor | None, outputs: Any = LOGITS, **settings: float) -> Tensor:
    return task_loss(spec, **settings)(nn.Identity(), (outputs,), labels, torch.arange(6))


def test_the_labels_pick_the_loss() -> None:
    assert torch.equal(loss(None, CLASSES), F.cross_entropy(LOGITS, CLASSES))
    assert torch.equal(loss("auto", SHARES), F.cross_entropy(LOGITS, SHARES))
    assert torch.equal(loss(None, FLOATS), F.mse_loss(LOGITS, FLOATS))
    assert torch.equal(loss(None, FLOATS[:, 0], LOGITS[:, :1]), F.mse_loss(LOGITS[:, 0], FLOATS[:, 0]))


def test_losses_have_names() -> None:
    assert torch.equal(loss("l1", FLOATS), F.l1_loss(LOGITS, FLOATS))
    assert torch.equal(loss("mse", FLOATS), F.mse_loss(LOGITS, FLOATS))
    assert torch.equal(
        loss("bce", CLASSES.eq(1).long(), LOGITS[:, :1]), F.binary_cross_entropy_with_logits(LOGITS[:, 0], CLASSES.eq(1).float())
    )


def test_label_smoothing_reaches_classes_and_binary_labels() -> None:
    assert torch.equal(loss(None, CLASSES, label_smoothing=0.2), F.cross_entropy(LOGITS, CLASSES, label_smoothing=0.2))
    wanted = F.binary_cross_entropy_with_logits(LOGITS[:, 0], CLASSES.eq(1) * 0.8 + 0.1)
    torch.testing.assert_close(loss("bce", CLASSES.eq(1).long(), LOGITS[:, :1], label_smoothing=0.2), wanted)


def test_a_callable_of_the_user_is_a_loss() -> None:
    assert loss(lambda outputs, labels: (outputs.sum(1) - labels).abs().sum(), CLASSES) == (LOGITS.sum(1) - CLASSES).abs().sum()


@pytest.mark.parametrize("wrap", [lambda x: (x, None), lambda x: [x], lambda x: {"logits": x, "hidden": x + 1}])
def test_the_first_of_several_outputs_is_judged(wrap: Any) -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return wrap(x)

    assert torch.equal(task_loss()(Several(), (LOGITS,), CLASSES, torch.arange(6)), F.cross_entropy(LOGITS, CLASSES))


def test_a_task_loss_is_an_objective() -> None:
    assert isinstance(task_loss(), Objective)


def test_an_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(TrainingError, match="Did you mean 'cross_entropy'"):
        task_loss("crossentropy")


def test_a_task_loss_needs_labels() -> None:
    with pytest.raises(TrainingError, match="no labels"):
        loss(None, None)


def test_shapes_are_not_broadcast_in_silence() -> None:
    with pytest.raises(TrainingError, match=r"outputs are \(6, 3\) and labels \(6,\)"):
        loss("mse", FLOATS[:, 0])
