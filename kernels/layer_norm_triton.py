"""LayerNorm and RMSNorm of whole rows inside Triton kernels, and the sums over rows that their
backward leaves.

A tile has a power of two of columns and a row mostly has not. Where a row has 768, a tile of 1,024
would spend a quarter of its work, Philox included, on nothing. So a row is held in PIECES tiles
side by side, of COLUMNS columns each (`row_pieces`), as a tuple. A warp then has a row, or several,
to itself, and its sums cross no other warp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import launch
from .triton_compat import tl, triton

MOST_PIECES = 4
WARP_COLUMNS = 256  # 32 threads with 16 bytes of half precision each


@triton.jit
def load_columns(ptr, column, inside, ROWS: tl.constexpr):
    """A piece of a vector over the columns, repeated for each of ROWS rows.

    It is loaded as a tile of tokens is, so it takes no way through shared memory.
    """
    place = tl.broadcast_to(column[None, :], (ROWS, column.shape[0]))
    real = tl.broadcast_to(inside[None, :], (ROWS, column.shape[0]))
    return tl.load(ptr + place, real, 0.0).to(tl.float32)


@triton.jit
def moments(s, inside, columns, eps, RMS: tl.constexpr, PIECES: tl.constexpr):
    """Mean (0 for RMSNorm) and reciprocal deviation of each row.

    ``s`` holds a row's PIECES tiles, zero where not ``inside``, which holds a piece's columns.
    """
    total = s[0]
    for i in tl.static_range(1, PIECES):
        total += s[i]
    mean = tl.sum(total, 1) / columns
    if RMS:
        mean *= 0.0
    squares = tl.zeros_like(s[0])
    for i in tl.static_range(PIECES):
        centred = tl.where(inside[i][None, :], s[i] - mean[:, None], 0.0)
        squares += centred * centred
    return mean, tl.rsqrt(tl.sum(squares, 1) / columns + eps)


@triton.jit
def norm_backward(
    normal, dy, weight_ptr, column, inside, rstd, columns, RMS: tl.constexpr, PIECES: tl.constexpr
):
    """The gradient of the norm's input in PIECES tiles; ``normal`` and ``dy`` are zero where there
    is no element.
    """
    along = tl.zeros_like(dy[0])
    across = tl.zeros_like(dy[0])
    weighted = ()
    for i in tl.static_range(PIECES):
        scale = load_columns(weight_ptr, column[i], inside[i], dy[i].shape[0])
        weighted += (dy[i] * scale,)  # type: ignore[assignment]
        along += weighted[i] * normal[i]
        across += weighted[i]
    slope = (tl.sum(along, 1) / columns)[:, None]
    mean = (tl.sum(across, 1) / columns)[:, None]
    if RMS:
        mean *= 0.0
    ds = ()
    for i in tl.static_range(PIECES):
        part = (weighted[i] - normal[i] * slope - mean) * rstd[:, None]
        ds += (part,)  # type: ignore[assignment]
    return ds


@triton.jit(do_not_specialize_on_alignment=("count",))
def _sum_partials_kernel(
    partial_ptr, out_ptr, count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        real = (row < count)[:, None] & inside[None, :]
        total += tl.load(partial_ptr + row[:, None] * width + column[None, :], real, 0.0)
    tl.store(out_ptr + column, tl.sum(total, 0).to(out_ptr.dtype.element_ty), inside)


SUM_TILE = {"ROWS": 32, "COLUMNS": 32}


def sum_partials(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of partial (programs, ...) float32 over its programs, in a fixed order, as ``dtype``.

    It is one launch, where a sum, a copy and a cast would be three.
    """
    count, *shape = partial.shape
    out = partial.new_empty(shape, dtype=dtype)
    if out.numel():
        launch(
            _sum_partials_kernel, (triton.cdiv(out.numel(), SUM_TILE["COLUMNS"]),),
            partial, out, count, out.numel(), **SUM_TILE,
        )  # fmt: skip
    return out


def padded_width(hidden: int) -> int:
    """The power of two by which tile sizes of rows of ``hidden`` columns are listed."""
    return max(triton.next_power_of_2(hidden), 16)


def row_pieces(hidden: int) -> dict[str, int]:
    """PIECES and COLUMNS: the least columns in all, of those nearest to a warp's own."""
    padded = padded_width(hidden)
    choices = [max(padded // parts, 16) for parts in (1, 2, 4, 8, 16)]
    choices = [columns for columns in choices if triton.cdiv(hidden, columns) <= MOST_PIECES]
    columns = min(
        choices,
        key=lambda x: (
            triton.cdiv(hidden, x) * x,
            max(x, WARP_COLUMNS) / min(x, WARP_COLUMNS),
        ),
    )
    return {"PIECES": triton.cdiv(hidden, columns), "COLUMNS": columns}
