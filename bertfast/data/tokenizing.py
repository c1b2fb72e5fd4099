"""What a worker of `prepare` does: pieces of text in, token ids, hashes and sketches out.

Workers import this module alone, and no PyTorch with it.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .corpus import Piece
from .ids import IdsOfText
from .store import SENTENCE_END

PERMUTATIONS, SHINGLE = 128, 5  # of a MinHash; words that make one of a text's items


class Tokenized(NamedTuple):
    """What a worker makes of some pieces.

    Attributes:
        ids: (tokens,) of all of them.
        counts: (sentences,) tokens of each sentence.
        sentences: (pieces,) sentences of each piece.
        hashes: (pieces,) 16 bytes of each text.
        sketches: (pieces,) of each MinHash its signature (permutations,) uint32, where asked for.
    """

    ids: NDArray
    counts: NDArray[np.int64]
    sentences: list[int]
    hashes: list[bytes]
    sketches: list[NDArray[np.uint32]]


class Tokenizing:
    """What a worker does.

    Args:
        description: of the tokenizer, in JSON.
        sketching: whether MinHashes are wanted.
    """

    def __init__(self, description: str, sketching: bool) -> None:
        tokenizer = Tokenizer.from_str(description)
        self.dtype = dtype_of(tokenizer)
        self.ids_of, self.sketching = IdsOfText(tokenizer), sketching

    def __call__(self, pieces: Sequence[Piece]) -> Tokenized:
        texts: list[str] = []
        sentences = []
        for piece in pieces:
            found = [text for line in piece.lines for text in SENTENCE_END.split(line)]
            # The space that a sentence has before it in running text belongs to its first word.
            texts += [
                text if n == 0 and not piece.goes_on else f" {text}" for n, text in enumerate(found)
            ]
            sentences.append(len(found))
        ids, counts = self.ids_of(texts, self.dtype)
        joined = ["\n".join(piece.lines) for piece in pieces]
        return Tokenized(
            ids,
            counts,
            sentences,
            [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in joined],
            [sketch(text) for text in joined] if self.sketching else [],
        )


def dtype_of(tokenizer: Tokenizer) -> type:
    """The smallest dtype that holds every id."""
    return np.uint16 if max(tokenizer.get_vocab().values()) < 1 << 16 else np.int32


def sketch(text: str) -> NDArray[np.uint32]:
    """(permutations,) a text's MinHash, over runs of five words. Broder, "On the resemblance and
    containment of documents" (1997).
    """
    from datasketch import MinHash

    words = text.lower().split()
    count = max(len(words) - SHINGLE + 1, 1)
    items = {" ".join(words[n : n + SHINGLE]).encode() for n in range(count)}
    found = MinHash(num_perm=PERMUTATIONS)
    found.update_batch(sorted(items))
    return found.hashvalues.astype(np.uint32)


_tokenize: Tokenizing | None = None  # a worker's own


def start_worker(make: Callable[[], Tokenizing]) -> None:
    import multiprocessing
    from multiprocessing.connection import wait

    global _tokenize
    # The process that reads is the one that a signal ends; a worker ends with it, however it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    _tokenize = make()


def work(pieces: Sequence[Piece]) -> Tokenized:
    assert _tokenize is not None
    return _tokenize(pieces)
