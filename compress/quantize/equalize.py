"""Cross-layer equalization (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1).

Where a layer's output channel reaches the next layer through ops that commute with a positive factor, that factor can move from one
weight to the other: nothing changes in float, and the channels of both weights can be brought to ranges that one scale per tensor fits.
The paper makes both ranges equal in every channel, without data. That minimises no error, and makes things worse where a range is small
because little depends on the channel; so several factors are proposed, measured on samples, and kept where they help.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgepress.compress.program import export_like
from edgepress.compress.quantize.chain_search import ChainSearch
from edgepress.compress.quantize.chains import Pair, chains_of
from edgepress.compress.quantize.graph import constant, evaluate, layer_of
from edgepress.compress.quantize.living import batches_that_fit, last_uses
from edgepress.compress.quantize.prepare import finish, float_module
from edgepress.compress.quantize.scaled_chain import ScaledChain
from edgepress.targets.progress import progress
from edgepress.targets.rules import QuantRules

#: Samples that measure a chain.
SAMPLES = 64


@dataclass(frozen=True)
class Equalized:
    """A model with equalized weights.

    Attributes:
        program: takes and returns what the given one does; batch norms are folded.
        pairs: names of layers between which factors moved, in graph order.
        unbounded: names of the modules whose ReLU6 (or other clamp from zero) became a ReLU.
    """

    program: ExportedProgram
    pairs: tuple[tuple[str, str], ...] = ()
    unbounded: tuple[str, ...] = ()


def equalize(program: ExportedProgram, batches: Iterable[Sequence[Any]], rules: Sequence[QuantRules]) -> Equalized:
    """Move factors per channel between consecutive layers where that lowers the error of rounding.

    Layers follow each other through nothing but ReLU, leaky ReLU, clamps from zero, padding with zeros, pooling and flattening; a weight
    that other layers share and an output that is read twice end a chain. A chain is measured at its end, with its weights and the values
    between its layers rounded, and changed only where that helps the integers of every runtime.

    Args:
        program: float, eval mode.
        batches: calibration samples, tuples of positional inputs; no more are read than `SAMPLES`, or than fit into memory.
        rules: of the runtimes that the result is for.

    Returns:
        The same function up to float rounding, but for upper bounds of clamps that samples hardly reach; the program itself where
        nothing helps.

    Raises:
        QuantizationError: no samples.
    """
    module = float_module(program)
    found = [chain for chain in _searched(module, chains_of(module), _distinct(rules), _first(batches, SAMPLES)) if chain.moved]
    if not found:
        return Equalized(program)
    for chain in found:
        chain.apply(module)
    return Equalized(
        export_like(finish(module), program),
        tuple((layer_of(pair.first), layer_of(pair.second)) for chain in found for pair in chain.moved),
        tuple(layer_of(node) for chain in found for node in chain.unbounded),
    )


def _distinct(rules: Sequence[QuantRules]) -> list[QuantRules]:
    """One of those that round weights and activations alike."""
    found = {
        (weights, item.activation_symmetric, item.activation_max - item.activation_min): item
        for item in rules
        for weights in [(item.per_channel, item.weight_min, item.weight_max, item.added_in_pairs)]
    }
    return list(found.values())


def _first(batches: Iterable[Sequence[Any]], count: int) -> Iterator[list[Any]]:
    for batch in batches:
        if count <= 0:
            return
        yield [item[:count] for item in batch]
        count -= len(batch[0])


@torch.no_grad()  # type: ignore[untyped-decorator]
def _searched(
    module: GraphModule, chains: Sequence[tuple[Pair, ...]], rules: Sequence[QuantRules], batches: Iterable[Sequence[Any]]
) -> Iterator[ScaledChain]:
    """Run the float model, and search every chain when its end is reached."""
    if not chains:
        return
    nodes = [node for node in module.graph.nodes if node.op != "output"]
    last, waiting = last_uses(module), list(map(iter, batches_that_fit(module, [nodes], batches)))
    starts, ends = {chain[0].first for chain in chains}, {chain[-1].second: chain for chain in chains}
    values: list[dict[Node, Any]] = [{} for _ in waiting]
    read: dict[Node, Tensor] = {}
    for node in nodes:
        for of_batch, inputs in zip(values, waiting, strict=True):
            if node.op == "placeholder":
                of_batch[node] = next(inputs)
            else:
                of_batch[node] = constant(module, node) if node.op == "get_attr" else evaluate(node, of_batch)
        if node in starts:
            read[node] = torch.cat([of_batch[node.args[0]] for of_batch in values])
        if chain := ends.get(node):
            progress(f"equalizing {layer_of(node)}", list(ends).index(node), len(ends))
            target = torch.cat([of_batch[node] for of_batch in values])
            yield ChainSearch(ScaledChain.of(chain, module), read.pop(chain[0].first), target, values[0], rules).best()
        for dead in last.get(node, ()):
            for of_batch in values:
                if isinstance(of_batch[dead], Tensor):  # sizes stay: ops between the layers of a chain may read them
                    del of_batch[dead]
