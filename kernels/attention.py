"""Variable-length bidirectional attention: ``out = dropout(softmax(scale Q Kᵀ + terms)) V`` of each
sequence by itself.

q, k, v and out (tokens, heads, head_dim): a packed batch, where sequence b is rows
``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``. No padding is computed, and the score matrix never
stands in memory: it is made tile by tile with an online softmax, and made again in the backward
from the saved log-sum-exp, with the dropout mask counted instead of stored.

The terms of relative positions are read from small tables as each tile is made (see
`positions.py`); with a window, tiles of keys that no query of the tile sees are skipped. A call
that asks for neither runs the same code as if there were neither.

Sources: Vaswani et al., "Attention Is All You Need", section 3.2.1; Dao et al., "FlashAttention",
section 3.1 and appendix B (the tiled forward and backward); Beltagy et al., "Longformer", section
3.1 (the window); Milakov and Gimelshein, "Online normalizer calculation for softmax".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch, reference, tuning
from .checks import (
    Wanted,
    as_int,
    check_cu_seqlens,
    check_device,
    check_dropout,
    check_integers,
    check_launch,
    check_like,
    check_tensor,
    register_fake,
)
from .philox import as_seed, dropout_threshold, keep_scale
from .philox_triton import attention_lanes
from .positions import RelativePositions, check_positions
from .triton_compat import tl, triton
from .triton_dot import dot

# --- Triton ---
#
# Grid of every kernel: (blocks of the longest sequence, heads, sequences); a program past its
# sequence's end leaves at once. Scores are kept in units of log2, for exp2. A table that is None,
# or a window that is None, leaves nothing in the compiled kernel.

LOG2_E = 1.4426950408889634


@triton.jit
def _load_rows(base, rows, stride, head_dim, inside, BLOCK_D: tl.constexpr):
    """(len(rows), BLOCK_D) of one head, ``rows`` counted from the base's; zeros outside."""
    columns = tl.arange(0, BLOCK_D)
    offsets = rows[:, None] * stride + columns[None, :]
    return tl.load(base + offsets, inside[:, None] & (columns < head_dim)[None, :], 0.0)


