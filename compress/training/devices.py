"""Where a module is: exported graphs hold the device they were exported on, and what judges a module hands it tensors of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_map


def training_device() -> torch.device:
    """Where a single process trains: the first GPU, or the CPU where there is none."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def move(module: nn.Module, device: torch.device) -> None:
    """Move a module in place, exported graphs in it included."""
    module.to(device)
    rename(module, device)


def rename(module: nn.Module, device: torch.device) -> None:
    """Put `device` in the place of those that exported graphs name: of new tensors, of copies and of assertions."""
    for part in module.modules():
        changed = [_renamed(node, device) for node in part.graph.nodes] if isinstance(part, GraphModule) else []
        if any(changed):
            part.recompile()


def _renamed(node: torch.fx.Node, device: torch.device) -> bool:
    """Put `device` in the place of every device among a node's arguments; was there another one?"""
    arguments = map_aggregate((node.args, node.kwargs), lambda value: device if isinstance(value, torch.device) else value)
    if node.op != "call_function" or arguments == (node.args, node.kwargs):
        return False
    node.args, node.kwargs = arguments
    return True


@contextmanager
def answering_on(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the context, the module takes tensors wherever they are, computes where its weights are, and returns tensors on `device`."""
    weights = next(module.parameters()).device
    if weights == device:
        yield
        return
    handles = [
        module.register_forward_pre_hook(lambda _module, args, kwargs: _on(weights, (args, kwargs)), with_kwargs=True),
        module.register_forward_hook(lambda _module, _args, outputs: _on(device, outputs)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on(device: torch.device, values: Any) -> Any:
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)
