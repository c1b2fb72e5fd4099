"""Sentence embeddings."""

from .encoder import SentenceEncoder
from .losses import LOSSES, Loss, register_loss
from .modules import Dense, Normalize

__all__ = ["LOSSES", "Dense", "Loss", "Normalize", "SentenceEncoder", "register_loss"]
