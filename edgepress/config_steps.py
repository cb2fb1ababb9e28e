"""The entries of `compress:`: pruning, distillation and quantization, and the training that each may bring."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from edgepress.config_models import Bytes, Callable_, Drop, Precision, Ratio, Seconds, Strict, Whole
from edgepress.targets.rules import INT4_METHODS, REFINERS, ROUNDINGS

#: What may be done to weights, biases and ranges before they become integers, in the order in which it is done.
Algorithm = Literal["equalize", "lsq", "adaround", "gptq", "brecq", "bias-correction"]
Observer = Literal["auto", "histogram", "minmax", "moving-average", "percentile", "entropy", "mse"]
Criterion = Literal["taylor", "fisher", "l1", "l2", "bn_scale", "activation", "random"]
Unit = Literal["channels", "heads", "head_dims", "neurons", "groups", "group_channels"]
#: What a student may copy of its teacher (`compress.distill.objective`).
LOSSES = ("kd", "dkd", "mse", "rkd", "rkd_distance", "rkd_angle", "hint", "attention")

#: Chosen by the labels: see `edgepress.steps.train`.
AUTO = "auto"


def _loss(value: object) -> object:
    """`auto`, `kd`, or `{kd: 1.0, hint: 0.5}` with names that exist and weights above zero."""
    if value == AUTO:
        return value
    given = value if isinstance(value, Mapping) else {value: 1.0}
    for name, weight in given.items():
        if name not in LOSSES:
            near = get_close_matches(str(name), LOSSES, 1, 0.5)
            guess = f"Did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown distillation loss {str(name)!r}|{guess}Use {', '.join(LOSSES)}.")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight <= 0:
            raise ValueError(f"{name!r} has the weight {weight!r}|Give a number above zero.")
    return {name: float(weight) for name, weight in given.items()} if isinstance(value, Mapping) else value


Loss = Annotated[Any, BeforeValidator(_loss)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Group = Literal[16, 32, 64, 128, 256]


class TrainSettings(Strict):
    """How a model is trained; what is left out takes the default of `compress.train.TrainConfig`."""

    epochs: Positive
    batch: Whole = 128
    optimizer: str = "sgd"
    lr: Positive | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    momentum: Share = 0.9
    schedule: Literal["cosine", "one-cycle", "step", "constant"] = "cosine"
    warmup: Share = 0.05
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: Whole = 1
    clip: Positive | None = None
    ema: Share | None = None
    label_smoothing: Share = 0.0
    patience: Whole | None = None
    restore_best: bool = True
    activation_checkpointing: bool = False
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    devices: Whole | Literal["auto"] = "auto"
    nodes: Whole = 1
    augment: list[str] = Field(default_factory=list)
    no_decay_norms: bool = True
    log: list[Literal["tensorboard", "mlflow"]] = Field(default_factory=list)
    time_limit: Seconds | None = None
    data: Callable_ | None = None

    def train_config(self, seed: int) -> dict[str, Any]:
        """Keyword arguments of `compress.train.TrainConfig`."""
        own = self.model_dump(include=set(TrainSettings.model_fields) - {"time_limit", "data"})
        return {**own, "augment": list(self.augment), "log": list(self.log), "time_limit_s": self.time_limit, "seed": seed}


class LatencyBudget(Strict):
    """As fast as `ratio` of the unpruned model in the runtime of `target`, both in `precision`, by a table of measured layer latencies.

    `auto` is int8 where the recipe ships that target in integers with calibrated ranges, else fp32.
    """

    target: str
    ratio: Ratio
    precision: Literal["auto", "fp32", "int8"] = "auto"


class SparsityConfig(TrainSettings):
    """Training with a group lasso on the sets of channels that go together, before they are removed."""

    strength: Positive = 1e-4


class FinetuneConfig(TrainSettings):
    """Training after pruning: the task's loss, and the original as teacher where `loss` asks for one."""

    loss: Loss | None = None
    temperature: Positive = 4.0


