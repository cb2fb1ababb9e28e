"""Training: the public door. The loop behind it serves fine-tuning, distillation, sparsity training and quantization-aware training."""

from edgepress.compress.training.config import TrainConfig, TrainResult
from edgepress.compress.training.launch import follows, together
from edgepress.compress.training.loop import train
from edgepress.compress.training.modes import set_training, to_program, trainable
from edgepress.compress.training.objective import Objective, TaskLoss, task_loss

__all__ = [
    "Objective",
    "TaskLoss",
    "TrainConfig",
    "TrainResult",
    "follows",
    "set_training",
    "task_loss",
    "to_program",
    "together",
    "train",
    "trainable",
]
