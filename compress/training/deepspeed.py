"""Training by DeepSpeed's engine: ZeRO stage 2, optimizer state and gradients in shards (Rajbhandari et al. 2020, section 5).

What is tested is how settings and calls reach DeepSpeed, with a stand-in for it. No training ever ran through the package itself: it
needs CUDA GPUs, and there were none.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from edgepress.compress.training.config import TrainConfig
from edgepress.compress.training.placement import Whole
from edgepress.targets.errors import TrainingError

if TYPE_CHECKING:
    from lightning_fabric.strategies import DeepSpeedStrategy

_STAGE = 2
#: Two checkpoints by turns: the one that `checkpoint.pt` names stays while the next is written.
_TAGS = ("deepspeed-a", "deepspeed-b")


def make_strategy(config: TrainConfig, world: int, cuda: bool) -> DeepSpeedStrategy:
    """Fabric's strategy with DeepSpeed's own settings.

    Args:
        config: `clip` becomes DeepSpeed's, which clips in its optimizer.
        world: processes.
        cuda: is there a GPU?

    Raises:
        TrainingError: DeepSpeed is not installed, is too old for Fabric, or there is no GPU.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise TrainingError("strategy is 'deepspeed'", "it is not installed", "pip install deepspeed, or take fsdp.")
    if not cuda:
        raise TrainingError("strategy is 'deepspeed'", "it trains on CUDA GPUs and there is none", "Take fsdp or ddp.")
    from lightning_fabric.strategies import DeepSpeedStrategy

    try:
        strategy = DeepSpeedStrategy(stage=_STAGE, logging_batch_size_per_gpu=max(1, config.batch // world))
    except ImportError as error:
        raise TrainingError("strategy is 'deepspeed'", str(error).splitlines()[0], "pip install -U deepspeed") from error
    if config.clip is not None:
        strategy.config["gradient_clipping"] = config.clip
    return strategy


class Engine(Whole):
    """Every process has the whole weights, and its share of optimizer state and gradients.

    DeepSpeed writes that share itself, below the training's folder; going on needs as many processes as before.
    """

    in_parts = True
    _turn = 0

    def clip(self, norm: float) -> None:
        """Nothing: DeepSpeed's optimizer clips."""

    def optimizer_state(self) -> dict[str, Any]:
        """Write all shares; returns where."""
        tag = _TAGS[self._turn % len(_TAGS)]
        self._turn += 1
        self._engine.save_checkpoint(str(self.folder), tag=tag)
        return {"tag": tag}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Read this process's share.

        Raises:
            TrainingError: it is not there, or another strategy wrote the checkpoint.
        """
        tag = state.get("tag")
        if tag is None or self._engine.load_checkpoint(str(self.folder), tag=tag)[0] is None:
            path = self.folder / (tag or _TAGS[0])
            raise TrainingError(f"{path} cannot be read", "DeepSpeed goes on from its own checkpoint alone", "Delete checkpoint.pt.")
        self._turn = _TAGS.index(tag) + 1

    @property
    def _engine(self) -> Any:
        return self.fabric.strategy.model
