"""Masked-token selection, by tokens, whole words or spans of words.

Sources: Devlin et al., "BERT", section 3.1 and appendix A.1; whole words: the BERT repository's
README of 2019 and its ``create_pretraining_data.py``; spans: Joshi et al., "SpanBERT", section 3.1,
and the released ``masking.py``.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertfast.kernels.philox import as_seed, token_words

MASK_RATE = 0.15
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen tokens; the rest stay as they are
SPAN_P, MAX_SPAN = 0.2, 10  # of the geometric distribution of a span's words
WORD_RANGE = 1 << 32  # of a Philox word


def most_masked(words: NDArray[np.int64], rate: float = MASK_RATE) -> NDArray[np.int64]:
    """(sequences,) how many tokens `mask_tokens` chooses at most of so many that are not special;
    exactly, if by single tokens.
    """
    return np.minimum(np.maximum(np.round(words * rate).astype(np.int64), 1), words)


def mask_tokens(
    ids: Tensor,
    cu_seqlens: Tensor,
    special: Tensor,
    replacements: Tensor,
    mask_id: int,
    counters: Tensor,
    seed: int | Tensor,
    word_starts: Tensor | None = None,
    spans: bool = False,
    masked_share: float = MASKED_SHARE,
    random_share: float = RANDOM_SHARE,
    rate: float = MASK_RATE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Chooses tokens to predict and hides them: 80 % become [MASK], 10 % a random word, 10 % stay,
    or other shares.

    In each sequence 15 % of the tokens that are not special, or another rate, may be chosen. That
    is rounded, and at least one where there is one. Words are taken in the order of their first
    tokens' first Philox words. One that the rest of the budget cannot hold is passed over, so words
    of several tokens can leave some of it unused. What becomes of a chosen token its other Philox
    words say, as in `kernels.mask_tokens`.

    Of spans, the words in that order are where spans start, unless a span before has covered them.
    A span's length in words is geometric with p = 0.2, given that it is 10 at most (3.8 in the
    mean). It ends early at a special token, the sequence's end, or a word that the budget cannot
    hold. Of the chosen tokens that adjoin, all become [MASK], or all random words, or all stay.

    Args:
        ids: (tokens,) int64 of the packed sequences, on any device, as the other tensors are.
        cu_seqlens: (sequences + 1,) int32 boundaries.
        special: (tokens,) bool, true where a token is never chosen.
        replacements: int64 ids that a random replacement is drawn from; special tokens are not
            among them.
        mask_id: of [MASK].
        counters: (tokens,) int64, which with the seed alone decide the outcome, no two alike.
        seed: an int of 64 bits, or an int64 tensor of one element.
        word_starts: (tokens,) bool, false where a token continues the word of the one before; no
            word goes across a special token or a sequence's end. None: each token is a word.
        spans: choose spans of words.
        masked_share, random_share: of the chosen tokens become [MASK], or a random word.
        rate: of the tokens that are not special, are chosen.

    Returns:
        The ids with the chosen tokens hidden, their positions in ascending order, and the ids that
        stood there.
    """
    seed = as_seed(seed, ids.device)
    tokens, sequences = ids.shape[0], cu_seqlens.shape[0] - 1
    starts = cu_seqlens.long()
    sequence = torch.arange(sequences, device=ids.device).repeat_interleave(
        starts.diff(), output_size=tokens
    )
    breaks = torch.cat([special.new_ones(1), special]).index_fill(0, starts, True)[
        :-1
    ]  # nothing goes on to this token
    choice, action, draw, extent = token_words(seed, counters)

    begins = ~special if word_starts is None else ~special & (word_starts | breaks)
    number = begins.cumsum(0)  # of a token's word, from 1
    first = begins.nonzero().squeeze(1)
    sizes = first.new_zeros(len(first) + 1).index_add(0, number, (~special).long())[1:]
    order = (sequence[first] << 32 | choice[first]).argsort(stable=True)
    leader = torch.arange(len(first), device=ids.device)
    if spans:
        leader = _span_starts(order, breaks.cumsum(0)[first], span_lengths(extent[first]))
        order = order.argsort()[leader].argsort(stable=True)
    eligible = torch.zeros_like(starts[1:]).index_add(0, sequence, (~special).long())
    budget = (eligible.double() * rate).round().long().clamp(min=1).minimum(eligible)
    taken = _take(order, sequence[first], sizes, leader, budget)
    chosen = ~special & torch.cat([taken.new_zeros(1), taken])[number]

    if spans:
        index = torch.arange(tokens, device=ids.device)
        follows = ~breaks & chosen.roll(1)
        action = action[torch.where(follows, 0, index).cummax(0).values]
    drawn = replacements[draw * len(replacements) >> 32]
    below = [round(share * WORD_RANGE) for share in (masked_share, masked_share + random_share)]
    hidden = torch.where(action < below[0], mask_id, torch.where(action < below[1], drawn, ids))
    positions = chosen.nonzero().squeeze(1)
    return torch.where(chosen, hidden, ids), positions, ids[positions]


