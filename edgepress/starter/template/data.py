"""Your data: torch Datasets whose items are (input, label), or ((input_1, input_2), label) where the model takes several inputs.

Inputs are tensors without a batch dimension, preprocessed as the model expects them, all of one shape.
"""

from typing import Any

from torch.utils.data import Dataset


def train() -> Dataset[Any]:
    """Return the training data; calibration samples are drawn from it."""
    raise NotImplementedError("return your training Dataset from train() in data.py")


def validation() -> Dataset[Any]:
    """Return data the model has never seen; every verdict is taken on all of it."""
    raise NotImplementedError("return your validation Dataset from validation() in data.py")
