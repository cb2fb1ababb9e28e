"""From the user's Dataset to dense arrays: one .npy per input and one for the labels, written as samples are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from edgepress.compress.project.usercode import call_user, load_callable, user_error
from edgepress.targets.errors import EdgepressError, ProjectError
from edgepress.targets.progress import progress

#: dtypes a model input may have in an artifact.
INPUT_DTYPES = ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")
_EXAMPLE = "Yield ((input_1, input_2), label) or (input, label), each input a tensor, an array or a number."


@dataclass(frozen=True)
class Sample:
    """One item of a dataset: its inputs and its label as arrays without a batch dimension."""

    inputs: tuple[np.ndarray, ...]
    label: np.ndarray


def open_dataset(spec: str, root: Path) -> Any:
    """Call the user's function and check that what it returns can be read sample by sample.

    Raises:
        ProjectError: the function is not found, raises, or returns something else than a Dataset of single samples.
    """
    dataset = call_user(spec, load_callable(spec, root), root)
    if isinstance(dataset, DataLoader):
        raise ProjectError(
            f"{spec!r} returned a DataLoader", "edgepress makes its own batches", "Return its dataset: `return loader.dataset`."
        )
    if isinstance(dataset, IterableDataset) or (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        return dataset
    raise ProjectError(
        f"{spec!r} returned {type(dataset).__name__}", "a torch Dataset is needed", "Give it `__len__` and `__getitem__`, or `__iter__`."
    )


def length(spec: str, dataset: Any, root: Path) -> int | None:
    """Number of samples; None for an IterableDataset, whose length shows at its end.

    Raises:
        ProjectError: there is none, or `__len__` raises.
    """
    if isinstance(dataset, IterableDataset):
        return None
    try:
        count = len(dataset)
    except Exception as error:  # the user's own __len__
        raise user_error(f"{spec!r}: len(dataset) failed", error, root) from error
    if count == 0:
        raise _empty(spec)
    return count


def samples(spec: str, dataset: Any, root: Path, indices: Sequence[int] | None, casts: Sequence[str | None]) -> Iterator[Sample]:
    """Read a dataset, only at `indices` where it can be indexed, in their order.

    Args:
        spec: for messages.
        dataset: map-style or iterable.
        root: the user's folder, for messages.
        indices: which samples, ascending; None for all.
        casts: for each input the dtype it is converted to, or None.

    Raises:
        ProjectError: an item has the wrong form or a value is not finite; the message names its index.
    """
    if isinstance(dataset, IterableDataset):
        for index, item in _walk(spec, dataset, root, indices):
            yield _sample(f"{spec!r}: sample {index}", item, casts)
    else:
        for index in range(len(dataset)) if indices is None else indices:
            yield read_sample(spec, dataset, root, index, casts)


def read_sample(spec: str, dataset: Any, root: Path, index: int, casts: Sequence[str | None]) -> Sample:
    """One sample of a map-style dataset; see `samples`."""
    try:
        item = dataset[index]
    except Exception as error:  # the user's own __getitem__
        raise user_error(f"{spec!r}: reading sample {index} failed", error, root) from error
    return _sample(f"{spec!r}: sample {index}", item, casts)


def write_samples(found: Iterable[Sample], count: int | None, folder: Path, spec: str) -> int:
    """Write `input_0.npy …` and `labels.npy`, dimension 0 the sample, in the order given.

    With a known count nothing but one sample is held in memory.

    Returns:
        The number of samples.

    Raises:
        ProjectError: there is no sample, or shapes or dtypes differ between two samples (both are named).
    """
    folder.mkdir(parents=True, exist_ok=True)
    if count is None:
        found = list(found)
        count = len(found)
    arrays: list[np.ndarray] = []
    names: list[str] = []
    number = -1
    for number, sample in enumerate(found):
        values = (*sample.inputs, sample.label)
        if not arrays:
            names = [*(f"input_{i}" for i in range(len(sample.inputs))), "labels"]
            arrays = [_create(folder / f"{name}.npy", value, count) for name, value in zip(names, values, strict=True)]
        _same_form(spec, number, names, values, arrays)
        for array, value in zip(arrays, values, strict=True):
            array[number] = value
        if number % 256 == 0:
            progress(f"reading {folder.name} samples", number, count)
    if number < 0:
        raise _empty(spec)
    return number + 1


def _walk(spec: str, dataset: Any, root: Path, indices: Sequence[int] | None) -> Iterator[tuple[int, Any]]:
    wanted = None if indices is None else set(indices)
    last = None if indices is None or not indices else max(indices)
    iterator = iter(dataset)
    index = 0
    while last is None or index <= last:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # the user's own __iter__
            raise user_error(f"{spec!r}: reading sample {index} failed", error, root) from error
        if wanted is None or index in wanted:
            yield index, item
        index += 1


def _sample(what: str, item: Any, casts: Sequence[str | None]) -> Sample:
    for named, mapping in ((what, item), (f"{what}, input", item[0] if isinstance(item, tuple | list) and item else None)):
        if isinstance(mapping, Mapping):
            keys = ", ".join(map(repr, list(mapping)[:5]))
            raise ProjectError(f"{named} is a dictionary with {keys}", "the order of its inputs is unknown", _EXAMPLE)
    if not isinstance(item, tuple | list) or len(item) != 2:
        form = f"a {type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(item).__name__
        raise ProjectError(f"{what} is {form}", "an (input, label) pair is needed", _EXAMPLE)
    given, label = item
    parts = tuple(given) if isinstance(given, tuple | list) else (given,)
    if not parts:
        raise ProjectError(f"{what} has no input", "its tuple of inputs is empty", _EXAMPLE)
    if casts and len(casts) != len(parts):
        raise ProjectError(f"{what} has {len(parts)} inputs", f"`model.inputs` lists {len(casts)}", "List every input, in order.")
    wanted = casts or [None] * len(parts)
    inputs = tuple(_input(f"{what}, input {i}", part, cast) for i, (part, cast) in enumerate(zip(parts, wanted, strict=True)))
    return Sample(inputs, _label(f"{what}, label", label))


def _array(what: str, value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.dtype == torch.bfloat16:
            value = value.float()
        array: np.ndarray = value.numpy()
        return array
    if isinstance(value, np.ndarray | np.generic | int | float):
        return np.asarray(value)
    raise ProjectError(f"{what} is {type(value).__name__}", "a tensor, an array or a number is needed", _EXAMPLE)


def _input(what: str, value: Any, cast: str | None) -> np.ndarray:
    array = _array(what, value)
    if isinstance(value, float):
        array = array.astype(np.float32)
    if cast is not None:
        array = array.astype(cast)
    if array.dtype.name not in INPUT_DTYPES:
        advice = "Return it as float32 (`x.float()`)" if array.dtype.kind == "f" else f"Return one of {', '.join(INPUT_DTYPES)}"
        raise ProjectError(
            f"{what} is {array.dtype}", "no target takes that dtype", f"{advice}, or set `model.inputs: [{{dtype: float32}}]`."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = array.size - int(np.isfinite(array).sum())
        raise ProjectError(f"{what} has {count} NaN or infinite of {array.size} values", "", "Clean the data.")
    return array


def _label(what: str, value: Any) -> np.ndarray:
    array = _array(what, value)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ProjectError(f"{what} is NaN or infinite", "", "Clean the labels.")
        return array.astype(np.float32)
    if array.dtype.kind not in "iub":
        raise ProjectError(f"{what} is {array.dtype}", "labels are integers or floats", "Convert it.")
    return array.astype(np.int64)


def _create(path: Path, value: np.ndarray, count: int) -> np.ndarray:
    opened: np.ndarray = np.lib.format.open_memmap(path, mode="w+", dtype=value.dtype, shape=(count, *value.shape))
    return opened


def _same_form(spec: str, number: int, names: list[str], values: Sequence[np.ndarray], arrays: list[np.ndarray]) -> None:
    if len(values) != len(arrays):
        raise ProjectError(
            f"{spec!r}: sample {number} has {len(values) - 1} inputs", f"sample 0 has {len(arrays) - 1}", "Yield the same number."
        )
    for name, value, array in zip(names, values, arrays, strict=True):
        if value.shape != array.shape[1:]:
            raise ProjectError(
                f"{spec!r}: {name} of sample {number} has shape {value.shape}",
                f"that of sample 0 has {array.shape[1:]}",
                "Resize or pad every sample to one shape.",
            )
        if value.dtype != array.dtype:
            raise ProjectError(
                f"{spec!r}: {name} of sample {number} is {value.dtype}", f"that of sample 0 is {array.dtype}", "Yield one dtype."
            )


def _empty(spec: str) -> EdgepressError:
    return ProjectError(f"{spec!r} has no samples", "the dataset is empty", "Check paths and splits in your data code.")
