"""Gather of rows: ``out[m] = x[index[m]]``, a zero row where ``index[m]`` is -1.

x (tokens, hidden), index (masked,) int64, out (masked, hidden). It takes the masked positions out of the encoder's output, so that
the head and the vocabulary-sized work see only them. The indices are unique, hence the backward is a scatter without atomics:
each row of the gradient is written by at most one program.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch, reference
from .checks import check_device, check_integers, check_tensor
from .triton_compat import tl, triton

# --- Triton ---

COLUMNS = 1024  # of a program, one row each


@triton.jit
def _gather_kernel(x_ptr, index_ptr, out_ptr, hidden, stride, COLUMNS: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.load(index_ptr + m)
    values = tl.load(x_ptr + row * stride + column, (column < hidden) & (row >= 0), 0.0)
    tl.store(out_ptr + m * hidden + column, values, column < hidden)


@triton.jit
def _scatter_kernel(dout_ptr, index_ptr, dx_ptr, hidden, COLUMNS: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.load(index_ptr + m)
    values = tl.load(dout_ptr + m * hidden + column, column < hidden, 0.0)
    tl.store(dx_ptr + row * hidden + column, values, (column < hidden) & (row >= 0))


def _gather_rows_triton(x: Tensor, index: Tensor, out: Tensor) -> None:
    if out.numel():
        grid = (out.shape[0], triton.cdiv(out.shape[1], COLUMNS))
        _gather_kernel[grid](x, index, out, out.shape[1], x.stride(0), COLUMNS=COLUMNS)


def _scatter_rows_triton(dout: Tensor, index: Tensor, dx: Tensor) -> None:
    if dout.numel():
        grid = (dout.shape[0], triton.cdiv(dout.shape[1], COLUMNS))
        _scatter_kernel[grid](dout, index, dx, dout.shape[1], COLUMNS=COLUMNS)


# --- torch.library ---


@torch.library.custom_op("bertfast::gather_rows", mutates_args=())
def _gather_rows(x: Tensor, index: Tensor, backend: str) -> Tensor:
    x, index = _last_contiguous(x), index.contiguous()
    out = torch.empty(index.shape[0], x.shape[1], dtype=x.dtype, device=x.device)
    if backend == "cpp":
        dispatch._C.gather_rows(
            dispatch.dtype_name(x.dtype),
            x.data_ptr(),
            index.data_ptr(),
            out.data_ptr(),
            x.shape[0],
            index.shape[0],
            x.shape[1],
            x.stride(0),
            torch.get_num_threads(),
        )
    else:
        _gather_rows_triton(x, index, out)
    return out


@torch.library.custom_op("bertfast::scatter_rows", mutates_args=())
def _scatter_rows(dout: Tensor, index: Tensor, rows: int, backend: str) -> Tensor:
    dout, index = dout.contiguous(), index.contiguous()
    if backend == "cpp":
        dx = torch.empty(rows, dout.shape[1], dtype=dout.dtype, device=dout.device)
        dispatch._C.scatter_rows(
            dispatch.dtype_name(dout.dtype),
            dout.data_ptr(),
            index.data_ptr(),
            dx.data_ptr(),
            rows,
            index.shape[0],
            dout.shape[1],
            torch.get_num_threads(),
        )
    else:
        dx = torch.zeros(rows, dout.shape[1], dtype=dout.dtype, device=dout.device)
        _scatter_rows_triton(dout, index, dx)
    return dx


@_gather_rows.register_fake
def _(x: Tensor, index: Tensor, backend: str) -> Tensor:
    return x.new_empty(index.shape[0], x.shape[1])


@_scatter_rows.register_fake
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


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows of ``x`` at ``index``; the gradient of each goes back to its row.

    Args:
        x: (tokens, hidden), floating point, any strides.
        index: (masked,) int64, each in [0, tokens) and no two alike, or -1 for no row (a zero row, no gradient), with which
            an index is padded to a fixed size.

    Returns:
        (masked, hidden), of x's dtype.

    Raises:
        TypeError: x is not floating point, or index not int64.
        ValueError: wrong shapes or devices; on the CPU an index out of range or used twice (on a GPU values are not read).
    """
    check_tensor("x", x, ("tokens", "hidden"))
    check_integers("index", index, ("masked",), torch.int64)
    check_device("index", index, "x", x)
    backend = dispatch.select("gather_rows", x.device, x.dtype)
    if not torch.compiler.is_compiling() and index.device.type == "cpu" and index.numel():
        _check_index(index, x.shape[0])
    if backend == "reference":
        return reference.gather_rows(x, index)
    return _gather_rows(x, index, backend)


def _check_index(index: Tensor, rows: int) -> None:
    low, high = (int(value) for value in index.aminmax())
    if low < -1 or high >= rows:
        raise ValueError(
            f"index holds {low if low < -1 else high}; x has {rows} rows, so it must be from -1 to {rows - 1}"
        )
    times = torch.bincount(index + 1, minlength=1)[1:]
    if times.numel() and int(times.max()) > 1:
        raise ValueError(f"index holds {int(times.argmax())} twice; the rows must be unique")
