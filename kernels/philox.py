"""Philox-4x32, the counter-based generator behind every dropout and every mask.

Randomness is counted, not drawn: the bits of element ``e`` are a function of ``(seed, e)`` alone.
So Triton, C++ and this file give the same mask. The backward recomputes it instead of storing it,
and a resumed run repeats it.

One counter gives four 32-bit words, used as eight 16-bit lanes. The element with index ``e`` along
the fast axis takes counter ``e // 8`` and lane ``e % 8``. An even lane is the low half of word
``lane // 2``, an odd one the high half. An element is dropped when its lane is below ``threshold =
round(p * 65536)``. That is ten rounds.

Attention's probabilities outnumber all else, and take seven rounds and lanes of 8 bits. One counter
gives the sixteen lanes of four queries and four keys. The queries are at positions ``q``, ``q +
8``, ``q + 16`` and ``q + 24`` of their sequence, and the keys likewise from ``k``. The counter is
(``k``, the row of ``q`` in the batch, the head, 0). Word ``a`` and byte ``b`` are of query ``q +
8a`` and key ``k + 8b``. A thread of an NVIDIA tensor core holds such rows and columns of a tile or
of its transpose. So it makes the lanes of its own elements and moves none.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3. They find
that Philox-4x32 passes every test of BigCrush from seven rounds on, and advise ten for a margin.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
ATTENTION_ROUNDS = 7
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
LOW_32 = 0xFFFFFFFF
LANES = 8  # 16-bit lanes in one counter's output
LANE_RANGE = 1 << 16
ATTENTION_LANE_RANGE = 1 << 8


def philox_4x32(
    seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four 32-bit words of each counter, as int64 tensors of the counters' broadcast shape.

    Args:
        seed: int64 tensor of one element; its low and high 32 bits are the key.
        c0, c1, c2, c3: int64 tensors that broadcast together, each in [0, 2**32).
        rounds: of mixing.
    """
    key_0, key_1 = seed & LOW_32, (seed >> 32) & LOW_32
    c0, c1, c2, c3 = torch.broadcast_tensors(c0, c1, c2, c3)
    for _ in range(rounds):
        # int64 products wrap modulo 2**64; masking after the shift leaves the true high word.
        product_0, product_1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0 = ((product_1 >> 32) & LOW_32) ^ c1 ^ key_0
        c1 = product_1 & LOW_32
        c2 = ((product_0 >> 32) & LOW_32) ^ c3 ^ key_1
        c3 = product_0 & LOW_32
        key_0, key_1 = (key_0 + WEYL_0) & LOW_32, (key_1 + WEYL_1) & LOW_32
    return c0, c1, c2, c3


def _lanes(words: tuple[Tensor, Tensor, Tensor, Tensor], count: int) -> Tensor:
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, dim=-1).flatten(-2)[..., :count]


def attention_lanes(seed: Tensor, starts: Tensor, heads: int, length: int) -> Tensor:
    """The 8-bit lanes of the scores, (sequences, heads, length, length), queries before keys.

    Args:
        seed: int64 tensor of one element.
        starts: (sequences,) int64, the first row of each sequence in the batch.
        heads: how many there are.
        length: of every sequence, padded.
    """
    blocks = -(-length // 32)
    first = torch.arange(32 * blocks, device=seed.device).view(blocks, 4, 8)[:, 0].flatten()
    rows = starts[:, None, None, None] + first[:, None]
    head = torch.arange(heads, device=seed.device)[:, None, None]
    words = philox_4x32(seed, first, rows, head, torch.zeros_like(first), ATTENTION_ROUNDS)
    lanes = torch.stack([word >> shift & 0xFF for word in words for shift in (0, 8, 16, 24)])
    # (word, byte, sequences, heads, blocks, 8, blocks, 8)
    lanes = lanes.view(4, 4, len(starts), heads, blocks, 8, blocks, 8)
    lanes = lanes.permute(2, 3, 4, 0, 5, 6, 1, 7).reshape(len(starts), heads, *(32 * blocks,) * 2)
    return lanes[..., :length, :length]


def flat_lanes(seed: Tensor, count: int) -> Tensor:
    """The 16-bit lanes of elements 0 to ``count - 1`` of a flat tensor, shape (count,)."""
    counters = torch.arange(-(-count // LANES), device=seed.device)
    zero = torch.zeros_like(counters)
    return _lanes(philox_4x32(seed, counters & LOW_32, counters >> 32, zero, zero), count)


def token_words(seed: Tensor, counters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The words that mask tokens: of (low, high half of each counter, 0, 1), so that dropout under
    the same seed shares none.
    """
    zero = torch.zeros_like(counters)
    return philox_4x32(seed, counters & LOW_32, (counters >> 32) & LOW_32, zero, zero + 1)


def dropout_threshold(p: float) -> int:
    """``p`` on the grid of 1/65536 that the lanes resolve; an element is dropped when its lane is
    below it.

    Raises:
        ValueError: ``p`` is not in [0, 1).
    """
    threshold = round(p * LANE_RANGE) if 0.0 <= p < 1.0 else LANE_RANGE
    if threshold == LANE_RANGE:
        raise ValueError(f"dropout probability is {p}; it must be at least 0 and below 1")
    return threshold


def attention_threshold(p: float) -> int:
    """``p`` on the grid of 1/256 that attention's lanes resolve.

    Unless it is 0 it becomes 1/256 to 255/256, so that no dropout is left out and none drops
    everything.

    Raises:
        ValueError: ``p`` is not in [0, 1).
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout probability is {p}; it must be at least 0 and below 1")
    return min(max(round(p * ATTENTION_LANE_RANGE), 1), ATTENTION_LANE_RANGE - 1) if p else 0


def keep_scale(threshold: int, lane_range: int = LANE_RANGE) -> float:
    """What a kept element is multiplied by, so that the expectation stays: one over the share
    kept.
    """
    return lane_range / (lane_range - threshold)


def as_seed(seed: int | Tensor, device: torch.device) -> Tensor:
    """``seed`` as an int64 tensor of shape (1,) on ``device``.

    Raises:
        TypeError: a tensor of another dtype or size, or no integer at all.
        ValueError: an integer beyond 64 bits, or a tensor on another device.
    """
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(
                f"seed is a {seed.dtype} tensor of shape {tuple(seed.shape)}; "
                "it must be int64 with one element"
            )
        if seed.device != device:
            raise ValueError(
                f"seed is on {seed.device} and the input on {device}; move one to the other"
            )
        return seed.reshape(1)
    if isinstance(seed, bool) or not isinstance(seed, (int, torch.SymInt)):
        raise TypeError(
            f"seed is a {type(seed).__name__}; it must be an int or an int64 tensor of one element"
        )
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed is {seed}; it must fit in 64 bits")
    return torch.full(
        (1,), seed, dtype=torch.int64, device=device
    )  # written by a kernel: a copy from the host would stall a GPU's queue
