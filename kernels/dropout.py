"""Dropout with counted randomness: ``out = x * keep / (1 - p)``, keep a function of (seed, flat
index) alone.

x any shape, out like it. The backward is the same op on the gradient: the mask is recomputed, never
stored.

Source: Srivastava et al., "Dropout", JMLR 15 (2014), section 4; the bits as in `philox.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch, reference
from .checks import check_dropout, check_launch, check_tensor, register_fake
from .launch import launch
from .philox import LANES, as_seed, dropout_threshold, keep_scale
from .philox_triton import interleave_lanes
from .threads import num_threads
from .triton_compat import tl, triton

# --- Triton ---

COUNTERS = 128  # of a program: 1024 elements


@triton.jit(do_not_specialize_on_alignment=("seed_ptr",))
def _dropout_kernel(x_ptr, out_ptr, seed_ptr, n, threshold, scale, COUNTERS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * COUNTERS
    counters = first + tl.arange(0, COUNTERS)
    low = (counters & 0xFFFFFFFF).to(tl.uint32)[None, :]
    high = (counters >> 32).to(tl.uint32)[None, :]
    zero = low * 0
    w0, w1, w2, w3 = tl.philox(tl.load(seed_ptr), low, high, zero, zero)
    lanes = tl.reshape(interleave_lanes(w0, w1, w2, w3), (COUNTERS * 8,))
    offsets = first * 8 + tl.arange(0, COUNTERS * 8)
    inside = offsets < n
    x = tl.load(x_ptr + offsets, inside, 0.0).to(tl.float32)
    kept = tl.where(lanes.to(tl.int32) >= threshold, x * scale, 0.0)
    tl.store(out_ptr + offsets, kept.to(out_ptr.dtype.element_ty), inside)


def _dropout_triton(x: Tensor, seed: Tensor, threshold: int, out: Tensor) -> None:
    if x.numel() == 0:
        return
    grid = (triton.cdiv(x.numel(), COUNTERS * LANES),)
    launch(
        _dropout_kernel,
        grid,
        x,
        out,
        seed,
        x.numel(),
        threshold,
        keep_scale(threshold),
        COUNTERS=COUNTERS,
    )


# --- torch.library ---


@torch.library.custom_op("bertfast::dropout", mutates_args=())
def _dropout(x: Tensor, seed: Tensor, threshold: int, backend: str) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    if backend == "cpp":
        dispatch._C.dropout(
            x=x,
            out=out,
            threshold=threshold,
            seed=int(seed),
            threads=num_threads(),
        )
    else:
        check_launch("dropout", backend, x)
        check_dropout(threshold, seed, x)
        _dropout_triton(x, seed, threshold, out)
    return out


@register_fake(_dropout)
def _(x: Tensor, seed: Tensor, threshold: int, backend: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output) -> None:
    _, seed, ctx.threshold, ctx.backend = inputs
    ctx.save_for_backward(seed)


def _backward(ctx, dout):
    (seed,) = ctx.saved_tensors
    return _dropout(dout, seed, ctx.threshold, ctx.backend), None, None, None


_dropout.register_autograd(_backward, setup_context=_setup)


def dropout(x: Tensor, p: float, *, seed: int | Tensor = 0) -> Tensor:
    """``x`` with each element zeroed with probability ``p`` and the others divided by ``1 - p``.

    Args:
        x: any shape and strides, floating point.
        p: in [0, 1), rounded to a multiple of 1/65536; 0 returns x itself.
        seed: an int of 64 bits, or an int64 tensor of one element on x's device.

    Returns:
        Like x, contiguous.

    Raises:
        TypeError: x is not floating point, or the seed not an integer.
        ValueError: p is out of range, or the seed is on another device.
    """
    check_tensor("x", x)
    threshold = dropout_threshold(p)
    if threshold == 0:
        return x
    seed = as_seed(seed, x.device)
    backend = dispatch.select("dropout", x.device, x.dtype)
    if backend == "reference":
        return reference.dropout(x, seed, threshold)
    return _dropout(x, seed, threshold, backend)
