"""Variable-length bidirectional attention: ``out = dropout(softmax(scale Q Kᵀ)) V`` of each sequence by itself.

q, k, v and out (tokens, heads, head_dim): a packed batch, where sequence b is rows ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``. No padding is
computed, and the score matrix never stands in memory: it is made tile by tile with an online softmax, and made again in the
backward from the saved log-sum-exp, with the dropout mask counted instead of stored.

Sources: Vaswani et al., "Attention Is All You Need", section 3.2.1; Dao et al., "FlashAttention", section 3.1 and appendix B (the tiled
forward and backward); Milakov and Gimelshein, "Online normalizer calculation for softmax".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import dispatch, reference
from .checks import check_cu_seqlens, check_device, check_integers, check_like, check_tensor
from .philox import as_seed, dropout_threshold

# --- torch.library ---


@torch.library.custom_op("bertfast::attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    max_seqlen: int,
    scale: float,
    threshold: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    q, k, v = (_rows_contiguous(x) for x in (q, k, v))
    tokens, heads, head_dim = q.shape
    out = torch.empty(tokens, heads, head_dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    if backend == "cpp":
        dispatch._C.attention_forward(
            dispatch.dtype_name(q.dtype),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            out.data_ptr(),
            lse.data_ptr(),
            cu_seqlens.contiguous().data_ptr(),
            cu_seqlens.shape[0] - 1,
            heads,
            head_dim,
            *q.stride()[:2],
            *k.stride()[:2],
            *v.stride()[:2],
            tokens,
            max_seqlen,
            scale,
            threshold,
            int(seed),
            torch.get_num_threads(),
        )
    else:
        _forward_triton(q, k, v, cu_seqlens, seed, max_seqlen, scale, threshold, out, lse)
    return out, lse


@torch.library.custom_op("bertfast::attention_backward", mutates_args=())
def _attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    max_seqlen: int,
    scale: float,
    threshold: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (_rows_contiguous(x) for x in (q, k, v))
    dout, out, lse = dout.contiguous(), out.contiguous(), lse.contiguous()
    tokens, heads, head_dim = q.shape
    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    if backend == "cpp":
        dispatch._C.attention_backward(
            dispatch.dtype_name(q.dtype),
            dout.data_ptr(),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            out.data_ptr(),
            lse.data_ptr(),
            dq.data_ptr(),
            dk.data_ptr(),
            dv.data_ptr(),
            cu_seqlens.contiguous().data_ptr(),
            cu_seqlens.shape[0] - 1,
            heads,
            head_dim,
            *q.stride()[:2],
            *k.stride()[:2],
            *v.stride()[:2],
            *dq.stride()[:2],
            tokens,
            max_seqlen,
            scale,
            threshold,
            int(seed),
            torch.get_num_threads(),
        )
    else:
        _backward_triton(dout, q, k, v, out, lse, cu_seqlens, seed, max_seqlen, scale, threshold, dq, dk, dv)
    return dq, dk, dv


@_attention.register_fake
def _(q, k, v, cu_seqlens, seed, max_seqlen, scale, threshold, backend):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@_attention_backward.register_fake
def _(dout, q, k, v, out, lse, cu_seqlens, seed, max_seqlen, scale, threshold, backend):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, cu_seqlens, seed, *ctx.constants = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens, seed)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, _dlse):  # type: ignore[no-untyped-def]
    if dout is None:
        return (None,) * 9
    return *_attention_backward(dout, *ctx.saved_tensors, *ctx.constants), None, None, None, None, None, None


_attention.register_autograd(_backward, setup_context=_setup)


def _rows_contiguous(x: Tensor) -> Tensor:
    """The kernels follow any stride of tokens and heads; within a head the elements must be adjacent."""
    return x if x.stride(2) == 1 else x.contiguous()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """Bidirectional attention within each sequence of a packed batch.

    Args:
        q, k, v: (tokens, heads, head_dim), one floating dtype, any strides (no copy where a head's elements are adjacent, as in
            slices of one fused projection). head_dim 16, 32, 48, 64, 80, 96 or 128; any on the reference backend.
        cu_seqlens: (sequences + 1,) int32, from 0 and never falling. Tokens past the last boundary are slack: they give zeros and
            take no gradient. A sequence may be empty.
        max_seqlen: at least the longest sequence's length.
        scale: of the scores; None is ``head_dim ** -0.5``.
        dropout_p: of the probabilities, in [0, 1), rounded to a multiple of 1/65536.
        seed: of the dropout, an int of 64 bits or an int64 tensor of one element; the bit of a score is a function of the seed, the query's
            row in the batch, the head and the key's position in its sequence.

    Returns:
        (tokens, heads, head_dim), contiguous, of q's dtype; sums are kept in float32.

    Raises:
        TypeError: a dtype that does not fit.
        ValueError: a shape, device, boundary or option that does not fit.
        BackendError: the forced backend cannot serve the call.
    """
    check_tensor("q", q, ("tokens", "heads", "head_dim"))
    for name, x in (("k", k), ("v", v)):
        check_tensor(name, x, ("tokens", "heads", "head_dim"))
        check_like(name, x, "q", q)
        if x.shape != q.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)} and q {tuple(q.shape)}; they must be the same")
    check_integers("cu_seqlens", cu_seqlens, ("sequences + 1",), torch.int32)
    check_device("cu_seqlens", cu_seqlens, "q", q)
    if max_seqlen < 0:
        raise ValueError(f"max_seqlen is {max_seqlen}; it must be at least 0")
    check_cu_seqlens(cu_seqlens, q.shape[0], max_seqlen)
    if scale is None:
        scale = q.shape[2] ** -0.5
    elif not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; it must be finite")
    threshold = dropout_threshold(dropout_p)
    seed = as_seed(seed, q.device)
    backend = dispatch.select("attention", q.device, q.dtype, q.shape[2])
    if backend == "reference":
        return reference.attention(q, k, v, cu_seqlens, seed, max_seqlen, scale, threshold)
    return _attention(q, k, v, cu_seqlens, seed, max_seqlen, scale, threshold, backend)[0]
