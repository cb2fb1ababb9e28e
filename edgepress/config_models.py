"""The keys of edgepress.yaml: frozen pydantic models, one per mapping."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, model_validator

from edgepress.bundle.license import canonical
from edgepress.quantities import DECIBEL, DROP, DURATION, RATIO, SIZE, Dimension, Quantity, parse

Dtype = Literal["float32", "float16", "int64", "int32", "int8", "uint8", "bool"]
Precision = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int8-weights", "int4-weights", "mixed"]

#: Gates of `against_baseline` and the dimension of each.
BASELINE_GATES = {"accuracy_drop": DROP, "latency_ratio": RATIO, "size": RATIO, "peak_memory": RATIO}

#: Metrics that are fractions, so that a plain number is no drop of theirs; what the unit of others is, torchmetrics or a callable says.
FRACTION = re.compile(
    "((binary|multiclass|multilabel)_)?"
    "(accuracy|top5|f1_score|fbeta_score|precision|recall|specificity|auroc|average_precision|jaccard_index)"
)


def _in_base_units(dimension: Dimension) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(value, dimension).base)


Drop = Annotated[InstanceOf[Quantity], BeforeValidator(lambda value: parse(value, DROP))]
Decibel = Annotated[float, _in_base_units(DECIBEL)]
Ratio = Annotated[float, _in_base_units(RATIO), Field(gt=0)]
Seconds = Annotated[float, _in_base_units(DURATION), Field(gt=0)]
Bytes = Annotated[float, _in_base_units(SIZE), Field(gt=0)]
Whole = Annotated[int, Field(ge=1)]
Callable_ = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]
#: What validation samples are grouped by: their labels, or a callable that returns a group name for each.
SliceSource = Annotated[str, Field(pattern=r"^labels$|^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]


class Strict(BaseModel):
    """A mapping in which an unknown key is an error and nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class InputConfig(Strict):
    """What the user says about one model input; what is left out is inferred from a sample."""

    name: TensorName | None = None
    dtype: Dtype | None = None


class ModelConfig(Strict):
    """Where the trained model comes from."""

    factory: Callable_ | None = None
    args: dict[str, Any] = {}
    checkpoint: Annotated[str, Field(pattern=r"\.(safetensors|pt|pth|pt2)$")]
    license: Annotated[str, AfterValidator(canonical)] | None = None
    inputs: tuple[InputConfig, ...] | None = None
    outputs: tuple[TensorName, ...] | None = None
    dynamic_batch: bool = True

    @model_validator(mode="after")
    def _factory_builds_what_a_checkpoint_fills(self) -> ModelConfig:
        if self.factory is None and not self.checkpoint.endswith(".pt2"):
            raise ValueError(
                f"`factory` is missing|{self.checkpoint!r} holds weights only: name the function that builds the model, e.g. model:net."
            )
        if self.factory is not None and self.checkpoint.endswith(".pt2"):
            raise ValueError(
                "a .pt2 checkpoint is a whole program and needs no `factory`|Remove `factory`, or use a .safetensors checkpoint."
            )
        return self


class CalibrationConfig(Strict):
    """Samples drawn from the training data, never from validation.

    `samples` set the ranges of activations; `selection` further ones, disjoint from them, decide which int8 scheme ships.
    """

    samples: Whole = 512
    selection: Whole = 512
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class DataConfig(Strict):
    """Callables that return torch Datasets."""

    train: Callable_
    validation: Callable_
    calibration: CalibrationConfig = CalibrationConfig()
    slices: dict[TensorName, SliceSource] = {}


class DropLimit(Strict):
    """How much worse than the float original a target may be: in `pp`, or a plain number in the metric's own unit."""

    max: Drop
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class RatioLimit(Strict):
    """Against the fp32 model in the same runtime."""

    max: Ratio
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class BytesLimit(Strict):
    """A size on disk or in memory."""

    max: Bytes


class LatencyLimit(Strict):
    """An absolute latency, judged only on `machine` (a fingerprint `edgepress doctor` prints)."""

    max: Seconds
    machine: str | None = None
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class NoiseLimit(Strict):
    """The smallest signal-to-noise ratio of outputs against the compressed PyTorch model."""

    min: Decibel


class AgreementLimit(Strict):
    """The smallest share of samples on which the artifact and the compressed PyTorch model name the same class."""

    min: Annotated[float, Field(ge=0, le=1)]


