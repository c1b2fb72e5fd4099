"""Rotary position embedding of queries and keys: ``out = x cos + rotate_half(x) sin``, rotate_half
being (first, second) -> (-second, first).

q and k are (tokens, heads, head_dim). Their halves along head_dim are the pairs' first and second
elements. cos and sin are (positions, head_dim // 2), read at each token's position. One pass reads
queries and keys where the fused projection has left them and writes both, the products in float32
and rounded once. A rotation's gradient is the rotation back, so the backward is the same pass with
``-sin`` and keeps nothing of q and k.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", section 3.2.2
and equation 34. Halves stand for pairs in place of neighbours, as GPT-NeoX's and ModernBERT's
checkpoints have it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch, reference
from .checks import (
    check_device,
    check_ids,
    check_integers,
    check_launch,
    check_like,
    check_tensor,
    register_fake,
)
from .launch import launch
from .threads import num_threads
from .triton_compat import tl, triton

# --- Triton ---

ELEMENTS = 1024  # of a program, in each half of its heads


@triton.jit
def _rotate(x_ptr, out_ptr, offsets, out_offsets, half, cos, sin, real):
    first = tl.load(x_ptr + offsets, real, 0.0).to(tl.float32)
    second = tl.load(x_ptr + offsets + half, real, 0.0).to(tl.float32)
    tl.store(out_ptr + out_offsets, (first * cos - second * sin).to(out_ptr.dtype.element_ty), real)
    tl.store(
        out_ptr + out_offsets + half,
        (second * cos + first * sin).to(out_ptr.dtype.element_ty),
        real,
    )


@triton.jit
def _rotary_kernel(
    q_ptr,
    k_ptr,
    q_out_ptr,
    k_out_ptr,
    position_ids_ptr,
    cos_ptr,
    sin_ptr,
    rows,
    heads,
    half,
    q_t,
    q_h,
    k_t,
    k_h,
    INVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """ROWS heads of queries and of keys; a row is one head of one token."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    real = (row < rows)[:, None] & (column < half)
    token, head = (row // heads).to(tl.int64), row % heads
    entries = tl.load(position_ids_ptr + token, row < rows, 0)[:, None] * half + column
    cos, sin = tl.load(cos_ptr + entries, real, 0.0), tl.load(sin_ptr + entries, real, 0.0)
    if INVERSE:
        sin = -sin
    out_offsets = row.to(tl.int64)[:, None] * (2 * half) + column
    _rotate(
        q_ptr,
        q_out_ptr,
        (token * q_t + head * q_h)[:, None] + column,
        out_offsets,
        half,
        cos,
        sin,
        real,
    )
    _rotate(
        k_ptr,
        k_out_ptr,
        (token * k_t + head * k_h)[:, None] + column,
        out_offsets,
        half,
        cos,
        sin,
        real,
    )


def _rotary_triton(
    q: Tensor,
    k: Tensor,
    position_ids: Tensor,
    cos: Tensor,
    sin: Tensor,
    inverse: bool,
    q_out: Tensor,
    k_out: Tensor,
) -> None:
    tokens, heads, head_dim = q.shape
    if q.numel():
        columns = triton.next_power_of_2(head_dim // 2)
        rows = max(1, ELEMENTS // columns)
        launch(
            _rotary_kernel, (triton.cdiv(tokens * heads, rows),),
            q, k, q_out, k_out, position_ids, cos, sin, tokens * heads, heads, head_dim // 2,
            *q.stride()[:2], *k.stride()[:2], INVERSE=inverse, ROWS=rows, COLUMNS=columns,
        )  # fmt: skip


# --- torch.library ---


@torch.library.custom_op("bertfast::rotary", mutates_args=())
def _rotary(
    q: Tensor,
    k: Tensor,
    position_ids: Tensor,
    cos: Tensor,
    sin: Tensor,
    inverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    q, k = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k))
    position_ids, cos, sin = position_ids.contiguous(), cos.contiguous(), sin.contiguous()
    q_out, k_out = _outputs(q, k)
    if backend == "cpp":
        dispatch._C.rotary(
            q=q,
            k=k,
            q_out=q_out,
            k_out=k_out,
            position_ids=position_ids,
            cos=cos,
            sin=sin,
            inverse=inverse,
            threads=num_threads(),
        )
    else:
        table = (cos.shape[0], q.shape[2] // 2)
        check_launch(
            "rotary",
            backend,
            q,
            k=(k, q.dtype, q.shape),
            position_ids=(position_ids, torch.int64, q.shape[:1]),
            cos=(cos, torch.float32, table),
            sin=(sin, torch.float32, table),
        )
        _check_head_dim(q.shape[2])
        check_ids("position_ids", position_ids, "cos", cos.shape[0])
        _rotary_triton(q, k, position_ids, cos, sin, inverse, q_out, k_out)
    return q_out, k_out


def _outputs(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


@register_fake(_rotary)
def _(q, k, position_ids, cos, sin, inverse, backend):
    return _outputs(q, k)


def _setup(ctx, inputs, output) -> None:
    _, _, position_ids, cos, sin, ctx.inverse, ctx.backend = inputs
    ctx.save_for_backward(position_ids, cos, sin)


def _backward(ctx, dq, dk):
    return *_rotary(dq, dk, *ctx.saved_tensors, not ctx.inverse, ctx.backend), *(None,) * 5


_rotary.register_autograd(_backward, setup_context=_setup)


def rotary(
    q: Tensor, k: Tensor, position_ids: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries and keys turned by the angles of their tokens' positions.

    Args:
        q, k: (tokens, heads, head_dim), one floating dtype, any strides. Nothing is copied where a
            head's elements are adjacent, as in slices of one fused projection. The head_dim is
            even.
        position_ids: (tokens,) int64, each a row of the tables; a slack token's too, whatever it
            says.
        cos, sin: (positions, head_dim // 2) float32, as `rotary_tables` makes them; constants,
            which take no gradient.

    Returns:
        q and k rotated, (tokens, heads, head_dim) each, contiguous, of their dtype.

    Raises:
        TypeError: a dtype that does not fit.
        ValueError: a shape or device that does not fit; on the CPU a position beyond the tables (on
            a GPU values are not read).
        BackendError: the forced backend cannot serve the call.
    """
    check_tensor("q", q, ("tokens", "heads", "head_dim"))
    check_tensor("k", k, ("tokens", "heads", "head_dim"))
    check_like("k", k, "q", q)
    if k.shape != q.shape:
        raise ValueError(
            f"k has shape {tuple(k.shape)} and q {tuple(q.shape)}; they must be the same"
        )
    _check_head_dim(q.shape[2])
    check_integers("position_ids", position_ids, ("tokens",), torch.int64)
    check_device("position_ids", position_ids, "q", q)
    if position_ids.shape[0] != q.shape[0]:
        raise ValueError(
            f"position_ids has {position_ids.shape[0]} entries and q {q.shape[0]} tokens; "
            "give one a token"
        )
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(name, table, ("positions", "head_dim // 2"))
        check_device(name, table, "q", q)
        if table.dtype != torch.float32:
            raise TypeError(
                f"{name} is {table.dtype}; it must be torch.float32 (rotary_tables makes it)"
            )
        if table.shape[1] != q.shape[2] // 2:
            raise ValueError(
                f"{name} has {table.shape[1]} columns; q's head_dim is {q.shape[2]}, "
                "it must have half"
            )
    if sin.shape != cos.shape:
        raise ValueError(
            f"sin has {sin.shape[0]} positions and cos {cos.shape[0]}; they must be the same"
        )
    check_ids("position_ids", position_ids, "cos", cos.shape[0])
    backend = dispatch.select("rotary", q.device, q.dtype)
    if backend == "reference":
        return reference.rotary(q, k, position_ids, cos, sin)
    return _rotary(q, k, position_ids, cos, sin, False, backend)


def rotary_tables(
    positions: int, head_dim: int, theta: float, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """The cosines and sines of ``position * theta ** (-2 i / head_dim)``, with the roundings of
    transformers' ModernBERT in float32.

    Args:
        positions: how many, from 0 on.
        head_dim: even.
        theta: the base of the wavelengths: 10000 in the paper; ModernBERT has one for global and
            one for local attention.
        device: of the tables; None is the default one.

    Returns:
        cos and sin, (positions, head_dim // 2) float32 each.

    Raises:
        ValueError: positions is negative, head_dim odd or not positive, or theta not positive.
    """
    if positions < 0:
        raise ValueError(f"positions is {positions}; it must be at least 0")
    _check_head_dim(head_dim)
    if not 0 < theta < float("inf"):
        raise ValueError(f"theta is {theta}; it must be above 0 and finite")
    # On the CPU whatever the device, so that every device turns by the same angles.
    frequencies = 1.0 / theta ** (
        torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    )
    angles = torch.arange(positions, dtype=torch.float32, device=device)
    angles = angles[:, None] * frequencies.to(angles.device)
    return angles.cos(), angles.sin()


def _check_head_dim(head_dim: int) -> None:
    if head_dim < 2 or head_dim % 2:
        raise ValueError(
            f"head_dim is {head_dim}; it must be even and at least 2: a rotation turns pairs"
        )
