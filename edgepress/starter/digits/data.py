"""Scikit-learn's 1,797 handwritten digits: half to learn from, half to judge on, both halves with every digit equally often."""

from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import TensorDataset


@cache
def _halves() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0  # 0 … 1
    images = F.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    images = (images - 0.305) / 0.33  # mean and standard deviation of the training half
    labels = torch.tensor(digits.target, dtype=torch.int64)
    learn, judge = train_test_split(range(len(labels)), test_size=900, random_state=0, stratify=digits.target)
    return images[learn], labels[learn], images[judge], labels[judge]


def train() -> TensorDataset:
    """897 (image 1x16x16 float32, label int64) pairs; calibration samples are drawn from these."""
    images, labels, _, _ = _halves()
    return TensorDataset(images, labels)


def validation() -> TensorDataset:
    """900 pairs the model has never seen; every verdict is taken on these."""
    _, _, images, labels = _halves()
    return TensorDataset(images, labels)
