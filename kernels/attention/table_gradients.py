"""The gradients of the position tables, summed from the gradient of the scores."""

from __future__ import annotations

import torch
from torch import Tensor

from ..launch import launch
from ..positions import RelativePositions
from ..triton_compat import tl, triton
from .tiles import bucket_count, rows_of, sequence_block, within

# Tokens and buckets of a tile.
TILES = {"BLOCK_T": 16, "BLOCK_B": 32}


@triton.jit(do_not_specialize=("blocks",))
def _table_gradient_kernel(
    ds,
    order_ptr,
    bounds_ptr,
    dtable,
    parts,
    cu_ptr,
    blocks,
    buckets,
    max_seqlen,
    window,
    SIGN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """The sums of the ds rows of a block of tokens over each bucket's distances, and their total
    over the block.

    ``order`` holds the distances (as places in the buckets) sorted by bucket. Those of b begin at
    ``bounds[b]``, so that each sum takes what it adds and nothing else. SIGN is 1 where a row of ds
    is a query's, -1 where it is a key's.
    """
    block, head, start, length = sequence_block(cu_ptr, blocks)
    first = block * BLOCK_T
    if first >= length:
        return
    place = first + tl.arange(0, BLOCK_T)  # (BLOCK_T,)
    ds_base = ds.ptr + start * ds.token_stride + head * ds.head_stride
    for first_bucket in range(0, buckets, BLOCK_B):
        bucket = first_bucket + tl.arange(0, BLOCK_B)  # (BLOCK_B,)
        begin = tl.load(bounds_ptr + bucket, bucket < buckets, 0)  # (BLOCK_B,)
        count = tl.load(bounds_ptr + bucket + 1, bucket < buckets, 0) - begin  # (BLOCK_B,)
        total = tl.zeros((BLOCK_T, BLOCK_B), tl.float32)
        for n in range(tl.max(count)):
            order = tl.load(order_ptr + begin + n, n < count, 0)  # (BLOCK_B,)
            distance = order - (max_seqlen - 1)
            other = place[:, None] - SIGN * distance[None, :]  # (BLOCK_T, BLOCK_B)
            inside = (
                (place < length)[:, None] & (n < count)[None, :] & (other >= 0) & (other < length)
            )
            inside = within(inside, place[:, None], other, window)
            entries = place[:, None] * ds.token_stride + other
            total += tl.load(ds_base + entries, inside, 0.0).to(tl.float32)  # (BLOCK_T, BLOCK_B)
        if dtable is not None:
            base = dtable.ptr + start * dtable.token_stride + head * dtable.head_stride
            entries = place[:, None] * dtable.token_stride + bucket[None, :]
            inside = (place < length)[:, None] & (bucket < buckets)[None, :]
            values = total.to(dtable.ptr.dtype.element_ty)
            tl.store(base + entries, values, inside)  # (BLOCK_T, BLOCK_B)
        if parts is not None:
            # No two blocks of the batch share one.
            part = start // BLOCK_T + tl.program_id(0) // blocks + block
            base = parts.ptr + part * parts.token_stride + head * parts.head_stride
            tl.store(base + bucket, tl.sum(total, 0), bucket < buckets)  # (BLOCK_B,)


def launch_table_gradients(
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
    heads, sequences, buckets = ds.shape[1], cu_seqlens.shape[0] - 1, bucket_count(positions)
    ordered, order = positions.buckets.sort(stable=True)
    bounds = torch.searchsorted(
        ordered, torch.arange(buckets + 1, dtype=torch.int32, device=ds.device), out_int32=True
    )
    blocks = triton.cdiv(max_seqlen, TILES["BLOCK_T"])
    parts = None
    if dbias is not None:
        # A block of tokens in each sequence may begin anywhere.
        count = ds.shape[0] // TILES["BLOCK_T"] + sequences
        parts = ds.new_zeros(count, heads, buckets, dtype=torch.float32)
    launch(
        _table_gradient_kernel, (blocks * sequences, heads),
        rows_of(ds), order.int(), bounds, None if dtable is None else rows_of(dtable),
        None if parts is None else rows_of(parts), cu_seqlens, blocks, buckets, max_seqlen,
        None if window < 0 else window, SIGN=sign, **TILES,
    )  # fmt: skip
    if dbias is not None and parts is not None:
        dbias.copy_(parts.sum(0))
