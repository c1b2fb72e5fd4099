"""The forward: an online softmax over the keys of each block of queries."""

from __future__ import annotations

from torch import Tensor

from ..launch import launch
from ..positions import RelativePositions
from ..triton_compat import tl, triton
from ..triton_dot import dot
from .tile_list import tile_grid
from .tiles import (
    LN_2,
    LOG2_E,
    clear_slack,
    drop,
    dropout_of,
    kept,
    listed_block,
    load_rows,
    options,
    reach,
    rows_of,
    scores,
    store_rows,
    terms_of,
    within,
)


@triton.jit(do_not_specialize=("sequences",), do_not_specialize_on_alignment=("seed_ptr",))
def _forward_kernel(
    q,
    k,
    v,
    out,
    lse_ptr,
    cu_ptr,
    list_ptr,
    seed_ptr,
    sequences,
    tokens,
    scale,
    dropout,
    terms,
    window,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """O and the log-sum-exp of a block of queries, over every block of keys; zeros to slack."""
    clear_slack(out, lse_ptr, cu_ptr, sequences, tokens, HEAD_DIM, BLOCK_M, BLOCK_D)
    first_query, head, start, length = listed_block(cu_ptr, list_ptr, BLOCK_M)
    if first_query >= length:
        return
    i = tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    real = first_query + i < length
    q_i = load_rows(q, start + first_query, head, i, real, HEAD_DIM, BLOCK_D)  # (BLOCK_M, BLOCK_D)
    m_i = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    o_i = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    first_seen, end = reach(first_query, length, window, BLOCK_M, BLOCK_N)
    if window is None and terms is None:
        first_seen = length // BLOCK_N * BLOCK_N
        for first_key in range(0, first_seen, BLOCK_N):
            m_i, l_i, o_i = _softmax_step(
                q_i, k, v, m_i, l_i, o_i, start, length, head, first_query, first_key, scale,
                seed_ptr, dropout, terms, window, True, PRECISION, HEAD_DIM, BLOCK_N,
            )  # fmt: skip
    for first_key in range(first_seen, end, BLOCK_N):
        m_i, l_i, o_i = _softmax_step(
            q_i, k, v, m_i, l_i, o_i, start, length, head, first_query, first_key, scale,
            seed_ptr, dropout, terms, window, False, PRECISION, HEAD_DIM, BLOCK_N,
        )  # fmt: skip
    first_query, head, start, length = listed_block(cu_ptr, list_ptr, BLOCK_M, AGAIN=True)
    real = first_query + i < length
    normal = 1.0 / l_i
    if dropout is not None:
        normal *= dropout.keep_scale
    # (BLOCK_M, BLOCK_D)
    store_rows(out, start + first_query, head, i, real, o_i * normal[:, None], HEAD_DIM)
    lse = lse_ptr + head.to(tl.int64) * tokens + (start + first_query)
    tl.store(lse + i, (m_i + tl.log2(l_i)) * LN_2, real)  # (BLOCK_M,)


@triton.jit
def _softmax_step(
    q_i,
    k,
    v,
    m_i,
    l_i,
    o_i,
    start,
    length,
    head,
    first_query,
    first_key,
    scale,
    seed_ptr,
    dropout,
    terms,
    window,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """m, l and O after a block of keys.

    WHOLE says that every query sees all keys of the block, and that nothing is added to the scores.
    """
    BLOCK_M: tl.constexpr = q_i.shape[0]
    BLOCK_D: tl.constexpr = q_i.shape[1]
    i, j = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)  # (BLOCK_M,), (BLOCK_N,)
    inside = None if WHOLE else first_key + j < length
    k_j = load_rows(k, start + first_key, head, j, inside, HEAD_DIM, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    v_j = load_rows(v, start + first_key, head, j, inside, HEAD_DIM, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    if WHOLE:
        zeros = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        s = dot(q_i, tl.trans(k_j), zeros, PRECISION)  # (BLOCK_M, BLOCK_N), not scaled
        m_new = tl.maximum(m_i, tl.max(s, 1) * (scale * LOG2_E))  # (BLOCK_M,)
        level = m_new
        p = tl.exp2(s * (scale * LOG2_E) - level[:, None])  # (BLOCK_M, BLOCK_N)
    else:
        query, key = (first_query + i)[:, None], (first_key + j)[None, :]
        s = scores(q_i, k_j, query, key, start, length, head, scale, terms, PRECISION)
        s = tl.where(within(inside[None, :], query, key, window), s, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(s, 1))  # (BLOCK_M,)
        level = m_new
        if window is not None:
            # A query may have seen no key yet: exp2(-inf - 0) is zero, where exp2(-inf + inf) is
            # not.
            level = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - level[:, None])  # (BLOCK_M, BLOCK_N)
    alpha = tl.exp2(m_i - level)  # (BLOCK_M,)
    l_i = l_i * alpha + tl.sum(p, 1)
    if dropout is not None:
        keep = kept(
            seed_ptr, dropout, start, head, first_query, i[:, None], first_key, j[None, :]
        )  # (BLOCK_M, BLOCK_N)
        p = drop(p, keep, scale)
    o_i = dot(p.to(v_j.dtype), v_j, o_i * alpha[:, None], PRECISION)  # (BLOCK_M, BLOCK_D)
    return m_new, l_i, o_i


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    listed: Tensor,
    seed: Tensor,
    max_seqlen: int,
    scale: float,
    threshold: int,
    window: int,
    positions: RelativePositions | None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Writes out, and lse (heads, tokens); a window of -1 is none."""
    tokens, heads, _ = q.shape
    constants = options(q, "forward", positions is not None)
    grid = tile_grid(listed, heads, constants["BLOCK_M"])
    if 0 in grid:
        out.zero_(), lse.zero_()
        return
    if scale < 0:
        # The kernel scales the greatest score, and by a negative number it would be the least.
        q, scale = -q, -scale
    launch(
        _forward_kernel, grid,
        *map(rows_of, (q, k, v, out)), lse, cu_seqlens, listed, seed, cu_seqlens.shape[0] - 1,
        tokens, scale, dropout_of(threshold), terms_of(positions, heads, max_seqlen),
        None if window < 0 else window, **constants,
    )  # fmt: skip
