"""Metrics from torchmetrics by name, and the user's own functions. torch and torchmetrics are imported when called for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepress.targets.errors import ConfigError, EdgepressError, MeasurementError, ProjectError
from edgepress.validators.labels import IGNORE, Layout, class_labels
from edgepress.validators.metric_sums import of_sums

if TYPE_CHECKING:
    from edgepress.validators.metrics import BoundMetric, Metric

Array = NDArray[Any]
Floats = NDArray[np.float64]

#: Where torchmetrics keeps the metrics that take (outputs, labels) as tensors, in order of precedence.
MODULES = ("torchmetrics", "torchmetrics.classification", "torchmetrics.regression", "torchmetrics.image", "torchmetrics.segmentation")

#: Directions torchmetrics leaves open (`higher_is_better = None`) though the literature does not.
DIRECTIONS = {
    "pearsoncorrcoef": True,
    "kendallrankcorrcoef": True,
    "negativepredictivevalue": True,
    "specificity": True,
    "binaryspecificity": True,
    "multiclassspecificity": True,
    "multilabelspecificity": True,
    "eer": False,
}


def of_torchmetrics(name: str) -> Metric:
    """A torchmetrics metric by its functional (`f1_score`) or class name (`F1Score`).

    Task, classes, labels, `data_range` are inferred from the reference's outputs and the labels; everything else keeps
    torchmetrics' defaults (so `f1_score` is the micro average, `multiclass_f1_score` the macro one), except that a sum over
    samples becomes a mean, since a sum grows with the size of the validation set.

    Raises:
        ConfigError: the name is unknown, or the metric has no better direction.
    """
    from edgepress.validators.metrics import POINTS, Metric

    known = _classes()
    key = _key(name)
    if key not in known:
        built_in = {"top5": "top5", "meanabsoluteerror": "mean_absolute_error", "meansquarederror": "mean_squared_error"}
        readable = {**{k: _snake(c.__name__) for k, c in known.items()}, **built_in}
        near = get_close_matches(key, readable, 1)
        hint = f"Did you mean {readable[near[0]]!r}? " if near else ""
        raise ConfigError(
            f"unknown metric {name!r}", "torchmetrics has none of that name", f"{hint}Or write your own: `metric: module:callable`."
        )
    kind = known[key]
    facts = known.get("multiclass" + key) or known.get("binary" + key) or kind
    higher = facts.higher_is_better if isinstance(facts.higher_is_better, bool) else DIRECTIONS.get(key)
    if higher is None:
        raise ConfigError(
            f"metric {name!r} cannot be judged",
            "torchmetrics does not say whether more of it is better",
            "Wrap it: `metric: module:callable` with an attribute `higher_is_better`.",
        )
    fraction = facts.plot_upper_bound == 1.0 and facts.plot_lower_bound in (0.0, -1.0)
    unit = POINTS if fraction else name

    def bind(reference: tuple[Array, ...], labels: Array) -> BoundMetric:
        return _bind(name, kind, unit, higher, reference, labels)

    return Metric(name, unit, higher, bind)


def of_callable(function: Callable[..., Any], name: str) -> Metric:
    """The user's function (outputs, labels) -> per-sample scores: a tensor, array or list of n numbers."""
    from edgepress.validators.metrics import POINTS, Metric

    higher = getattr(function, "higher_is_better", True)
    unit = getattr(function, "unit", None)
    if not isinstance(higher, bool) or not isinstance(unit, (str, type(None))):
        raise ConfigError(f"metric {name!r} has higher_is_better={higher!r}, unit={unit!r}", "", "Set a bool and a string.")

    def bind(reference: tuple[Array, ...], labels: Array) -> BoundMetric:
        return _bind_callable(function, name, unit, higher, reference, labels)

    return Metric(name, unit or POINTS, higher, bind)


def _bind_callable(
    function: Callable[..., Any], name: str, unit: str | None, higher: bool, reference: tuple[Array, ...], labels: Array
) -> BoundMetric:
    from edgepress.validators.metrics import POINTS, BoundMetric

    def scores(outputs: tuple[Array, ...]) -> Floats:
        tensors = tuple(_tensor(array) for array in outputs)
        try:
            result = function(tensors[0] if len(tensors) == 1 else tensors, _tensor(labels))
            return _numbers(result)
        except EdgepressError:
            raise
        except Exception as error:  # the user's code may raise anything; evidence is then missing, never good
            raise MeasurementError(
                f"metric {name!r} raised {type(error).__name__}", str(error), "Try it on one batch of outputs and labels."
            ) from error

    settled = BoundMetric(name, unit or POINTS, higher, len(labels), scores)
    if unit is None:
        values = settled.scores(reference)
        assert values is not None
        if values.min() < 0 or values.max() > 1:
            return BoundMetric(name, name, higher, len(labels), scores)
    return settled


