"""Teachers: models, ensembles, and outputs kept on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgepress.compress.distill import CachedTeacher, EnsembleTeacher, ModuleTeacher, cache_outputs, may_cache
from edgepress.targets.errors import TrainingError
from tests.compress.distill.nets import conv, exported, images

ROWS = torch.arange(6)


class Data:
    def __init__(self, count: int) -> None:
        self._inputs = images(count)

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int, /) -> tuple[torch.Tensor, int]:
        return self._inputs[index], index % 5


def test_a_program_and_its_module_teach_the_same() -> None:
    module, inputs = conv(), images()
    outputs = [ModuleTeacher(model)([inputs], ROWS).outputs[0] for model in (module, exported(module, inputs))]
    torch.testing.assert_close(outputs[0], outputs[1])
    assert not outputs[0].requires_grad


def test_features_of_a_program_and_its_module_are_the_same() -> None:
    module, inputs = conv(), images()
    lessons = [ModuleTeacher(model, ["layer1", "layer3.1"])([inputs], ROWS) for model in (module, exported(module, inputs))]
    assert list(lessons[0].features) == ["layer1", "layer3.1"]
    for name, feature in lessons[0].features.items():
        torch.testing.assert_close(feature, lessons[1].features[name])
    assert lessons[0].features["layer1"].shape == (6, 8, 8, 8)


def test_an_ensemble_averages_probabilities_or_logits() -> None:
    members = [ModuleTeacher(conv(seed=seed)) for seed in (1, 2)]
    inputs = [images()]
    a, b = (member(inputs, ROWS).outputs[0] for member in members)
    mean = EnsembleTeacher(members)(inputs, ROWS).outputs[0]
    torch.testing.assert_close(mean.exp(), (a.softmax(1) + b.softmax(1)) / 2)
    torch.testing.assert_close(EnsembleTeacher(members, "logits")(inputs, ROWS).outputs[0], (a + b) / 2)


def test_an_ensemble_of_different_tasks_names_both_shapes() -> None:
    ensemble = EnsembleTeacher([ModuleTeacher(conv()), ModuleTeacher(conv(classes=7))])
    with pytest.raises(TrainingError, match=r"teacher 2 .*\(6, 7\).* teacher 1 .*\(6, 5\)"):
        ensemble([images()], ROWS)
    with pytest.raises(TrainingError, match="probabilities, logits"):
        EnsembleTeacher([ModuleTeacher(conv())], "median")
    with pytest.raises(TrainingError, match="no members"):
        EnsembleTeacher([])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_kept_outputs_are_found_by_row(tmp_path: Path, dtype: str, tolerance: float) -> None:
    teacher, data = ModuleTeacher(conv()), Data(11)
    cached = cache_outputs(teacher, data, tmp_path / "outputs", batch=4, dtype=dtype)
    rows = torch.tensor([9, 0, 10])
    inputs = torch.stack([data[int(row)][0] for row in rows])
    expected = teacher([inputs], rows).outputs[0]
    for source in (cached, CachedTeacher(tmp_path / "outputs")):
        got = source([inputs], rows).outputs[0]
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    assert np.load(tmp_path / "outputs" / "output_0.npy").dtype == dtype


def test_rows_that_were_not_kept_are_an_error(tmp_path: Path) -> None:
    cached = cache_outputs(ModuleTeacher(conv()), Data(3), tmp_path)
    with pytest.raises(TrainingError, match=r"3 samples, row 3 .*other data"):
        cached([images(1)], torch.tensor([3]))


def test_what_cannot_be_kept_says_why(tmp_path: Path) -> None:
    loud = conv()
    with torch.no_grad():
        loud.head.weight.mul_(1e8)
    with pytest.raises(TrainingError, match=r"no float16.*Keep them as float32"):
        cache_outputs(ModuleTeacher(loud), Data(3), tmp_path)
    with pytest.raises(TrainingError, match="int8"):
        cache_outputs(ModuleTeacher(conv()), Data(3), tmp_path, dtype="int8")
    with pytest.raises(TrainingError, match="no samples"):
        cache_outputs(ModuleTeacher(conv()), Data(0), tmp_path)
    with pytest.raises(TrainingError, match=r"output_0\.npy"):
        CachedTeacher(tmp_path / "nowhere")


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    cache_outputs(ModuleTeacher(conv()), Data(3), tmp_path)
    path = tmp_path / "output_0.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(TrainingError, match="Compute them again"):
        CachedTeacher(tmp_path)


def test_outputs_may_be_kept_only_without_augmentation_and_features() -> None:
    assert may_cache((), ())
    assert not may_cache(("flip",), ())
    assert not may_cache((), ("layer1",))


def test_a_feature_is_what_the_layer_gave_even_where_the_next_one_writes_in_place() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True)).eval()
    with torch.no_grad():
        expected = module[0](images())
    for model in (module, exported(module, images())):
        feature = ModuleTeacher(model, ["0"])([images()], ROWS).features["0"]
        torch.testing.assert_close(feature, expected)
