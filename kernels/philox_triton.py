"""The lanes of `philox.py` inside Triton kernels."""

from __future__ import annotations

from . import philox
from .triton_compat import tl, triton

ATTENTION_ROUNDS = tl.constexpr(philox.ATTENTION_ROUNDS)
MULTIPLIER_0, MULTIPLIER_1 = tl.constexpr(philox.MULTIPLIER_0), tl.constexpr(philox.MULTIPLIER_1)
WEYL_0, WEYL_1 = tl.constexpr(philox.WEYL_0), tl.constexpr(philox.WEYL_1)


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
def attention_lanes(seed, start, head, first_query, i, first_key, j):
    """The lane of each score of queries ``first_query + i`` with keys ``first_key + j``, in the
    highest byte of a word; the bytes below are others'.

    The sequence begins in row ``start``. i and j are shaped to broadcast over the tile. They come
    apart from where it begins, so that the compiler sees which elements of a thread share a
    counter, and counts it once.
    """
    key = ((first_key & ~24) + (j & ~24)).to(tl.uint32)
    row = (start + (first_query & ~24) + (i & ~24)).to(tl.uint32)
    w0, w1, w2, w3 = _attention_words(seed, key, row, head.to(tl.uint32))
    eight = _eight(first_query, i)
    odd = (eight & 8) != 0
    word = tl.where((eight & 16) != 0, tl.where(odd, w3, w2), tl.where(odd, w1, w0))
    # Turned, not shifted: of a shifted word the compiler makes a product for each byte.
    left = 24 - _eight(first_key, j)
    return (word << left.to(tl.uint32)) | (word >> (-left & 31).to(tl.uint32))


@triton.jit
def _attention_words(seed, c0, c1, c2):
    """The words of the counters (c0, c1, c2, 0). A product of 64 bits is one instruction; Triton's
    own Philox makes each half of it by itself.
    """
    key_0, key_1 = (seed & 0xFFFFFFFF).to(tl.uint32), (seed >> 32).to(tl.uint32)
    c3 = tl.full((), 0, tl.uint32)
    for _ in tl.static_range(ATTENTION_ROUNDS):
        product_0, product_1 = c0.to(tl.uint64) * MULTIPLIER_0, c2.to(tl.uint64) * MULTIPLIER_1
        c0 = (product_1 >> 32).to(tl.uint32) ^ c1 ^ key_0
        c1 = product_1.to(tl.uint32)
        c2 = (product_0 >> 32).to(tl.uint32) ^ c3 ^ key_1
        c3 = product_0.to(tl.uint32)
        key_0 = tl.add(key_0, WEYL_0, sanitize_overflow=False)
        key_1 = tl.add(key_1, WEYL_1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _eight(first, x):
    """Eight times the place, among the four eights of its 32, of position ``first + x``."""
    # A whole number of 32s begins at one.
    return x & 24 if x.numel % 32 == 0 else (first + x) & 24


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
