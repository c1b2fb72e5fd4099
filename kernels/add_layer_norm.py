"""Dropout, residual and LayerNorm in one pass: ``s = dropout(x) + residual``, ``out = (s - mean(s))
/ sqrt(var(s) + eps) * weight + bias``.

x, residual, s and out (..., hidden); mean and variance over the last dimension. Post-norm blocks
(BERT) read ``out`` alone; pre-norm blocks carry ``s`` on as well. RMSNorm leaves out the mean and
the bias. Eager mode reads and writes the tokens once for each of the three parts; here the forward
reads x and the residual and writes the result, and the backward makes ``s`` again from the same
two, counting the dropout.

Sources: Ba et al., "Layer Normalization", section 3; Zhang and Sennrich, "Root Mean Square Layer
Normalization", section 3; Xiong et al., "On Layer Normalization in the Transformer Architecture",
section 3 (post- and pre-norm).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import dispatch, reference, tuning
from .checks import (
    Wanted,
    check_dropout,
    check_launch,
    check_like,
    check_norm,
    check_tensor,
    register_fake,
)
from .launch import launch
from .layer_norm_triton import moments, norm_backward, padded_width
from .philox import as_seed, dropout_threshold, keep_scale
from .philox_triton import flat_lanes
from .threads import num_threads
from .triton_compat import tl, triton

# --- Triton ---


@triton.jit
def _load_sum(
    x_ptr,
    residual_ptr,
    seed_ptr,
    row,
    real,
    hidden,
    threshold,
    keep_scale,
    RESIDUAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """s of a tile of rows in float32, zero where not real, and which elements are kept."""
    first = row.to(tl.int64) * hidden
    offsets = first[:, None] + tl.arange(0, COLUMNS)[None, :]
    s = tl.load(x_ptr + offsets, real, 0.0).to(tl.float32)
    kept = real
    if DROPOUT:
        kept = flat_lanes(tl.load(seed_ptr), first, COLUMNS, ALIGNED).to(tl.int32) >= threshold
        s = tl.where(kept, s * keep_scale, 0.0)
    if RESIDUAL:
        s += tl.load(residual_ptr + offsets, real, 0.0).to(tl.float32)
    return s, kept


@triton.jit(do_not_specialize_on_alignment=("seed_ptr",))
def _norm_forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    summed_ptr,
    mean_ptr,
    rstd_ptr,
    seed_ptr,
    rows,
    hidden,
    eps,
    threshold,
    keep_scale,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    PRENORM: tl.constexpr,
    RMS: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    real = (row < rows)[:, None] & (column < hidden)[None, :]
    s, _ = _load_sum(
        x_ptr,
        residual_ptr,
        seed_ptr,
        row,
        real,
        hidden,
        threshold,
        keep_scale,
        RESIDUAL,
        DROPOUT,
        ALIGNED,
        COLUMNS,
    )
    mean, rstd = moments(s, real, hidden, eps, RMS)
    out = (s - mean[:, None]) * rstd[:, None]
    out *= tl.load(weight_ptr + column, column < hidden, 0.0).to(tl.float32)[None, :]
    if BIAS:
        out += tl.load(bias_ptr + column, column < hidden, 0.0).to(tl.float32)[None, :]
    offsets = row.to(tl.int64)[:, None] * hidden + column[None, :]
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), real)
    if PRENORM:
        tl.store(summed_ptr + offsets, s.to(summed_ptr.dtype.element_ty), real)
    tl.store(mean_ptr + row, mean, row < rows)
    tl.store(rstd_ptr + row, rstd, row < rows)


@triton.jit(do_not_specialize_on_alignment=("seed_ptr",))
def _norm_backward_kernel(
    dout_ptr,
    dsummed_ptr,
    x_ptr,
    residual_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,
    dresidual_ptr,
    partial_ptr,
    seed_ptr,
    rows,
    hidden,
    threshold,
    keep_scale,
    RESIDUAL: tl.constexpr,
    PRENORM: tl.constexpr,
    RMS: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx and dresidual of one row in as many as there are programs, and this program's part of the
    sums for the weight and the bias.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, COLUMNS)
    inside = column < hidden
    weight = tl.load(weight_ptr + column, inside, 0.0).to(tl.float32)[None, :]
    dweight = tl.zeros((1, COLUMNS), tl.float32)
    dbias = tl.zeros((1, COLUMNS), tl.float32)
    for one in range(program, rows, programs):
        row = one + tl.zeros((1,), tl.int32)
        real = inside[None, :]
        s, kept = _load_sum(
            x_ptr,
            residual_ptr,
            seed_ptr,
            row,
            real,
            hidden,
            threshold,
            keep_scale,
            RESIDUAL,
            DROPOUT,
            ALIGNED,
            COLUMNS,
        )
        mean, rstd = tl.load(mean_ptr + row), tl.load(rstd_ptr + row)
        normal = tl.where(real, (s - mean[:, None]) * rstd[:, None], 0.0)
        offsets = row.to(tl.int64)[:, None] * hidden + column[None, :]
        dy = tl.load(dout_ptr + offsets, real, 0.0).to(tl.float32)
        dweight += dy * normal
        dbias += dy
        ds = norm_backward(normal, dy, weight, rstd, hidden, RMS)
        if PRENORM:
            ds += tl.load(dsummed_ptr + offsets, real, 0.0).to(tl.float32)
        if RESIDUAL and DROPOUT:
            tl.store(dresidual_ptr + offsets, ds.to(dresidual_ptr.dtype.element_ty), real)
        if DROPOUT:
            ds = tl.where(kept, ds * keep_scale, 0.0)
        tl.store(dx_ptr + offsets, ds.to(dx_ptr.dtype.element_ty), real)
    place = partial_ptr + program * 2 * hidden + column[None, :]
    tl.store(place, dweight, inside[None, :])
    tl.store(place + hidden, dbias, inside[None, :])


def _forward_triton(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    eps: float,
    threshold: int,
    rms: bool,
    prenorm: bool,
    out: Tensor,
    summed: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    rows, hidden = mean.numel(), x.shape[-1]
    columns = padded_width(hidden)
    tuned = tuning.options("add_layer_norm.forward", x.dtype, x.device, columns)
    if rows:
        launch(
            _norm_forward_kernel, (triton.cdiv(rows, tuned["ROWS"]),),
            x, x if residual is None else residual, weight, weight if bias is None else bias, out,
            summed, mean, rstd,
            seed, rows, hidden, eps, threshold, keep_scale(threshold),
            RESIDUAL=residual is not None,
            BIAS=bias is not None, PRENORM=prenorm, RMS=rms, DROPOUT=threshold > 0,
            ALIGNED=hidden % 8 == 0, COLUMNS=columns, **tuned,
        )  # fmt: skip


def _backward_triton(
    dout: Tensor,
    dsummed: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor,
    threshold: int,
    rms: bool,
    dx: Tensor,
    dresidual: Tensor,
) -> Tensor:
    """Returns the gradients of weight and bias, (2, hidden) float32."""
    rows, hidden = mean.numel(), x.shape[-1]
    columns = padded_width(hidden)
    tuned = dict(tuning.options("add_layer_norm.backward", x.dtype, x.device, columns))
    partial = torch.empty(min(rows, tuned.pop("PROGRAMS")), 2, hidden, device=x.device)
    if rows:
        launch(
            _norm_backward_kernel, (partial.shape[0],),
            dout, dout if dsummed is None else dsummed, x, x if residual is None else residual,
            weight, mean, rstd, dx,
            dresidual, partial, seed, rows, hidden, threshold, keep_scale(threshold),
            RESIDUAL=residual is not None,
            PRENORM=dsummed is not None, RMS=rms, DROPOUT=threshold > 0, ALIGNED=hidden % 8 == 0,
            COLUMNS=columns, **tuned,
        )  # fmt: skip
    return partial.sum(0)


# --- torch.library ---


@torch.library.custom_op("bertfast::add_layer_norm", mutates_args=())
def _add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    eps: float,
    threshold: int,
    rms: bool,
    prenorm: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weight = x.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.contiguous()
    bias = None if bias is None else bias.contiguous()
    out, summed, mean, rstd = _outputs(x, prenorm)
    if backend == "cpp":
        weight, bias = weight.float(), None if bias is None else bias.float()
        dispatch._C.add_layer_norm_forward(
            x=x,
            residual=residual,
            weight=weight,
            bias=bias,
            out=out,
            summed=summed if prenorm else None,
            mean=mean,
            rstd=rstd,
            eps=eps,
            rms=rms,
            threshold=threshold,
            seed=int(seed),
            threads=num_threads(),
        )
    else:
        _check_launch(backend, x, residual, weight, threshold, seed)
        if bias is not None:
            check_norm(weight, bias, x)
        _forward_triton(
            x, residual, weight, bias, seed, eps, threshold, rms, prenorm, out, summed, mean, rstd
        )
    return out, summed, mean, rstd


def _check_launch(
    backend: str,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    threshold: int,
    seed: Tensor,
    **others: Wanted,
) -> None:
    check_launch("add_layer_norm", backend, x, residual=(residual, x.dtype, x.shape), **others)
    check_norm(weight, None, x)
    check_dropout(threshold, seed, x)


def _outputs(x: Tensor, prenorm: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, summed (empty unless it is wanted), mean and rstd, to be written."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    summed = torch.empty_like(out) if prenorm else x.new_empty(0)
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return out, summed, mean, rstd


@torch.library.custom_op("bertfast::add_layer_norm_backward", mutates_args=())
def _add_layer_norm_backward(
    dout: Tensor,
    dsummed: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor,
    threshold: int,
    rms: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dout, x, weight = dout.contiguous(), x.contiguous(), weight.contiguous()
    mean, rstd = mean.contiguous(), rstd.contiguous()
    dsummed = None if dsummed is None else dsummed.contiguous()
    residual = None if residual is None else residual.contiguous()
    dx, dresidual, dparameters = _gradients(x, residual, threshold)
    if backend == "cpp":
        weight = weight.float()
        dispatch._C.add_layer_norm_backward(
            dout=dout,
            dsummed=dsummed,
            x=x,
            residual=residual,
            weight=weight,
            mean=mean,
            rstd=rstd,
            dx=dx,
            dresidual=dresidual if dresidual.numel() else None,
            dparameters=dparameters,
            rms=rms,
            threshold=threshold,
            seed=int(seed),
            threads=num_threads(),
        )
    else:
        like_x = {"dout": (dout, x.dtype, x.shape), "dsummed": (dsummed, x.dtype, x.shape)}
        rows = x.shape[:-1]
        statistics = {"mean": (mean, torch.float32, rows), "rstd": (rstd, torch.float32, rows)}
        _check_launch(backend, x, residual, weight, threshold, seed, **like_x, **statistics)
        dparameters = _backward_triton(
            dout, dsummed, x, residual, weight, mean, rstd, seed, threshold, rms, dx, dresidual
        )
    return dx, dresidual, dparameters


def _gradients(x: Tensor, residual: Tensor | None, threshold: int) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dresidual (empty where it is dx itself, or not wanted), and those of weight and bias, to
    be written.
    """
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dresidual = torch.empty_like(dx) if threshold and residual is not None else x.new_empty(0)
    return dx, dresidual, x.new_empty(2, x.shape[-1], dtype=torch.float32)


