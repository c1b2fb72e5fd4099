"""The backward of sequences of any length, in two passes over the scores: dQ of each block of
queries, then dK and dV of each block of keys.
"""

from __future__ import annotations

from torch import Tensor

from ..launch import launch
from ..positions import RelativePositions
from ..triton_compat import tl, triton
from ..triton_dot import dot
from .table_gradients import launch_table_gradients
from .tiles import (
    drop,
    dropout_of,
    kept,
    load_rows,
    options,
    probabilities,
    program,
    reach,
    rows_of,
    scores,
    store_rows,
    terms_of,
    within,
)


@triton.jit(do_not_specialize=("blocks",))
def _delta_kernel(
    out,
    dout,
    delta_ptr,
    cu_ptr,
    blocks,
    tokens,
    head_dim,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """D, the row sums of dO ∘ O: what the softmax's gradient takes off."""
    block, head, start, length = program(cu_ptr, blocks)
    query = block * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    real = query < length
    o_i = load_rows(out, start, head, query, real, head_dim, BLOCK_D)  # (BLOCK_M, BLOCK_D)
    do_i = load_rows(dout, start, head, query, real, head_dim, BLOCK_D)  # (BLOCK_M, BLOCK_D)
    delta = delta_ptr + head.to(tl.int64) * tokens + (start + query)
    tl.store(delta, tl.sum(o_i.to(tl.float32) * do_i.to(tl.float32), 1), real)  # (BLOCK_M,)


@triton.jit
def _store_ds(x, start, head, rows, columns, inside, ds):
    """A tile of the scores' gradient into `Rows` of (tokens, heads, max_seqlen), if given."""
    if x is not None:
        base = x.ptr + start * x.token_stride + head * x.head_stride
        offsets = rows[:, None] * x.token_stride + columns[None, :]
        tl.store(base + offsets, ds.to(x.ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=("blocks",), do_not_specialize_on_alignment=("seed_ptr",))
def _query_gradient_kernel(
    q,
    k,
    v,
    dout,
    dq,
    ds_rows,
    lse_ptr,
    delta_ptr,
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
    """dQ of a block of queries, over every block of keys; to ds_rows, if given, dS, (tokens of
    queries, heads, keys).
    """
    block, head, start, length = program(cu_ptr, blocks)
    first_query = block * BLOCK_M
    if first_query >= length:
        return
    query = first_query + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    real = query < length
    q_i = load_rows(q, start, head, query, real, head_dim, BLOCK_D)  # (BLOCK_M, BLOCK_D)
    do_i = load_rows(dout, start, head, query, real, head_dim, BLOCK_D)  # (BLOCK_M, BLOCK_D)
    line = head.to(tl.int64) * tokens + (start + query)
    lse_i = tl.load(lse_ptr + line, real, 0.0)  # (BLOCK_M,)
    delta_i = tl.load(delta_ptr + line, real, 0.0)  # (BLOCK_M,)
    dq_i = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    first_seen, end = reach(first_query, length, window, BLOCK_M, BLOCK_N)
    for first_key in range(first_seen, end, BLOCK_N):
        key = first_key + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        k_j = load_rows(k, start, head, key, key < length, head_dim, BLOCK_D)  # (BLOCK_N, BLOCK_D)
        v_j = load_rows(v, start, head, key, key < length, head_dim, BLOCK_D)  # (BLOCK_N, BLOCK_D)
        s = scores(
            q_i, k_j, query[:, None], key[None, :], start, length, head, scale, terms, PRECISION
        )  # (BLOCK_M, BLOCK_N)
        # A query past the end meets zeros in q and dout.
        seen = within((key < length)[None, :], query[:, None], key[None, :], window)
        p = probabilities(s, lse_i[:, None], seen)  # (BLOCK_M, BLOCK_N)
        zeros = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        dp = dot(do_i, tl.trans(v_j), zeros, PRECISION)  # (BLOCK_M, BLOCK_N)
        if dropout is not None:
            dp = drop(dp, kept(seed_ptr, dropout, start + query, head, first_key, BLOCK_N), dropout)
        ds = p * (dp - delta_i[:, None])  # (BLOCK_M, BLOCK_N)
        inside = real[:, None] & (key < length)[None, :]
        _store_ds(ds_rows, start, head, query, key, inside, ds)
        dq_i = dot(ds.to(k_j.dtype), k_j, dq_i, PRECISION)  # (BLOCK_M, BLOCK_D)
    _, _, start, length = program(cu_ptr, blocks, AGAIN=True)
    real = query < length
    store_rows(dq, start, head, query, real, head_dim, dq_i * scale)  # (BLOCK_M, BLOCK_D)


@triton.jit(do_not_specialize=("blocks",), do_not_specialize_on_alignment=("seed_ptr",))
def _key_gradient_kernel(
    q,
    k,
    v,
    dout,
    dk,
    dv,
    ds_rows,
    lse_ptr,
    delta_ptr,
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
    """dK and dV of a block of keys, over every block of queries; to ds_rows, if given, dS, (tokens
    of keys, heads, queries).

    Tiles are (keys, queries), so that they enter the products of dK and dV as they are.
    """
    block, head, start, length = program(cu_ptr, blocks)
    first_key = block * BLOCK_N
    if first_key >= length:
        return
    key = first_key + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    k_j = load_rows(k, start, head, key, key < length, head_dim, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    v_j = load_rows(v, start, head, key, key < length, head_dim, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    dk_j = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv_j = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    first_seeing, end = reach(first_key, length, window, BLOCK_N, BLOCK_M)
    for first_query in range(first_seeing, end, BLOCK_M):
        query = first_query + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
        real = query < length
        q_i = load_rows(q, start, head, query, real, head_dim, BLOCK_D)  # (BLOCK_M, BLOCK_D)
        do_i = load_rows(dout, start, head, query, real, head_dim, BLOCK_D)  # (BLOCK_M, BLOCK_D)
        line = head.to(tl.int64) * tokens + (start + query)
        lse_i = tl.load(lse_ptr + line, real, 0.0)  # (BLOCK_M,)
        delta_i = tl.load(delta_ptr + line, real, 0.0)  # (BLOCK_M,)
        s = scores(
            k_j, q_i, query[None, :], key[:, None], start, length, head, scale, terms, PRECISION
        )  # (BLOCK_N, BLOCK_M)
        # A query past the end meets zeros in q and dout.
        seen = within((key < length)[:, None], query[None, :], key[:, None], window)
        p = probabilities(s, lse_i[None, :], seen)  # (BLOCK_N, BLOCK_M)
        zeros = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        dp = dot(v_j, tl.trans(do_i), zeros, PRECISION)  # (BLOCK_N, BLOCK_M)
        dropped = p
        if dropout is not None:
            keep = tl.trans(kept(seed_ptr, dropout, start + query, head, first_key, BLOCK_N))
            dropped, dp = drop(p, keep, dropout), drop(dp, keep, dropout)
        dv_j = dot(dropped.to(do_i.dtype), do_i, dv_j, PRECISION)  # (BLOCK_N, BLOCK_D)
        ds = p * (dp - delta_i[None, :])  # (BLOCK_N, BLOCK_M)
        inside = (key < length)[:, None] & real[None, :]
        _store_ds(ds_rows, start, head, key, query, inside, ds)
        dk_j = dot(ds.to(q_i.dtype), q_i, dk_j, PRECISION)  # (BLOCK_N, BLOCK_D)
    _, _, start, length = program(cu_ptr, blocks, AGAIN=True)
    store_rows(dk, start, head, key, key < length, head_dim, dk_j * scale)  # (BLOCK_N, BLOCK_D)
    store_rows(dv, start, head, key, key < length, head_dim, dv_j)  # (BLOCK_N, BLOCK_D)


def launch_two_passes(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    max_seqlen: int,
    scale: float,
    threshold: int,
    window: int,
    positions: RelativePositions | None,
    gradients: tuple[Tensor, ...],
) -> None:
    """Writes the gradients, in the order of `op._empty_gradients`; a window of -1 is none."""
    tokens, heads, head_dim = q.shape
    sequences = cu_seqlens.shape[0] - 1
    dq, dk, dv, *tables = gradients
    # A table whose gradient is not wanted has room of no elements for it.
    dbias, dquery_scores, dkey_scores = (x if x.numel() else None for x in tables)
    by_queries, by_keys = dbias is not None or dquery_scores is not None, dkey_scores is not None
    ds = q.new_empty(tokens, heads, max_seqlen if by_queries or by_keys else 0)
    delta = lse.new_empty(lse.shape)
    inputs, pointers = [rows_of(x) for x in (q, k, v, dout)], (lse, delta, cu_seqlens, seed)
    rest = (
        tokens, head_dim, scale, dropout_of(threshold), terms_of(positions, heads, max_seqlen),
        None if window < 0 else window,
    )  # fmt: skip
    constants = options(q, "query_gradient", positions is not None)
    blocks = triton.cdiv(max_seqlen, constants["BLOCK_M"])
    launch(
        _delta_kernel, (blocks * sequences, heads),
        rows_of(out), rows_of(dout), delta, cu_seqlens, blocks, tokens, head_dim,
        BLOCK_M=constants["BLOCK_M"], BLOCK_D=constants["BLOCK_D"],
    )  # fmt: skip
    launch(
        _query_gradient_kernel, (blocks * sequences, heads),
        *inputs, rows_of(dq), rows_of(ds) if by_queries else None, *pointers, blocks, *rest,
        **constants,
    )  # fmt: skip
    if positions is not None and by_queries:
        launch_table_gradients(
            ds, positions, cu_seqlens, max_seqlen, window, 1, dquery_scores, dbias
        )
    constants = options(q, "key_gradient", positions is not None)
    blocks = triton.cdiv(max_seqlen, constants["BLOCK_N"])
    launch(
        _key_gradient_kernel, (blocks * sequences, heads),
        *inputs, rows_of(dk), rows_of(dv), rows_of(ds) if by_keys else None, *pointers, blocks,
        *rest, **constants,
    )  # fmt: skip
    if positions is not None and by_keys:
        launch_table_gradients(ds, positions, cu_seqlens, max_seqlen, window, -1, dkey_scores, None)
