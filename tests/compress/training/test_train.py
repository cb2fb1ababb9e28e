"""What a training does to a module, and what it says about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgepress.compress.train import TrainConfig, set_training, task_loss, train, trainable
from edgepress.targets import progress
from edgepress.targets.errors import TrainingError
from tests.compress.training.nets import accuracy, conv, images, mlp, program, same, vectors, weights

CONFIG = TrainConfig(epochs=4, batch=32, lr=0.1, seed=3)


def test_training_learns(tmp_path: Path) -> None:
    data = vectors()
    result = train(mlp(), data, task_loss(), replace(CONFIG, epochs=20), tmp_path, accuracy(data))
    assert result.best is not None and result.start is not None
    assert result.start < 0.6 < 0.9 < result.best
    assert (result.stopped, result.steps, result.epochs_done, len(result.history)) == ("finished", 60, 20, 20)
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2
    assert 0 <= result.waiting_share < 1


@pytest.mark.parametrize("optimizer", ["sgd", "AdamW", "rmsprop"])
def test_an_exported_program_trains_like_the_module_it_came_from(optimizer: str, tmp_path: Path) -> None:
    eager = conv()
    eager.drop.p = 0.0
    graph = trainable(program(eager, torch.randn(2, 3, 8, 8)))
    config = replace(CONFIG, optimizer=optimizer, lr=None if optimizer == "AdamW" else 0.01)
    train(eager, images(), task_loss(), config, tmp_path / "eager")
    train(graph, images(), task_loss(), config, tmp_path / "graph")
    for name, tensor in graph.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, eager.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert graph.conv.weight.is_contiguous() and not eager.training


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path: Path) -> None:
    results = []
    for run, seed in enumerate((1, 1, 2)):
        module = conv()
        torch.manual_seed(run)  # whatever was drawn before must not matter
        train(module, images(), task_loss(), replace(CONFIG, augment=("flip", "crop2"), seed=seed), tmp_path / str(run))
        results.append(weights(module))
    assert same(results[0], results[1]) and not same(results[0], results[2])


def test_training_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    train(mlp(), vectors(), task_loss(), CONFIG, tmp_path)
    module = mlp()  # seeds with 0
    torch.manual_seed(11)
    train(module, vectors(), task_loss(), CONFIG, tmp_path / "more")
    assert torch.equal(torch.rand(3), wanted)


def test_the_best_evaluated_weights_come_back(tmp_path: Path) -> None:
    metrics, seen = iter([0.1, 0.5, 0.9, 0.4, 0.3]), []

    def evaluate(module: nn.Module) -> float:
        assert not module.training and not torch.is_grad_enabled()
        seen.append(weights(module))
        return next(metrics)

    module = mlp()
    result = train(module, vectors(), task_loss(), CONFIG, tmp_path, evaluate)
    assert (result.start, result.best, result.best_epoch, result.last) == (0.1, 0.9, 2, 0.3)
    assert same(weights(module), seen[2]) and not same(seen[2], seen[4])


def test_the_last_weights_stay_where_the_best_are_not_asked_for(tmp_path: Path) -> None:
    metrics, seen = iter([0.9, 0.5, 0.4, 0.3, 0.2]), []

    def evaluate(module: nn.Module) -> float:
        seen.append(weights(module))
        return next(metrics)

    module = mlp()
    train(module, vectors(), task_loss(), replace(CONFIG, restore_best=False), tmp_path, evaluate)
    assert same(weights(module), seen[-1])


def test_training_that_only_makes_it_worse_ends_with_the_weights_it_began_with(tmp_path: Path) -> None:
    module, metrics = mlp(), iter([0.9, 0.5, 0.4, 0.3, 0.2])
    before = weights(module)
    result = train(module, vectors(), task_loss(), CONFIG, tmp_path, lambda _: next(metrics))
    assert result.best_epoch == 0 and same(weights(module), before)


def test_training_stops_early_after_so_many_evaluations_without_gain(tmp_path: Path) -> None:
    metrics = iter([0.1, 0.5, 0.4, 0.5, 0.9])
    result = train(mlp(), vectors(), task_loss(), replace(CONFIG, patience=2), tmp_path, lambda _: next(metrics))
    assert (result.stopped, result.epochs_done, result.best) == ("early stopping", 3, 0.5)


def test_a_metric_that_is_no_number_counts_as_the_worst(tmp_path: Path) -> None:
    metrics = iter([float("nan"), float("nan"), 0.3, float("nan"), 0.2])
    result = train(mlp(), vectors(), task_loss(), CONFIG, tmp_path, lambda _: next(metrics))
    assert (result.start, result.best, result.best_epoch, result.last) == (None, 0.3, 2, 0.2)
    assert [line["metric"] for line in result.history] == [None, 0.3, None, 0.2]


def test_a_training_that_fails_gives_the_module_back_in_eval_mode_and_its_own_memory_layout(tmp_path: Path) -> None:
    def fails(outputs: Tensor, labels: Tensor) -> Tensor:
        raise RuntimeError("of the user")

    module = conv()
    with pytest.raises(RuntimeError, match="of the user"):
        train(module, images(), task_loss(fails), CONFIG, tmp_path)
    assert not module.training and module.conv.weight.is_contiguous()


def test_part_of_an_epoch_can_be_trained(tmp_path: Path) -> None:
    result = train(mlp(), vectors(96), task_loss(), replace(CONFIG, epochs=1.34), tmp_path)
    assert (result.steps, len(result.history)) == (4, 2)
    assert result.epochs_done == pytest.approx(4 / 3)


def test_a_time_limit_ends_the_training_and_its_schedule(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=100_000, time_limit_s=0.5)
    result = train(mlp(), vectors(), task_loss(), config, tmp_path, accuracy(vectors()))
    assert result.stopped == "time limit" and 1 < result.steps < 300_000 and result.last is not None
    assert result.history[-1]["lr"] < 0.02 * CONFIG.rate


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_diverging_loss_stops_with_the_best_weights(evaluated: bool, tmp_path: Path) -> None:
    steps = 0

    def breaks(outputs: Tensor, labels: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return nn.functional.cross_entropy(outputs, labels) * (float("nan") if steps > 7 else 1.0)

    module, kept = mlp(), mlp()
    data = vectors()
    result = train(module, data, task_loss(breaks), CONFIG, tmp_path, accuracy(data) if evaluated else None)
    assert (result.stopped, result.steps, len(result.history)) == ("diverged", 8, 2)
    assert "not finite at step 8" in result.remarks[0] and "lr 0.01" in result.remarks[0]
    assert all(torch.isfinite(tensor).all() for tensor in weights(module).values())
    assert not same(weights(module), weights(kept))
    if evaluated:
        assert accuracy(data)(module) == result.best


def test_a_loss_that_diverges_at_once_leaves_the_weights_at_the_start(tmp_path: Path) -> None:
    module = mlp()
    before = weights(module)
    result = train(module, vectors(), task_loss(lambda outputs, labels: outputs.sum() * float("inf")), CONFIG, tmp_path)
    assert result.stopped == "diverged" and "the weights at the start were kept" in result.remarks[0]
    assert same(weights(module), before)


def test_an_average_of_the_weights_is_evaluated_and_returned(tmp_path: Path) -> None:
    plain, averaged, seen = mlp(), mlp(), []
    config = replace(CONFIG, schedule="constant", warmup=0.0)
    train(plain, vectors(), task_loss(), config, tmp_path / "plain")

    def evaluate(module: nn.Module) -> float:
        seen.append(weights(module))
        return float(len(seen))

    train(averaged, vectors(), task_loss(), replace(config, ema=0.9), tmp_path / "averaged", evaluate)
    assert same(weights(averaged), seen[-1])
    start, end, mean = (module.state_dict()["0.weight"] for module in (mlp(), plain, averaged))
    assert 0 < (mean - start).norm() < (end - start).norm()


def test_accumulated_batches_train_like_one_large_batch(tmp_path: Path) -> None:
    one, four = mlp(), mlp()
    train(one, vectors(64), task_loss(), replace(CONFIG, epochs=2, batch=64), tmp_path / "one")
    train(four, vectors(64), task_loss(), replace(CONFIG, epochs=2, batch=16, accumulate=4), tmp_path / "four")
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(four.state_dict()[name], tensor)


def test_clipping_bounds_a_step(tmp_path: Path) -> None:
    module = mlp()
    before = weights(module)
    config = replace(CONFIG, epochs=0.34, clip=0.01, lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0)
    train(module, vectors(96), task_loss(), config, tmp_path)
    moved = torch.cat([(tensor - before[name]).flatten() for name, tensor in module.state_dict().items()]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


def test_bf16_trains_float32_weights(tmp_path: Path) -> None:
    module, data = mlp(), vectors()
    result = train(module, data, task_loss(), replace(CONFIG, epochs=20, precision="bf16"), tmp_path, accuracy(data))
    assert result.best is not None and result.best > 0.85
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_bf16_leaves_float_labels_in_full_precision(tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        seen.add(labels.dtype)
        return nn.functional.mse_loss(outputs.float(), labels)

    inputs, _ = vectors().tensors
    data = torch.utils.data.TensorDataset(inputs, inputs[:, :3])
    train(mlp(), data, task_loss(loss), replace(CONFIG, precision="bf16"), tmp_path)
    assert seen == {torch.float32}


class WithProjector:
    """An objective with a layer of its own."""

    def __init__(self) -> None:
        torch.manual_seed(4)
        self.layer = nn.Linear(3, 3)

    def modules(self) -> list[nn.Module]:
        return [self.layer]

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, index: Tensor) -> Tensor:
        assert module.training and index.dtype == torch.int64 and labels is not None
        return nn.functional.cross_entropy(self.layer(module(*inputs)), labels)


def test_an_objectives_own_layers_are_trained_along(tmp_path: Path) -> None:
    objective, module = WithProjector(), mlp()
    train(module, vectors(), objective, CONFIG, tmp_path)
    assert not torch.equal(objective.layer.weight, WithProjector().layer.weight)
    assert set(module.state_dict()) == set(mlp().state_dict())


def test_mixup_gives_class_shares_to_the_loss(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return nn.functional.cross_entropy(outputs, labels)

    train(conv(), images(), task_loss(loss), replace(CONFIG, epochs=1, augment=("mixup1.0",)), tmp_path)
    assert all(labels.shape == (32, 3) for labels in seen)
    torch.testing.assert_close(seen[0].sum(1), torch.ones(32))
    assert ((seen[0] > 0) & (seen[0] < 1)).any()


def test_a_module_that_cannot_compute_channels_last_is_trained_as_it_is(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.head(x.view(x.shape[0], -1))

    assert train(Views(), images(), task_loss(), CONFIG, tmp_path).stopped == "finished"


def test_a_constant_buffer_that_nothing_can_write_to_is_left_alone(tmp_path: Path) -> None:
    module = mlp()
    module.register_buffer("scale", torch.ones(1).expand(6), persistent=False)
    data = vectors()
    assert train(module, data, task_loss(), replace(CONFIG, ema=0.9), tmp_path, accuracy(data)).stopped == "finished"
    assert torch.equal(module.scale, torch.ones(6))


def test_progress_tells_loss_metric_and_time_left(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    progress.watch(lambda *event: seen.append(event))
    try:
        train(mlp(), vectors(), task_loss(), CONFIG, tmp_path, accuracy(vectors()))
    finally:
        progress.watch(progress._nowhere)
    text, done, total = seen[-2]
    assert (done, total) == (12, 12)
    assert text.startswith("training: epoch 4 of 4, loss ") and ", metric " in text and text.endswith(" 0 s left")


def test_a_small_dataset_makes_a_smaller_batch_and_a_remark(tmp_path: Path) -> None:
    result = train(mlp(), vectors(20), task_loss(), CONFIG, tmp_path)
    assert result.steps == 4 and "batch is 20, not 32" in result.remarks[0]


def test_over_one_process_nothing_is_cut_and_that_is_said(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1)
    one, two = mlp(), mlp()
    train(one, vectors(), task_loss(), config, tmp_path / "auto")
    result = train(two, vectors(), task_loss(), replace(config, strategy="fsdp"), tmp_path / "fsdp")
    assert same(one.state_dict(), two.state_dict()) and "fsdp cut nothing" in result.remarks[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 4}, "accumulate is 4: an epoch has 3 batches of 32"),
        ({"augment": ("flip",)}, "augment is flip: the first input is not float images"),
        ({"precision": "fp16"}, "fp16 with loss scaling needs a GPU"),
        ({"devices": 2}, "1 process was started. Start them together: torchrun"),
    ],
)
def test_settings_that_do_not_fit_the_case_say_why(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        train(mlp(), vectors(), task_loss(), replace(CONFIG, **changes), tmp_path)


def test_a_frozen_module_says_how_to_thaw_it(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="all are frozen"):
        train(mlp().requires_grad_(False), vectors(), task_loss(), CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda module, inputs, labels, index: module(*inputs), r"a tensor of shape \(32, 3\)"),
        (lambda module, inputs, labels, index: 1.0, "returned float"),
        (lambda module, inputs, labels, index: module(*inputs).detach().sum(), "depends on no parameter"),
    ],
)
def test_an_objective_that_gives_no_loss_is_named(objective: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        train(mlp(), vectors(), objective, CONFIG, tmp_path)  # type: ignore[arg-type]


def test_a_training_leaves_exported_modules_ready_to_predict(tmp_path: Path) -> None:
    graph = trainable(program(conv(), torch.randn(2, 3, 8, 8)))
    train(graph, images(), task_loss(), CONFIG, tmp_path)
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(graph(x), graph(x))
    set_training(graph, True)
    assert not torch.equal(graph(x), graph(x))
