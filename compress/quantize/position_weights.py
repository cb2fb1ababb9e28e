"""How much what a layer answers for one token or pixel changes the outputs of the model.

Algorithms that refine layers average errors over samples and positions. Padding is a position like others to them, and may be most of
all: what they make good there they lose elsewhere. The weight of a position is the mean over channels of the outputs' squared gradient,
relative to that at other positions of the same sample: few samples would otherwise outweigh all others
(see `gradients.py`; Tseng et al. 2025, "Model-Preserving Adaptive Rounding", round for the whole model's outputs in that way).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.gradients import NoDerivativeError, OutputGradients, pieces
from edgepress.compress.quantize.graph import value_of


def weigh_positions(module: GraphModule, inputs: Sequence[Tensor], layers: Mapping[str, int]) -> Mapping[str, Tensor]:
    """Weigh the positions of layers.

    Args:
        module: the float graph.
        inputs: positional inputs, dimension 0 is the sample.
        layers: name of a node -> the dimension of its channels.

    Returns:
        Name -> float32 of the shape of its answer without the channels, (samples, positions...) or samples where else they stand there,
        1 on average of all and of each sample.
        Layers that the outputs do not depend on by gradients are missing; all of them, with a warning, where an operator has no
        derivative.
    """
    weigher = _Weigher(module, layers)
    for batch in pieces(module, inputs):
        try:
            weigher.add(batch)
        except NoDerivativeError as error:
            warnings.warn(f"algorithms count all positions of a layer alike: {error}", stacklevel=2)
            return {}
    return weigher.weights()


class _Weigher(OutputGradients):
    def __init__(self, module: GraphModule, layers: Mapping[str, int]) -> None:
        super().__init__(module, layers)
        self._channels = layers
        self._samples = {node.name: _samples(node, layers[node.name]) for node in module.graph.nodes if node.name in layers}
        self._found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def take(self, name: str, values: Tensor, gradient: Tensor) -> None:
        """Keep the mean over channels, samples first; a batch of the only size counts as one."""
        samples, mean = self._samples[name], gradient.float().square().mean(dim=self._channels[name])
        self._found[name].append(mean.unsqueeze(0) if samples is None else mean.movedim(samples, 0))

    def weights(self) -> dict[str, Tensor]:
        """Of all batches; a sample whose positions weigh nothing counts nothing."""
        joined = {name: torch.cat(found) for name, found in self._found.items() if found}
        scaled = {name: item / _mean(item).clamp_min(torch.finfo().tiny) for name, item in joined.items()}
        weighed = {name: item / item.mean() for name, item in scaled.items() if bool(item.mean().isfinite()) and bool(item.any())}
        places = self._samples
        return {name: item.flatten(0, 1) if places[name] is None else item.movedim(0, places[name]) for name, item in weighed.items()}


def _samples(node: Node, channels: int) -> int | None:
    """The dimension of samples, without that of channels: the first of free size, if there is one. PyTorch's attention has tokens first."""
    shape = list(value_of(node).shape)
    del shape[channels]
    return next((dim for dim, size in enumerate(shape) if isinstance(size, torch.SymInt)), None)


def _mean(weights: Tensor) -> Tensor:
    """The mean of each sample, for division."""
    return weights.flatten(1).mean(dim=1).reshape(-1, *[1] * (weights.dim() - 1)) if weights.dim() > 1 else weights
