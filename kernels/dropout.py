"""Dropout with counted randomness: ``out = x * keep / (1 - p)``, keep a function of (seed, flat index) alone.

x any shape, out like it. The backward is the same op on the gradient: the mask is recomputed, never stored.

Source: Srivastava et al., "Dropout", JMLR 15 (2014), section 4; the bits as in `philox.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch, reference
from .checks import check_tensor
from .philox import as_seed, dropout_threshold

# --- torch.library ---


@torch.library.custom_op("bertfast::dropout", mutates_args=())
def _dropout(x: Tensor, seed: Tensor, threshold: int, backend: str) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    if backend == "cpp":
        dispatch._C.dropout(
            dispatch.dtype_name(x.dtype),
            x.data_ptr(),
            out.data_ptr(),
            x.numel(),
            threshold,
            int(seed),
            torch.get_num_threads(),
        )
    else:
        _dropout_triton(x, seed, threshold, out)
    return out


@_dropout.register_fake
def _(x: Tensor, seed: Tensor, threshold: int, backend: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, seed, ctx.threshold, ctx.backend = inputs
    ctx.save_for_backward(seed)


def _backward(ctx, dout):  # type: ignore[no-untyped-def]
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
