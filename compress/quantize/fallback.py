"""Which layers go back to float first when the integers of all of them cost too much."""

from __future__ import annotations

from collections.abc import Sequence

from edgepress.compress.quantize.sensitivity import Sensitivity


def ranked(layers: Sequence[Sensitivity]) -> list[Sensitivity]:
    """Layers whose float arithmetic buys the most for what it costs first.

    The cost is the layer's share of multiply-accumulates and, for every layer alike, one share of their number: what leaving the
    integers and coming back costs, whatever is computed between.
    """
    each = 1 / max(len(layers), 1)
    return sorted(layers, key=lambda layer: (-layer.noise / (layer.macs_share + each), layer.node))
