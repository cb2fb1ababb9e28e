import sys
from subprocess import run

import numpy as np
import pytest
import torch
import torchmetrics.functional as F

from edgepress.targets.errors import ConfigError, MeasurementError, ProjectError
from edgepress.validators.metrics import metric_of

RNG = np.random.default_rng(0)


def tensors(*arrays):
    return tuple(torch.from_numpy(a) for a in arrays)


def test_accuracy_equals_torchmetrics_on_logits():
    outputs, labels = RNG.normal(size=(200, 7)).astype(np.float32), RNG.integers(0, 7, 200)
    expected = F.accuracy(*tensors(outputs, labels), task="multiclass", num_classes=7)
    assert metric_of("accuracy").value(outputs, labels) == pytest.approx(float(expected), abs=1e-6)


def test_accuracy_equals_torchmetrics_on_dense_outputs_and_class_last_outputs():
    outputs, labels = RNG.normal(size=(20, 5, 4, 3)).astype(np.float32), RNG.integers(0, 5, (20, 4, 3))
    expected = float(F.accuracy(*tensors(outputs, labels), task="multiclass", num_classes=5))
    assert metric_of("accuracy").value(outputs, labels) == pytest.approx(expected, abs=1e-6)
    assert metric_of("accuracy").value(np.moveaxis(outputs, 1, -1), labels) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(200,), (200, 1)])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_accuracy_equals_torchmetrics_on_binary_outputs(shape, kind):
    outputs = RNG.normal(size=shape).astype(np.float32)
    outputs = 1 / (1 + np.exp(-outputs)) if kind == "probabilities" else outputs
    labels = RNG.integers(0, 2, 200)
    expected = float(F.accuracy(torch.from_numpy(outputs.reshape(200)), torch.from_numpy(labels), task="binary"))
    assert metric_of("accuracy").value(outputs, labels) == pytest.approx(expected, abs=1e-6)
    assert metric_of("accuracy").value(outputs, labels.astype(np.float32)) == pytest.approx(expected, abs=1e-6)


def test_accuracy_equals_torchmetrics_on_multilabel_outputs():
    outputs, labels = RNG.normal(size=(100, 6)).astype(np.float32), RNG.integers(0, 2, (100, 6))
    expected = F.accuracy(*tensors(outputs, labels), task="multilabel", num_labels=6, average="micro")
    assert metric_of("accuracy").value(outputs, labels) == pytest.approx(float(expected), abs=1e-6)


def test_top5_equals_torchmetrics():
    outputs, labels = RNG.normal(size=(300, 20)).astype(np.float32), RNG.integers(0, 20, 300)
    expected = F.accuracy(*tensors(outputs, labels), task="multiclass", num_classes=20, top_k=5, average="micro")
    assert metric_of("top5").value(outputs, labels) == pytest.approx(float(expected), abs=1e-6)


def test_a_constant_model_is_not_right_in_top5():
    labels = RNG.integers(0, 20, 2000)
    assert metric_of("top5").value(np.zeros((2000, 20), np.float32), labels) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("name", ["mean_absolute_error", "mean_squared_error"])
def test_errors_equal_torchmetrics(name):
    outputs, labels = RNG.normal(size=(50, 3)).astype(np.float32), RNG.normal(size=(50, 3)).astype(np.float32)
    metric = metric_of(name)
    assert metric.value(outputs, labels) == pytest.approx(float(getattr(F, name)(*tensors(outputs, labels))), abs=1e-6)
    assert metric.unit == name and not metric.higher_is_better
    assert metric.value(outputs[:, :1], labels[:, 0]) >= 0  # (n, 1) against (n,) is one number per sample


def test_ignored_positions_do_not_count():
    outputs, labels = np.zeros((2, 3, 2), np.float32), np.array([[0, -100], [1, 0]])
    assert metric_of("accuracy").scores(outputs, labels).tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0, 1, 9, 2]), ["9", "sample 2", "0..2"]),
        (np.array([0, -1, 1, 2]), ["-1", "sample 1"]),
        (np.array([0.0, 0.5, 1.0, 2.0]), ["position 1", "0.5"]),
        (np.array(["a", "b", "c", "d"]), ["<U1"]),
        (np.array([0, -100, 1, 2]), ["sample 1", "-100"]),
        (np.zeros((4, 9), np.int64), ["(4, 3)", "(4, 9)"]),
        (np.zeros((0,), np.int64), ["no samples"]),
        (np.array([0, 1, 2]), ["4", "3"]),
    ],
)
def test_labels_that_cannot_be_scored_are_named(labels, words):
    with pytest.raises(ProjectError) as caught:
        metric_of("accuracy").value(np.zeros((4, 3), np.float32), labels)
    assert all(word in str(caught.value) for word in words)


def test_nan_outputs_are_an_error_that_counts_the_samples():
    outputs = np.zeros((4, 3), np.float32)
    outputs[2, 1] = np.nan
    for name in ("accuracy", "mean_squared_error", "f1_score"):
        labels = np.zeros((4, 3), np.float32) if name == "mean_squared_error" else np.zeros(4, np.int64)
        with pytest.raises(MeasurementError, match="1 of 4 samples, first on sample 2"):
            metric_of(name).value(outputs, labels)


def test_infinite_error_is_no_score():
    with pytest.raises(MeasurementError, match="sample 1"):
        metric_of("mean_squared_error").value(np.array([1.0, np.inf]), np.array([1.0, 1.0]))


