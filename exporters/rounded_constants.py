"""Constants made of others, through the nodes that round them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.fx import GraphModule, Node

from edgepress.compress.quantize.graph import attribute, set_attribute


def derived(module: GraphModule, weight: Node, suffix: str, change: Callable[[Tensor], Tensor]) -> Node | None:
    """What `change` makes of a constant, rounded as that is, where the graph inserts.

    Args:
        module: with `val`.
        weight: a constant, or the quantize and dequantize nodes behind one, per tensor or per index of a dimension that stays where it is.
        suffix: of the new constant's name.
        change: moves or takes values.

    Returns:
        The same nodes behind a constant of its own; None where `weight` is computed at run time.
    """
    if weight.op == "get_attr":
        name = f"{str(weight.target).replace('.', '_')}_{suffix}"
        set_attribute(module, name, change(attribute(module, str(weight.target)).detach()).contiguous())
        found: Node = module.graph.get_attr(name)
    elif "quantize_per_" in str(weight.target):
        integers = derived(module, weight.args[0], suffix, change)
        if integers is None:
            return None
        found = module.graph.node_copy(weight)
        found.args = (integers, *weight.args[1:])
    else:
        return None
    found.meta = {**weight.meta, "val": change(weight.meta["val"])}
    return found