@register_fake(_add_layer_norm)
def _(x, residual, weight, bias, seed, eps, threshold, rms, prenorm, backend):
    return _outputs(x, prenorm)


@register_fake(_add_layer_norm_backward)
def _(dout, dsummed, x, residual, weight, mean, rstd, seed, threshold, rms, backend):
    return _gradients(x, residual, threshold)


def _setup(ctx, inputs, output) -> None:
    x, residual, weight, bias, seed, _, ctx.threshold, ctx.rms, ctx.prenorm, ctx.backend = inputs
    _, summed, mean, rstd = output
    ctx.save_for_backward(x, residual, weight, bias, mean, rstd, seed)
    ctx.mark_non_differentiable(mean, rstd, *([] if ctx.prenorm else [summed]))
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, dsummed, *_):
    x, residual, weight, bias, mean, rstd, seed = ctx.saved_tensors
    if dout is None and dsummed is None:
        return (None,) * 10
    dout = torch.zeros_like(x) if dout is None else dout
    dx, dresidual, dparameters = _add_layer_norm_backward(
        dout, dsummed, x, residual, weight, mean, rstd, seed, ctx.threshold, ctx.rms, ctx.backend
    )
    if residual is None:
        dresidual = None
    elif not ctx.threshold:
        dresidual = dx
    dbias = None if bias is None else dparameters[1].to(bias.dtype)
    return dx, dresidual, dparameters[0].to(weight.dtype), dbias, *(None,) * 6


