"""Recurrent layers (iOS15/17.recurrent): x (steps, batch, inputs). States are kept in float32 between the steps.

`gru` is left out on purpose: where its reset gate acts is documented in two contradicting ways, and torch's GRU is
exported as separate steps. So are the activations whose constants are not documented (hard_sigmoid, scaled_tanh).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgepress.validators.runtimes.mil.registry import mil_op

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def _order(steps: int, direction: str) -> range:
    return range(steps - 1, -1, -1) if direction == "reverse" else range(steps)


def _sequence(states: list[Tensor], direction: str, every: bool) -> Tensor:
    """Hidden states in time order: all of them, or that of the last step taken."""
    if not every:
        return states[-1].unsqueeze(0)
    return torch.stack(states[::-1] if direction == "reverse" else states)


def _lstm_direction(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    direction: str,
    activations: tuple[str, str, str],
    clip: float | None,
) -> tuple[list[Tensor], Tensor]:
    gate, cell, output = (_ACTIVATIONS[name] for name in activations)
    (h, c), (w_ih, w_hh, bias, peephole) = state, weights
    p_i, p_f, p_o = peephole.chunk(3) if peephole is not None else (0.0, 0.0, 0.0)
    hidden = []
    for step in _order(x.shape[0], direction):
        raw = x[step] @ w_ih.T + h @ w_hh.T
        i, f, o, z = (raw if bias is None else raw + bias).chunk(4, -1)  # input, forget, output, cell
        z = cell(z) if clip is None else cell(z).clamp(-clip, clip)
        c_next = gate(f + p_f * c) * c + gate(i + p_i * c) * z
        h, c = gate(o + p_o * c_next) * output(c_next), c_next
        hidden.append(h)
    return hidden, c


@mil_op("lstm")
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> list[Tensor]:
    """Gates in the order input, forget, output, cell. Returns the sequence, the last hidden and the last cell state."""
    names = (recurrent_activation, cell_activation, activation)
    one_way = direction if direction != "bidirectional" else "forward"
    (h_f, *h_b), (c_f, *c_b) = ((state.chunk(2, -1) if direction == "bidirectional" else (state,)) for state in (initial_h, initial_c))
    states, last_c = _lstm_direction(x, (h_f, c_f), (weight_ih, weight_hh, bias, peephole), one_way, names, clip)
    sequence, last_h = _sequence(states, one_way, bool(output_sequence)), states[-1]
    if weight_ih_back is not None and weight_hh_back is not None and h_b:
        weights = (weight_ih_back, weight_hh_back, bias_back, peephole_back)
        back, back_c = _lstm_direction(x, (h_b[0], c_b[0]), weights, "reverse", names, clip)
        sequence = torch.cat([sequence, _sequence(back, "reverse", bool(output_sequence))], -1)
        last_h, last_c = torch.cat([last_h, back[-1]], -1), torch.cat([last_c, back_c], -1)
    return [sequence, last_h, last_c]


@mil_op("rnn")
def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> list[Tensor]:
    """h = activation(W_ih x + W_hh h + b). Returns the sequence and the last hidden state."""
    h, hidden = initial_h, []
    for step in _order(x.shape[0], direction):
        raw = x[step] @ weight_ih.T + h @ weight_hh.T
        h = _ACTIVATIONS[activation](raw if bias is None else raw + bias)
        hidden.append(h)
    return [_sequence(hidden, direction, bool(output_sequence)), h]