@triton.jit
def _store_rows(base, rows, stride, head_dim, inside, values, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    offsets = rows[:, None] * stride + columns[None, :]
    tl.store(
        base + offsets,
        values.to(base.dtype.element_ty),
        inside[:, None] & (columns < head_dim)[None, :],
    )


@triton.jit
def _reach(first, length, window, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """From where to where, in steps, the positions go that are within the window of a block of
    positions from ``first`` on.
    """
    low, high = 0, length
    if window is not None:
        low = tl.maximum(first - window, 0) // STEP * STEP
        high = tl.minimum(first + BLOCK + window, length)
    return low, high


@triton.jit
def _add_positions(
    scores, query, key, start, length, head, buckets_ptr, bias_ptr, query_scores_ptr, key_scores_ptr, qs_t, qs_h, ks_t, ks_h,
    buckets, max_seqlen,
):  # fmt: skip
    """The tile of scores, in log2, plus what the tables say of its (queries, keys) or (keys,
    queries).
    """
    if buckets_ptr is not None:
        inside = (query < length) & (key < length)
        bucket = tl.load(buckets_ptr + (query - key + max_seqlen - 1), inside, 0)
        terms = tl.zeros(scores.shape, tl.float32)
        if bias_ptr is not None:
            terms += tl.load(bias_ptr + head * buckets + bucket, inside, 0.0).to(tl.float32)
        if query_scores_ptr is not None:
            base = query_scores_ptr + start * qs_t + head * qs_h
            terms += tl.load(base + (query * qs_t + bucket), inside, 0.0).to(tl.float32)
        if key_scores_ptr is not None:
            base = key_scores_ptr + start * ks_t + head * ks_h
            terms += tl.load(base + (key * ks_t + bucket), inside, 0.0).to(tl.float32)
        scores += terms * 1.4426950408889634
    return scores


@triton.jit
def _within(inside, query, key, window):
    """``inside`` where the query sees the key."""
    if window is not None:
        inside = inside & (tl.abs(query - key) <= window)
    return inside


@triton.jit
def _forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    cu_ptr,
    seed_ptr,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    tokens,
    heads,
    head_dim,
    scale_log2,
    threshold,
    keep_scale,
    buckets_ptr,
    bias_ptr,
    query_scores_ptr,
    key_scores_ptr,
    qs_t,
    qs_h,
    ks_t,
    ks_h,
    buckets,
    max_seqlen,
    window,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head, sequence = tl.program_id(1), tl.program_id(2)
    start = tl.load(cu_ptr + sequence).to(tl.int64)
    length = (tl.load(cu_ptr + sequence + 1) - start).to(tl.int32)
    first = tl.program_id(0) * BLOCK_M
    if first >= length:
        return
    place = first + tl.arange(0, BLOCK_M)
    rows, real = start + place, place < length
    q = _load_rows(q_ptr + start * q_t + head * q_h, place, q_t, head_dim, real, BLOCK_D)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    first_seen, end = _reach(first, length, window, BLOCK_M, BLOCK_N)
    for first_key in range(first_seen, end, BLOCK_N):
        key = first_key + tl.arange(0, BLOCK_N)
        k = _load_rows(k_ptr + start * k_t + head * k_h, key, k_t, head_dim, key < length, BLOCK_D)
        v = _load_rows(v_ptr + start * v_t + head * v_h, key, v_t, head_dim, key < length, BLOCK_D)
        scores = (
            dot(q, tl.trans(k), tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION) * scale_log2
        )
        scores = _add_positions(
            scores, place[:, None], key[None, :], start, length, head, buckets_ptr, bias_ptr, query_scores_ptr,
            key_scores_ptr, qs_t, qs_h, ks_t, ks_h, buckets, max_seqlen,
        )  # fmt: skip
        seen = _within((key < length)[None, :], place[:, None], key[None, :], window)
        scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        level = new_top
        if (
            window is not None
            # a query may have seen no key yet: exp2(-inf - 0) is zero, where exp2(-inf + inf) is not
        ):
            level = tl.where(new_top == float("-inf"), 0.0, new_top)
        p = tl.exp2(scores - level[:, None])
        shrink = tl.exp2(top - level)
        total = total * shrink + tl.sum(p, 1)
        if DROPOUT:
            lanes = attention_lanes(tl.load(seed_ptr), rows, head, first_key, BLOCK_N)
            p = tl.where(lanes.to(tl.int32) >= threshold, p * keep_scale, 0.0)
        out = dot(p.to(v.dtype), v, out * shrink[:, None], PRECISION)
        top = new_top
    _store_rows(
        out_ptr + (start * heads + head) * head_dim,
        place,
        heads * head_dim,
        head_dim,
        real,
        out / total[:, None],
        BLOCK_D,
    )
    tl.store(
        lse_ptr + head.to(tl.int64) * tokens + rows,
        (top + tl.log2(total)) * 0.6931471805599453,
        real,
    )


@triton.jit
def _delta_kernel(
    out_ptr,
    dout_ptr,
    delta_ptr,
    cu_ptr,
    tokens,
    heads,
    head_dim,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """rowsum(dout * out): what the softmax's gradient takes off."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    start = tl.load(cu_ptr + sequence).to(tl.int64)
    length = (tl.load(cu_ptr + sequence + 1) - start).to(tl.int32)
    place = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, real = start + place, place < length
    out = _load_rows(
        out_ptr + (start * heads + head) * head_dim,
        place,
        heads * head_dim,
        head_dim,
        real,
        BLOCK_D,
    ).to(tl.float32)
    dout = _load_rows(
        dout_ptr + (start * heads + head) * head_dim,
        place,
        heads * head_dim,
        head_dim,
        real,
        BLOCK_D,
    ).to(tl.float32)
    tl.store(delta_ptr + head.to(tl.int64) * tokens + rows, tl.sum(out * dout, 1), real)


@triton.jit
def _key_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    ds_ptr,
    cu_ptr,
    seed_ptr,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    tokens,
    heads,
    head_dim,
    scale,
    threshold,
    keep_scale,
    buckets_ptr,
    bias_ptr,
    query_scores_ptr,
    key_scores_ptr,
    qs_t,
    qs_h,
    ks_t,
    ks_h,
    buckets,
    max_seqlen,
    window,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dK and dV of a block of keys, over every block of queries; to ds, if given, the gradient of
    its scores, (tokens of keys, heads, queries).
    """
    head, sequence = tl.program_id(1), tl.program_id(2)
    start = tl.load(cu_ptr + sequence).to(tl.int64)
    length = (tl.load(cu_ptr + sequence + 1) - start).to(tl.int32)
    first_key = tl.program_id(0) * BLOCK_N
    if first_key >= length:
        return
    key = first_key + tl.arange(0, BLOCK_N)
    k = _load_rows(k_ptr + start * k_t + head * k_h, key, k_t, head_dim, key < length, BLOCK_D)
    v = _load_rows(v_ptr + start * v_t + head * v_h, key, v_t, head_dim, key < length, BLOCK_D)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    line = head.to(tl.int64) * tokens
    first_seeing, end = _reach(first_key, length, window, BLOCK_N, BLOCK_M)
    for first in range(first_seeing, end, BLOCK_M):
        place = first + tl.arange(0, BLOCK_M)
        rows, real = start + place, place < length
        q = _load_rows(q_ptr + start * q_t + head * q_h, place, q_t, head_dim, real, BLOCK_D)
        dout = _load_rows(
            dout_ptr + (start * heads + head) * head_dim,
            place,
            heads * head_dim,
            head_dim,
            real,
            BLOCK_D,
        )
        lse = tl.load(lse_ptr + line + rows, real, 0.0)
        delta = tl.load(delta_ptr + line + rows, real, 0.0)
        # Tiles are (keys, queries), so that they enter the products below as they are.
        scores = dot(k, tl.trans(q), tl.zeros((BLOCK_N, BLOCK_M), tl.float32), PRECISION) * (
            scale * 1.4426950408889634
        )
        scores = _add_positions(
            scores, place[None, :], key[:, None], start, length, head, buckets_ptr, bias_ptr, query_scores_ptr,
            key_scores_ptr, qs_t, qs_h, ks_t, ks_h, buckets, max_seqlen,
        )  # fmt: skip
        p = tl.exp2(scores - (lse * 1.4426950408889634)[None, :])
        inside = (key < length)[:, None] & real[None, :]
        p = tl.where(_within(inside, place[None, :], key[:, None], window), p, 0.0)
        dp = dot(v, tl.trans(dout), tl.zeros((BLOCK_N, BLOCK_M), tl.float32), PRECISION)
        dropped = p
        if DROPOUT:
            lanes = attention_lanes(tl.load(seed_ptr), rows, head, first_key, BLOCK_N)
            keep = tl.trans(lanes).to(tl.int32) >= threshold
            dropped = tl.where(keep, p * keep_scale, 0.0)
            dp = tl.where(keep, dp * keep_scale, 0.0)
        dv = dot(dropped.to(dout.dtype), dout, dv, PRECISION)
        ds = p * (dp - delta[None, :])
        if ds_ptr is not None:
            base = ds_ptr + (start * heads + head) * max_seqlen
            offsets = key[:, None] * (heads * max_seqlen) + place[None, :]
            tl.store(base + offsets, ds.to(ds_ptr.dtype.element_ty), inside)
        dk = dot(ds.to(q.dtype), q, dk, PRECISION)
    _store_rows(
        dk_ptr + (start * heads + head) * head_dim,
        key,
        heads * head_dim,
        head_dim,
        key < length,
        dk * scale,
        BLOCK_D,
    )
    _store_rows(
        dv_ptr + (start * heads + head) * head_dim,
        key,
        heads * head_dim,
        head_dim,
        key < length,
        dv,
        BLOCK_D,
    )


@triton.jit
def _query_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    ds_ptr,
    cu_ptr,
    seed_ptr,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    tokens,
    heads,
    head_dim,
    scale,
    threshold,
    keep_scale,
    buckets_ptr,
    bias_ptr,
    query_scores_ptr,
    key_scores_ptr,
    qs_t,
    qs_h,
    ks_t,
    ks_h,
    buckets,
    max_seqlen,
    window,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dQ of a block of queries, over every block of keys; to ds, if given, the gradient of its
    scores, (tokens of queries, heads, keys).
    """
    head, sequence = tl.program_id(1), tl.program_id(2)
    start = tl.load(cu_ptr + sequence).to(tl.int64)
    length = (tl.load(cu_ptr + sequence + 1) - start).to(tl.int32)
    first = tl.program_id(0) * BLOCK_M
    if first >= length:
        return
    place = first + tl.arange(0, BLOCK_M)
    rows, real = start + place, place < length
    line = head.to(tl.int64) * tokens
    q = _load_rows(q_ptr + start * q_t + head * q_h, place, q_t, head_dim, real, BLOCK_D)
    dout = _load_rows(
        dout_ptr + (start * heads + head) * head_dim,
        place,
        heads * head_dim,
        head_dim,
        real,
        BLOCK_D,
    )
    lse = tl.load(lse_ptr + line + rows, real, 0.0)
    delta = tl.load(delta_ptr + line + rows, real, 0.0)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    first_seen, end = _reach(first, length, window, BLOCK_M, BLOCK_N)
    for first_key in range(first_seen, end, BLOCK_N):
        key = first_key + tl.arange(0, BLOCK_N)
        k = _load_rows(k_ptr + start * k_t + head * k_h, key, k_t, head_dim, key < length, BLOCK_D)
        v = _load_rows(v_ptr + start * v_t + head * v_h, key, v_t, head_dim, key < length, BLOCK_D)
        scores = dot(q, tl.trans(k), tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION) * (
            scale * 1.4426950408889634
        )
        scores = _add_positions(
            scores, place[:, None], key[None, :], start, length, head, buckets_ptr, bias_ptr, query_scores_ptr,
            key_scores_ptr, qs_t, qs_h, ks_t, ks_h, buckets, max_seqlen,
        )  # fmt: skip
        p = tl.exp2(scores - (lse * 1.4426950408889634)[:, None])
        inside = real[:, None] & (key < length)[None, :]
        p = tl.where(_within(inside, place[:, None], key[None, :], window), p, 0.0)
        dp = dot(dout, tl.trans(v), tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION)
        if DROPOUT:
            keep = (
                attention_lanes(tl.load(seed_ptr), rows, head, first_key, BLOCK_N).to(tl.int32)
                >= threshold
            )
            dp = tl.where(keep, dp * keep_scale, 0.0)
        ds = p * (dp - delta[:, None])
        if ds_ptr is not None:
            base = ds_ptr + (start * heads + head) * max_seqlen
            offsets = place[:, None] * (heads * max_seqlen) + key[None, :]
            tl.store(base + offsets, ds.to(ds_ptr.dtype.element_ty), inside)
        dq = dot(ds.to(k.dtype), k, dq, PRECISION)
    _store_rows(
        dq_ptr + (start * heads + head) * head_dim,
        place,
        heads * head_dim,
        head_dim,
        real,
        dq * scale,
        BLOCK_D,
    )


@triton.jit
def _short_backward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    dout_ptr,
    lse_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    cu_ptr,
    seed_ptr,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    tokens,
    heads,
    head_dim,
    scale,
    threshold,
    keep_scale,
    above,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The whole backward of one head of a sequence of more than ``above`` and at most BLOCK_N
    tokens, with no positions and no window.

    Its keys and values stay on chip, so scores and dP are made once for dQ, dK and dV: five
    products, where the two kernels above take seven.
    """
    head, sequence = tl.program_id(0), tl.program_id(1)
    start = tl.load(cu_ptr + sequence).to(tl.int64)
    length = (tl.load(cu_ptr + sequence + 1) - start).to(tl.int32)
    if length <= above:
        return
    key = tl.arange(0, BLOCK_N)
    k = _load_rows(k_ptr + start * k_t + head * k_h, key, k_t, head_dim, key < length, BLOCK_D)
    v = _load_rows(v_ptr + start * v_t + head * v_h, key, v_t, head_dim, key < length, BLOCK_D)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    line, width = (
        (start * heads + head) * head_dim,
        heads * head_dim,
    )  # of out and of every gradient
    # What the compiler would hoist out of the loop, such as operands made of k and v, would spill.
    for first in tl.range(0, length, BLOCK_M, disable_licm=True):
        place = first + tl.arange(0, BLOCK_M)
        rows, real = start + place, place < length
        q = _load_rows(q_ptr + start * q_t + head * q_h, place, q_t, head_dim, real, BLOCK_D)
        dout = _load_rows(dout_ptr + line, place, width, head_dim, real, BLOCK_D)
        out = _load_rows(out_ptr + line, place, width, head_dim, real, BLOCK_D)
        delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
        lse = tl.load(lse_ptr + head.to(tl.int64) * tokens + rows, real, 0.0)
        # Tiles are (keys, queries), so that they enter the products below as they are. A query past
        # the end meets zeros in q and dout.
        scores = dot(k, tl.trans(q), tl.zeros((BLOCK_N, BLOCK_M), tl.float32), PRECISION) * (
            scale * 1.4426950408889634
        )
        p = tl.exp2(scores - (lse * 1.4426950408889634)[None, :])
        p = tl.where((key < length)[:, None], p, 0.0)
        dropped = p
        if DROPOUT:
            keep = tl.trans(
                attention_lanes(tl.load(seed_ptr), rows, head, 0, BLOCK_N).to(tl.int32) >= threshold
            )
            dropped = tl.where(keep, p * keep_scale, 0.0)
        dv = dot(dropped.to(dout.dtype), dout, dv, PRECISION)
        dp = dot(v, tl.trans(dout), tl.zeros((BLOCK_N, BLOCK_M), tl.float32), PRECISION)
        if DROPOUT:
            dp = tl.where(keep, dp * keep_scale, 0.0)
        ds = (p * (dp - delta[None, :])).to(q.dtype)
        dk = dot(ds, q, dk, PRECISION)
        dq = tl.trans(dot(tl.trans(k), ds, tl.zeros((BLOCK_D, BLOCK_M), tl.float32), PRECISION))
        _store_rows(dq_ptr + line, place, width, head_dim, real, dq * scale, BLOCK_D)
    _store_rows(dk_ptr + line, key, width, head_dim, key < length, dk * scale, BLOCK_D)
    _store_rows(dv_ptr + line, key, width, head_dim, key < length, dv, BLOCK_D)


@triton.jit
def _table_gradient_kernel(
    ds_ptr,
    order_ptr,
    bounds_ptr,
    dtable_ptr,
    part_ptr,
    cu_ptr,
    heads,
    buckets,
    max_seqlen,
    window,
    SIGN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """For a block of tokens, the sums of their rows of ds over the distances of each bucket, and
    those sums added up over the block.

    ``order`` holds the distances (as places in the buckets) sorted by bucket, those of b from
    ``bounds[b]`` on, so that each sum takes what it adds and nothing else. SIGN is 1 where a row of
    ds is a query's, -1 where it is a key's.
    """
    head, sequence = tl.program_id(1), tl.program_id(2)
    start = tl.load(cu_ptr + sequence).to(tl.int64)
    length = (tl.load(cu_ptr + sequence + 1) - start).to(tl.int32)
    first = tl.program_id(0) * BLOCK_T
    if first >= length:
        return
    place = first + tl.arange(0, BLOCK_T)
    row = (start + place) * heads + head
    part = (
        start // BLOCK_T + sequence + tl.program_id(0)
    ) * heads + head  # no two blocks of the batch share one
    for first_bucket in range(0, buckets, BLOCK_B):
        bucket = first_bucket + tl.arange(0, BLOCK_B)
        begin = tl.load(bounds_ptr + bucket, bucket < buckets, 0)
        count = tl.load(bounds_ptr + bucket + 1, bucket < buckets, 0) - begin
        total = tl.zeros((BLOCK_T, BLOCK_B), tl.float32)
        for n in range(tl.max(count)):
            distance = tl.load(order_ptr + begin + n, n < count, 0) - (max_seqlen - 1)
            other = place[:, None] - SIGN * distance[None, :]
            inside = (
                (place < length)[:, None] & (n < count)[None, :] & (other >= 0) & (other < length)
            )
            inside = _within(inside, place[:, None], other, window)
            total += tl.load(ds_ptr + row[:, None] * max_seqlen + other, inside, 0.0).to(tl.float32)
        if dtable_ptr is not None:
            inside = (place < length)[:, None] & (bucket < buckets)[None, :]
            tl.store(
                dtable_ptr + row[:, None] * buckets + bucket[None, :],
                total.to(dtable_ptr.dtype.element_ty),
                inside,
            )
        if part_ptr is not None:
            tl.store(part_ptr + part * buckets + bucket, tl.sum(total, 0), bucket < buckets)


# Of the one-pass backward, by padded length and head size. In half precision alone: on sm_100
# Triton 3.7 multiplies some float32 tiles of 64 rows and more in tf32, even where told "ieee".
_SHORT = {
    (64, 16): (32, 64, 4, 1),
    (64, 32): (32, 64, 4, 2),
    (64, 64): (32, 64, 4, 2),
    (128, 16): (32, 128, 8, 2),
    (128, 32): (32, 128, 8, 2),
    (128, 64): (32, 128, 8, 2),
    (256, 32): (32, 256, 8, 2),
}
_SHORT_90_100 = (
    _SHORT
    | {  # of sm_90 and sm_100, whose products take their operands from shared memory
        (64, 128): (32, 64, 8, 2),
        (128, 128): (32, 128, 8, 2),
        (256, 16): (32, 256, 8, 2),
        (256, 64): (32, 256, 8, 1),
    }
)
TABLE_TILES = {
    "BLOCK_T": 16,
    "BLOCK_B": 32,
}  # tokens and buckets of a tile of the tables' gradients


def _tiles(q: Tensor, kernel: str, positions: bool) -> dict[str, Any]:
    """Constants and launch options of a kernel; float32 is exact unless PyTorch is told otherwise."""
    block_d = triton.next_power_of_2(q.shape[2])
    exact = q.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    tuned = tuning.options(
        f"attention.{kernel}{'_positions' * positions}", q.dtype, q.device, block_d
    )
    return {"PRECISION": "ieee" if exact else "tf32", "BLOCK_D": block_d, **tuned}


def _short_tiles(q: Tensor, max_seqlen: int, capability: tuple[int, int]) -> list[dict[str, Any]]:
    """Constants and launch options of the one-pass backward for each length up to max_seqlen's;
    none where that is too long for one pass.
    """
    block_d, longest = (
        triton.next_power_of_2(q.shape[2]),
        max(64, triton.next_power_of_2(max_seqlen)),
    )
    table = _SHORT_90_100 if capability[0] in (9, 10) else _SHORT
    if q.dtype == torch.float32 or (longest, block_d) not in table:
        return []
    return [
        _options(table[length, block_d], block_d, "ieee")
        for length in (64, 128, 256)
        if length <= longest
    ]


def _options(tiles: tuple[int, int, int, int], block_d: int, precision: str) -> dict[str, Any]:
    block_m, block_n, warps, stages = tiles
    return {
        "PRECISION": precision,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_D": block_d,
        "num_warps": warps,
        "num_stages": stages,
    }


def _forward_triton(
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
    tokens, heads, head_dim = q.shape
    # Slack rows are known to the device alone, so everything is zeroed: cheap beside the attention,
    # and no synchronisation.
    out.zero_(), lse.zero_()
    tiles = _tiles(q, "forward", positions is not None)
    grid = (triton.cdiv(max_seqlen, tiles["BLOCK_M"]), heads, cu_seqlens.shape[0] - 1)
    if 0 in grid:
        return
    _forward_kernel[grid](
        q, k, v, out, lse, cu_seqlens, seed, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], tokens, heads, head_dim,
        scale * LOG2_E, threshold, keep_scale(threshold), *_position_arguments(positions, heads, max_seqlen, window),
        DROPOUT=threshold > 0, **tiles,
    )  # fmt: skip


def _backward_triton(
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
    tokens, heads, head_dim = q.shape
    dq, dk, dv, *tables = gradients
    for gradient in gradients:
        gradient.zero_()
    sequences = cu_seqlens.shape[0] - 1
    if 0 in (max_seqlen, heads, sequences):
        return
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2])
    rest = (tokens, heads, head_dim, scale, threshold, keep_scale(threshold))
    capability = torch.cuda.get_device_capability(q.device) if q.is_cuda else (9, 0)
    if positions is None and window < 0 and (short := _short_tiles(q, max_seqlen, capability)):
        # A launch by length, with the tiles that fit it: programs of the other lengths leave at
        # once.
        above = 0
        for tiles in short:
            _short_backward_kernel[heads, sequences](
                q, k, v, out, dout, lse, dq, dk, dv, cu_seqlens, seed, *strides, *rest, above,
                DROPOUT=threshold > 0, **tiles,
            )  # fmt: skip
            above = tiles["BLOCK_N"]
        return
    # A table whose gradient is not wanted has room of no elements for it.
    dbias, dquery_scores, dkey_scores = (x if x.numel() else None for x in tables)
    by_queries, by_keys = dbias is not None or dquery_scores is not None, dkey_scores is not None
    ds = q.new_empty(tokens, heads, max_seqlen if by_queries or by_keys else 0)
    delta = torch.empty_like(lse)
    rest = (*rest, *_position_arguments(positions, heads, max_seqlen, window))
    tiles = _tiles(q, "query_gradient", positions is not None)
    by_query = (triton.cdiv(max_seqlen, tiles["BLOCK_M"]), heads, sequences)
    _delta_kernel[by_query](
        out,
        dout,
        delta,
        cu_seqlens,
        tokens,
        heads,
        head_dim,
        BLOCK_M=tiles["BLOCK_M"],
        BLOCK_D=tiles["BLOCK_D"],
    )
    _query_gradient_kernel[by_query](
        q, k, v, dout, lse, delta, dq, ds if by_queries else None, cu_seqlens, seed, *strides, *rest,
        DROPOUT=threshold > 0, **tiles,
    )  # fmt: skip
    if positions is not None and by_queries:
        _table_gradients(ds, positions, cu_seqlens, max_seqlen, window, 1, dquery_scores, dbias)
    tiles = _tiles(q, "key_gradient", positions is not None)
    by_key = (triton.cdiv(max_seqlen, tiles["BLOCK_N"]), heads, sequences)
    _key_gradient_kernel[by_key](
        q, k, v, dout, lse, delta, dk, dv, ds if by_keys else None, cu_seqlens, seed, *strides, *rest,
        DROPOUT=threshold > 0, **tiles,
    )  # fmt: skip
    if positions is not None and by_keys:
        _table_gradients(ds, positions, cu_seqlens, max_seqlen, window, -1, dkey_scores, None)


def _position_arguments(
    positions: RelativePositions | None, heads: int, max_seqlen: int, window: int
) -> tuple[Any, ...]:
    """From ``buckets_ptr`` to ``window``, as the attention kernels take them."""
    tensors = (positions.buckets, *positions.tables) if positions else (None,) * 4
    count, strides = _table_sizes(positions)
    # Within a sequence the tables and their scratch are counted in 32 bits.
    reach = max_seqlen * max(*strides, heads * max_seqlen) if positions else 0
    if reach >= 2**31:
        raise ValueError(
            f"max_seqlen {max_seqlen} makes the tables of a sequence {reach} elements; on a GPU it must be below 2**31: lower it, or the buckets"
        )
    return *tensors, *strides, count, max_seqlen, None if window < 0 else window


def _table_gradients(
    ds: Tensor,
    positions: RelativePositions,
    cu_seqlens: Tensor,
    max_seqlen: int,
    window: int,
    sign: int,
    dtable: Tensor | None,
    dbias: Tensor | None,
) -> None:
    """Reduces ds, (tokens, heads, max_seqlen), into the tables' gradients; ``sign`` as in the
    kernel.
    """
    heads, buckets = ds.shape[1], _table_sizes(positions)[0]
    ordered, order = positions.buckets.sort(stable=True)
    bounds = torch.searchsorted(
        ordered, torch.arange(buckets + 1, dtype=torch.int32, device=ds.device), out_int32=True
    )
    grid = (triton.cdiv(max_seqlen, TABLE_TILES["BLOCK_T"]), heads, cu_seqlens.shape[0] - 1)
    blocks = ds.shape[0] // TABLE_TILES["BLOCK_T"] + grid[2] if dbias is not None else 0
    parts = ds.new_zeros(blocks, heads, buckets, dtype=torch.float32)
    _table_gradient_kernel[grid](
        ds, order.int(), bounds, dtable, None if dbias is None else parts, cu_seqlens, heads, buckets, max_seqlen,
        None if window < 0 else window, SIGN=sign, **TABLE_TILES,
    )  # fmt: skip
    if dbias is not None:
        dbias.copy_(parts.sum(0))


# --- torch.library ---


@torch.library.custom_op("bertfast::attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    buckets: Tensor | None,
    bias: Tensor | None,
    query_scores: Tensor | None,
    key_scores: Tensor | None,
    max_seqlen: int,
    scale: float,
    threshold: int,
    window: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    q, k, v = (_rows_contiguous(x) for x in (q, k, v))
    cu_seqlens = cu_seqlens.contiguous()
    positions = _kernel_positions(buckets, bias, query_scores, key_scores)
    tokens, heads, head_dim = q.shape
    out = torch.empty(tokens, heads, head_dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    if backend == "cpp":
        dispatch._C.attention_forward(
            q=q,
            k=k,
            v=v,
            out=out,
            lse=lse,
            cu_seqlens=cu_seqlens,
            **_named_tables(positions),
            max_seqlen=max_seqlen,
            window=window,
            scale=scale,
            threshold=threshold,
            seed=int(seed),
            threads=torch.get_num_threads(),
        )
    else:
        _check_launch(backend, q, k, v, cu_seqlens, seed, max_seqlen, threshold, positions)
        _forward_triton(
            q, k, v, cu_seqlens, seed, max_seqlen, scale, threshold, window, positions, out, lse
        )
    return out, lse


@torch.library.custom_op("bertfast::attention_backward", mutates_args=())
def _attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    buckets: Tensor | None,
    bias: Tensor | None,
    query_scores: Tensor | None,
    key_scores: Tensor | None,
    wanted: Sequence[bool],
    max_seqlen: int,
    scale: float,
    threshold: int,
    window: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (_rows_contiguous(x) for x in (q, k, v))
    cu_seqlens = cu_seqlens.contiguous()
    positions = _kernel_positions(buckets, bias, query_scores, key_scores)
    dout, out, lse = dout.contiguous(), out.contiguous(), lse.contiguous()
    gradients = _empty_gradients(q, (bias, query_scores, key_scores), wanted)
    if backend == "cpp":
        dq, dk, dv, *tables = gradients
        # A table whose gradient is not wanted has room of no elements for it.
        dbias, dquery_scores, dkey_scores = (x if x.numel() else None for x in tables)
        dispatch._C.attention_backward(
            dout=dout,
            q=q,
            k=k,
            v=v,
            out=out,
            lse=lse,
            dq=dq,
            dk=dk,
            dv=dv,
            cu_seqlens=cu_seqlens,
            **_named_tables(positions),
            dbias=dbias,
            dquery_scores=dquery_scores,
            dkey_scores=dkey_scores,
            max_seqlen=max_seqlen,
            window=window,
            scale=scale,
            threshold=threshold,
            seed=int(seed),
            threads=torch.get_num_threads(),
        )
    else:
        written: dict[str, Wanted] = {
            "dout": (dout, q.dtype, q.shape),
            "out": (out, q.dtype, q.shape),
        }
        written["lse"] = (lse, torch.float32, (q.shape[1], q.shape[0]))
        _check_launch(
            backend, q, k, v, cu_seqlens, seed, max_seqlen, threshold, positions, **written
        )
        _backward_triton(
            dout,
            q,
            k,
            v,
            out,
            lse,
            cu_seqlens,
            seed,
            max_seqlen,
            scale,
            threshold,
            window,
            positions,
            gradients,
        )
    return gradients


def _check_launch(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    max_seqlen: int,
    threshold: int,
    positions: RelativePositions | None,
    **others: Wanted,
) -> None:
    boundaries = (cu_seqlens, torch.int32, (cu_seqlens.numel(),))
    like_q = {name: (x, q.dtype, q.shape) for name, x in (("k", k), ("v", v))}
    check_launch("attention", backend, q, **like_q, cu_seqlens=boundaries, **others)
    check_dropout(threshold, seed, q)
    check_cu_seqlens(cu_seqlens, q.shape[0], max_seqlen)
    if positions is not None:
        check_positions(positions, q, max_seqlen)


def _kernel_positions(
    buckets: Tensor | None,
    bias: Tensor | None,
    query_scores: Tensor | None,
    key_scores: Tensor | None,
) -> RelativePositions | None:
    """The tables as the kernels follow them: any stride of tokens and heads, the buckets of a row
    adjacent.
    """
    tables = (bias, query_scores, key_scores)
    if all(table is None for table in tables):
        return None
    if buckets is None:
        raise ValueError("buckets is None and a table is given; the tables are indexed by buckets")
    scores = (None if x is None else _rows_contiguous(x) for x in (query_scores, key_scores))
    return RelativePositions(
        buckets.contiguous(), None if bias is None else bias.contiguous(), *scores
    )


def _table_sizes(positions: RelativePositions | None) -> tuple[int, list[int]]:
    """How many buckets there are, and the strides of tokens and heads in query_scores and in
    key_scores; zeros for what is absent.
    """
    if positions is None:
        return 0, [0] * 4
    count = next(x.shape[-1] for x in positions.tables if x is not None)
    strides = [
        (0, 0) if x is None else x.stride()[:2]
        for x in (positions.query_scores, positions.key_scores)
    ]
    return count, [*strides[0], *strides[1]]


def _named_tables(positions: RelativePositions | None) -> dict[str, Tensor | None]:
    """The buckets and the tables as the C++ extension names them."""
    names = ("buckets", "bias", "query_scores", "key_scores")
    tensors = (positions.buckets, *positions.tables) if positions else (None,) * 4
    return dict(zip(names, tensors, strict=True))


def _empty_gradients(
    q: Tensor, tables: tuple[Tensor | None, ...], wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for the gradients of q, k, v and the tables; of no elements for a table whose gradient
    is not wanted.
    """
    dq, dk, dv = (q.new_empty(q.shape) for _ in range(3))
    dbias, dquery, dkey = (
        q.new_empty(x.shape if x is not None and want else 0)
        for x, want in zip(tables, wanted, strict=True)
    )
    return dq, dk, dv, dbias, dquery, dkey


@register_fake(_attention)
def _(
    q,
    k,
    v,
    cu_seqlens,
    seed,
    buckets,
    bias,
    query_scores,
    key_scores,
    max_seqlen,
    scale,
    threshold,
    window,
    backend,
):
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@register_fake(_attention_backward)
def _(
    dout, q, k, v, out, lse, cu_seqlens, seed, buckets, bias, query_scores, key_scores, wanted, max_seqlen, scale,
    threshold, window, backend,
):  # fmt: skip
    return _empty_gradients(q, (bias, query_scores, key_scores), wanted)


def _setup(ctx, inputs, output) -> None:
    q, k, v, cu_seqlens, seed, buckets, *tables = inputs[:9]
    ctx.constants = inputs[9:]
    ctx.save_for_backward(q, k, v, *output, cu_seqlens, seed, buckets, *tables)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, _dlse):
    if dout is None:
        return (None,) * 14
    wanted = ctx.needs_input_grad[6:9]
    dq, dk, dv, *tables = _attention_backward(dout, *ctx.saved_tensors, wanted, *ctx.constants)
    tables = [gradient if want else None for gradient, want in zip(tables, wanted, strict=True)]
    return dq, dk, dv, None, None, None, *tables, *(None,) * 5


_attention.register_autograd(_backward, setup_context=_setup)


def _rows_contiguous(x: Tensor) -> Tensor:
    """The kernels follow any stride of tokens and heads; within a head the elements must be
    adjacent.
    """
    return x if x.stride(2) == 1 else x.contiguous()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    window: int | None = None,
    positions: RelativePositions | None = None,
) -> Tensor:
    """Bidirectional attention within each sequence of a packed batch.

    Args:
        q, k, v: (tokens, heads, head_dim), one floating dtype, any strides (no copy where a head's
            elements are adjacent, as in slices of one fused projection). head_dim 16, 32, 48, 64,
            80, 96 or 128; any on the reference backend.
        cu_seqlens: (sequences + 1,) int32, from 0 and never falling. Tokens past the last boundary
            are slack: they give zeros and take no gradient. A sequence may be empty.
        max_seqlen: at least the longest sequence's length.
        scale: of the scores; None is ``head_dim ** -0.5``.
        dropout_p: of the probabilities, in [0, 1), rounded to a multiple of 1/65536.
        seed: of the dropout, an int of 64 bits or an int64 tensor of one element; the bit of a
            score is a function of the seed, the query's row in the batch, the head and the key's
            position in its sequence.
        window: a query at position i sees the keys from i - window to i + window alone; None is all
            of its sequence.
        positions: what the relative positions add to the scores; each of its tables gets a
            gradient. On a GPU that gradient, and it alone, takes a scratch of (tokens, heads,
            max_seqlen) in q's dtype, and the values of its buckets are trusted.

    Returns:
        (tokens, heads, head_dim), contiguous, of q's dtype; sums are kept in float32.

    Raises:
        TypeError: a dtype that does not fit.
        ValueError: a shape, device, boundary or option that does not fit.
        BackendError: the forced backend cannot serve the call.
    """
    check_tensor("q", q, ("tokens", "heads", "head_dim"))
    if q.shape[2] == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}; head_dim must be at least 1")
    for name, x in (("k", k), ("v", v)):
        check_tensor(name, x, ("tokens", "heads", "head_dim"))
        check_like(name, x, "q", q)
        if x.shape != q.shape:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)} and q {tuple(q.shape)}; they must be the same"
            )
    check_integers("cu_seqlens", cu_seqlens, ("sequences + 1",), torch.int32)
    check_device("cu_seqlens", cu_seqlens, "q", q)
    max_seqlen = as_int("max_seqlen", max_seqlen)
    if max_seqlen < 0:
        raise ValueError(f"max_seqlen is {max_seqlen}; it must be at least 0")
    check_cu_seqlens(cu_seqlens, q.shape[0], max_seqlen)
    if scale is None:
        scale = q.shape[2] ** -0.5
    elif not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; it must be finite")
    window = None if window is None else as_int("window", window)
    if window is not None and window < 0:
        raise ValueError(f"window is {window}; it must be at least 0, or None for all keys")
    if window is None or window >= max_seqlen - 1:
        window = -1
    if positions is not None:
        check_positions(positions, q, max_seqlen)
        if all(table is None for table in positions.tables):
            positions = None
    threshold = dropout_threshold(dropout_p)
    seed = as_seed(seed, q.device)
    backend = dispatch.select("attention", q.device, q.dtype, q.shape[2])
    if backend == "reference":
        return reference.attention(
            q, k, v, cu_seqlens, seed, max_seqlen, scale, threshold, window, positions
        )
    tensors = (positions.buckets, *positions.tables) if positions else (None,) * 4
    return _attention(
        q, k, v, cu_seqlens, seed, *tensors, max_seqlen, scale, threshold, window, backend
    )[0]
