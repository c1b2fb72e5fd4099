"""Dropout, residual and LayerNorm in one pass: ``s = dropout(x + x_bias) + residual``, ``out = (s -
mean(s)) / sqrt(var(s) + eps) * weight + bias``.

x, residual, s and out (..., hidden); mean and variance over the last dimension. Post-norm blocks
(BERT) read ``out`` alone; pre-norm blocks carry ``s`` on as well. RMSNorm leaves out the mean and
the bias. Eager mode reads and writes the tokens once for each of the three parts. Here the forward
reads x and the residual and writes the result. The backward makes ``s`` again from the same two,
and counts the dropout again. x_bias is that of the dense layer before. Its gradient is the column
sum of dx, which the backward has in registers beside the sums for weight and bias.

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
    check_device,
    check_dropout,
    check_launch,
    check_like,
    check_norm,
    check_tensor,
    register_fake,
)
from .launch import launch
from .layer_norm_triton import (
    load_columns,
    moments,
    norm_backward,
    padded_width,
    row_pieces,
    sum_partials,
)
from .philox import as_seed, dropout_threshold, keep_scale
from .philox_triton import flat_lanes
from .threads import num_threads
from .triton_compat import tl, triton

# --- Triton ---


@triton.jit
def _load_sum(
    x_ptr,
    x_bias_ptr,
    residual_ptr,
    seed,
    first,
    real,
    column,
    threshold,
    keep_scale,
    X_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """s of a tile in float32, zero where not real, and which elements are kept.

    ``first`` holds each row's first element of the tile, ``column`` the tile's columns.
    """
    offsets = first[:, None] + tl.arange(0, COLUMNS)[None, :]
    s = tl.load(x_ptr + offsets, real, 0.0).to(tl.float32)
    if X_BIAS:
        s += tl.load(x_bias_ptr + column[None, :], real, 0.0).to(tl.float32)
    kept = real
    if DROPOUT:
        kept = flat_lanes(seed, first, COLUMNS, ALIGNED).to(tl.int32) >= threshold
        s = tl.where(kept, s * keep_scale, 0.0)
    if RESIDUAL:
        s += tl.load(residual_ptr + offsets, real, 0.0).to(tl.float32)
    return s, kept


@triton.jit(do_not_specialize_on_alignment=("seed_ptr",))
def _norm_forward_kernel(
    x_ptr,
    x_bias_ptr,
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
    X_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    PRENORM: tl.constexpr,
    RMS: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = row.to(tl.int64) * hidden
    seed = tl.load(seed_ptr)
    s, inside = (), ()
    for i in tl.static_range(PIECES):
        column = i * COLUMNS + tl.arange(0, COLUMNS)
        inside += (column < hidden,)
        part, _ = _load_sum(
            x_ptr, x_bias_ptr, residual_ptr, seed, first + i * COLUMNS,
            (row < rows)[:, None] & inside[i][None, :], column, threshold, keep_scale,
            X_BIAS, RESIDUAL, DROPOUT, ALIGNED, COLUMNS,
        )  # fmt: skip
        s += (part,)
    mean, rstd = moments(s, inside, hidden, eps, RMS, PIECES)
    for i in tl.static_range(PIECES):
        column = i * COLUMNS + tl.arange(0, COLUMNS)
        out = (s[i] - mean[:, None]) * rstd[:, None]
        out *= load_columns(weight_ptr, column, inside[i], ROWS)
        if BIAS:
            out += load_columns(bias_ptr, column, inside[i], ROWS)
        offsets = first[:, None] + column[None, :]
        real = (row < rows)[:, None] & inside[i][None, :]
        tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), real)
        if PRENORM:
            tl.store(summed_ptr + offsets, s[i].to(summed_ptr.dtype.element_ty), real)
    tl.store(mean_ptr + row, mean, row < rows)
    tl.store(rstd_ptr + row, rstd, row < rows)


@triton.jit(do_not_specialize_on_alignment=("seed_ptr",))
def _norm_backward_kernel(
    dout_ptr,
    dsummed_ptr,
    x_ptr,
    x_bias_ptr,
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
    X_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRENORM: tl.constexpr,
    RMS: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx and dresidual of a share of the rows, and this program's part of three column sums: for
    the weight, the bias and x's bias. A program takes ROWS rows at a time.
    """
    seed = tl.load(seed_ptr)
    column, inside, dweight, dbias, dx_bias = (), (), (), (), ()
    for i in tl.static_range(PIECES):
        column += (i * COLUMNS + tl.arange(0, COLUMNS),)
        inside += (column[i] < hidden,)
        dweight += (tl.zeros((ROWS, COLUMNS), tl.float32),)
        dbias += (tl.zeros((ROWS, COLUMNS), tl.float32),)
        dx_bias += (tl.zeros((ROWS, COLUMNS), tl.float32),)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        first = row.to(tl.int64) * hidden
        mean = tl.load(mean_ptr + row, row < rows, 0.0)
        rstd = tl.load(rstd_ptr + row, row < rows, 0.0)
        normal, dy, kept, dweight_now, dbias_now, dx_bias_now = (), (), (), (), (), ()
        for i in tl.static_range(PIECES):
            real = (row < rows)[:, None] & inside[i][None, :]
            s, keep = _load_sum(
                x_ptr, x_bias_ptr, residual_ptr, seed, first + i * COLUMNS, real, column[i],
                threshold, keep_scale, X_BIAS, RESIDUAL, DROPOUT, ALIGNED, COLUMNS,
            )  # fmt: skip
            normal += (tl.where(real, (s - mean[:, None]) * rstd[:, None], 0.0),)
            offsets = first[:, None] + column[i][None, :]
            dy += (tl.load(dout_ptr + offsets, real, 0.0).to(tl.float32),)
            kept += (keep,)
            dweight_now += (dweight[i] + dy[i] * normal[i],)
            dbias_now += (dbias[i] + dy[i],)
        ds = norm_backward(normal, dy, weight_ptr, column, inside, rstd, hidden, RMS, PIECES)
        for i in tl.static_range(PIECES):
            real = (row < rows)[:, None] & inside[i][None, :]
            offsets = first[:, None] + column[i][None, :]
            dx = ds[i]
            if PRENORM:
                dx += tl.load(dsummed_ptr + offsets, real, 0.0).to(tl.float32)
            if RESIDUAL and DROPOUT:
                tl.store(dresidual_ptr + offsets, dx.to(dresidual_ptr.dtype.element_ty), real)
            if DROPOUT:
                dx = tl.where(kept[i], dx * keep_scale, 0.0)
            tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), real)
            if X_BIAS:
                dx_bias_now += (dx_bias[i] + dx,)
        dweight, dbias = dweight_now, dbias_now
        if X_BIAS:
            dx_bias = dx_bias_now
    place = partial_ptr + tl.program_id(0) * (2 + X_BIAS) * hidden
    for i in tl.static_range(PIECES):
        tl.store(place + column[i], tl.sum(dweight[i], 0), inside[i])
        tl.store(place + hidden + column[i], tl.sum(dbias[i], 0), inside[i])
        if X_BIAS:
            tl.store(place + 2 * hidden + column[i], tl.sum(dx_bias[i], 0), inside[i])


