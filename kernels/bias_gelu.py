"""GELU of a sum with a bias: ``out = gelu(x + bias)``, and gated (GeGLU): ``out = gelu(first half)
* second half`` of ``x + bias``.

x (..., features), out like it; gated, x (..., 2 * features) and out (..., features). GELU is ``x
Phi(x)`` with the normal distribution's Phi, or its tanh approximation. One pass reads x and writes
the result. The backward reads x again, so nothing but x is kept, and the same pass makes the bias's
gradient.

The Triton kernels are bound by arithmetic before they are by memory, and libdevice's erf is long.
They take the tail of Phi as an exponential times a polynomial, fitted here. The value x Phi(x) and
its slope are within 3e-7 of the exact ones. Where x Phi(x) nears zero from below, it is within 1
part in 2,000 of its size. There 1 + erf has cancelled to nothing. The C++ kernels fit Phi itself.

Sources: Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2; Shazeer, "GLU Variants
Improve Transformer", section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch, reference, tuning
from .checks import Wanted, check_device, check_launch, check_tensor, register_fake
from .launch import launch
from .layer_norm_triton import sum_partials
from .threads import num_threads
from .triton_compat import tl, triton

# --- Triton ---

APPROXIMATIONS = ("none", "tanh")
BACKWARD_ROWS = 64  # of a program; its sums over them are one row of the partial sums


@triton.jit
def _gelu_and_slope(x, TANH: tl.constexpr):
    """x Phi(x), and its derivative."""
    if TANH:
        inner = 0.7978845608028654 * x * (1.0 + 0.044715 * x * x)
        phi = tl.sigmoid(2.0 * inner)
        rise = 2.0 * phi * (1.0 - phi) * 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * x * x)
        # Where Phi is 0 or 1 the rise is 0, and x may be too large to be multiplied by either.
        value = tl.where(x < -100.0, 0.0, x * phi)
        slope = phi + tl.where(tl.abs(x) > 100.0, 0.0, x * rise)
    else:
        # Phi(-a) = exp(-a^2 / 2) t P(t) with t = 1 / (1 + 0.29 a), in the form of Abramowitz and
        # Stegun, "Handbook of Mathematical Functions", 7.1.26. At the edge it is zero, and so is
        # the slope; infinity is brought there, and NaN stays NaN.
        a = tl.minimum(tl.abs(x), 16.0, propagate_nan=tl.PropagateNan.ALL)
        y = 1.0 + 0.29 * a
        t = tl.rsqrt(y * y)
        tail = -0.100520067 + t * (0.29026708 + t * -0.0903313085)
        tail = t * (0.116992787 + t * (0.0993833244 + t * (0.184208184 + t * tail)))
        falling = tl.exp2(a * a * -0.7213475204444817)
        value = tl.maximum(x, 0.0) - a * (tail * falling)
        below = falling * (tail - 0.3989422804014327 * a)
        slope = tl.where(x > 0.0, 1.0 - below, below)
    return value, slope


@triton.jit
def _load_biased(x_ptr, bias_ptr, offsets, column, real, inside, BIAS: tl.constexpr):
    x = tl.load(x_ptr + offsets, real, 0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + column, inside, 0.0).to(tl.float32)[None, :]
    return x


@triton.jit
def _gelu_forward_kernel(
    x_ptr,
    bias_ptr,
    out_ptr,
    rows,
    features,
    BIAS: tl.constexpr,
    TANH: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < features
    real = (row < rows)[:, None] & inside[None, :]
    line = row.to(tl.int64)[:, None] * features
    if GATED:
        offsets = 2 * line + column[None, :]
    else:
        offsets = line + column[None, :]
    x = _load_biased(x_ptr, bias_ptr, offsets, column, real, inside, BIAS)
    out, _ = _gelu_and_slope(x, TANH)
    if GATED:
        out *= _load_biased(
            x_ptr, bias_ptr, offsets + features, column + features, real, inside, BIAS
        )
    tl.store(out_ptr + line + column[None, :], out.to(out_ptr.dtype.element_ty), real)


@triton.jit
def _gelu_backward_kernel(
    dout_ptr,
    x_ptr,
    bias_ptr,
    dx_ptr,
    partial_ptr,
    rows,
    features,
    BIAS: tl.constexpr,
    TANH: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx of ROWS rows, STEP at a time, and their sums for the bias."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < features
    total = tl.zeros((STEP, COLUMNS), tl.float32)
    total_second = tl.zeros((STEP, COLUMNS), tl.float32)
    for start in range(0, ROWS, STEP):
        row = tl.program_id(0) * ROWS + start + tl.arange(0, STEP)
        real = (row < rows)[:, None] & inside[None, :]
        line = row.to(tl.int64)[:, None] * features
        if GATED:
            offsets = 2 * line + column[None, :]
        else:
            offsets = line + column[None, :]
        x = _load_biased(x_ptr, bias_ptr, offsets, column, real, inside, BIAS)
        dout = tl.load(dout_ptr + line + column[None, :], real, 0.0).to(tl.float32)
        value, slope = _gelu_and_slope(x, TANH)
        dx = dout * slope
        if GATED:
            dx *= _load_biased(
                x_ptr, bias_ptr, offsets + features, column + features, real, inside, BIAS
            )
            second = dout * value
            tl.store(dx_ptr + offsets + features, second.to(dx_ptr.dtype.element_ty), real)
            total_second += second
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), real)
        total += dx
    if BIAS:
        width = features
        if GATED:
            width = 2 * features
        place = partial_ptr + tl.program_id(0) * width + column
        tl.store(place, tl.sum(total, 0), inside)
        if GATED:
            tl.store(place + features, tl.sum(total_second, 0), inside)


def _forward_triton(x: Tensor, bias: Tensor | None, tanh: bool, gated: bool, out: Tensor) -> None:
    features = out.shape[-1]
    rows = out.numel() // features
    tuned = tuning.options("bias_gelu.forward", x.dtype, x.device)
    if rows:
        grid = (triton.cdiv(rows, tuned["ROWS"]), triton.cdiv(features, tuned["COLUMNS"]))
        launch(
            _gelu_forward_kernel, grid,
            x, x if bias is None else bias, out, rows, features, BIAS=bias is not None, TANH=tanh,
            GATED=gated, **tuned,
        )  # fmt: skip


def _backward_triton(
    dout: Tensor, x: Tensor, bias: Tensor | None, tanh: bool, gated: bool, dx: Tensor
) -> Tensor:
    """Returns the bias's gradient, of its dtype; empty without a bias."""
    features = dout.shape[-1]
    rows = dout.numel() // features
    tuned = tuning.options("bias_gelu.backward", x.dtype, x.device)
    blocks = triton.cdiv(rows, BACKWARD_ROWS)
    columns = 0 if bias is None else x.shape[-1]
    partial = torch.empty(blocks, columns, device=x.device)
    if rows:
        launch(
            _gelu_backward_kernel, (blocks, triton.cdiv(features, tuned["COLUMNS"])),
            dout, x, x if bias is None else bias, dx, partial, rows, features,
            BIAS=bias is not None, TANH=tanh, GATED=gated, ROWS=BACKWARD_ROWS, **tuned,
        )  # fmt: skip
    return sum_partials(partial, x.dtype if bias is None else bias.dtype)


