"""The training step and loop, fine-tuning, and what is done with a trained model."""

from .finetune import finetune
from .pretrain import pretrain
from .sentences import SentenceEncoder

__all__ = ["SentenceEncoder", "finetune", "pretrain"]
