"""The backward of sequences that fit one tile of keys, in one pass over the scores: five products,
where the two passes take seven.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..launch import launch
from ..triton_compat import tl, triton
from ..triton_dot import dot
from .tiles import (
    LOG2_E,
    clear_slack,
    drop,
    dropout_of,
    kept,
    load_rows,
    rows_of,
    sequence_block,
    store_rows,
)


@triton.jit(do_not_specialize=("sequences",), do_not_specialize_on_alignment=("seed_ptr",))
def _one_pass_kernel(
    q,
    k,
    v,
    out,
    dout,
    dq,
    dk,
    dv,
    lse_ptr,
    cu_ptr,
    seed_ptr,
    sequences,
    tokens,
    scale,
    dropout,
    above,
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The whole backward of one head of a sequence of more than ``above`` and at most BLOCK_N
    tokens, with no positions and no window. Where ``above`` is 0, zeros to slack.

    Its keys and values stay on chip, so scores and dP are made once for dQ, dK and dV. Tiles are
    (keys, queries), so that they enter the products of dK and dV as they are.
    """
    if above == 0:
        clear_slack(dq, None, cu_ptr, sequences, tokens, HEAD_DIM, BLOCK_M, BLOCK_D)
        clear_slack(dk, None, cu_ptr, sequences, tokens, HEAD_DIM, BLOCK_M, BLOCK_D)
        clear_slack(dv, None, cu_ptr, sequences, tokens, HEAD_DIM, BLOCK_M, BLOCK_D)
    _, head, start, length = sequence_block(cu_ptr, 1)
    if (length <= above) | (length > BLOCK_N):
        return
    i, j = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)  # (BLOCK_M,), (BLOCK_N,)
    k_j = load_rows(k, start, head, j, j < length, HEAD_DIM, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    v_j = load_rows(v, start, head, j, j < length, HEAD_DIM, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    dk_j = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv_j = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    last_scale = scale
    if dropout is not None:
        last_scale *= dropout.keep_scale
    # What the compiler would hoist out of the loop, such as operands made of k and v, would spill.
    for first_query in tl.range(0, length, BLOCK_M, disable_licm=True):
        real, row = first_query + i < length, start + first_query
        q_i = load_rows(q, row, head, i, real, HEAD_DIM, BLOCK_D)  # (BLOCK_M, BLOCK_D)
        do_i = load_rows(dout, row, head, i, real, HEAD_DIM, BLOCK_D)  # (BLOCK_M, BLOCK_D)
        o_i = load_rows(out, row, head, i, real, HEAD_DIM, BLOCK_D)  # (BLOCK_M, BLOCK_D)
        delta_i = tl.sum(o_i.to(tl.float32) * do_i.to(tl.float32), 1)  # (BLOCK_M,)
        lse_i = tl.load(lse_ptr + (head.to(tl.int64) * tokens + row) + i, real, 0.0)  # (BLOCK_M,)
        zeros = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        s = dot(k_j, tl.trans(q_i), zeros, PRECISION)  # (BLOCK_N, BLOCK_M), not scaled
        # A query past the end meets zeros in q and dout. A key past the end stores nothing, and in
        # dQ what it gets meets zeros, so it has but to be finite. It is: no logarithm of a
        # probability is above 1.
        p = s * (scale * LOG2_E) - (lse_i * LOG2_E)[None, :]
        p = tl.exp2(tl.minimum(p, 1.0, tl.PropagateNan.ALL))  # (BLOCK_N, BLOCK_M)
        dp = dot(v_j, tl.trans(do_i), zeros, PRECISION)  # (BLOCK_N, BLOCK_M), not scaled up
        dropped = p
        if dropout is not None:
            keep = kept(
                seed_ptr, dropout, start, head, first_query, i[None, :], 0, j[:, None]
            )  # (BLOCK_N, BLOCK_M)
            dropped, dp = drop(p, keep, scale), drop(dp, keep, scale)
            delta_i *= dropout.keep_share
        dv_j = dot(dropped.to(do_i.dtype), do_i, dv_j, PRECISION)  # (BLOCK_N, BLOCK_D)
        ds = (p * (dp - delta_i[None, :])).to(q_i.dtype)  # (BLOCK_N, BLOCK_M), not scaled up
        dk_j = dot(ds, q_i, dk_j, PRECISION)  # (BLOCK_N, BLOCK_D)
        zeros = tl.zeros((BLOCK_D, BLOCK_M), tl.float32)
        dq_i = tl.trans(dot(tl.trans(k_j), ds, zeros, PRECISION))  # (BLOCK_M, BLOCK_D)
        store_rows(dq, row, head, i, real, dq_i * last_scale, HEAD_DIM)
    _, _, start, length = sequence_block(cu_ptr, 1, AGAIN=True)
    if dropout is not None:
        dv_j *= dropout.keep_scale
    store_rows(dk, start, head, j, j < length, dk_j * last_scale, HEAD_DIM)
    store_rows(dv, start, head, j, j < length, dv_j, HEAD_DIM)


# BLOCK_M, BLOCK_N, warps and stages by padded length and head size. In half precision alone: on
# sm_100 Triton 3.7 multiplies some float32 tiles of 64 rows and more in tf32, even where told
# "ieee".
_OPTIONS = {
    (64, 16): (32, 64, 4, 2),
    (64, 32): (32, 64, 4, 2),
    (64, 64): (32, 64, 4, 2),
    (128, 16): (32, 128, 8, 2),
    (128, 32): (32, 128, 8, 2),
    (128, 64): (32, 128, 8, 2),
    (256, 32): (32, 256, 8, 2),
}
# Products of sm_90 and sm_100 take their operands from shared memory.
_OPTIONS_90_100 = _OPTIONS | {
    (64, 16): (32, 64, 4, 1),
    (128, 16): (32, 128, 8, 1),
    (128, 32): (32, 128, 8, 1),
    (64, 128): (32, 64, 8, 2),
    (128, 128): (32, 128, 8, 2),
    (256, 16): (32, 256, 8, 2),
    (256, 64): (32, 256, 8, 1),
}


def one_pass_options(
    q: Tensor, max_seqlen: int, capability: tuple[int, int]
) -> list[dict[str, Any]]:
    """Constants and launch options for each length that one pass serves, up to max_seqlen's."""
    block_d = triton.next_power_of_2(q.shape[2])
    longest = max(64, triton.next_power_of_2(max_seqlen))
    table = _OPTIONS_90_100 if capability[0] in (9, 10) else _OPTIONS
    if q.dtype == torch.float32:
        return []
    names = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")
    return [
        {"PRECISION": "ieee", "HEAD_DIM": q.shape[2], "BLOCK_D": block_d}
        | dict(zip(names, table[length, block_d], strict=True))
        for length in (64, 128, 256)
        if length <= longest and (length, block_d) in table
    ]


def launch_one_pass(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    scale: float,
    threshold: int,
    gradients: tuple[Tensor, ...],
    lengths: list[dict[str, Any]],
) -> None:
    """Writes dq, dk and dv, a launch for each of ``lengths``: programs of sequences of another
    length leave at once.
    """
    tokens, heads, _ = q.shape
    above = 0
    for constants in lengths:
        launch(
            _one_pass_kernel, (cu_seqlens.shape[0] - 1, heads),
            *map(rows_of, (q, k, v, out, dout, *gradients)), lse, cu_seqlens, seed,
            cu_seqlens.shape[0] - 1, tokens, scale, dropout_of(threshold), above, **constants,
        )  # fmt: skip
        above = constants["BLOCK_N"]
