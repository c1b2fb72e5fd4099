"""Dense layers in float32 on a CPU: x Wᵀ + b, by the library that is the fastest there.

PyTorch's own `torch.nn.functional.linear` goes to MKL, which takes AVX-512 on Intel's CPUs alone
and half as wide instructions on everyone else's. oneDNN, which comes with PyTorch too, takes what
there is: on a Zen 5 its products are 2.2 times as fast, forward and backward. Everything else
(other devices and dtypes, autocast, `torch.compile`, small products) is left to
`torch.nn.functional.linear`.

The sums are float32 and rounded in another order: neither library is nearer to float64 by more than
a few of float32's roundings.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Multiply-adds of a product below which it is left to MKL: oneDNN takes a quarter of a millisecond
# to prepare each new shape.
LEAST = 1 << 24


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: str | None = None
) -> Tensor:
    """x (..., in) and weight (out, in) to x weightᵀ + bias (..., out).

    Args:
        x: the input.
        weight: of the layer.
        bias: (out,), or None.
        gelu: "none" (exact) or "tanh", a GELU of the result; `can_fuse_gelu` says when it may be
            asked for.
    """
    if gelu is None and not _goes_to_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    ):
        result: Tensor = _Linear.apply(x, weight, bias)
        return result
    return _product(x, weight, bias, gelu)


def can_fuse_gelu(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` of these does a GELU on its way: without gradients, which want what the GELU
    had, where oneDNN serves.
    """
    return _goes_to_onednn(x, weight) and not (
        torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    )


def _goes_to_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= LEAST
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and _mkl_is_half_as_wide()
    )


@functools.cache
def _mkl_is_half_as_wide() -> bool:
    """Whether this CPU has AVX-512 and is not Intel's, and PyTorch has both libraries."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    try:
        intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return (
        not intel
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


# The parameters' packed forms, by where a parameter lies, within `constant_weights`.
_packed: ContextVar[dict[int, Tensor] | None] = ContextVar("packed", default=None)


@contextmanager
def constant_weights() -> Iterator[None]:
    """Within it no parameter changes, so that `linear` brings each once, and not at every call,
    into the form that oneDNN multiplies by.

    For inference over some ten thousand rows, which it takes to be worth it; the packed copies are
    as large as the parameters.
    """
    token = _packed.set({})
    try:
        yield
    finally:
        _packed.reset(token)


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: str | None = None
) -> Tensor:
    packed = _packed.get()
    if packed is not None and isinstance(weight, nn.Parameter):
        place = weight.data_ptr()
        if place not in packed:
            packed[place] = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        weight = packed[place]
    kind = "none" if gelu is None else "gelu"
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], gelu or "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, dweight, dbias = ctx.needs_input_grad
        rows = dout.flatten(0, -2)
        return (
            _product(dout, weight.t()) if dx else None,
            _product(rows.t(), x.flatten(0, -2).t()) if dweight else None,
            rows.sum(0) if dbias else None,
        )
