"""Sentence embeddings."""

from .encoder import SentenceEncoder
from .modules import Dense, Normalize

__all__ = ["Dense", "Normalize", "SentenceEncoder"]
