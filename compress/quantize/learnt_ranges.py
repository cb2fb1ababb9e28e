"""Ranges of activations that are learnt: step sizes as parameters (Esser et al. 2020, "Learned Step Size Quantization", sections 2.1
and 2.2), by what a block loses on calibration samples (Li et al. 2021, "BRECQ", section 3.3). Weights are rounded to nearest meanwhile:
algorithms that round them otherwise come afterwards, and meet the learnt ranges.

A range that fits one tensor best by itself need not be the one its readers need: what they ignore may be cut off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.fx import Node

from edgepress.compress.quantize.blocks import Block
from edgepress.compress.quantize.learning import mean_error, samples_per_step
from edgepress.compress.quantize.observers import Range
from edgepress.compress.quantize.sharing import Shared, is_symmetric, qparams, smallest_activation_scale
from edgepress.targets.progress import progress
from edgepress.targets.rules import QuantRules

#: Steps between two lines of progress.
_REPORT = 50


@dataclass(frozen=True)
class RangeOptions:
    """How ranges are learnt.

    Attributes:
        steps: of Adam.
        lr: its learning rate at the start, in shares of an end of a range; it falls to zero by half a cosine.
        batch: most samples per step.
        positions: a step takes no more samples than have this many output positions (pixels, tokens) together, but one at least.
    """

    steps: int = 300
    lr: float = 5e-2
    batch: int = 32
    positions: int = 4096


@dataclass(frozen=True)
class RangeLearning:
    """Learns the ranges of a block together; `layerwise.refine` takes it beside refiners of layers.

    Args:
        seed: of the samples that steps draw.
        options: see `RangeOptions`.
    """

    seed: int
    options: RangeOptions = field(default_factory=RangeOptions)

    def ranges(self, block: Block, groups: Sequence[Shared], rules: QuantRules) -> dict[Shared, Range]:
        """Ranges for tensors that are rounded in a block and nowhere before it.

        The block reads what the quantized blocks before it give, and is compared with the float model's answers.

        Args:
            block: see `Block`.
            groups: tensors that share a range, with the one they have.
            rules: of the runtime: bounds and symmetry.

        Returns:
            Those of `groups` whose range changed; none where the calibrated ones are no worse on all samples.
        """
        ends = [_Ends(group, rules) for group in groups if group.interval[0] < group.interval[1]]
        weights = {node: grid.nearest for node, grid in block.grids.items()}
        size = samples_per_step(block.positions, block.samples, self.options.batch, self.options.positions)
        before = mean_error(lambda index: block.error(weights, index), block.samples, size)
        if before == 0 or not ends:
            return {}
        learning = replace(block, arithmetic=block.arithmetic.rounding_by({node: item for item in ends for node in item.group.nodes}))
        with torch.enable_grad():
            self._learn(learning, weights, ends, before, size)
        for item in ends:
            item.settle()
        after = mean_error(lambda index: learning.error(weights, index), block.samples, size)
        return {item.group: item.interval() for item in ends} if after < before else {}

    def _learn(self, block: Block, weights: Mapping[Node, Tensor], ends: Sequence[_Ends], before: float, size: int) -> None:
        options, random = self.options, torch.Generator().manual_seed(self.seed)
        adam = torch.optim.Adam([item.variable for item in ends], lr=options.lr)
        for step in range(options.steps):
            if step % _REPORT == 0:
                progress(f"learning the ranges of {block.name}", step, options.steps)
            for part in adam.param_groups:
                part["lr"] = options.lr * 0.5 * (1 + math.cos(math.pi * step / options.steps))
            loss = block.error(weights, torch.randint(block.samples, (size,), generator=random)) / before
            adam.zero_grad()
            loss.backward()
            adam.step()


class _Ends:
    """A range whose two ends are learnt, each as a factor: zero stays inside, and an end at zero stays there.

    Adam takes no notice of the size of a gradient, so that the factor for it (section 2.2) is left out.
    """

    def __init__(self, group: Shared, rules: QuantRules) -> None:
        self.group, self._rules = group, rules
        self._symmetric = is_symmetric(group.interval, rules, group.centred)
        self.variable = torch.zeros(2, requires_grad=True)
        self._settled: tuple[float, int] | None = None

    def interval(self) -> Range:
        """Low and high, as learnt so far."""
        low, high = (end * math.exp(by) for end, by in zip(self._ends(), self.variable.tolist(), strict=True))
        return low, high

    def settle(self) -> None:
        """Round by the scale and zero point that a rendering gets from here on."""
        pair = qparams(self.interval(), self._rules, self.group.centred)
        self._settled = pair.scale, pair.zero_point

    def __call__(self, value: Tensor) -> Tensor:
        """A value clamped and rounded; the gradients of scale and zero point are those of equation 3, and its like for an offset
        (Bhalgat et al. 2020, "LSQ+", section 3.1).
        """
        lowest, highest = self._rules.activation_min, self._rules.activation_max
        if self._settled is not None:
            return torch.fake_quantize_per_tensor_affine(value, *self._settled, lowest, highest)
        scale, zero = self._scale_and_zero(lowest, highest)
        integers = (_rounded(value / scale) + zero).clamp(lowest, highest)
        return (integers - zero) * scale

    def _ends(self) -> Range:
        low, high = self.group.interval
        if self._symmetric:
            low, high = -max(-low, high), max(-low, high)
        return low, high

    def _scale_and_zero(self, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
        """As `qparams` has them, differentiable."""
        low, high = torch.tensor(self._ends()) * self.variable.exp()
        if self._symmetric:
            zero = (lowest + highest + 1) // 2
            return torch.maximum(-low, high) / min(highest - zero, zero - lowest), torch.tensor(float(zero))
        scale = ((high - low) / (highest - lowest)).clamp_min(smallest_activation_scale(self._rules))
        return scale, lowest + _rounded(-low / scale)


def _rounded(value: Tensor) -> Tensor:
    """The nearest integers, with the gradient of the identity (Bengio et al. 2013, "Estimating or Propagating Gradients", section 4)."""
    return value + (value.round() - value).detach()
