"""What the target is, and what its runtime computes in integers."""

from __future__ import annotations

from edgepress.targets.catalog import CatalogEntry
from edgepress.targets.rules import QuantRules

TARGET = CatalogEntry("numpy", "numpy", "anything that runs NumPy", ".npz")

RULES = QuantRules(
    runtime="numpy",
    activation_dtype="int8",
    activation_symmetric=False,
    activation_min=-128,
    activation_max=127,
    placement=frozenset({"conv", "linear", "add"}),
    precisions=("fp32", "int8", "int8-weights"),
    ladder=("static", "weights"),
)
