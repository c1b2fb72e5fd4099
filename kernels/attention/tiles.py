"""What attention's kernels share: their arguments, rows of a head, and the tile of scores and
probabilities.

A program computes one head of one block of a sequence. It finds the block in a list
(`tile_list.py`). Where there is none, the grid is (blocks * sequences, heads), with the blocks of
the longest sequence. A program past its sequence's end leaves at once.

A kernel's tiles are whole but for the last ones of a sequence, and only these are masked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tuning
from ..philox import ATTENTION_LANE_RANGE, keep_scale
from ..philox_triton import attention_lanes
from ..positions import RelativePositions
from ..triton_compat import tl, triton
from ..triton_dot import dot
from .tile_list import TILE

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


class Rows(NamedTuple):
    """A (tokens, heads, columns) tensor as kernels take it; the elements of a row are adjacent."""

    ptr: Any
    token_stride: Any
    head_stride: Any


class Dropout(NamedTuple):
    """A probability is dropped where its lane is below the threshold, else scaled up. The scale is
    applied to the sums of the kept ones, not to each. keep_share is one over keep_scale.
    """

    threshold: Any
    keep_scale: Any
    keep_share: Any


class Terms(NamedTuple):
    """What relative positions add to the scores; a table that is None adds nothing.

    Attributes:
        buckets_ptr: (2 * max_seqlen - 1,) int32, the bucket of each distance.
        bias_ptr: (heads, buckets).
        query_scores, key_scores: `Rows` of (tokens, heads, buckets).
        buckets: how many there are.
        max_seqlen: at least the longest sequence's length.
    """

    buckets_ptr: Any
    bias_ptr: Any
    query_scores: Any
    key_scores: Any
    buckets: Any
    max_seqlen: Any


@triton.jit
def sequence_block(cu_ptr, blocks, AGAIN: tl.constexpr = False):
    """In a grid of (blocks * sequences, heads): this program's block and head, and the first row
    and the length of its sequence.

    After a loop they are read AGAIN. The compiler would else make what depends on them, such as the
    mask of the rows to store, before the loop. It would keep that through the loop in registers or
    on the stack.
    """
    start, length = _bounds(cu_ptr, tl.program_id(0) // blocks, AGAIN)
    return tl.program_id(0) % blocks, tl.program_id(1), start, length


@triton.jit
def listed_block(cu_ptr, tiles_ptr, BLOCK: tl.constexpr, AGAIN: tl.constexpr = False):
    """In a grid of `tile_grid`: the first position of this program's block in its sequence, the
    head, and the sequence's first row and length. AGAIN as in `sequence_block`.
    """
    entry = tiles_ptr + tl.program_id(0) * BLOCK // TILE * 2
    first = tl.load(entry + 1, volatile=AGAIN) + tl.program_id(0) * BLOCK % TILE
    start, length = _bounds(cu_ptr, tl.load(entry, volatile=AGAIN), AGAIN)
    return first, tl.program_id(1), start, length


@triton.jit
def _bounds(cu_ptr, sequence, AGAIN: tl.constexpr):
    start = tl.load(cu_ptr + sequence, volatile=AGAIN).to(tl.int64)
    return start, (tl.load(cu_ptr + sequence + 1, volatile=AGAIN) - start).to(tl.int32)


@triton.jit
def _tiles_of_head(x, first_row, head, i, BLOCK_D: tl.constexpr):
    """Pointers to (len(i), BLOCK_D) of one head, rows ``first_row + i``."""
    base = x.ptr + first_row * x.token_stride + head * x.head_stride
    return base + (i[:, None] * x.token_stride + tl.arange(0, BLOCK_D)[None, :])


@triton.jit
def _inside_head(i, inside, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(len(i), BLOCK_D): the elements of rows that are ``inside``; None where all are."""
    mask = None if inside is None else inside[:, None]
    if HEAD_DIM < BLOCK_D:
        columns = (tl.arange(0, BLOCK_D) < HEAD_DIM)[None, :]
        mask = columns if mask is None else mask & columns
    return mask


