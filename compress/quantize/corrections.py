"""Weights and biases that accuracy algorithms chose for one runtime, put into its rendering."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import WEIGHT_SCALE, constant, new_constant, set_attribute


def apply_corrections(module: GraphModule, layers: Iterable[Node], corrections: Mapping[str, np.ndarray]) -> None:
    """Replace weights and biases in place.

    Args:
        module: the graph of a rendering, before its weights are observed.
        layers: its ops that compute in integers; what stays float keeps its float weights.
        corrections: `<node>.weight` with `<node>.scale`, or `<node>.bias` -> float32 array. Weights lie on the grid of the rules they
            were chosen for, whose steps are of that scale.
    """
    for node in list(layers):
        weight, bias = (corrections.get(f"{node.name}.{part}") for part in ("weight", "bias"))
        if weight is not None:
            set_attribute(module, str(node.args[1].target), _tensor(weight))
            node.meta[WEIGHT_SCALE] = _tensor(corrections[f"{node.name}.scale"])
        if bias is not None:
            _set_bias(module, node, _tensor(bias))


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def _set_bias(module: GraphModule, node: Node, bias: torch.Tensor) -> None:
    held = node.args[2] if len(node.args) > 2 else None
    if held is not None and constant(module, held) is not None:
        set_attribute(module, str(held.target), bias)
        return
    with module.graph.inserting_before(node):
        made = new_constant(module, f"{node.name}_bias", bias, node)
    node.args = (*node.args[:2], made, *node.args[3:])
