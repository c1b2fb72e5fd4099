"""The forward: an online softmax over the keys of each block of queries."""

from __future__ import annotations

from torch import Tensor

from ..launch import launch
from ..positions import RelativePositions
from ..triton_compat import tl, triton
from ..triton_dot import dot
from .tiles import (
    LN_2,
    drop,
    dropout_of,
    kept,
    load_rows,
    options,
    program,
    reach,
    rows_of,
    scores,
    store_rows,
    terms_of,
    within,
)


@triton.jit(do_not_specialize=("blocks",), do_not_specialize_on_alignment=("seed_ptr",))
def _forward_kernel(
    q,
    k,
    v,
    out,
    lse_ptr,
    cu_ptr,
    seed_ptr,
    blocks,
    tokens,
    head_dim,
    scale,
    dropout,
    terms,
    window,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """O and the log-sum-exp of a block of queries, over every block of keys."""
    block, head, start, length = program(cu_ptr, blocks)
    first_query = block * BLOCK_M
    if first_query >= length:
        return
    query = first_query + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    real = query < length
    q_i = load_rows(q, start, head, query, real, head_dim, BLOCK_D)  # (BLOCK_M, BLOCK_D)
    m_i = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    o_i = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    first_seen, end = reach(first_query, length, window, BLOCK_M, BLOCK_N)
    for first_key in range(first_seen, end, BLOCK_N):
        key = first_key + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        k_j = load_rows(k, start, head, key, key < length, head_dim, BLOCK_D)  # (BLOCK_N, BLOCK_D)
        v_j = load_rows(v, start, head, key, key < length, head_dim, BLOCK_D)  # (BLOCK_N, BLOCK_D)
        s = scores(
            q_i, k_j, query[:, None], key[None, :], start, length, head, scale, terms, PRECISION
        )  # (BLOCK_M, BLOCK_N)
        seen = within((key < length)[None, :], query[:, None], key[None, :], window)
        s = tl.where(seen, s, float("-inf"))
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
            p = drop(p, kept(seed_ptr, dropout, start + query, head, first_key, BLOCK_N), dropout)
        o_i = dot(p.to(v_j.dtype), v_j, o_i * alpha[:, None], PRECISION)  # (BLOCK_M, BLOCK_D)
        m_i = m_new
    _, _, start, length = program(cu_ptr, blocks, AGAIN=True)
    real = query < length
    store_rows(out, start, head, query, real, head_dim, o_i / l_i[:, None])  # (BLOCK_M, BLOCK_D)
    lse = lse_ptr + head.to(tl.int64) * tokens + (start + query)
    tl.store(lse, (m_i + tl.log2(l_i)) * LN_2, real)  # (BLOCK_M,)


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
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
    tokens, heads, head_dim = q.shape
    # Slack rows are known to the device alone, so everything is zeroed: cheap beside the attention,
    # and no synchronisation.
    out.zero_(), lse.zero_()
    constants = options(q, "forward", positions is not None)
    blocks = triton.cdiv(max_seqlen, constants["BLOCK_M"])
    grid = (blocks * (cu_seqlens.shape[0] - 1), heads)
    if 0 in grid:
        return
    launch(
        _forward_kernel, grid,
        *map(rows_of, (q, k, v, out)), lse, cu_seqlens, seed, blocks, tokens, head_dim, scale,
        dropout_of(threshold), terms_of(positions, heads, max_seqlen),
        None if window < 0 else window, **constants,
    )  # fmt: skip
