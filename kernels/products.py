"""Matrix products on a CPU: the one place that says which library multiplies, and in which dtype.

- **float32** is PyTorch's, which goes to MKL. MKL takes AVX-512 on Intel's CPUs alone, and half as
  wide instructions on everyone else's. oneDNN, which comes with PyTorch too, takes what there is.
  On a Zen 5 its products are 2.2 times as fast. There it multiplies.
- **bfloat16 and float16** are PyTorch's where the CPU multiplies them (`NATIVE`). Elsewhere PyTorch
  has one slow loop for them, several times slower than float32. There the factors stay in their
  dtype in memory and are widened to float32 on the way, a panel at a time. Few rows are widened in
  registers. The result is rounded once.

Both sum in float32; no library is nearer to float64 by more than a few of float32's roundings.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bertfast.openmp import vendor

from . import dispatch
from .threads import num_threads

# Multiply-adds of a product below which it is left to MKL: oneDNN takes a quarter of a millisecond
# to prepare each new shape.
LEAST = 1 << 24
# Elements of a widened panel at most, 8 MiB: beyond it a product gains nothing from more.
PANEL = 1 << 21
# Names that oneDNN's ONEDNN_MAX_CPU_ISA has for AVX-512 without bfloat16.
PLAIN_AVX512 = ("AVX512_CORE", "AVX512_CORE_VNNI")


def _onednn_serves(dtype: torch.dtype) -> bool:
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return torch.backends.mkldnn.is_available() and supported is not None and bool(supported())


def _native() -> dict[torch.dtype, bool]:
    """Whether this CPU multiplies each dtype without widening it first.

    oneDNN says it for float16, and obeys ``ONEDNN_MAX_CPU_ISA`` in that. bfloat16 it serves on
    every CPU with AVX-512, and widens it itself, slowly, without AVX512-BF16.
    """
    bfloat16 = _onednn_serves(torch.bfloat16)
    if bfloat16 and platform.machine().lower() in ("x86_64", "amd64"):
        limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
        bfloat16 = torch.cpu._is_avx512_bf16_supported() and limit.upper() not in PLAIN_AVX512
    return {
        torch.float32: True,
        torch.bfloat16: bfloat16,
        torch.float16: _onednn_serves(torch.float16),
    }


# Read at import, as oneDNN reads its variable once.
NATIVE = _native()


def widens(*factors: Tensor) -> bool:
    """Whether a product of these multiplies in float32 what is kept in less."""
    narrow = False
    for x in factors:  # a layer of a short text takes as long as a few calls: no generator here
        if not x.is_cpu:
            return False
        narrow = narrow or not NATIVE.get(x.dtype, True)
    return narrow


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are memory and not a tracer's, a transform's or a subclass's stand-ins."""
    if torch._C._are_functorch_transforms_active():
        return False
    for x in tensors:
        if x is not None and type(x) is not Tensor and type(x) is not nn.Parameter:
            return False
    return True


def by_onednn(x: Tensor, other: Tensor, multiply_adds: int) -> bool:
    """Whether oneDNN is called for a product of so much work by name."""
    return (
        x.device.type == "cpu"
        and x.dtype == other.dtype == torch.float32
        and multiply_adds >= LEAST
        and _mkl_is_half_as_wide()
    )


