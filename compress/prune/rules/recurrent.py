"""Recurrent layers."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from edgepress.compress.prune.axes import Dim, Dims, Misfit, size_of
from edgepress.compress.prune.flow import Flow, call_of
from edgepress.compress.prune.rules.registry import rule

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*_GATES)
def recurrent(flow: Flow, node: Node) -> list[Dims]:
    """x (time, batch, in) or batch first, states (layers * directions, batch, H), weights (gates * H, in) and (gates * H, H).

    Gates stay; all layers and directions lose the same hidden features, for they share the states' last dimension.
    """
    call = call_of(node)
    if "batch_sizes" in call:
        raise Misfit("packed sequences")
    name = node.target.overloadpacket.__name__
    x = flow.of(call["input"])
    states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    hidden: Dim = ()
    for state in states:
        dims = flow.of(state)
        hidden = flow.space.unify(hidden, dims[-1]) if hidden else dims[-1]
        flow.pin(node, [dims[0]], "a state for each layer and direction")
    directions = 2 if call["bidirectional"] else 1
    per_cell = 4 if call["has_biases"] else 2
    if len(call["params"]) != call["num_layers"] * directions * per_cell:
        raise Misfit("projected states")
    below = x[-1]
    for layer in range(call["num_layers"]):
        for direction in range(directions):
            first = (layer * directions + direction) * per_cell
            cell = call["params"][first : first + per_cell]
            _cell(flow, cell, below, hidden, _GATES[name])
            for weight in cell[:2]:
                flow.cost(node, [*x[:-1], *flow.of(weight)])
        below = flow.space.concatenate([hidden] * directions)
    state = (*flow.of(states[0])[:-1], hidden)
    return [(*x[:-1], below), *([state] * len(states))]


def _cell(flow: Flow, parameters: list[Any], below: Dim, hidden: Dim, gates: int) -> None:
    """Tie the weights of one layer and direction to its input and its hidden features."""
    for position, parameter in enumerate(parameters):
        dims = flow.of(parameter)
        kinds, features = flow.group(dims[0], (gates, size_of(hidden)))
        flow.space.pin(kinds)
        flow.space.unify(features, hidden)
        if len(dims) == 2:
            flow.space.unify(dims[1], below if position == 0 else hidden)
        flow.role(parameter, ["out", "in"] if len(dims) == 2 else ["bias"])
