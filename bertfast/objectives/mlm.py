"""Masked-token selection. Devlin et al., "BERT", section 3.1 and appendix A.1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MASK_RATE = 0.15
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen tokens; the rest stay as they are


def mask_tokens(
    ids: NDArray[np.int64],
    cu_seqlens: NDArray[np.int32],
    special: NDArray[np.bool_],
    words: NDArray[np.int64],
    mask_id: int,
    draws: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Chooses tokens to predict and hides them: 80 % become [MASK], 10 % a random word, 10 % stay.

    In each sequence 15 % of the tokens that are not special are chosen, rounded, at least one where there is one.

    Args:
        ids: (tokens,) of the packed sequences.
        cu_seqlens: (sequences + 1,) boundaries.
        special: (tokens,) true where a token is never chosen.
        words: ids that a random replacement is drawn from; special tokens are not among them.
        mask_id: of [MASK].
        draws: (tokens,) uniform 64-bit words, which alone decide the outcome.

    Returns:
        The ids with the chosen tokens hidden, their positions in ascending order, and the ids that stood there.
    """
    sequence = np.repeat(np.arange(len(cu_seqlens) - 1), np.diff(cu_seqlens))
    # Ordered by sequence, then the specials last, then by chance: a sequence's chosen tokens are its first ones.
    order = np.lexsort((draws >> np.uint64(32), special, sequence))
    eligible = np.bincount(sequence, weights=~special, minlength=len(cu_seqlens) - 1).astype(np.int64)
    wanted = np.minimum(np.maximum(np.rint(eligible * MASK_RATE).astype(np.int64), 1), eligible)
    rank = np.arange(len(ids)) - cu_seqlens[:-1][sequence]
    positions = np.sort(order[rank < wanted[sequence]])

    labels = ids[positions].astype(np.int64)
    low = draws[positions] & np.uint64(0xFFFFFFFF)
    kind = (low >> np.uint64(16)).astype(np.float64) / (1 << 16)
    other = words[(low & np.uint64(0xFFFF)).astype(np.int64) * len(words) >> 16]
    hidden = np.where(kind < MASKED_SHARE, mask_id, np.where(kind < MASKED_SHARE + RANDOM_SHARE, other, labels))
    result = ids.astype(np.int64)
    result[positions] = hidden
    return result, positions, labels