_add_layer_norm.register_autograd(_backward, setup_context=_setup)


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    rms: bool = False,
    prenorm: bool = False,
) -> (
    Any
):  # a Tensor, or with prenorm a pair of them: no annotation short of a second signature says so
    """LayerNorm, or RMSNorm, of ``dropout(x) + residual``.

    Args:
        x: (..., hidden), floating point, any strides.
        residual: like x, or None for none.
        weight: (hidden,), of any floating dtype.
        bias: (hidden,) of weight's dtype, or None; an RMSNorm has none.
        eps: added to the variance, or to the mean square.
        dropout_p: of x, in [0, 1), rounded to a multiple of 1/65536.
        seed: of the dropout, an int of 64 bits or an int64 tensor of one element; the bits are
            those of `kernels.dropout`.
        rms: divide by the root mean square instead of normalising by mean and deviation.
        prenorm: also return ``dropout(x) + residual``, which a pre-norm block carries on.

    Returns:
        (..., hidden), contiguous, of x's dtype; with ``prenorm`` a pair of such.

    Raises:
        TypeError: a dtype that does not fit.
        ValueError: a shape, device or option that does not fit.
        BackendError: the forced backend cannot serve the call.
    """
    check_tensor("x", x)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; it must be (..., hidden) with at least one column"
        )
    if residual is not None:
        check_tensor("residual", residual)
        check_like("residual", residual, "x", x)
        if residual.shape != x.shape:
            raise ValueError(
                f"residual has shape {tuple(residual.shape)} and x {tuple(x.shape)}; "
                "they must be the same"
            )
    if rms and bias is not None:
        raise ValueError("an RMSNorm has no bias; give None")
    check_norm(weight, bias, x)
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it must be at least 0")
    threshold = dropout_threshold(dropout_p)
    seed = as_seed(seed, x.device)
    backend = dispatch.select("add_layer_norm", x.device, x.dtype)
    if backend == "reference":
        out, summed = reference.add_layer_norm(x, residual, weight, bias, seed, eps, threshold, rms)
    else:
        out, summed, _, _ = _add_layer_norm(
            x, residual, weight, bias, seed, eps, threshold, rms, prenorm, backend
        )
    return (out, summed) if prenorm else out