def span_lengths(words: Tensor) -> Tensor:
    """Lengths of spans from Philox words: geometric with p = 0.2, given that they are 10 at
    most.
    """
    at_most = [1 - (1 - SPAN_P) ** length for length in range(1, MAX_SPAN + 1)]
    bounds = [round(share / at_most[-1] * WORD_RANGE) for share in at_most[:-1]]
    return torch.bucketize(words, torch.tensor(bounds, device=words.device), right=True) + 1


def _span_starts(order: Tensor, run: Tensor, length: Tensor) -> Tensor:
    """(words,) int64: the word that starts the span which covers each word first, if all spans were
    taken.

    The three are (words,). ``order`` has the words as spans are drawn at them. ``run`` is alike for
    words that one span can cover. ``length`` is that of the span at each word. A span is drawn
    there unless one before has covered the word.
    """
    rank = order.argsort()
    distance = torch.arange(MAX_SPAN, device=order.device)[:, None]
    back = (
        torch.arange(len(order), device=order.device) - distance
    )  # (MAX_SPAN, words): where a span over the word can start
    inside, back = back >= 0, back.clamp(min=0)
    reaches = inside & (run[back] == run) & (length[back] > distance)
    earlier = reaches & (rank[back] < rank)
    # Whether a span is drawn hangs on earlier ones alone: each round settles those whose earlier
    # ones are settled, and few rounds settle all.
    drawn = torch.ones_like(order, dtype=torch.bool)
    while not torch.equal(now := ~(earlier & drawn[back]).any(0), drawn):
        drawn = now
    return order[torch.where(reaches & drawn[back], rank[back], len(order)).amin(0)]


def _take(order: Tensor, sequence: Tensor, sizes: Tensor, leader: Tensor, budget: Tensor) -> Tensor:
    """(words,) bool: the words chosen when spans are taken in order, each up to the first word that
    its sequence's budget cannot hold.

    sequence, sizes (in tokens) and leader (the word that starts the span) are of each word.
    ``order`` puts sequences one after another and keeps a span together. A round takes spans until
    one is cut, and sorts out those whose first word no longer fits.
    """
    sequence, leader = sequence[order], leader[order]
    size, least = sizes[order], sizes[leader]
    taken, done = (
        torch.zeros_like(order, dtype=torch.bool),
        torch.zeros_like(order, dtype=torch.bool),
    )
    while (fits := ~done[leader] & (least <= budget[sequence])).any():
        running = (size * fits).cumsum(0)
        whole = torch.zeros_like(budget).index_add(0, sequence, size * fits)
        fits &= running - (whole.cumsum(0) - whole)[sequence] <= budget[sequence]
        budget = budget.index_add(0, sequence, size * fits, alpha=-1)
        done[leader[fits]] = True
        taken |= fits
    return torch.zeros_like(taken).index_copy(0, order, taken)
