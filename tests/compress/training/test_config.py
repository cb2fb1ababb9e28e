"""Settings of a training."""

from __future__ import annotations

import pytest

from edgepress.compress.train import TrainConfig
from edgepress.compress.training.optimize import rate_share
from edgepress.targets.errors import TrainingError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0: it must be above zero. Give the passes over the data"),
        ({"epochs": float("nan")}, "epochs is nan"),
        ({"batch": 0}, "batch is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"warmup": 1.0}, "warmup is 1.0: it is a share"),
        ({"ema": 1.5}, "ema is 1.5"),
        ({"patience": 0}, "patience is 0"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"precision": "int8"}, "known are fp32, bf16, fp16"),
        ({"strategy": "fsdp", "precision": "fp16"}, "strategy 'fsdp' has no loss scaling. Take bf16"),
        ({"strategy": "deepspeed", "precision": "bf16"}, "precision is 'bf16': strategy 'deepspeed' would round"),
        ({"strategy": "deepspeed", "accumulate": 2}, "accumulate is 2: DeepSpeed counts"),
        ({"strategy": "dpp"}, "Did you mean 'ddp'"),
        ({"optimizer": "adanw"}, "Did you mean 'adamw'|Did you mean 'adam'"),
        ({"optimizer": "lbfgs"}, "several times a step"),
        ({"devices": 0}, "devices is 0"),
        ({"log": ("tensorbord",)}, "Did you mean 'tensorboard'"),
        ({"augment": ("flop",)}, "augment has 'flop'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_told_when_it_is_made(settings: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainConfig(**settings)  # type: ignore[arg-type]


def test_optimizers_bring_rates_and_decays_of_their_own_and_the_user_has_the_last_word() -> None:
    assert (TrainConfig().rate, TrainConfig().decay) == (0.05, 5e-4)
    assert (TrainConfig(optimizer="AdamW").rate, TrainConfig(optimizer="AdamW").decay) == (1e-3, 1e-2)
    assert (TrainConfig(optimizer="Adam").rate, TrainConfig(optimizer="Adam").decay) == (1e-3, 0.0)
    assert (TrainConfig(lr=0.3, weight_decay=0.0).rate, TrainConfig(lr=0.3, weight_decay=0.0).decay) == (0.3, 0.0)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", {0.05: 0.5, 0.1: 1.0, 0.5: 1.0, 1.0: 1.0}),
        ("cosine", {0.05: 0.5, 0.1: 1.0, 0.55: 0.5, 1.0: 0.0}),
        ("step", {0.05: 0.5, 0.1: 1.0, 0.49: 1.0, 0.5: 0.1, 0.74: 0.1, 0.75: 0.01, 1.0: 0.01}),
        ("one-cycle", {0.0: 0.04, 0.15: 0.52, 0.3: 1.0, 0.65: 0.5, 1.0: 0.0}),
    ],
)
def test_the_rate_follows_its_schedule(schedule: str, shares: dict[float, float]) -> None:
    config = TrainConfig(schedule=schedule, warmup=0.1)
    assert {share: rate_share(config, share) for share in shares} == pytest.approx(shares)


def test_without_warm_up_the_rate_begins_at_its_highest() -> None:
    assert rate_share(TrainConfig(warmup=0.0), 0.0) == 1.0
