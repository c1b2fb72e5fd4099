"""Gather of rows: ``out[m] = x[index[m]]``, a zero row where ``index[m]`` is -1.

x (tokens, hidden), index (masked,) int64, out (masked, hidden). It takes the masked positions out
of the encoder's output, so that the head and the vocabulary-sized work see only them. The indices
are unique, hence the backward is a scatter without atomics: each row of the gradient is written by
at most one program. Rows are moved, not computed with, so the kernels take any dtype as integers of
its size. The same two ops pack and unpack batches in `padding.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch, reference
from .checks import (
    check_device,
    check_dims,
    check_integers,
    check_launch,
    check_range,
    check_tensor,
    register_fake,
)
from .launch import launch
from .threads import num_threads
from .triton_compat import tl, triton

# --- Triton ---

ELEMENTS = 1024  # of a program: part of a long row, or several short ones


@triton.jit
def _gather_kernel(
    x_ptr, index_ptr, out_ptr, masked, hidden, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.load(index_ptr + m, m < masked, -1)
    values = tl.load(x_ptr + row * stride + column, (column < hidden) & (row >= 0), 0)
    tl.store(out_ptr + m * hidden + column, values, (column < hidden) & (m < masked))


@triton.jit
def _scatter_kernel(
    dout_ptr, index_ptr, dx_ptr, masked, hidden, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.load(index_ptr + m, m < masked, -1)
    inside = (column < hidden) & (row >= 0)
    tl.store(
        dx_ptr + row * hidden + column, tl.load(dout_ptr + m * hidden + column, inside, 0), inside
    )


def _gather_rows_triton(x: Tensor, index: Tensor, out: Tensor) -> None:
    if out.numel():
        x, out = _as_integers(x), _as_integers(out)
        grid, tile = _tiles(out)
        launch(_gather_kernel, grid, x, index, out, *out.shape, x.stride(0), **tile)


def _scatter_rows_triton(dout: Tensor, index: Tensor, dx: Tensor) -> None:
    if dout.numel():
        dout, dx = _as_integers(dout), _as_integers(dx)
        grid, tile = _tiles(dout)
        launch(_scatter_kernel, grid, dout, index, dx, *dout.shape, **tile)


def _tiles(x: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    columns = min(ELEMENTS, triton.next_power_of_2(x.shape[1]))
    rows = ELEMENTS // columns
    return (triton.cdiv(x.shape[0], rows), triton.cdiv(x.shape[1], columns)), {
        "ROWS": rows,
        "COLUMNS": columns,
    }


def _as_integers(x: Tensor) -> Tensor:
    return x.view(
        {1: torch.int8, 2: torch.int16, 4: torch.int32}.get(x.element_size(), torch.int64)
    )


# --- torch.library ---


@torch.library.custom_op("bertfast::gather_rows", mutates_args=())
def _gather_rows(x: Tensor, index: Tensor, backend: str) -> Tensor:
    x, index = _last_contiguous(x), index.contiguous()
    out = torch.empty(index.shape[0], x.shape[1], dtype=x.dtype, device=x.device)
    if backend == "cpp":
        dispatch._C.gather_rows(
            x=x,
            index=index,
            out=out,
            threads=num_threads(),
        )
    else:
        _check_launch(backend, x, index, x.shape[0])
        _gather_rows_triton(x, index, out)
    return out


@torch.library.custom_op("bertfast::scatter_rows", mutates_args=())
def _scatter_rows(dout: Tensor, index: Tensor, rows: int, backend: str) -> Tensor:
    dout, index = dout.contiguous(), index.contiguous()
    if backend == "cpp":
        dx = torch.empty(rows, dout.shape[1], dtype=dout.dtype, device=dout.device)
        dispatch._C.scatter_rows(
            dout=dout,
            index=index,
            dx=dx,
            threads=num_threads(),
        )
    else:
        _check_launch(backend, dout, index, rows)
        if index.shape != dout.shape[:1]:
            raise ValueError(
                f"index has {index.shape[0]} entries and dout {dout.shape[0]} rows; "
                "they must be the same"
            )
        dx = torch.zeros(rows, dout.shape[1], dtype=dout.dtype, device=dout.device)
        _scatter_rows_triton(dout, index, dx)
    return dx


def _check_launch(backend: str, x: Tensor, index: Tensor, rows: int) -> None:
    check_dims("x", x, ("rows", "hidden"))
    check_integers("index", index, ("masked",), torch.int64)
    check_launch("gather_rows", backend, x)
    check_device("index", index, "x", x)
    check_range("index", index, -1, rows - 1)


@register_fake(_gather_rows)
def _(x: Tensor, index: Tensor, backend: str) -> Tensor:
    return x.new_empty(index.shape[0], x.shape[1])


@register_fake(_scatter_rows)
def _(dout: Tensor, index: Tensor, rows: int, backend: str) -> Tensor:
    return dout.new_empty(rows, dout.shape[1])


def _gather_setup(ctx, inputs, output) -> None:
    x, index, backend = inputs
    ctx.save_for_backward(index)
    ctx.rows, ctx.backend = x.shape[0], backend


def _gather_backward(ctx, dout):
    (index,) = ctx.saved_tensors
    return _scatter_rows(dout, index, ctx.rows, ctx.backend), None, None


def _scatter_setup(ctx, inputs, output) -> None:
    _, index, _, backend = inputs
    ctx.save_for_backward(index)
    ctx.backend = backend


def _scatter_backward(ctx, ddx):
    (index,) = ctx.saved_tensors
    return _gather_rows(ddx, index, ctx.backend), None, None, None


_gather_rows.register_autograd(_gather_backward, setup_context=_gather_setup)
_scatter_rows.register_autograd(_scatter_backward, setup_context=_scatter_setup)


def _last_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def check_rows(name: str, index: Tensor, owner: str, rows: int, backend: str) -> None:
    """Raises ValueError unless each value is -1 or one of the ``rows`` rows of ``owner``, and no
    row comes twice.

    Only values on the CPU are read: on a GPU that would stall the queue, and the caller's are
    trusted.
    """
    if torch.compiler.is_compiling() or index.device.type != "cpu" or index.numel() == 0:
        return
    if backend == "cpp":
        dispatch._C.check_rows(name=name, index=index.contiguous(), owner=owner, rows=rows)
        return
    low, high = (int(value) for value in index.aminmax())
    if low < -1 or high >= rows:
        raise ValueError(
            f"{name} holds {low if low < -1 else high}; {owner} has {rows} rows, "
            f"so it must be from -1 to {rows - 1}"
        )
    times = torch.bincount(index + 1)[1:]
    if times.numel() and int(times.max()) > 1:
        raise ValueError(f"{name} holds {int(times.argmax())} twice; the rows must be unique")


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows of ``x`` at ``index``; the gradient of each goes back to its row.

    Args:
        x: (tokens, hidden), floating point, any strides.
        index: (masked,) int64, each in [0, tokens) and no two alike. An index is padded to a fixed
            size with -1, which is no row (a zero row, no gradient).

    Returns:
        (masked, hidden), of x's dtype.

    Raises:
        TypeError: x is not floating point, or index not int64.
        ValueError: wrong shapes or devices; on the CPU an index out of range or used twice (on a
            GPU values are not read).
    """
    check_tensor("x", x, ("tokens", "hidden"))
    check_integers("index", index, ("masked",), torch.int64)
    check_device("index", index, "x", x)
    backend = dispatch.select("gather_rows", x.device, x.dtype)
    check_rows("index", index, "x", x.shape[0], backend)
    if backend == "reference":
        return reference.gather_rows(x, index)
    return _gather_rows(x, index, backend)