@triton.jit
def load_rows(x, first_row, head, i, inside, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(len(i), BLOCK_D) of one head, rows ``first_row + i``; zeros outside, and ``inside`` may be
    None.
    """
    mask = _inside_head(i, inside, HEAD_DIM, BLOCK_D)
    pointers = _tiles_of_head(x, first_row, head, i, BLOCK_D)
    return tl.load(pointers) if mask is None else tl.load(pointers, mask, 0.0)


@triton.jit
def store_rows(x, first_row, head, i, inside, values, HEAD_DIM: tl.constexpr):
    """Puts ``values``, (len(i), BLOCK_D), where `load_rows` reads them."""
    mask = _inside_head(i, inside, HEAD_DIM, values.shape[1])
    pointers = _tiles_of_head(x, first_row, head, i, values.shape[1])
    tl.store(pointers, values.to(x.ptr.dtype.element_ty), mask)


@triton.jit
def clear_slack(
    x,
    line_ptr,
    cu_ptr,
    sequences,
    tokens,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Zeros to this program's share of one head's rows past the last boundary, and of its line of
    (heads, tokens), if given.
    """
    i = tl.arange(0, BLOCK)
    zeros = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    mine = tl.load(cu_ptr + sequences).to(tl.int64) + tl.program_id(0) * BLOCK
    for first in range(mine, tokens, tl.num_programs(0) * BLOCK):
        inside = first + i < tokens
        store_rows(x, first, tl.program_id(1), i, inside, zeros, HEAD_DIM)
        if line_ptr is not None:
            tl.store(line_ptr + tl.program_id(1).to(tl.int64) * tokens + first + i, 0.0, inside)


@triton.jit
def reach(first, length, window, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """From where to where, in steps, the positions go that are within the window of a block of
    positions from ``first`` on.
    """
    low, high = 0, length
    if window is not None:
        low = tl.maximum(first - window, 0) // STEP * STEP
        high = tl.minimum(first + BLOCK + window, length)
    return low, high


@triton.jit
def within(inside, query, key, window):
    """``inside`` where the query sees the key."""
    if window is not None:
        inside = inside & (tl.abs(query - key) <= window)
    return inside


@triton.jit
def scores(left, right, query, key, start, length, head, scale, terms, PRECISION: tl.constexpr):
    """S of a tile in log2, (len(left), len(right)).

    ``left`` and ``right`` are rows of queries and keys, or of keys and queries. ``query`` and
    ``key`` are the positions of both, shaped to broadcast over the tile.
    """
    zeros = tl.zeros((left.shape[0], right.shape[0]), tl.float32)
    s = dot(left, tl.trans(right), zeros, PRECISION) * (scale * LOG2_E)  # (left, right)
    if terms is not None:
        inside = (query < length) & (key < length)
        distance = query - key + terms.max_seqlen - 1  # (left, right)
        bucket = tl.load(terms.buckets_ptr + distance, inside, 0)  # (left, right)
        added = tl.zeros(s.shape, tl.float32)
        if terms.bias_ptr is not None:
            base = terms.bias_ptr + head * terms.buckets
            added += tl.load(base + bucket, inside, 0.0).to(tl.float32)  # (left, right)
        if terms.query_scores is not None:
            added += _table(terms.query_scores, start, head, query, bucket, inside)
        if terms.key_scores is not None:
            added += _table(terms.key_scores, start, head, key, bucket, inside)
        s += added * LOG2_E
    return s


@triton.jit
def _table(x, start, head, rows, bucket, inside):
    """Of each row of a table the entry of its bucket, in the tile's shape."""
    base = x.ptr + start * x.token_stride + head * x.head_stride
    return tl.load(base + (rows * x.token_stride + bucket), inside, 0.0).to(tl.float32)


@triton.jit
def kept(seed_ptr, dropout, start, head, first_query, i, first_key, j):
    """The probabilities that dropout keeps, of the tile that `attention_lanes` describes."""
    lanes = attention_lanes(tl.load(seed_ptr), start, head, first_query, i, first_key, j)
    return lanes >= tl.full((), dropout.threshold, tl.uint32) << 24


@triton.jit
def drop(x, keep, scale):
    """``x`` where it is kept, and zero elsewhere.

    The compiler must not know that this is zero. It would then choose among rounded halves, and
    first take them out of their pairs.
    """
    return tl.where(keep, x, scale * 0.0)


def rows_of(x: Tensor) -> Rows:
    """``x``, (tokens, heads, columns), as a kernel's argument."""
    return Rows(x, x.stride(0), x.stride(1))


def dropout_of(threshold: int) -> Dropout | None:
    """The threshold as a kernel's argument; None drops nothing."""
    if not threshold:
        return None
    scale = keep_scale(threshold, ATTENTION_LANE_RANGE)
    return Dropout(threshold, scale, 1 / scale)


def terms_of(positions: RelativePositions | None, heads: int, max_seqlen: int) -> Terms | None:
    """The positions as a kernel's argument.

    Raises:
        ValueError: a sequence's tables have 2**31 elements or more.
    """
    if positions is None:
        return None
    query_scores, key_scores = (
        None if x is None else rows_of(x) for x in (positions.query_scores, positions.key_scores)
    )
    strides = [stride for table in (query_scores, key_scores) if table for stride in table[1:]]
    # Within a sequence the tables and their scratch are counted in 32 bits.
    buckets = bucket_count(positions)
    elements = max_seqlen * max([*strides, heads * max(max_seqlen, buckets)])
    if elements >= 2**31:
        raise ValueError(
            f"max_seqlen {max_seqlen} makes the tables of a sequence {elements} elements; on a GPU "
            "it must be below 2**31: lower it, or the buckets"
        )
    return Terms(
        positions.buckets,
        positions.bias,
        query_scores,
        key_scores,
        buckets,
        max_seqlen,
    )


def bucket_count(positions: RelativePositions) -> int:
    """The columns of every table that is given."""
    return next(x.shape[-1] for x in positions.tables if x is not None)


def options(q: Tensor, kernel: str, positions: bool) -> dict[str, Any]:
    """Constants and launch options of a kernel; float32 is exact unless PyTorch is told
    otherwise.
    """
    block_d = triton.next_power_of_2(q.shape[2])
    exact = q.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    tuned = tuning.options(
        f"attention.{kernel}{'_positions' * positions}", q.dtype, q.device, block_d
    )
    constants = {"HEAD_DIM": q.shape[2], "BLOCK_D": block_d}
    return {"PRECISION": "ieee" if exact else "tf32", **constants, **tuned}
