"""What integer kernels of x86 CPUs without VNNI make of weights: two neighbouring products are added in 16 bits, which saturate."""

from __future__ import annotations

import numpy as np


def saturates(rows: np.ndarray) -> bool:
    """Do two neighbouring products exceed 16 bits for some activations between 0 and 255?

    Args:
        rows: integers (outputs, inputs) in the order in which a kernel adds their products.
    """
    pairs = np.pad(rows.astype(int), ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
    return bool((255 * pairs.clip(min=0).sum(-1) > 32767).any() or (255 * pairs.clip(max=0).sum(-1) < -32768).any())
