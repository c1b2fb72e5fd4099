"""The lanes of `philox.py` inside Triton kernels."""

from __future__ import annotations

from .triton_compat import tl, triton


@triton.jit
def interleave_lanes(w0, w1, w2, w3):
    """Four (rows, counters) tiles of words to the (rows, 8 * counters) tile of 16-bit lanes, in the
    order of the elements.
    """
    words = tl.join(
        tl.join(w0, w2), tl.join(w1, w3)
    )  # (rows, counters, 2, 2), flattened: w0 w1 w2 w3
    words = tl.reshape(words, (w0.shape[0], w0.shape[1], 4))
    lanes = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(lanes, (w0.shape[0], w0.shape[1] * 8))


@triton.jit
def attention_lanes(seed, rows, head, first_key, KEYS: tl.constexpr):
    """(len(rows), KEYS) lanes of the scores of query ``rows`` with keys ``first_key`` onwards;
    first_key is a multiple of 8.
    """
    counters = first_key // 8 + tl.arange(0, KEYS // 8)
    c0 = tl.broadcast_to(counters[None, :], (rows.shape[0], KEYS // 8)).to(tl.uint32)
    c1 = tl.broadcast_to(rows[:, None], (rows.shape[0], KEYS // 8)).to(tl.uint32)
    zero = c0 * 0
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, zero + head.to(tl.uint32), zero)
    return interleave_lanes(w0, w1, w2, w3)


@triton.jit
def flat_lanes(seed, first, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr):
    """(len(first), COLUMNS) lanes of the flat elements from ``first`` (int64) on; ALIGNED where
    each is a multiple of 8.
    """
    if ALIGNED:
        counters = (first // 8)[:, None] + tl.arange(0, COLUMNS // 8)[None, :]
    else:
        elements = first[:, None] + tl.arange(0, COLUMNS)[None, :]
        counters = elements // 8
    low = (counters & 0xFFFFFFFF).to(tl.uint32)
    high = (counters >> 32).to(tl.uint32)
    zero = low * 0
    w0, w1, w2, w3 = tl.philox(seed, low, high, zero, zero)
    if ALIGNED:
        lanes = interleave_lanes(w0, w1, w2, w3)
    else:
        lane = elements % 8
        word = tl.where(lane < 4, tl.where(lane < 2, w0, w1), tl.where(lane < 6, w2, w3))
        lanes = tl.where(lane % 2 == 0, word & 0xFFFF, word >> 16)
    return lanes
