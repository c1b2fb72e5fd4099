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
    drop,
    dropout_of,
    kept,
    load_rows,
    probabilities,
    program,
    rows_of,
    scores,
    store_rows,
)


@triton.jit(do_not_specialize_on_alignment=("seed_ptr",))
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
    tokens,
    head_dim,
    scale,
    dropout,
    above,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The whole backward of one head of a sequence of more than ``above`` and at most BLOCK_N
    tokens, with no positions and no window.

    Its keys and values stay on chip, so scores and dP are made once for dQ, dK and dV. Tiles are
    (keys, queries), so that they enter the products of dK and dV as they are.
    """
    _, head, start, length = program(cu_ptr, 1)
    if length <= above:
        return
    key = tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    k_j = load_rows(k, start, head, key, key < length, head_dim, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    v_j = load_rows(v, start, head, key, key < length, head_dim, BLOCK_D)  # (BLOCK_N, BLOCK_D)
    dk_j = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv_j = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    # What the compiler would hoist out of the loop, such as operands made of k and v, would spill.
    for first_query in tl.range(0, length, BLOCK_M, disable_licm=True):
        query = first_query + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
        real = query < length
        q_i = load_rows(q, start, head, query, real, head_dim, BLOCK_D)  # (BLOCK_M, BLOCK_D)
        do_i = load_rows(dout, start, head, query, real, head_dim, BLOCK_D)  # (BLOCK_M, BLOCK_D)
        o_i = load_rows(out, start, head, query, real, head_dim, BLOCK_D)  # (BLOCK_M, BLOCK_D)
        delta_i = tl.sum(o_i.to(tl.float32) * do_i.to(tl.float32), 1)  # (BLOCK_M,)
        line = head.to(tl.int64) * tokens + (start + query)
        lse_i = tl.load(lse_ptr + line, real, 0.0)  # (BLOCK_M,)
        s = scores(
            k_j, q_i, query[None, :], key[:, None], start, length, head, scale, None, PRECISION
        )  # (BLOCK_N, BLOCK_M)
        # A query past the end meets zeros in q and dout.
        p = probabilities(s, lse_i[None, :], (key < length)[:, None])  # (BLOCK_N, BLOCK_M)
        dropped = p
        if dropout is not None:
            keep = tl.trans(kept(seed_ptr, dropout, start + query, head, 0, BLOCK_N))
            dropped = drop(p, keep, dropout)
        dv_j = dot(dropped.to(do_i.dtype), do_i, dv_j, PRECISION)  # (BLOCK_N, BLOCK_D)
        zeros = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        dp = dot(v_j, tl.trans(do_i), zeros, PRECISION)  # (BLOCK_N, BLOCK_M)
        if dropout is not None:
            dp = drop(dp, keep, dropout)
        ds = (p * (dp - delta_i[None, :])).to(q_i.dtype)  # (BLOCK_N, BLOCK_M)
        dk_j = dot(ds, q_i, dk_j, PRECISION)  # (BLOCK_N, BLOCK_D)
        zeros = tl.zeros((BLOCK_D, BLOCK_M), tl.float32)
        dq_i = tl.trans(dot(tl.trans(k_j), ds, zeros, PRECISION))  # (BLOCK_M, BLOCK_D)
        store_rows(dq, start, head, query, real, head_dim, dq_i * scale)  # (BLOCK_M, BLOCK_D)
    _, _, start, length = program(cu_ptr, 1, AGAIN=True)
    store_rows(dk, start, head, key, key < length, head_dim, dk_j * scale)  # (BLOCK_N, BLOCK_D)
    store_rows(dv, start, head, key, key < length, head_dim, dv_j)  # (BLOCK_N, BLOCK_D)


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
    (64, 128): (32, 64, 8, 2),
    (128, 128): (32, 128, 8, 2),
    (256, 16): (32, 256, 8, 2),
    (256, 64): (32, 256, 8, 1),
}


def one_pass_options(
    q: Tensor, max_seqlen: int, capability: tuple[int, int]
) -> list[dict[str, Any]]:
    """Constants and launch options for each length up to max_seqlen's; none where that is too long
    for one pass.
    """
    block_d = triton.next_power_of_2(q.shape[2])
    longest = max(64, triton.next_power_of_2(max_seqlen))
    table = _OPTIONS_90_100 if capability[0] in (9, 10) else _OPTIONS
    if q.dtype == torch.float32 or (longest, block_d) not in table:
        return []
    names = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")
    return [
        {"PRECISION": "ieee", "BLOCK_D": block_d}
        | dict(zip(names, table[length, block_d], strict=True))
        for length in (64, 128, 256)
        if length <= longest
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
    tokens, heads, head_dim = q.shape
    above = 0
    for constants in lengths:
        launch(
            _one_pass_kernel, (cu_seqlens.shape[0] - 1, heads),
            *map(rows_of, (q, k, v, out, dout, *gradients)), lse, cu_seqlens, seed,
            tokens, head_dim, scale, dropout_of(threshold), above, **constants,
        )  # fmt: skip
        above = constants["BLOCK_N"]
