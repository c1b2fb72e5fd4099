"""Sentence embeddings, and scores of pairs."""

from .cross_encoder import CrossEncoder
from .encoder import SentenceEncoder
from .losses import LOSSES, Loss, register_loss
from .modules import Dense, Normalize

__all__ = [
    "LOSSES",
    "CrossEncoder",
    "Dense",
    "Loss",
    "Normalize",
    "SentenceEncoder",
    "register_loss",
]
