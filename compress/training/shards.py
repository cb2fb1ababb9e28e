"""Fully sharded data parallel training, by torch's FSDP2.

Rajbhandari et al. 2020 (ZeRO), section 5; Zhao et al. 2023 (PyTorch FSDP).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgepress.compress.training.config import TrainConfig
from edgepress.compress.training.fabric import Step
from edgepress.compress.training.optimize import is_expanded, make_optimizer
from edgepress.compress.training.placement import Whole
from edgepress.targets.errors import TrainingError

#: What FSDP2 notes on every module for torch.compile.
_NOTES = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")


class Shards(Whole):
    """Every process holds its share of each parameter's rows, with the optimizer state and averages that belong to them.

    The parameters make one group: for a step each process gathers them all, and afterwards keeps its gradients' and weights' share again.
    An exported graph allows nothing finer, as it reads its parameters itself rather than through layers that are called. In a step all
    processes must use the same parameters.

    Ran with gloo on CPUs; never on GPUs.

    Raises:
        TrainingError: a parameter is a scalar, or has a gradient hook.
    """

    in_parts = True

    def setup(self, config: TrainConfig) -> None:
        """Cut the parameters, and make the optimizer over the shards."""
        make_optimizer(self.step, config)  # its errors come before anything is cut
        for name, parameter in self.step.module.named_parameters():
            _check(name, parameter)
        self._cut: list[tuple[nn.Module, str, nn.Parameter, type]] = [
            (owner, name, parameter, type(parameter))
            for owner in self.step.modules()
            for name, parameter in owner._parameters.items()
            if parameter is not None
        ]
        self.wrapped = self.fabric.setup_module(self.step)
        for _, _, parameter, _ in self._cut:
            if type(parameter) is not _Gone:  # a tied one comes up again
                parameter.data = parameter.data.new_empty(0)
                parameter.__class__ = _Gone
        self.optimizer = self.fabric.setup_optimizers(make_optimizer(self.step, config))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def synchronize(self) -> None:
        """Give all processes the buffers of the first one, as DDP does."""
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for buffer in self.step.buffers():
            if buffer.numel() and not is_expanded(buffer):
                kinds.setdefault(buffer.dtype, []).append(buffer)
        for buffers in kinds.values():
            flat = torch.cat([buffer.flatten() for buffer in buffers])
            torch.distributed.broadcast(flat, src=0)
            for buffer, piece in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(piece.view_as(buffer))

    @contextmanager
    def assembled(self) -> Iterator[None]:
        """The module's parameters are whole tensors."""
        step = cast(Any, self.step)  # of a class that FSDP2 made for it
        step.unshard()
        try:
            yield
        finally:
            step.reshard()

    def whole(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gather the rows of all processes."""
        parameters = dict(self.step.named_parameters())
        return {name: _gathered(parameters[name], value) if name in parameters else value for name, value in values.items()}

    def part(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's rows."""
        parameters = dict(self.step.named_parameters())
        return {name: _own(parameters[name], value).to_local() if name in parameters else value for name, value in values.items()}

    def optimizer_state(self) -> dict[str, Any]:
        """The state of one process that holds everything: any strategy can go on from it."""
        state = self.optimizer.optimizer.state_dict()
        each = {number: {key: _full(value) for key, value in own.items()} for number, own in state["state"].items()}
        return {**state, "state": each}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Take this process's rows of it."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        each = {
            number: {key: _own(parameters[number], value) if _like(value, parameters[number]) else value for key, value in own.items()}
            for number, own in state["state"].items()
        }
        self.optimizer.load_state_dict({**state, "state": each})

    def release(self) -> None:
        """Put the parameters that were cut back in their places, with the whole weights."""
        for owner, name, parameter, kind in self._cut:
            if type(parameter) is _Gone:
                value = _full(owner._parameters[name]).detach()
                parameter.__class__ = kind
                parameter.data = value
            setattr(owner, name, parameter)
        self.step.__class__ = Step  # FSDP2's own class would look for shards when the module moves
        for part in self.step.modules():
            for note in _NOTES:
                part.__dict__.pop(note, None)


def shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Cut a step's parameters over the data-parallel processes of a mesh; what Fabric's ModelParallelStrategy calls."""
    from torch.distributed.fsdp import fully_shard

    sharded = fully_shard(module, mesh=mesh["data_parallel"])
    if mesh.device_type == "cpu":
        sharded.set_force_sum_reduction_for_comms(True)  # gloo cannot average
    return cast(nn.Module, sharded)


class _Gone(nn.Parameter):  # type: ignore[misc]
    """What is left of a parameter that was cut. Whoever kept a reference is told, rather than given weights that no longer train."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TrainingError(
            "the objective or a hook reads parameters that it kept from before training",
            "strategy 'fsdp' puts shards in their place",
            "Take ddp, or look them up in the module that the objective is given.",
        )


def _check(name: str, parameter: nn.Parameter) -> None:
    if parameter.ndim == 0:
        raise TrainingError(
            f"parameter {name!r} is a scalar", "strategy 'fsdp' cuts parameters into rows", "Give it shape (1,), or take ddp."
        )
    if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
        raise TrainingError(
            f"parameter {name!r} has a gradient hook (masked weights have one)", "strategy 'fsdp' puts shards in its place", "Take ddp."
        )


def _full(value: Any) -> Any:
    """A whole tensor of a sharded one; anything else as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _gathered(like: Any, rows: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return cast(
        Tensor,
        DTensor.from_local(rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()).full_tensor(),
    )


def _own(like: Any, value: Tensor) -> Any:
    """This process's rows of a whole tensor, as a sharded tensor; no other process is asked."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.detach().to(like.device).contiguous(), like.device_mesh, like.placements, src_data_rank=None)
