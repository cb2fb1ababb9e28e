from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepress.compress.project.collect import Shares, collect_data, draw
from edgepress.compress.project.dataset import open_dataset, samples, write_samples
from edgepress.compress.project.steps import collect
from edgepress.targets.errors import ProjectError

from .conftest import Write

GOOD = """
    import numpy as np
    import torch
    from torch.utils.data import Dataset, DataLoader, IterableDataset, TensorDataset

    read = []

    class Squares(Dataset):
        def __init__(self, count): self.count = count
        def __len__(self): return self.count
        def __getitem__(self, i):
            read.append(i)
            return torch.full((2,), float(i)), i % 3

    class Stream(IterableDataset):
        def __iter__(self):
            for i in range(20):
                yield torch.full((2,), float(i)), i % 3

    class Noisy(Squares):
        def __getitem__(self, i): return torch.randn(3) + np.random.rand() , 0

    def train(): return Squares(40)
    def validation(): return Squares(10)
    def stream(): return Stream()
    def noisy(): return Noisy(30)
    def pairs(): return [(([1, 2][i % 2], np.arange(3), torch.tensor(2.5)), 1.5) for i in range(9)]
"""


def spec(root: Path, name: str, casts: list[str | None] | None = None) -> Any:
    dataset = open_dataset(f"data:{name}", root)
    return list(samples(f"data:{name}", dataset, root, None, casts or []))


def gathered(root: Path, train: str, validation: str, shares: Shares, out: Path) -> dict[str, Any]:
    return collect_data(root, {"train": f"data:{train}", "validation": f"data:{validation}"}, shares, [], out)


def test_shares_are_disjoint_drawn_by_seed_and_only_drawn_samples_are_read(write: Write, tmp_path: Path) -> None:
    root, out = write("data.py", GOOD), tmp_path / "out"
    facts = gathered(root, "train", "validation", Shares(5, 7, seed=3), out)
    assert facts["counts"] == {"validation": 10, "calibration": 5, "selection": 7} and facts["train_samples"] == 40
    assert facts["inputs"] == [{"dtype": "float32", "shape": [2]}] and facts["labels"] == {"dtype": "int64", "shape": []}
    first, second = (np.load(out / share / "input_0.npy")[:, 0].astype(int).tolist() for share in ("calibration", "selection"))
    assert set(first).isdisjoint(second) and first == sorted(first)
    assert np.load(out / "selection" / "labels.npy").tolist() == [i % 3 for i in second]
    import data  # type: ignore[import-not-found]

    assert sorted(data.read) == sorted([*range(10), *first, *second])
    assert draw(40, Shares(5, 7, seed=4))["calibration"] != first


def test_an_iterable_dataset_is_walked_through(write: Write, tmp_path: Path) -> None:
    root = write("data.py", GOOD)
    facts = gathered(root, "stream", "stream", Shares(4, 4), tmp_path / "out")
    assert facts["counts"] == {"validation": 20, "calibration": 4, "selection": 4} and facts["train_samples"] == 20
    drawn = draw(20, Shares(4, 4))
    assert np.load(tmp_path / "out" / "calibration" / "input_0.npy")[:, 1].tolist() == drawn["calibration"]


def test_random_augmentation_repeats(write: Write, tmp_path: Path) -> None:
    root = write("data.py", GOOD)
    for name in ("one", "two"):
        gathered(root, "noisy", "noisy", Shares(4, 4), tmp_path / name)
    for share in ("validation", "calibration", "selection"):
        files = [(tmp_path / name / share / "input_0.npy").read_bytes() for name in ("one", "two")]
        assert files[0] == files[1]


def test_numbers_arrays_and_tensors_are_inputs_and_floats_are_labels(write: Write, tmp_path: Path) -> None:
    root = write("data.py", GOOD)
    assert write_samples(spec(root, "pairs"), 9, tmp_path / "x", "data:pairs") == 9
    arrays = [np.load(tmp_path / "x" / f"input_{i}.npy") for i in range(3)]
    assert [(a.dtype.name, a.shape) for a in arrays] == [("int64", (9,)), ("int64", (9, 3)), ("float32", (9,))]
    assert np.load(tmp_path / "x" / "labels.npy").dtype == np.float32


def test_the_recipe_may_convert_an_input(write: Write) -> None:
    root = write("data.py", GOOD)
    assert [a.dtype.name for a in spec(root, "pairs", ["int32", None, "float16"])[0].inputs] == ["int32", "int64", "float16"]
    with pytest.raises(ProjectError, match=r"sample 0 has 3 inputs: `model\.inputs` lists 1"):
        spec(root, "pairs", ["int32"])


