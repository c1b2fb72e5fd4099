"""Masked-token selection. Devlin et al., "BERT", section 3.1 and appendix A.1."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertfast import kernels
from bertfast.kernels.philox import as_seed, token_words

MASK_RATE = 0.15
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen tokens; the rest stay as they are


def most_masked(words: NDArray[np.int64]) -> NDArray[np.int64]:
    """(sequences,) how many tokens `mask_tokens` chooses of so many that are not special."""
    return np.minimum(np.maximum(np.round(words * MASK_RATE).astype(np.int64), 1), words)


def mask_tokens(
    ids: Tensor,
    cu_seqlens: Tensor,
    special: Tensor,
    words: Tensor,
    mask_id: int,
    counters: Tensor,
    seed: int | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Chooses tokens to predict and hides them: 80 % become [MASK], 10 % a random word, 10 % stay.

    In each sequence 15 % of the tokens that are not special are chosen, rounded, at least one where there is one: those whose first
    Philox words are the lowest. What becomes of them is `kernels.mask_tokens`'s to say, from the words after.

    Args:
        ids: (tokens,) int64 of the packed sequences, on any device, as the other tensors are.
        cu_seqlens: (sequences + 1,) int32 boundaries.
        special: (tokens,) bool, true where a token is never chosen.
        words: int64 ids that a random replacement is drawn from; special tokens are not among them.
        mask_id: of [MASK].
        counters: (tokens,) int64, which with the seed alone decide the outcome, no two alike.
        seed: an int of 64 bits, or an int64 tensor of one element.

    Returns:
        The ids with the chosen tokens hidden, their positions in ascending order, and the ids that stood there.
    """
    seed = as_seed(seed, ids.device)
    tokens, sequences = ids.shape[0], cu_seqlens.shape[0] - 1
    starts = cu_seqlens.long()
    sequence = torch.arange(sequences, device=ids.device).repeat_interleave(starts.diff(), output_size=tokens)
    # Ordered by sequence, then the specials last, then by chance: a sequence's chosen tokens are its first ones.
    order = (sequence << 33 | special.long() << 32 | token_words(seed, counters)[0]).argsort(stable=True)
    eligible = torch.zeros_like(starts[1:]).index_add(0, sequence, (~special).long())
    wanted = (eligible.double() * MASK_RATE).round().long().clamp(min=1).minimum(eligible)
    rank = torch.arange(tokens, device=ids.device) - starts[sequence]
    chosen = torch.zeros_like(special).index_copy(0, order, rank < wanted[sequence])

    # The words need be no range, so the op hides places of a table: 0 is the token itself, 1 [MASK], and the words come after.
    places, _ = kernels.mask_tokens(
        torch.zeros_like(ids),
        ~chosen,
        mask_id=1,
        vocab_size=2 + len(words),
        rate=1.0,
        mask_share=MASKED_SHARE,
        random_share=RANDOM_SHARE,
        first_random_id=2,
        seed=seed,
        counters=counters,
    )
    table = torch.cat([words.new_tensor([0, mask_id]), words])
    positions = chosen.nonzero().squeeze(1)
    return torch.where(places > 0, table[places], ids), positions, ids[positions]
