"""The weights of two layers in a row, channel by channel of what is between them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.fx import Node

from edgepress.compress.quantize.chains import Pair
from edgepress.compress.quantize.graph import kind_of, op_name

#: Place of `groups` among the arguments of convolutions, transposed ones too.
_GROUPS = 6


class Channels:
    """The weights of a pair by the channels between them.

    Args:
        pair: two layers.
        weights: of both, by node.
    """

    def __init__(self, pair: Pair, weights: Mapping[Node, Tensor]) -> None:
        self.first, self.second = _split(pair.first, weights[pair.first]), _split(pair.second, weights[pair.second])
        self._made = _output_axes(pair.first)
        self.count = self.first.shape[0] * self.first.shape[self._made[1]]
        if op_name(pair.second) == "linear":  # positions that were flattened into features follow their channel
            self.second = weights[pair.second].reshape(1, weights[pair.second].shape[0], self.count, -1)
        self._read = _input_axes(pair.second)
        self._pair, self._shapes = pair, (weights[pair.first].shape, weights[pair.second].shape)

    def ranges(self) -> tuple[Tensor, Tensor]:
        """Largest magnitude of either weight in every channel, (channels,) each."""
        return _amax(self.first, self._made), _amax(self.second, self._read)

    def scaled(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Both weights once the values between them are divided by `factor`, (channels,)."""
        first = (self.first / _spread(factor, self.first, self._made)).reshape(self._shapes[0])
        return first, (self.second * _spread(factor, self.second, self._read)).reshape(self._shapes[1])

    def noise_made(self, powers: Tensor) -> Tensor:
        """Noise per channel, (channels,), that an error of variance 1 in every element of the first weight makes.

        Args:
            powers: mean square of every channel that the first layer reads.
        """
        return _total(_spread(powers, self.first, _input_axes(self._pair.first)).expand_as(self.first), self._made)

    def noise_read(self, importance: Tensor) -> Tensor:
        """What an error of variance 1 in every element of the second weight costs per channel of mean square 1, (channels,).

        Args:
            importance: what noise of variance 1 costs in every channel that the second layer makes.
        """
        return _total(_spread(importance, self.second, _output_axes(self._pair.second)).expand_as(self.second), self._read)

    def importance(self, after: Tensor) -> Tensor:
        """What noise of variance 1 in every channel between the layers costs, (channels,).

        Args:
            after: the same of the channels that the second layer makes.
        """
        return _total(self.second.square() * _spread(after, self.second, _output_axes(self._pair.second)), self._read)


def channels_made(node: Node, weight: Tensor) -> int:
    """How many channels a layer makes."""
    split = _split(node, weight)
    return int(split.shape[0] * split.shape[_output_axes(node)[1]])


def powers_read(node: Node, weight: Tensor, value: Tensor) -> Tensor:
    """Mean square of every channel that a layer reads, (channels,)."""
    split = _split(node, weight)
    count = split.shape[0] * split.shape[_input_axes(node)[1]]
    rows = value.reshape(-1, count) if kind_of(node) == "linear" else value.movedim(1, -1).reshape(-1, count)
    return rows.double().square().mean(dim=0)


def _split(node: Node, weight: Tensor) -> Tensor:
    """(groups, outputs, inputs, positions) of a weight; (groups, inputs, outputs, positions) of a transposed convolution's."""
    groups = _groups(node)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _output_axes(node: Node) -> tuple[int, int]:
    return (0, 2) if kind_of(node) == "conv_transpose" else (0, 1)


def _input_axes(node: Node) -> tuple[int, int]:
    return (0, 1) if kind_of(node) == "conv_transpose" else (0, 2)


def _others(split: Tensor, axes: tuple[int, int]) -> list[int]:
    return [axis for axis in range(split.dim()) if axis not in axes]


def _amax(split: Tensor, axes: tuple[int, int]) -> Tensor:
    return split.abs().amax(dim=_others(split, axes)).flatten()


def _total(split: Tensor, axes: tuple[int, int]) -> Tensor:
    return split.sum(dim=_others(split, axes)).flatten()


def _spread(values: Tensor, split: Tensor, axes: tuple[int, int]) -> Tensor:
    return values.reshape([split.shape[axis] if axis in axes else 1 for axis in range(split.dim())])


def _groups(node: Node) -> int:
    if kind_of(node) == "linear":
        return 1
    return int(node.args[_GROUPS]) if len(node.args) > _GROUPS else int(node.kwargs.get("groups", 1))
