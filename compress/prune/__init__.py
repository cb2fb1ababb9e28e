"""Structured pruning: what can be removed from a model, how much it matters, and the smaller model."""

from edgepress.compress.prune.oracle import check, masked_outputs
from edgepress.compress.prune.structure import Family, Footprint, Pinned, Structure, analyse
from edgepress.compress.prune.surgery import remove

__all__ = ["Family", "Footprint", "Pinned", "Structure", "analyse", "check", "masked_outputs", "remove"]