def test_the_reference_settles_whether_outputs_are_logits():
    """A candidate whose logits all fall into [0, 1] is not read as one that gives probabilities."""
    labels = np.array([1, 0, 1, 0])
    reference, candidate = np.array([3.0, -2.0, 4.0, -1.0]), np.array([0.3, 0.1, 0.2, 0.4])
    assert metric_of("accuracy").bind(reference, labels).scores(candidate).tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("f1_score", {}),
        ("auroc", {}),
        ("multiclass_f1_score", {}),
        ("cohen_kappa", {}),
        ("calibration_error", {}),
        ("matthews_corrcoef", {}),
    ],
)
def test_torchmetrics_classification_by_name(name, options):
    outputs, labels = RNG.normal(size=(120, 4)).astype(np.float32), RNG.integers(0, 4, 120)
    function = {"multiclass_f1_score": F.classification.multiclass_f1_score}.get(name) or getattr(F, name)
    task = {} if name.startswith("multiclass") else {"task": "multiclass"}
    metric = metric_of(name)
    assert metric.value(outputs, labels) == pytest.approx(float(function(*tensors(outputs, labels), num_classes=4, **task)), abs=1e-5)
    assert metric.scores(outputs, labels) is None
    assert metric.unit == "pp" and metric.higher_is_better == (name != "calibration_error")


def test_torchmetrics_binary_task_is_inferred():
    outputs, labels = RNG.normal(size=(120, 1)).astype(np.float32), RNG.integers(0, 2, 120)
    expected = F.auroc(torch.sigmoid(torch.from_numpy(outputs[:, 0])), torch.from_numpy(labels), task="binary")
    assert metric_of("AUROC").value(outputs, labels) == pytest.approx(float(expected), abs=1e-6)


def test_torchmetrics_regression_and_images_by_name():
    outputs, labels = RNG.normal(size=(60,)).astype(np.float32), RNG.normal(size=(60,)).astype(np.float32)
    for name in ("spearman_corrcoef", "pearson_corrcoef", "r2_score"):
        metric = metric_of(name)
        assert metric.value(outputs[:, None], labels) == pytest.approx(float(getattr(F, name)(*tensors(outputs, labels))), abs=1e-5)
        assert metric.higher_is_better
    images, truth = RNG.random((8, 3, 12, 12)).astype(np.float32), RNG.random((8, 3, 12, 12)).astype(np.float32)
    expected = F.image.peak_signal_noise_ratio(*tensors(images, truth), data_range=float(np.ptp(truth)))
    metric = metric_of("peak_signal_noise_ratio")
    assert metric.value(images, truth) == pytest.approx(float(expected), abs=1e-4)
    assert metric.unit == "peak_signal_noise_ratio"


def test_cosine_similarity_does_not_grow_with_the_number_of_samples():
    vectors = RNG.normal(size=(40, 8)).astype(np.float32)
    assert metric_of("cosine_similarity").value(vectors, vectors) == pytest.approx(1.0, abs=1e-5)


def test_unknown_names_get_the_nearest():
    with pytest.raises(ConfigError, match="'f1_score'"):
        metric_of("f1_scor")
    with pytest.raises(ConfigError, match="'accuracy'"):
        metric_of("acuracy")


def test_a_torchmetrics_name_without_one_number_is_refused():
    with pytest.raises((ConfigError, MeasurementError)):
        metric_of("confusion_matrix").value(np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0]))


def test_a_callable_gets_tensors_and_gives_scores():
    def half(outputs, labels):
        assert isinstance(outputs, torch.Tensor) and isinstance(labels, torch.Tensor)
        return (outputs.argmax(1) == labels).float() / 2

    metric = metric_of(half)
    assert (metric.name, metric.unit, metric.higher_is_better) == ("half", "pp", True)
    assert metric.value(np.eye(3, dtype=np.float32), np.arange(3)) == 0.5


def test_a_callable_gets_a_tuple_of_several_outputs():
    metric = metric_of(lambda outputs, labels: [float(a + b) for a, b in zip(*outputs, strict=True)], name="sum")
    assert metric.value({"a": np.array([0.25]), "b": np.array([0.5])}, np.array([0])) == 0.75


def test_a_callable_says_its_direction_and_unit():
    def loss(outputs, labels):
        return outputs[:, 0] * 7

    loss.higher_is_better = False
    assert metric_of(loss).bind(np.ones((4, 1), np.float32), np.zeros(4)).unit == "loss"
    loss.unit = "points"
    assert metric_of(loss).unit == "points" and not metric_of(loss).higher_is_better


def wrong_length(outputs, labels):
    return outputs[:-1, 0]


def nan(outputs, labels):
    return outputs[:, 0] * float("nan")


def scalar(outputs, labels):
    return 0.9


def raising(outputs, labels):
    raise KeyError("boxes")


def text(outputs, labels):
    return ["good"] * len(outputs)


@pytest.mark.parametrize("function", [wrong_length, nan, scalar, raising, text])
def test_a_callable_that_goes_wrong_is_a_measurement_error_with_its_name(function):
    with pytest.raises(MeasurementError, match=function.__name__):
        metric_of(function).value(np.ones((4, 2), np.float32), np.zeros(4))


def test_importing_the_validators_loads_numpy_alone():
    modules = ["accuracy", "gates", "latency", "memory", "metrics", "parity", "percentiles"]
    code = "import sys;" + "".join(f"import edgepress.validators.{m};" for m in modules)
    code += "print([m for m in ('torch', 'scipy', 'torchmetrics', 'onnxruntime') if m in sys.modules])"
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