class BaselineLimits(Strict):
    """Against the accepted release; with `ratchet`, `edgepress baseline accept` refuses what is worse than it."""

    accuracy_drop: Drop | None = None
    latency_ratio: Ratio | None = None
    size: Ratio | None = None
    peak_memory: Ratio | None = None
    ratchet: bool = False


class GatesConfig(Strict):
    """Thresholds a target is judged against; under a target, `off` takes one away."""

    accuracy_drop: DropLimit | None = None
    slice_drop: DropLimit | None = None
    latency_ratio: RatioLimit | None = None
    size: BytesLimit | None = None
    peak_memory: BytesLimit | None = None
    latency_p50: LatencyLimit | None = None
    latency_p90: LatencyLimit | None = None
    latency_p95: LatencyLimit | None = None
    latency_p99: LatencyLimit | None = None
    sqnr: NoiseLimit | None = None
    argmax_agreement: AgreementLimit | None = None
    against_baseline: BaselineLimits | None = None


#: Gates are judged together, so that many of them raise no more false alarms than one, or each by itself.
Multiplicity = Literal["holm", "each"]
Unmeasured = Literal["accept", "undecided"]


class UnmeasuredConfig(Strict):
    """Which metrics may stay unmeasured where this machine cannot take them."""

    accuracy: Unmeasured = "undecided"
    latency: Unmeasured = "undecided"
    peak_memory: Unmeasured = "undecided"


class TargetOverrides(Strict):
    """What a target may say besides its catalog entry's own options."""

    precision: Precision | None = None
    device: str | None = None
    threads: Whole | None = None
    batch: Whole | None = None
    gates: GatesConfig = GatesConfig()
    unmeasured: UnmeasuredConfig = UnmeasuredConfig()


class RunConfig(Strict):
    """How steps are run and timed."""

    threads: Whole = 1
    batch: Whole = 1
    timeout: Seconds = 1800.0
    memory: Bytes = 8.0 * 1024**3
    timing: Seconds = 10.0
    jobs: Whole | None = None


class BundleConfig(Strict):
    """What a bundle holds besides the artifacts' own folders."""

    layouts: tuple[Literal["triton", "ovms", "oci"], ...] = ()


class TopLevel(Strict):
    """The top of edgepress.yaml; `compress`, `targets` and `waivers` are read entry by entry (`config_targets`, `config_waivers`)."""

    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$", max_length=100)]
    root: str | None = None
    model: ModelConfig
    data: DataConfig
    metric: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$|^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]
    compress: list[Any] = []
    targets: list[Any]
    gates: GatesConfig = GatesConfig()
    multiplicity: Multiplicity = "holm"
    baseline: str | None = None
    waivers: list[Any] | str = []
    run: RunConfig = RunConfig()
    bundle: BundleConfig = BundleConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


SHA256 = r"^[0-9a-f]{64}$"

#: What a message says where a pattern did not match: (what the text is not, what to write).
PATTERNS: dict[str, tuple[str, str]] = {
    r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$": ("is not `module:callable`", "Write e.g. model:net for the function `net` in model.py."),
    r"^[A-Za-z_]\w*$": ("is not a name", "Use letters, digits and underscores."),
    r"^[A-Za-z_]\w*$|^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$": (
        "is neither a torchmetrics name nor `module:callable`",
        "Write e.g. accuracy, or metric:score for the function `score` in metric.py.",
    ),
    r"^labels$|^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$": (
        "is neither `labels` nor `module:callable`",
        "Write labels to group samples by their class, or e.g. data:difficulty for a function that returns a group name per sample.",
    ),
    r"^\d+:\d+$|^0?\.\d+$|^\d{1,2}%$": ("is no share of zeros", 'Write e.g. "2:4" or 50%.'),
    SHA256: ("is no sha256", "It has 64 digits of 0-9 and a-f."),
    r"\.(safetensors|pt|pth|pt2)$": ("is not a checkpoint edgepress reads", "Use a .safetensors, .pt, .pth or .pt2 file."),
    r"^[A-Za-z0-9][A-Za-z0-9._ -]*$": (
        "cannot name files",
        "Begin with a letter or digit; use letters, digits, spaces, dots, dashes and underscores.",
    ),
}


def keys_of(model: type[Strict]) -> list[str]:
    """The keys a mapping may have, in the order of the documentation."""
    return list(model.model_fields)


def model_of(annotation: Any) -> type[Strict] | None:
    """The model an annotation such as `GatesConfig | None` or `tuple[InputConfig, ...]` holds, or None."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    return next((found for inner in get_args(annotation) if (found := model_of(inner)) is not None), None)