def _forward_triton(
    x: Tensor,
    x_bias: Tensor | None,
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
    tuned = tuning.options("add_layer_norm.forward", x.dtype, x.device, padded_width(hidden))
    if rows:
        launch(
            _norm_forward_kernel, (triton.cdiv(rows, tuned["ROWS"]),),
            x, weight if x_bias is None else x_bias, x if residual is None else residual, weight,
            weight if bias is None else bias, out, summed, mean, rstd,
            seed, rows, hidden, eps, threshold, keep_scale(threshold),
            X_BIAS=x_bias is not None, RESIDUAL=residual is not None,
            BIAS=bias is not None, PRENORM=prenorm, RMS=rms, DROPOUT=threshold > 0,
            ALIGNED=hidden % 8 == 0, **row_pieces(hidden), **tuned,
        )  # fmt: skip


def _backward_triton(
    dout: Tensor,
    dsummed: Tensor | None,
    x: Tensor,
    x_bias: Tensor | None,
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
    """Returns the gradients of weight, bias and, where there is one, x's bias: (2 or 3, hidden) of
    weight's dtype.
    """
    rows, hidden = mean.numel(), x.shape[-1]
    tuned = dict(tuning.options("add_layer_norm.backward", x.dtype, x.device, padded_width(hidden)))
    programs = min(triton.cdiv(rows, tuned["ROWS"]), tuned.pop("PROGRAMS"))
    partial = torch.empty(programs, 2 + (x_bias is not None), hidden, device=x.device)
    if rows:
        launch(
            _norm_backward_kernel, (programs,),
            dout, dout if dsummed is None else dsummed, x, weight if x_bias is None else x_bias,
            x if residual is None else residual, weight, mean, rstd, dx,
            dresidual, partial, seed, rows, hidden, threshold, keep_scale(threshold),
            X_BIAS=x_bias is not None, RESIDUAL=residual is not None,
            PRENORM=dsummed is not None, RMS=rms, DROPOUT=threshold > 0, ALIGNED=hidden % 8 == 0,
            **row_pieces(hidden), **tuned,
        )  # fmt: skip
    return sum_partials(partial, weight.dtype)


# --- torch.library ---


@torch.library.custom_op("bertfast::add_layer_norm", mutates_args=())
def _add_layer_norm(
    x: Tensor,
    x_bias: Tensor | None,
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
    _check_x_bias(x_bias, x)
    x_bias = None if x_bias is None else x_bias.contiguous()
    out, summed, mean, rstd = _outputs(x, prenorm)
    if backend == "cpp":
        weight, bias = weight.float(), None if bias is None else bias.float()
        dispatch._C.add_layer_norm_forward(
            x=_biased(x, x_bias),
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
            x, x_bias, residual, weight, bias, seed, eps, threshold, rms, prenorm, out, summed,
            mean, rstd,
        )  # fmt: skip
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
    x_bias: Tensor | None,
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
    _check_x_bias(x_bias, x)
    x_bias = None if x_bias is None else x_bias.contiguous()
    dx, dresidual = _gradients(x, residual, threshold)
    if backend == "cpp":
        dparameters = x.new_empty(2, x.shape[-1], dtype=torch.float32)
        dispatch._C.add_layer_norm_backward(
            dout=dout,
            dsummed=dsummed,
            x=_biased(x, x_bias),
            residual=residual,
            weight=weight.float(),
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
        if x_bias is not None:
            dx_bias = dx.view(-1, x.shape[-1]).sum(0, dtype=torch.float32)
            dparameters = torch.cat([dparameters, dx_bias[None]])
        dparameters = dparameters.to(weight.dtype)
    else:
        like_x = {"dout": (dout, x.dtype, x.shape), "dsummed": (dsummed, x.dtype, x.shape)}
        rows = x.shape[:-1]
        statistics = {"mean": (mean, torch.float32, rows), "rstd": (rstd, torch.float32, rows)}
        _check_launch(backend, x, residual, weight, threshold, seed, **like_x, **statistics)
        dparameters = _backward_triton(
            dout, dsummed, x, x_bias, residual, weight, mean, rstd, seed, threshold, rms, dx,
            dresidual,
        )  # fmt: skip
    return dx, dresidual, dparameters


def _biased(x: Tensor, x_bias: Tensor | None) -> Tensor:
    """What the C++ kernels, which add no bias, take for x."""
    return x if x_bias is None else (x.float() + x_bias.float()).to(x.dtype)


def _gradients(x: Tensor, residual: Tensor | None, threshold: int) -> tuple[Tensor, Tensor]:
    """dx, and dresidual (empty where it is dx itself, or not wanted), to be written."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dresidual = torch.empty_like(dx) if threshold and residual is not None else x.new_empty(0)
    return dx, dresidual


@register_fake(_add_layer_norm)
def _(x, x_bias, residual, weight, bias, seed, eps, threshold, rms, prenorm, backend):
    return _outputs(x, prenorm)


@register_fake(_add_layer_norm_backward)
def _(dout, dsummed, x, x_bias, residual, weight, mean, rstd, seed, threshold, rms, backend):
    return *_gradients(x, residual, threshold), weight.new_empty(
        2 + (x_bias is not None), x.shape[-1]
    )


def _setup(ctx, inputs, output) -> None:
    *tensors, seed, _, ctx.threshold, ctx.rms, ctx.prenorm, ctx.backend = inputs
    _, summed, mean, rstd = output
    ctx.save_for_backward(*tensors, mean, rstd, seed)
    ctx.mark_non_differentiable(mean, rstd, *([] if ctx.prenorm else [summed]))
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, dsummed, *_):
    x, x_bias, residual, weight, bias, mean, rstd, seed = ctx.saved_tensors
    if dout is None and dsummed is None:
        return (None,) * 11
    dout = torch.zeros_like(x) if dout is None else dout
    dx, dresidual, dparameters = _add_layer_norm_backward(
        dout, dsummed, x, x_bias, residual, weight, mean, rstd, seed, ctx.threshold, ctx.rms,
        ctx.backend,
    )  # fmt: skip
    if residual is None:
        dresidual = None
    elif not ctx.threshold:
        dresidual = dx
    dbias = None if bias is None else dparameters[1]
    dx_bias = None if x_bias is None else dparameters[2].to(x_bias.dtype)
    return dx, dx_bias, dresidual, dparameters[0], dbias, *(None,) * 6


_add_layer_norm.register_autograd(_backward, setup_context=_setup)


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    x_bias: Tensor | None = None,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    rms: bool = False,
    prenorm: bool = False,
) -> (
    Any
):  # a Tensor, or with prenorm a pair of them: no annotation short of a second signature says so
    """LayerNorm, or RMSNorm, of ``dropout(x + x_bias) + residual``.

    Args:
        x: (..., hidden), floating point, any strides.
        residual: like x, or None for none.
        weight: (hidden,), of any floating dtype.
        bias: (hidden,) of weight's dtype, or None; an RMSNorm has none.
        x_bias: (hidden,), of any floating dtype, or None: the bias of the dense layer that x comes
            from. Added here, its gradient costs no pass of its own on a GPU.
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
    _check_x_bias(x_bias, x)
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it must be at least 0")
    threshold = dropout_threshold(dropout_p)
    seed = as_seed(seed, x.device)
    backend = dispatch.select("add_layer_norm", x.device, x.dtype)
    if backend == "reference":
        out, summed = reference.add_layer_norm(
            x, x_bias, residual, weight, bias, seed, eps, threshold, rms
        )
    else:
        out, summed, _, _ = _add_layer_norm(
            x, x_bias, residual, weight, bias, seed, eps, threshold, rms, prenorm, backend
        )
    return (out, summed) if prenorm else out


def _check_x_bias(x_bias: Tensor | None, x: Tensor) -> None:
    if x_bias is None:
        return
    check_tensor("x_bias", x_bias, ("hidden",))
    check_device("x_bias", x_bias, "x", x)
    if x_bias.shape[0] != x.shape[-1]:
        raise ValueError(
            f"x_bias has {x_bias.shape[0]} entries and x {x.shape[-1]} columns; "
            "they must be the same"
        )