def _numbers(result: Any) -> Floats:
    if hasattr(result, "detach"):
        result = result.detach().to("cpu").double().numpy()
    return np.asarray(result, dtype=np.float64)


def _bind(name: str, kind: type[Any], unit: str, higher: bool, reference: tuple[Array, ...], labels: Array) -> BoundMetric:
    from edgepress.validators.metrics import BoundMetric

    options, layout, target = _options(name, kind, reference[0], labels)
    try:
        metric = kind(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"metric {name!r} cannot be made from its name alone", str(error), "Wrap it in a callable: `metric: module:callable`."
        ) from error
    wanted = _tensor(target)

    def over(outputs: tuple[Array, ...]) -> Callable[[NDArray[np.int64]], float]:
        import torch

        predicted = _predictions(outputs[0], layout, target)

        def direct(index: NDArray[np.int64]) -> Any:
            rows = torch.from_numpy(index)
            metric.reset()
            metric.update(predicted[rows], wanted[rows])
            return metric.compute()

        compute = of_sums(metric, predicted, wanted, direct)

        def value(index: NDArray[np.int64]) -> float:
            try:
                result = compute(index)
            except (RuntimeError, TypeError, ValueError) as error:
                raise MeasurementError(f"metric {name!r} failed on {len(index)} samples", str(error)) from error
            if not isinstance(result, torch.Tensor) or result.numel() != 1:
                raise MeasurementError(f"metric {name!r} gives {_shape(result)}, a gate needs one number", "", "Wrap it in a callable.")
            return float(result)

        return value

    return BoundMetric(name, unit, higher, len(labels), None, over)


def _options(name: str, kind: type[Any], outputs: Array, labels: Array) -> tuple[dict[str, Any], Layout | None, Array]:
    """Constructor arguments, the layout of classification metrics, and the labels as the metric wants them."""
    parameters = _parameters(kind)
    options: dict[str, Any] = {}
    layout: Layout | None = None
    target: Array = labels
    if ".classification" in kind.__module__:
        layout, target = class_labels(outputs, labels, name)
        choices = {"task": layout.task, "num_classes": layout.classes, "num_labels": layout.classes, "validate_args": False}
        options = {key: value for key, value in choices.items() if key in parameters}
        if "ignore_index" in parameters and bool((target == IGNORE).any()):
            options["ignore_index"] = IGNORE
    elif "num_classes" in parameters:
        options["num_classes"] = outputs.shape[1]
    elif outputs.size == labels.size:
        target = labels.reshape(outputs.shape).astype(np.float32)
    else:
        raise ProjectError(f"metric {name!r}: outputs have shape {outputs.shape}, labels {labels.shape}", "", "Give both the same shape.")
    if "data_range" in parameters:
        options["data_range"] = float(target.max() - target.min()) or 1.0
    if "reduction" in parameters and parameters["reduction"].default == "sum":
        options["reduction"] = "mean"
    return options, layout, target


def _parameters(kind: type[Any]) -> Mapping[str, inspect.Parameter]:
    """Constructor parameters; the task-independent classes of torchmetrics carry them on `__new__`."""
    own = kind.__dict__.get("__new__")
    return inspect.signature(own.__func__ if isinstance(own, staticmethod) else own or kind.__init__).parameters


def _predictions(outputs: Array, layout: Layout | None, target: Array) -> Any:
    """Outputs as torchmetrics wants them. Logits become probabilities here, once: torchmetrics decides that anew on every
    resample, and a resample whose logits all lie in [0, 1] would be read as probabilities.
    """
    import torch

    if layout is None:
        return _tensor(np.asarray(outputs, dtype=np.float32) if outputs.dtype.kind == "f" else outputs)
    values = _tensor(np.ascontiguousarray(layout.values(outputs), dtype=np.float32))
    if not layout.logits:
        return values.clamp(0, 1)
    return torch.softmax(values, 1) if layout.task == "multiclass" else torch.sigmoid(values)


def _tensor(array: Array) -> Any:
    import torch

    return torch.from_numpy(np.array(array, copy=True))


def _shape(result: Any) -> str:
    return f"a tensor of shape {tuple(result.shape)}" if hasattr(result, "shape") else f"a {type(result).__name__}"


def _classes() -> dict[str, type[Any]]:
    """Every metric class by its name in lower case without underscores."""
    found: dict[str, type[Any]] = {}
    base = importlib.import_module("torchmetrics").Metric
    for path in MODULES:
        module = importlib.import_module(path)
        for name in module.__all__:
            kind = getattr(module, name, None)
            if inspect.isclass(kind) and issubclass(kind, base):
                found.setdefault(_key(name), kind)
    return found


def _key(name: str) -> str:
    return name.replace("_", "").lower()


def _snake(name: str) -> str:
    letters = [("_" + c.lower()) if c.isupper() and i and not name[i - 1].isupper() else c.lower() for i, c in enumerate(name)]
    return "".join(letters)