# --- torch.library ---


@torch.library.custom_op("bertfast::bias_gelu", mutates_args=())
def _bias_gelu(x: Tensor, bias: Tensor | None, tanh: bool, gated: bool, backend: str) -> Tensor:
    x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    out = _output(x, gated)
    if backend == "cpp":
        bias = None if bias is None else bias.float()
        dispatch._C.bias_gelu_forward(
            x=x,
            bias=bias,
            out=out,
            tanh=tanh,
            gated=gated,
            threads=num_threads(),
        )
    else:
        _check_launch(backend, x, bias, gated)
        _forward_triton(x, bias, tanh, gated, out)
    return out


@torch.library.custom_op("bertfast::bias_gelu_backward", mutates_args=())
def _bias_gelu_backward(
    dout: Tensor, x: Tensor, bias: Tensor | None, tanh: bool, gated: bool, backend: str
) -> tuple[Tensor, Tensor]:
    dout, x = dout.contiguous(), x.contiguous()
    dx, dbias = _gradients(x, bias)
    if backend == "cpp":
        wide = None if bias is None else dbias.float()
        dispatch._C.bias_gelu_backward(
            dout=dout,
            x=x,
            bias=None if bias is None else bias.float().contiguous(),
            dx=dx,
            dbias=wide,
            tanh=tanh,
            gated=gated,
            threads=num_threads(),
        )
        dbias = dbias if wide is None else wide.to(dbias.dtype)
    else:
        half = (*x.shape[:-1], x.shape[-1] // 2 if gated else x.shape[-1])
        _check_launch(backend, x, bias, gated, dout=(dout, x.dtype, half))
        bias = None if bias is None else bias.contiguous()
        dbias = _backward_triton(dout, x, bias, tanh, gated, dx)
    return dx, dbias


def _check_launch(
    backend: str, x: Tensor, bias: Tensor | None, gated: bool, **others: Wanted
) -> None:
    if x.shape[-1] == 0 or (gated and x.shape[-1] % 2):
        raise ValueError(
            f"x has {x.shape[-1]} columns; it must have some, and gated an even number"
        )
    wanted = (bias, x.dtype if bias is None else bias.dtype, x.shape[-1:])
    check_launch("bias_gelu", backend, x, bias=wanted, **others)


def _output(x: Tensor, gated: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2 if gated else x.shape[-1])


def _gradients(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    dbias = x.new_empty(0) if bias is None else torch.empty_like(bias)
    return torch.empty_like(x, memory_format=torch.contiguous_format), dbias.contiguous()


@register_fake(_bias_gelu)
def _(x, bias, tanh, gated, backend):
    return _output(x, gated)


@register_fake(_bias_gelu_backward)
def _(dout, x, bias, tanh, gated, backend):
    return _gradients(x, bias)


def _setup(ctx, inputs, output) -> None:
    x, bias, *ctx.options = inputs
    ctx.save_for_backward(x, bias)


def _backward(ctx, dout):
    x, bias = ctx.saved_tensors
    dx, dbias = _bias_gelu_backward(dout, x, bias, *ctx.options)
    return dx, None if bias is None else dbias, None, None, None


_bias_gelu.register_autograd(_backward, setup_context=_setup)


def bias_gelu(
    x: Tensor, bias: Tensor | None = None, *, approximate: str = "none", gated: bool = False
) -> Tensor:
    """GELU of ``x + bias``; gated, the GELU of the first half of its columns times the second half.

    Args:
        x: (..., features), gated (..., 2 * features); floating point, any strides.
        bias: of as many entries as x has columns and of any floating dtype, or None.
        approximate: "none" for the exact function, "tanh" for its approximation, as in
            `torch.nn.functional.gelu`.
        gated: GeGLU.

    Returns:
        (..., features), contiguous, of x's dtype.

    Raises:
        TypeError: a dtype that does not fit.
        ValueError: a shape, device or option that does not fit.
        BackendError: the forced backend cannot serve the call.
    """
    check_tensor("x", x)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; it must be (..., features) with at least one column"
        )
    if gated and x.shape[-1] % 2:
        raise ValueError(f"x has {x.shape[-1]} columns; gated, it must have an even number")
    if bias is not None:
        check_tensor("bias", bias, ("features",))
        check_device("bias", bias, "x", x)
        if bias.shape[0] != x.shape[-1]:
            raise ValueError(
                f"bias has {bias.shape[0]} entries and x {x.shape[-1]} columns; "
                "they must be the same"
            )
    if approximate not in APPROXIMATIONS:
        raise ValueError(
            f"approximate is {approximate!r}; it must be one of {', '.join(APPROXIMATIONS)}"
        )
    backend = dispatch.select("bias_gelu", x.device, x.dtype)
    if backend == "reference":
        return reference.bias_gelu(x, bias, approximate, gated)
    return _bias_gelu(x, bias, approximate == "tanh", gated, backend)
