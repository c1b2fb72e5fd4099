"""The training step and loop, fine-tuning, and what is done with a trained model."""

from .finetune import finetune
from .pretrain import pretrain

__all__ = ["finetune", "pretrain"]
