"""Which factors between the layers of a chain leave the smallest error of rounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgepress.compress.quantize.chains import Pair
from edgepress.compress.quantize.channels import Channels, channels_made, powers_read
from edgepress.compress.quantize.scaled_chain import ScaledChain
from edgepress.targets.rules import QuantRules

#: Rounds over the pairs of a chain: a pair changes what its neighbours balance.
ROUNDS = 2
#: Exponents of the ratio of ranges: 1/2 makes both equal (equation 11).
EXPONENTS = (0.25, 0.5)
#: How far the product of both weights' steps may lie above the smallest there is, for less noise in the channels that matter.
SLACK = (1.0, 1.5, 2.0, 3.0, 4.0)
#: A chain is changed only where its squared error falls below this share of what it was, for every runtime.
WORTH = 0.9
#: An upper bound is given up only where its error in float stays below this share of the error that rounding leaves.
BOUND = 0.1


class ChainSearch:
    """The best factors of one chain, measured at its end.

    Args:
        original: as the model has it.
        read: what its first layer reads.
        target: what its last layer answers.
        values: of everything else that ops between its layers read.
        rules: of the runtimes.
    """

    def __init__(
        self, original: ScaledChain, read: Tensor, target: Tensor, values: Mapping[Node, Any], rules: Sequence[QuantRules]
    ) -> None:
        self._original, self._read, self._target, self._values, self._rules = original, read, target, values, rules
        inputs = original.read(read, values, None)
        self._powers = {node: powers_read(node, weight, inputs[node]) for node, weight in original.weights.items()}
        self._plain = [self._error(original, item) for item in rules]

    def best(self) -> ScaledChain:
        """The one with the smallest error; the original where none is worth it."""
        found = [self._searched(self._original)]
        bounds = [node for pair in self._original.pairs for node in pair.bounds]
        while bounds:
            free = replace(self._original, unbounded=tuple(bounds))
            lost, after = self._error(free, None), self._searched(free)
            if all(lost <= BOUND * self._error(after[1], item) for item in self._rules):
                found.append(after)
                break
            bounds.remove(max(bounds, key=self._needed))
        cost, chain = min(found, key=lambda pair: pair[0])
        return chain if cost <= WORTH else self._original

    def _needed(self, bound: Node) -> float:
        """What giving up one upper bound costs in float."""
        return self._error(replace(self._original, unbounded=(bound,)), None)

    def _searched(self, start: ScaledChain) -> tuple[float, ScaledChain]:
        """Pair by pair the best of what is proposed, from the weights as they are or from balanced ones."""
        pairs = [pair for pair in start.pairs if set(pair.bounds) <= set(start.unbounded)]
        balanced = start
        for _ in range(ROUNDS):
            for pair in pairs:
                balanced = balanced.divided(pair, _ratio(*Channels(pair, balanced.weights).ranges(), 0.5))
        best = self._least([start, balanced])
        for _ in range(ROUNDS):
            for pair in pairs:
                best = self._least([best[1], *(best[1].divided(pair, factor) for factor in self._proposed(best[1], pair))])
        return best

    def _least(self, chains: Sequence[ScaledChain]) -> tuple[float, ScaledChain]:
        """The first with the smallest error, as a share of what it was for the runtime that fares worst."""

        def cost(chain: ScaledChain) -> float:
            pairs = zip(self._rules, self._plain, strict=True)
            return max(self._error(chain, item) / max(before, float(torch.finfo(torch.float32).tiny)) for item, before in pairs)

        return min(((cost(chain), chain) for chain in chains), key=lambda pair: pair[0])

    def _error(self, chain: ScaledChain, rules: QuantRules | None) -> float:
        return float((chain.answer(self._read, self._values, rules) - self._target).square().mean())

    def _proposed(self, chain: ScaledChain, pair: Pair) -> Iterator[Tensor]:
        """Factors for one pair."""
        channels, index = Channels(pair, chain.weights), chain.pairs.index(pair)
        made, read = channels.ranges()
        yield from (_ratio(made, read, exponent) for exponent in EXPONENTS)
        after = torch.ones(channels_made(chain.layers[-1], chain.weights[chain.layers[-1]])).double()
        for later in reversed(chain.pairs[index + 1 :]):
            after = Channels(later, chain.weights).importance(after)
        before = self._powers_read(chain, pair.first, chain.pairs[index - 1] if index else None)
        between = self._powers_read(chain, pair.second, pair).reshape(channels.count, -1).mean(dim=1)
        yield from _least_noise(made, read, channels.noise_made(before) * channels.importance(after), channels.noise_read(after) * between)

    def _powers_read(self, chain: ScaledChain, layer: Node, before: Pair | None) -> Tensor:
        """Mean square of every channel, or feature, that a layer reads from the pair before it."""
        if before is None:
            return self._powers[layer]
        factor = chain.factors[before]
        return (self._powers[layer].reshape(len(factor), -1) / factor.square().unsqueeze(1)).flatten()


def _ratio(made: Tensor, read: Tensor, exponent: float) -> Tensor:
    """Factors that bring the ranges of both weights together; 1 in channels that are dead on either side."""
    alive = (made > 0) & (read > 0)
    return torch.where(alive, (made / torch.where(alive, read, 1.0)) ** exponent, 1.0)


def _least_noise(made: Tensor, read: Tensor, noise_made: Tensor, noise_read: Tensor) -> Iterator[Tensor]:
    """Factors s with the least noise where each weight has one scale.

    With steps of the same size for both, channel c costs `noise_made` s**2 + `noise_read` / s**2 of their square. Its weights fit into
    a range r while made / r <= s <= r / read; within these limits the least is where s**4 = noise_read / noise_made.

    Args:
        made, read: range of either weight per channel.
        noise_made, noise_read: what an error of variance 1 in all elements of either weight costs per channel.
    """
    alive = (made > 0) & (read > 0) & (noise_read > 0) & (noise_made > 0)
    if not bool(alive.any()):
        return
    wanted = (torch.where(alive, noise_read, 1.0) / torch.where(alive, noise_made, 1.0)) ** 0.25
    smallest = (made * read)[alive].max().sqrt()
    for slack in SLACK:
        reach = smallest * slack**0.5
        limited = torch.minimum(torch.maximum(wanted, made / reach), reach / torch.where(alive, read, 1.0))
        yield torch.where(alive, limited, 1.0)
