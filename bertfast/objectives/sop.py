"""Sentence-order pairs. Lan et al., "ALBERT", section 3.1, and the released
``create_pretraining_data.py``.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bertfast.errors import BertfastError

from .nsp import Spans, gather, target_length, truncate

SWAPPED_RATE = 0.5
IN_ORDER, SWAPPED = 0, 1  # Hugging Face's labels


def ordered_pairs(
    sentences: NDArray[np.int64],
    documents: NDArray[np.int64],
    max_tokens: int,
    rng: np.random.Generator,
) -> Spans:
    """One pass over the corpus in pairs of consecutive segments of a document, half of them in the
    wrong order.

    Sentences gather as for next-sentence pairs and are split at a random place. A last sentence
    that would stand alone joins the run before it. A document of one sentence is split within it,
    and one of a single token makes no pair. What is too long loses tokens at either end of its
    longer segment, by chance. So where a segment is cut does not tell the order.

    Args:
        sentences: (sentences + 1,) offsets into the tokens.
        documents: (documents + 1,) offsets into the sentences.
        max_tokens: of both segments, special tokens not counted.
        rng: decides every choice.

    Raises:
        BertfastError: no document has two tokens.
    """
    rows = []
    for first, last in pairwise(documents.tolist()):
        start = first
        while start < last:
            end = gather(sentences, start, last, target_length(max_tokens, rng))
            end += last - end == 1
            low, high = int(sentences[start]), int(sentences[end])
            if end - start > 1:
                split = int(sentences[rng.integers(start + 1, end)])
            elif high - low > 1:
                split = int(rng.integers(low + 1, high))
            else:
                break
            pair = (low, split), (split, high)
            label = SWAPPED if rng.random() < SWAPPED_RATE else IN_ORDER
            rows.append(
                (*truncate(*(pair[::-1] if label == SWAPPED else pair), max_tokens, rng), label)
            )
            start = end
    if not rows:
        raise BertfastError(
            "no document of the data has two tokens, so there is no pair to put in order; "
            "use --objective mlm"
        )
    return Spans.of(rows)