@functools.cache
def _mkl_is_half_as_wide() -> bool:
    """Whether this CPU has AVX-512 and is not Intel's, and PyTorch has both libraries."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    return (
        vendor() not in ("", "GenuineIntel")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def mm(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    scratch: Tensor | None = None,
    accumulate: bool = False,
) -> Tensor:
    """a (rows, inner) times b (inner, columns), and a bias (columns,) on top; without gradients.

    Args:
        a, b: of any strides. Where their dtype is widened, either may be float32.
        bias: of the factors' dtype, or None.
        out: (rows, columns), which gets the result; where a factor is widened, float32 or the
            narrower dtype. None makes one of the narrower dtype.
        scratch: memory that the result may be put into, in place of out.
        accumulate: add to what ``out`` holds; takes no bias.

    Returns:
        The result: ``out``, if it was given.
    """
    if widens(a, b):
        if out is None:
            narrow = a.dtype if not NATIVE.get(a.dtype, True) else b.dtype
            out = a.new_empty(a.shape[0], b.shape[1], dtype=narrow) if scratch is None else scratch
        return _widened(a, b, bias, out, accumulate)
    if by_onednn(a, b, a.numel() * b.shape[1]):
        return _onednn(a, b, bias, out, accumulate)
    if accumulate:
        assert out is not None
        return out.addmm_(a, b)
    out = scratch if out is None else out
    return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias, a, b, out=out)


def _onednn(
    a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor | None, accumulate: bool
) -> Tensor:
    """By oneDNN, which gives its result in memory of its own: added to, it is made in panels."""
    if not accumulate:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
        return result if out is None else out.copy_(result)
    assert out is not None
    for rows in _slices(a.shape[0], max(1, PANEL // max(b.shape[1], 1))):
        out[rows] += _onednn(a[rows], b, bias, None, False)
    return out


def _widened(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor, accumulate: bool) -> Tensor:
    """Both factors to float32, their product, one rounding; in C++ where it is vectorised."""
    if not _has_cpp():
        return _by_panels(a, b, bias, out, accumulate)
    a, b = a if _is_matrix(a) else a.contiguous(), b if _is_matrix(b) else b.contiguous()
    target = out if _is_matrix(out) else out.contiguous()
    bias = bias if bias is None or bias.is_contiguous() else bias.contiguous()
    dispatch._C.widened_product(
        a=a, b=b, out=target, bias=bias, accumulate=accumulate, threads=num_threads()
    )
    return out if target is out else out.copy_(target)


@functools.cache
def _has_cpp() -> bool:
    missing = dispatch.NO_EXTENSION or dispatch.ISA_ERROR
    return not missing and dispatch._C.capabilities()["selected"] != "baseline"


def _is_matrix(x: Tensor) -> bool:
    """Whether rows or columns are contiguous and none overlap; `contiguous` makes it so."""
    if x.is_contiguous():
        return True
    (rows, columns), (down, along) = x.shape, x.stride()
    by_rows = (along == 1 or columns <= 1) and (down >= columns or rows <= 1)
    return by_rows or ((down == 1 or rows <= 1) and (along >= rows or columns <= 1))


def _by_panels(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor, accumulate: bool) -> Tensor:
    inner = a.shape[1]
    height, depth, width = _panel_sizes(a.shape[0], inner, b.shape[1])
    for right in _slices(b.shape[1], width):
        whole = b[:, right].float() if inner <= depth else None
        for down in _slices(a.shape[0], height):
            total = out[down, right].float() if accumulate else None
            for along in _slices(inner, depth):
                panel = b[along, right].float() if whole is None else whole
                part = mm(a[down, along].float(), panel)
                total = part if total is None else total.add_(part)
            if total is None:  # the inner size is 0
                total = torch.zeros(out[down, right].shape)
            out[down, right] = total if bias is None else total.add_(bias[right])
    return out


def _panel_sizes(*sizes: int) -> list[int]:
    """Rows, inner and columns of a panel: the largest is halved until each matrix has `PANEL`
    elements at most.
    """
    steps = list(sizes)
    while max(steps[0] * steps[1], steps[1] * steps[2], steps[0] * steps[2]) > PANEL:
        largest = steps.index(max(steps))
        steps[largest] = -(-steps[largest] // 2)
    return steps


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, max(step, 1)))


def einsum(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """`torch.einsum` of two tensors of one dtype, with gradients."""
    if not widens(a, b):
        return torch.einsum(equation, a, b)
    return torch.einsum(equation, a.float(), b.float()).to(a.dtype)


def describe() -> dict[str, str]:
    """How each dtype is multiplied on this CPU, in words."""
    by = "oneDNN" if _mkl_is_half_as_wide() else "PyTorch"
    widening = "the C++ kernels" if _has_cpp() else f"{by}, a panel at a time"
    return {
        dispatch.dtype_name(dtype): f"native, by {by if dtype == torch.float32 else 'oneDNN'}"
        if native
        else f"widened to float32, by {widening}: it saves memory, not time"
        for dtype, native in NATIVE.items()
    }