BAD = """
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset, TensorDataset

    def zeros(*shape): return torch.zeros(*shape)
    def loader(): return DataLoader(TensorDataset(zeros(3, 2), zeros(3)))
    def nothing(): pass
    def generator(): return (i for i in range(3))
    def empty(): return []
    def unlabelled(): return TensorDataset(zeros(3, 2))
    def triple(): return TensorDataset(zeros(3, 2), zeros(3), zeros(3))
    def mapping(): return [{"input_ids": zeros(3), "labels": 1}]
    def inner(): return [({"ids": zeros(3)}, 1)]
    def text(): return [("a sentence", 1)]
    def none(): return [((), 1)]
    def double(): return [(zeros(2).double(), 1)]
    def complex_(): return [(zeros(2).to(torch.complex64), 1)]
    def nan(): return [(zeros(2), 1), (zeros(2) / 0, 1)]
    def nan_label(): return [(zeros(2), float("nan"))]
    def word_label(): return [(zeros(2), "cat")]
    def ragged(): return [(zeros(2), 1), (zeros(2), 1), (zeros(3), 1)]
    def mixed(): return [(zeros(2), 1), (zeros(2).long(), 1)]
    def varying(): return [(zeros(2), 1), ((zeros(2), zeros(2)), 1)]
    class Raises(Dataset):
        def __len__(self): return 3
        def __getitem__(self, i): return self.rows[i]
    def raises(): return Raises()
    class NoLength(Raises):
        def __len__(self): return len(self.rows)
    def no_length(): return NoLength()
"""


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("loader", "'data:loader' returned a DataLoader: edgepress makes its own batches. Return its dataset"),
        ("nothing", "'data:nothing' returned NoneType: a torch Dataset is needed"),
        ("generator", "'data:generator' returned generator"),
        ("empty", "'data:empty' has no samples: the dataset is empty"),
        ("unlabelled", "sample 0 is a tuple of 1: an (input, label) pair is needed. Yield ((input_1, input_2), label)"),
        ("triple", "sample 0 is a tuple of 3"),
        ("mapping", "sample 0 is a dictionary with 'input_ids', 'labels': the order of its inputs is unknown"),
        ("inner", "sample 0, input is a dictionary with 'ids': the order of its inputs is unknown"),
        ("text", "sample 0, input 0 is str"),
        ("none", "sample 0 has no input"),
        ("double", "sample 0, input 0 is float64: no target takes that dtype. Return it as float32 (`x.float()`), or set `model.inputs"),
        ("complex_", "sample 0, input 0 is complex64"),
        ("nan", "sample 1, input 0 has 2 NaN or infinite of 2 values"),
        ("nan_label", "sample 0, label is NaN"),
        ("word_label", "sample 0, label is str"),
        ("ragged", "input_0 of sample 2 has shape (3,): that of sample 0 has (2,). Resize or pad"),
        ("mixed", "input_0 of sample 1 is int64: that of sample 0 is float32"),
        ("varying", "sample 1 has 2 inputs: sample 0 has 1"),
        ("raises", "reading sample 0 failed at data.py:27: AttributeError"),
        ("no_length", "len(dataset) failed at data.py:30: AttributeError"),
    ],
)
def test_data_that_cannot_be_used_names_the_sample_and_what_to_yield(write: Write, tmp_path: Path, name: str, fragment: str) -> None:
    root = write("data.py", BAD)
    with pytest.raises(ProjectError) as caught:
        gathered(root, name, name, Shares(), tmp_path / "out")
    assert fragment in str(caught.value)


def test_train_and_validation_must_have_one_form(write: Write, tmp_path: Path) -> None:
    root = write("data.py", GOOD)
    with pytest.raises(ProjectError, match=r"'data:train' and 'data:noisy' differ: inputs are float32\(2,\) and float32\(3,\)"):
        gathered(root, "train", "noisy", Shares(4, 4), tmp_path / "out")


@pytest.mark.parametrize("total", [2, 3, 10, 100, 1023])
def test_default_shares_shrink_with_the_data(total: int) -> None:
    drawn = draw(total, Shares())
    assert sum(map(len, drawn.values())) == total and min(map(len, drawn.values())) >= 1
    assert abs(len(drawn["calibration"]) - len(drawn["selection"])) <= 1


def test_a_number_the_user_asked_for_is_kept_or_refused() -> None:
    drawn = draw(100, Shares(calibration=90, exact=frozenset({"calibration"})))
    assert (len(drawn["calibration"]), len(drawn["selection"])) == (90, 10)
    with pytest.raises(
        ProjectError, match=r"the training data has 80 samples: data\.calibration\.samples: 90 \+ data\.calibration\.selection: 512"
    ):
        draw(80, Shares(calibration=90, exact=frozenset({"calibration"})))
    with pytest.raises(ProjectError, match="has 1 samples"):
        draw(1, Shares())


def test_the_step_takes_what_the_recipe_says(write: Write, tmp_path: Path) -> None:
    root = write("data.py", GOOD)
    params = {
        "root": str(root),
        "train": "data:train",
        "validation": "data:validation",
        "model_inputs": [{"name": None, "dtype": "float16"}],
    }
    facts = collect(
        params | {"calibration": {"samples": 30, "selection": 512, "seed": 0}, "exact": ["samples"], "seed": 0}, tmp_path / "out"
    )
    assert facts["counts"] == {"validation": 10, "calibration": 30, "selection": 10}
    assert facts["inputs"][0]["dtype"] == "float16"
