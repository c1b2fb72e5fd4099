"""The backward of sequences of any length, in two passes over the scores.

The first makes dQ of each block of queries, the second dK and dV of each block of keys.
"""

from __future__ import annotations

from torch import Tensor

from ..launch import launch
from ..positions import RelativePositions
from ..triton_compat import tl, triton
from ..triton_dot import dot
from .table_gradients import launch_table_gradients
from .tile_list import tile_grid
from .tiles import (
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


@triton.jit
def _row_sums_kernel(
    out,
    dout,
    lse_ptr,
    sums_ptr,
    cu_ptr,
    list_ptr,
    tokens,
    dropout,
    above,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What the other kernels take off by rows, (2, heads, tokens): the log-sum-exp in log2, and D.

    D, the row sums of dO ∘ O, is multiplied by the share that dropout keeps, for those kernels take
    dP not scaled up.
    """
    first_query, head, start, length = listed_block(cu_ptr, list_ptr, BLOCK_M)
    if (first_query >= length) | (length <= above):
        return
    i = tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    real = first_query + i < length
    row = start + first_query
    o_i = load_rows(out, row, head, i, real, HEAD_DIM, BLOCK_D)  # (BLOCK_M, BLOCK_D)
    do_i = load_rows(dout, row, head, i, real, HEAD_DIM, BLOCK_D)  # (BLOCK_M, BLOCK_D)
    delta_i = tl.sum(o_i.to(tl.float32) * do_i.to(tl.float32), 1)  # (BLOCK_M,)
    if dropout is not None:
        delta_i *= dropout.keep_share
    line = head.to(tl.int64) * tokens + row
    lse_i = tl.load(lse_ptr + line + i, real, 0.0)  # (BLOCK_M,)
    tl.store(sums_ptr + line + i, lse_i * LOG2_E, real)
    tl.store(sums_ptr + (tl.num_programs(1).to(tl.int64) * tokens + line) + i, delta_i, real)


@triton.jit
def _load_sums(sums_ptr, tokens, row, head, i, inside):
    """The log-sum-exp in log2 and D of rows ``row + i``; zeros outside, and ``inside`` may be
    None.
    """
    lse = sums_ptr + (head.to(tl.int64) * tokens + row) + i
    delta = lse + tl.num_programs(1).to(tl.int64) * tokens
    if inside is None:
        sums = tl.load(lse), tl.load(delta)
    else:
        sums = tl.load(lse, inside, 0.0), tl.load(delta, inside, 0.0)
    return sums


@triton.jit
def _store_ds(x, row, head, i, first_column, j, inside, dropout, ds):
    """A tile of the scores' gradient into `Rows` of (tokens, heads, max_seqlen), if given."""
    if x is not None:
        if dropout is not None:
            ds *= dropout.keep_scale
        base = x.ptr + row * x.token_stride + head * x.head_stride + first_column
        offsets = i[:, None] * x.token_stride + j[None, :]
        tl.store(base + offsets, ds.to(x.ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=("sequences",), do_not_specialize_on_alignment=("seed_ptr",))
def _query_gradient_kernel(
    q,
    k,
    v,
    dout,
    dq,
    ds_rows,
    sums_ptr,
    cu_ptr,
    list_ptr,
    seed_ptr,
    sequences,
    tokens,
    scale,
    dropout,
    terms,
    window,
    above,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dQ of a block of queries, over every block of keys; to ds_rows, if given, dS, (tokens of
    queries, heads, keys). Sequences of at most ``above`` tokens are another kernel's, and so is
    slack where there are any.
    """
    if above == 0:
        clear_slack(dq, None, cu_ptr, sequences, tokens, HEAD_DIM, BLOCK_M, BLOCK_D)
    first_query, head, start, length = listed_block(cu_ptr, list_ptr, BLOCK_M)
    if (first_query >= length) | (length <= above):
        return
    i = tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    real = first_query + i < length
    row = start + first_query
    q_i = load_rows(q, row, head, i, real, HEAD_DIM, BLOCK_D)  # (BLOCK_M, BLOCK_D)
    do_i = load_rows(dout, row, head, i, real, HEAD_DIM, BLOCK_D)  # (BLOCK_M, BLOCK_D)
    lse_i, delta_i = _load_sums(sums_ptr, tokens, row, head, i, real)  # (BLOCK_M,)
    dq_i = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    first_seen, end = reach(first_query, length, window, BLOCK_M, BLOCK_N)
    if window is None and terms is None:
        first_seen = length // BLOCK_N * BLOCK_N
        for first_key in range(0, first_seen, BLOCK_N):
            dq_i = _query_gradient_step(
                q_i, do_i, lse_i, delta_i, dq_i, k, v, start, length, head, first_query, first_key,
                scale, seed_ptr, dropout, terms, window, ds_rows, True, PRECISION, HEAD_DIM,
                BLOCK_N,
            )  # fmt: skip
    for first_key in range(first_seen, end, BLOCK_N):
        dq_i = _query_gradient_step(
            q_i, do_i, lse_i, delta_i, dq_i, k, v, start, length, head, first_query, first_key,
            scale, seed_ptr, dropout, terms, window, ds_rows, False, PRECISION, HEAD_DIM,
            BLOCK_N,
        )  # fmt: skip
    first_query, head, start, length = listed_block(cu_ptr, list_ptr, BLOCK_M, AGAIN=True)
    real = first_query + i < length
    if dropout is not None:
        scale *= dropout.keep_scale
    store_rows(dq, start + first_query, head, i, real, dq_i * scale, HEAD_DIM)


@triton.jit
def _query_gradient_step(
    q_i,
    do_i,
    lse_i,
    delta_i,
    dq_i,
    k,
    v,
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
    ds_rows,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dQ, not scaled, after a block of keys; where it is WHOLE, every query sees all of them and
    nothing is added to the scores.
    """
    BLOCK_M: tl.constexpr = q_i.shape[0]
    BLOCK_D: tl.constexpr = q_i.shape[1]
    i, j = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)  # (BLOCK_M,), (BLOCK_N,)
    inside = None if WHOLE else first_key + j < length
    k_j = load_rows(k, start + first_key, head, j, inside, HEAD_DIM, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    v_j = load_rows(v, start + first_key, head, j, inside, HEAD_DIM, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    zeros = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # A query past the end meets zeros in q and dout.
    if WHOLE:
        s = dot(q_i, tl.trans(k_j), zeros, PRECISION)  # (BLOCK_M, BLOCK_N), not scaled
        p = tl.exp2(s * (scale * LOG2_E) - lse_i[:, None])  # (BLOCK_M, BLOCK_N)
    else:
        query, key = (first_query + i)[:, None], (first_key + j)[None, :]
        s = scores(q_i, k_j, query, key, start, length, head, scale, terms, PRECISION)
        p = tl.exp2(s - lse_i[:, None])  # (BLOCK_M, BLOCK_N)
        p = tl.where(within(inside[None, :], query, key, window), p, 0.0)
    dp = dot(do_i, tl.trans(v_j), zeros, PRECISION)  # (BLOCK_M, BLOCK_N), not scaled up
    if dropout is not None:
        keep = kept(
            seed_ptr, dropout, start, head, first_query, i[:, None], first_key, j[None, :]
        )  # (BLOCK_M, BLOCK_N)
        dp = drop(dp, keep, scale)
    ds = p * (dp - delta_i[:, None])  # (BLOCK_M, BLOCK_N), not scaled up
    if not WHOLE:
        both = (first_query + i < length)[:, None] & inside[None, :]
        _store_ds(ds_rows, start + first_query, head, i, first_key, j, both, dropout, ds)
    return dot(ds.to(k_j.dtype), k_j, dq_i, PRECISION)  # (BLOCK_M, BLOCK_D)


@triton.jit(do_not_specialize=("sequences",), do_not_specialize_on_alignment=("seed_ptr",))
def _key_gradient_kernel(
    q,
    k,
    v,
    dout,
    dk,
    dv,
    ds_rows,
    sums_ptr,
    cu_ptr,
    list_ptr,
    seed_ptr,
    sequences,
    tokens,
    scale,
    dropout,
    terms,
    window,
    above,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dK and dV of a block of keys, over every block of queries; to ds_rows, if given, dS, (tokens
    of keys, heads, queries). Sequences of at most ``above`` tokens are another kernel's, and so is
    slack where there are any.

    Tiles are (keys, queries), so that they enter the products of dK and dV as they are.
    """
    if above == 0:
        clear_slack(dk, None, cu_ptr, sequences, tokens, HEAD_DIM, BLOCK_N, BLOCK_D)
        clear_slack(dv, None, cu_ptr, sequences, tokens, HEAD_DIM, BLOCK_N, BLOCK_D)
    first_key, head, start, length = listed_block(cu_ptr, list_ptr, BLOCK_N)
    if (first_key >= length) | (length <= above):
        return
    j = tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    real = first_key + j < length
    row = start + first_key
    k_j = load_rows(k, row, head, j, real, HEAD_DIM, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    v_j = load_rows(v, row, head, j, real, HEAD_DIM, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    dk_j = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv_j = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    first_seeing, end = reach(first_key, length, window, BLOCK_N, BLOCK_M)
    if window is None and terms is None:
        first_seeing = length // BLOCK_M * BLOCK_M
        for first_query in range(0, first_seeing, BLOCK_M):
            dk_j, dv_j = _key_gradient_step(
                k_j, v_j, dk_j, dv_j, q, dout, sums_ptr, start, length, tokens, head, first_query,
                first_key, scale, seed_ptr, dropout, terms, window, ds_rows, True, PRECISION,
                HEAD_DIM, BLOCK_M,
            )  # fmt: skip
    for first_query in range(first_seeing, end, BLOCK_M):
        dk_j, dv_j = _key_gradient_step(
            k_j, v_j, dk_j, dv_j, q, dout, sums_ptr, start, length, tokens, head, first_query,
            first_key, scale, seed_ptr, dropout, terms, window, ds_rows, False, PRECISION,
            HEAD_DIM, BLOCK_M,
        )  # fmt: skip
    first_key, head, start, length = listed_block(cu_ptr, list_ptr, BLOCK_N, AGAIN=True)
    real = first_key + j < length
    if dropout is not None:
        scale *= dropout.keep_scale
        dv_j *= dropout.keep_scale
    store_rows(dk, start + first_key, head, j, real, dk_j * scale, HEAD_DIM)
    store_rows(dv, start + first_key, head, j, real, dv_j, HEAD_DIM)


@triton.jit
def _key_gradient_step(
    k_j,
    v_j,
    dk_j,
    dv_j,
    q,
    dout,
    sums_ptr,
    start,
    length,
    tokens,
    head,
    first_query,
    first_key,
    scale,
    seed_ptr,
    dropout,
    terms,
    window,
    ds_rows,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """dK and dV, not scaled, after a block of queries.

    WHOLE says three things: the block has all of its queries, they see every key, and nothing is
    added to the scores.
    """
    BLOCK_N: tl.constexpr = k_j.shape[0]
    BLOCK_D: tl.constexpr = k_j.shape[1]
    i, j = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)  # (BLOCK_M,), (BLOCK_N,)
    row, inside = start + first_query, None if WHOLE else first_query + i < length
    q_i = load_rows(q, row, head, i, inside, HEAD_DIM, BLOCK_D)  # (BLOCK_M, BLOCK_D)
    do_i = load_rows(dout, row, head, i, inside, HEAD_DIM, BLOCK_D)  # (BLOCK_M, BLOCK_D)
    lse_i, delta_i = _load_sums(sums_ptr, tokens, row, head, i, inside)  # (BLOCK_M,)
    zeros = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    # A query past the end meets zeros in q and dout; what a key past the end gets is not stored.
    if WHOLE:
        s = dot(k_j, tl.trans(q_i), zeros, PRECISION)  # (BLOCK_N, BLOCK_M), not scaled
        p = tl.exp2(s * (scale * LOG2_E) - lse_i[None, :])  # (BLOCK_N, BLOCK_M)
    else:
        query, key = (first_query + i)[None, :], (first_key + j)[:, None]
        s = scores(k_j, q_i, query, key, start, length, head, scale, terms, PRECISION)
        p = tl.exp2(s - lse_i[None, :])  # (BLOCK_N, BLOCK_M)
        p = tl.where(within(key < length, query, key, window), p, 0.0)
    dp = dot(v_j, tl.trans(do_i), zeros, PRECISION)  # (BLOCK_N, BLOCK_M), not scaled up
    dropped = p
    if dropout is not None:
        keep = kept(
            seed_ptr, dropout, start, head, first_query, i[None, :], first_key, j[:, None]
        )  # (BLOCK_N, BLOCK_M)
        dropped, dp = drop(p, keep, scale), drop(dp, keep, scale)
    dv_j = dot(dropped.to(do_i.dtype), do_i, dv_j, PRECISION)  # (BLOCK_N, BLOCK_D)
    ds = p * (dp - delta_i[None, :])  # (BLOCK_N, BLOCK_M), not scaled up
    if not WHOLE:
        both = (first_key + j < length)[:, None] & inside[None, :]
        _store_ds(ds_rows, start + first_key, head, j, first_query, i, both, dropout, ds)
    return dot(ds.to(q_i.dtype), q_i, dk_j, PRECISION), dv_j  # (BLOCK_N, BLOCK_D)


def launch_two_passes(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    listed: Tensor,
    seed: Tensor,
    max_seqlen: int,
    scale: float,
    threshold: int,
    window: int,
    positions: RelativePositions | None,
    gradients: tuple[Tensor, ...],
    above: int = 0,
) -> None:
    """Writes dq, dk, dv and the gradients of the tables, for sequences of more than ``above``
    tokens; a window of -1 is none.
    """
    tokens, heads, _ = q.shape
    dq, dk, dv, *tables = gradients
    # A table whose gradient is not wanted has room of no elements for it.
    dbias, dquery_scores, dkey_scores = (x if x.numel() else None for x in tables)
    by_queries, by_keys = dbias is not None or dquery_scores is not None, dkey_scores is not None
    ds = q.new_empty(tokens, heads, max_seqlen if by_queries or by_keys else 0)
    sums, dropout = lse.new_empty(2, heads, tokens), dropout_of(threshold)
    rest = (
        sums, cu_seqlens, listed, seed, cu_seqlens.shape[0] - 1, tokens, scale, dropout,
        terms_of(positions, heads, max_seqlen), None if window < 0 else window, above,
    )  # fmt: skip
    inputs = [rows_of(x) for x in (q, k, v, dout)]
    constants = options(q, "query_gradient", positions is not None)
    grid = tile_grid(listed, heads, constants["BLOCK_M"])
    launch(
        _row_sums_kernel, grid,
        rows_of(out), rows_of(dout), lse, sums, cu_seqlens, listed, tokens, dropout, above,
        **{name: constants[name] for name in ("HEAD_DIM", "BLOCK_M", "BLOCK_D")},
    )  # fmt: skip
    launch(
        _query_gradient_kernel, grid,
        *inputs, rows_of(dq), rows_of(ds) if by_queries else None, *rest, **constants,
    )  # fmt: skip
    if positions is not None and by_queries:
        launch_table_gradients(
            ds, positions, cu_seqlens, max_seqlen, window, 1, dquery_scores, dbias
        )
    constants = options(q, "key_gradient", positions is not None)
    launch(
        _key_gradient_kernel, tile_grid(listed, heads, constants["BLOCK_N"]),
        *inputs, rows_of(dk), rows_of(dv), rows_of(ds) if by_keys else None, *rest, **constants,
    )  # fmt: skip
    if positions is not None and by_keys:
        launch_table_gradients(ds, positions, cu_seqlens, max_seqlen, window, -1, dkey_scores, None)
