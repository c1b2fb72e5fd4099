"""Next-sentence pairs. Devlin et al., "BERT", section 3.1, and the released
``create_pretraining_data.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bertfast.errors import BertfastError

SHORT_RATE = 0.1  # of the examples aim at a random shorter length, as at fine-tuning time
RANDOM_RATE = 0.5
IS_NEXT, IS_RANDOM = 0, 1  # Hugging Face's labels


@dataclass(frozen=True)
class Spans:
    """Examples as token spans of a store: segment A, segment B (empty where there is none) and the
    label of the pair.

    The label says whether B is random, or whether the two are swapped (`sop`).

    Each array is (examples,) int64.
    """

    a_start: NDArray[np.int64]
    a_end: NDArray[np.int64]
    b_start: NDArray[np.int64]
    b_end: NDArray[np.int64]
    label: NDArray[np.int64]

    @classmethod
    def of(cls, rows: list[tuple[int, int, int, int, int]]) -> Spans:
        columns = np.asarray(rows, np.int64).reshape(-1, 5).T
        return cls(*(np.ascontiguousarray(column) for column in columns))

    @property
    def tokens(self) -> NDArray[np.int64]:
        """(examples,) of both segments together."""
        return self.a_end - self.a_start + self.b_end - self.b_start

    def __len__(self) -> int:
        return len(self.a_start)


def sentence_pairs(
    sentences: NDArray[np.int64],
    documents: NDArray[np.int64],
    max_tokens: int,
    rng: np.random.Generator,
) -> Spans:
    """One pass over the corpus in pairs of segments of ``max_tokens`` tokens together at most.

    Sentences of a document gather until the target length, and are split at a random place. For
    half of the pairs, one from another document replaces the second segment. The sentences not used
    go back.

    Args:
        sentences: (sentences + 1,) offsets into the tokens.
        documents: (documents + 1,) offsets into the sentences.
        max_tokens: of both segments, special tokens not counted.
        rng: decides every choice.

    Raises:
        BertfastError: there is one document only, so that no random partner can come from another.
    """
    count = len(documents) - 1
    if count < 2:
        raise BertfastError(
            "the data is a single document, so no random next sentence can come from another; "
            "put blank lines between documents, or use --objective mlm"
        )
    rows = []
    for document in range(count):
        first, last = int(documents[document]), int(documents[document + 1])
        start = first
        while start < last:
            target = target_length(max_tokens, rng)
            end = gather(sentences, start, last, target)
            split = int(rng.integers(start + 1, end)) if end - start > 1 else end
            a = (int(sentences[start]), int(sentences[split]))
            if end - start == 1 or rng.random() < RANDOM_RATE:
                other = int(rng.integers(count - 1))
                other += other >= document
                other_first, other_last = int(documents[other]), int(documents[other + 1])
                b_first = int(rng.integers(other_first, other_last))
                room = max(target - (a[1] - a[0]), 1)
                b_last = b_first + 1
                while b_last < other_last and sentences[b_last] - sentences[b_first] < room:
                    b_last += 1
                b, label, start = (
                    (int(sentences[b_first]), int(sentences[b_last])),
                    IS_RANDOM,
                    split,
                )
            else:
                b, label, start = (int(sentences[split]), int(sentences[end])), IS_NEXT, end
            rows.append((*truncate(a, b, max_tokens, rng), label))
    return Spans.of(rows)


def target_length(max_tokens: int, rng: np.random.Generator) -> int:
    """How many tokens the next pair aims at: mostly all that fit."""
    return int(rng.integers(2, max_tokens + 1)) if rng.random() < SHORT_RATE else max_tokens


def gather(sentences: NDArray[np.int64], start: int, last: int, target: int) -> int:
    """The end of the run of sentences from ``start``, before ``last``, that first holds ``target``
    tokens.

    It is of two sentences even where one would fill the target: alone that one has no neighbour to
    be its partner.
    """
    end = start + 1
    while end < last and (end - start < 2 or sentences[end] - sentences[start] < target):
        end += 1
    return end


def truncate(
    a: tuple[int, int], b: tuple[int, int], max_tokens: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Cuts the longer span, at a random end, until both fit, each keeping a token."""
    (a0, a1), (b0, b1) = a, b
    excess = (a1 - a0) + (b1 - b0) - max_tokens
    if excess > 0:
        # Tokens come off the longer one until both are as long, then off each in turn.
        difference = (a1 - a0) - (b1 - b0)
        from_a = min(max(difference, 0), excess)
        from_b = min(max(-difference, 0), excess)
        rest = excess - from_a - from_b
        from_a, from_b = from_a + (rest + 1) // 2, from_b + rest // 2
        front_a, front_b = int(rng.binomial(from_a, 0.5)), int(rng.binomial(from_b, 0.5))
        a0, a1 = a0 + front_a, a1 - (from_a - front_a)
        b0, b1 = b0 + front_b, b1 - (from_b - front_b)
    return a0, a1, b0, b1


def document_spans(
    sentences: NDArray[np.int64],
    documents: NDArray[np.int64],
    max_tokens: int,
    rng: np.random.Generator,
) -> Spans:
    """One pass over the corpus in single segments: runs of a document's tokens, ``max_tokens`` at
    most, from a random offset.

    For masked-LM alone. Liu et al., "RoBERTa", section 4.2 (doc-sentences).
    """
    bounds = np.asarray(sentences)[documents]
    lengths = np.diff(bounds)
    first = np.minimum(lengths, max_tokens)
    cut = lengths > max_tokens
    first[cut] = rng.integers(1, max_tokens + 1, int(cut.sum()))
    counts = (lengths > 0) + -(-(lengths - first) // max_tokens)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # in its own
    start, first, length = (np.repeat(x, counts) for x in (bounds[:-1], first, lengths))
    ends = first + number * max_tokens
    begins = start + np.maximum(ends - np.where(number > 0, max_tokens, first), 0)
    ends = start + np.minimum(ends, length)
    return Spans(begins, ends, ends, ends, np.full(len(ends), IS_NEXT, np.int64))
