"""The algorithms that refine a rendering layer by layer or block by block, by the names a recipe gives them."""

from __future__ import annotations

from collections.abc import Sequence

from edgepress.compress.quantize.adaround import AdaRound
from edgepress.compress.quantize.bias_correction import correct_bias
from edgepress.compress.quantize.block_reconstruction import BlockReconstruction
from edgepress.compress.quantize.integer_gptq import gptq
from edgepress.compress.quantize.layer import Refiner
from edgepress.compress.quantize.learnt_ranges import RangeLearning
from edgepress.targets.errors import QuantizationError
from edgepress.targets.rules import REFINERS


def refiners_of(names: Sequence[str], seed: int) -> list[Refiner | RangeLearning]:
    """The refiners with these names, in the order of `targets.rules.REFINERS`.

    Args:
        names: of `REFINERS`.
        seed: of those that draw samples.

    Raises:
        QuantizationError: an unknown name.
    """
    known: dict[str, Refiner | RangeLearning] = {
        "lsq": RangeLearning(seed),
        "adaround": AdaRound(seed),
        "gptq": gptq,
        "brecq": BlockReconstruction(seed),
        "bias-correction": correct_bias,
    }
    for name in names:
        if name not in known:
            raise QuantizationError(f"unknown algorithm {name!r}", remedy=f"Use one of {', '.join(REFINERS)}.")
    return [known[name] for name in REFINERS if name in names]