class PruneConfig(Strict):
    """Structured pruning to one budget, or masks of zeros."""

    speedup: Annotated[float, Field(gt=1)] | None = None
    parameters: Ratio | None = None
    size: Bytes | None = None
    latency: LatencyBudget | None = None
    mask: Annotated[str, Field(pattern=r"^\d+:\d+$|^0?\.\d+$|^\d{1,2}%$")] | None = None
    criterion: Criterion = "taylor"
    ranking: Literal["global", "local", "cost"] = "global"
    normalize: Literal["mean", "max", "none"] = "mean"
    multiple: Whole | Literal["auto"] = "auto"
    min_channels: Whole = 1
    max_sparsity: Share = 0.9
    units: list[Unit] | None = None
    ignore: list[str] = Field(default_factory=list)
    protect: list[str] = Field(default_factory=list)
    blocks: Annotated[int, Field(ge=0)] = 0
    steps: Whole = 1
    sparsity: SparsityConfig | None = None
    finetune: FinetuneConfig | None = None

    @model_validator(mode="after")
    def _one_budget(self) -> PruneConfig:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"`{given[0]}` and `{given[1]}` are two budgets|Keep one of {', '.join(BUDGETS)}.")
        if not given and not self.blocks:
            raise ValueError(f"no budget|Give one of {', '.join(BUDGETS)}, e.g. `speedup: 2.0`, or `blocks: 1`.")
        return self


BUDGETS = ("speedup", "parameters", "size", "latency", "mask")


class DistillConfig(TrainSettings):
    """Training with teachers: the original checkpoint unless `teacher` names others."""

    loss: Loss = "kd"
    temperature: Positive = 4.0
    task: Annotated[float, Field(ge=0)] = 1.0
    task_loss: str = "auto"
    teacher: str | list[str] | None = None
    layers: list[list[str]] | Literal["auto"] = "auto"


class QatConfig(TrainSettings):
    """Training with simulated integers, and the float model as teacher where `loss` asks for one.

    Batch norms are folded, so nothing bounds a step but the optimizer and the clip: SGD at its usual rates diverges.
    """

    epochs: Positive = 1.0
    optimizer: str = "adamw"
    lr: Positive | None = 2e-4
    clip: Positive | None = 1.0
    loss: Loss | None = AUTO
    temperature: Positive = 4.0


class MixedBudget(Strict):
    """What `precision: mixed` may spend: a share of the float original's file or latency in the same target, or a drop on the selection
    samples.
    """

    size: Ratio | None = None
    latency: Ratio | None = None
    accuracy_drop: Drop | None = None

    @model_validator(mode="after")
    def _one(self) -> MixedBudget:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"{' and '.join(f'`{name}`' for name in given)} are {len(given)} budgets" if given else "no budget"
            raise ValueError(f"{what}|Give one: `size: 0.5x`, `latency: 0.5x` or `accuracy_drop: 0.3pp`.")
        return self


class QuantizeConfig(Strict):
    """The quantize step.

    `scheme: auto` ships, per target, the first scheme whose drop on training samples kept apart holds.
    `method: best` compares every scheme with the quantizers of the target's own runtime (`edgepress.best`).
    `method: ptq` rounds 4-bit weights by GPTQ; `group` is how many of a row's inputs share one of their scales.
    `fallback` keeps layers in float until a scheme with calibrated ranges holds; `budget` is of precision `mixed`.
    `int4` and `int2` let its layers have weights of 4 and 2 bits: where the target can store them unless they say true (required) or false.
    `algorithms`: `equalize` for all targets once; the others per target and scheme, on schemes with calibrated ranges.
    """

    precision: Precision = "int8"
    method: Literal["ptq", "qat", "best", "rtn", "gptq", "awq"] = "ptq"
    group: Group = 32
    observer: Observer = "auto"
    algorithms: list[Algorithm] = Field(default_factory=list)
    scheme: Literal["auto", "static", "static-matmul", "dynamic", "weights"] = "auto"
    max_drop: Drop | None = None
    fallback: bool = False
    budget: MixedBudget | None = None
    int4: bool | None = None
    int2: bool | None = None
    qat: QatConfig | None = None

    @model_validator(mode="after")
    def _one_rounding(self) -> QuantizeConfig:
        rounding = [name for name in self.algorithms if name in ROUNDINGS]
        if len({*rounding}) > 1:
            named = " and ".join(f"`{name}`" for name in rounding)
            raise ValueError(f"{named} in `algorithms` each choose how weights are rounded|Keep one of them.")
        return self

    def allows(self, bits: int) -> bool:
        """May layers of precision `mixed` have weights of 4 or 2 bits? `int4: false` alone ends both."""
        return self.int4 is not False if bits == 4 or self.int2 is None else self.int2

    @property
    def refiners(self) -> list[str]:
        """The algorithms that refine one target's integers, layer by layer, in the order in which they do it."""
        return [name for name in REFINERS if name in self.algorithms]

    @property
    def rounding(self) -> str:
        """How 4-bit weights are rounded."""
        return self.method if self.method in INT4_METHODS else "gptq"


Step = PruneConfig | DistillConfig | QuantizeConfig
STEPS: dict[str, type[Strict]] = {"prune": PruneConfig, "distill": DistillConfig, "quantize": QuantizeConfig}
