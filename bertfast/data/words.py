"""Where words start, by the marks that a tokenizer's tokens carry."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from bertfast.errors import BertfastError


def continuations(tokenizer: Tokenizer, vocab_size: int) -> NDArray[np.bool_]:
    """(vocab,) bool: whether a token continues a word: ``##`` before it in WordPiece, no ``Ġ`` in
    byte-level BPE, no ``▁`` in SentencePiece's form.

    Raises:
        BertfastError: the tokens carry no such marks.
    """
    vocabulary = tokenizer.get_vocab()
    found = np.zeros(max(vocab_size, *vocabulary.values()) + 1, np.bool_)
    if isinstance(tokenizer.model, WordPiece):
        prefix = tokenizer.model.continuing_subword_prefix
        found[[index for token, index in vocabulary.items() if token.startswith(prefix)]] = True
        return found[:vocab_size]
    # No byte-level vocabulary holds the first, but a SentencePiece one may hold the second, a
    # letter of Maltese.
    for mark in "▁Ġ":
        starts = [token.startswith(mark) for token in vocabulary]
        if any(starts):
            found[
                [
                    index
                    for index, start in zip(vocabulary.values(), starts, strict=True)
                    if not start
                ]
            ] = True
            return found[:vocab_size]
    raise BertfastError(
        "the tokenizer's tokens do not say where words start (by ##, Ġ or ▁), "
        "so that no whole words can be masked; use --mask-unit token"
    )
