"""Attention as PyTorch sees it: the choice of kernels, the registration with its gradient, and the
public function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import dispatch, reference
from ..checks import (
    Wanted,
    as_int,
    check_cu_seqlens,
    check_device,
    check_dropout,
    check_integers,
    check_launch,
    check_like,
    check_tensor,
    register_fake,
)
from ..philox import ATTENTION_LANE_RANGE, as_seed, attention_threshold
from ..positions import RelativePositions, check_positions
from ..threads import num_threads
from .backward_one_pass import launch_one_pass, one_pass_options
from .backward_two_passes import launch_two_passes
from .forward import launch_forward
from .tile_list import list_size, tile_list


@torch.library.custom_op("bertfast::attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    blocks: Tensor | None,
    buckets: Tensor | None,
    bias: Tensor | None,
    query_scores: Tensor | None,
    key_scores: Tensor | None,
    max_seqlen: int,
    scale: float,
    threshold: int,
    window: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    q, k, v = (_rows_contiguous(x) for x in (q, k, v))
    cu_seqlens = cu_seqlens.contiguous()
    positions = _kernel_positions(buckets, bias, query_scores, key_scores)
    tokens, heads, head_dim = q.shape
    out = torch.empty(tokens, heads, head_dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    if backend == "cpp":
        dispatch._C.attention_forward(
            q=q,
            k=k,
            v=v,
            out=out,
            lse=lse,
            cu_seqlens=cu_seqlens,
            **_named_tables(positions),
            max_seqlen=max_seqlen,
            window=window,
            scale=scale,
            threshold=threshold,
            seed=int(seed),
            threads=num_threads(),
        )
    else:
        _check_launch(backend, q, k, v, cu_seqlens, seed, max_seqlen, threshold, positions, blocks)
        if blocks is None:
            blocks = tile_list(cu_seqlens, tokens, max_seqlen)
        blocks = blocks.contiguous()
        launch_forward(
            q, k, v, cu_seqlens, blocks, seed, max_seqlen, scale, threshold, window, positions,
            out, lse,
        )  # fmt: skip
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
    blocks: Tensor | None,
    buckets: Tensor | None,
    bias: Tensor | None,
    query_scores: Tensor | None,
    key_scores: Tensor | None,
    wanted: Sequence[bool],
    max_seqlen: int,
    scale: float,
    threshold: int,
    window: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (_rows_contiguous(x) for x in (q, k, v))
    cu_seqlens = cu_seqlens.contiguous()
    positions = _kernel_positions(buckets, bias, query_scores, key_scores)
    dout, out, lse = dout.contiguous(), out.contiguous(), lse.contiguous()
    gradients = _empty_gradients(q, (bias, query_scores, key_scores), wanted)
    dqkv, *tables = gradients
    if backend == "cpp":
        # A table whose gradient is not wanted has room of no elements for it.
        dbias, dquery_scores, dkey_scores = (x if x.numel() else None for x in tables)
        dispatch._C.attention_backward(
            dout=dout,
            q=q,
            k=k,
            v=v,
            out=out,
            lse=lse,
            dqkv=dqkv,
            cu_seqlens=cu_seqlens,
            **_named_tables(positions),
            dbias=dbias,
            dquery_scores=dquery_scores,
            dkey_scores=dkey_scores,
            max_seqlen=max_seqlen,
            window=window,
            scale=scale,
            threshold=threshold,
            seed=int(seed),
            threads=num_threads(),
        )
    else:
        written: dict[str, Wanted] = {
            "dout": (dout, q.dtype, q.shape),
            "out": (out, q.dtype, q.shape),
        }
        written["lse"] = (lse, torch.float32, (q.shape[1], q.shape[0]))
        _check_launch(
            backend, q, k, v, cu_seqlens, seed, max_seqlen, threshold, positions, blocks, **written
        )
        for table in tables:
            table.zero_()
        if 0 in (max_seqlen, q.shape[1], cu_seqlens.shape[0] - 1):
            dqkv.zero_()
            return gradients
        lengths = []
        if positions is None and window < 0:
            capability = torch.cuda.get_device_capability(q.device) if q.is_cuda else (9, 0)
            lengths = one_pass_options(q, max_seqlen, capability)
        if lengths:
            launch_one_pass(
                dout, q, k, v, out, lse, cu_seqlens, seed, scale, threshold, dqkv.unbind(1),
                lengths,
            )  # fmt: skip
        served = lengths[-1]["BLOCK_N"] if lengths else 0
        if served < max_seqlen:
            if blocks is None:
                blocks = tile_list(cu_seqlens, q.shape[0], max_seqlen)
            blocks = blocks.contiguous()
            launch_two_passes(
                dout, q, k, v, out, lse, cu_seqlens, blocks, seed, max_seqlen, scale, threshold,
                window, positions, (*dqkv.unbind(1), *tables), served,
            )  # fmt: skip
    return gradients


def _check_launch(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    max_seqlen: int,
    threshold: int,
    positions: RelativePositions | None,
    blocks: Tensor | None,
    **others: Wanted,
) -> None:
    boundaries = (cu_seqlens, torch.int32, (cu_seqlens.numel(),))
    others["blocks"] = (blocks, torch.int32, (list_size(cu_seqlens, q.shape[0], max_seqlen), 2))
    like_q = {name: (x, q.dtype, q.shape) for name, x in (("k", k), ("v", v))}
    check_launch("attention", backend, q, **like_q, cu_seqlens=boundaries, **others)
    check_dropout(threshold, seed, q, ATTENTION_LANE_RANGE)
    check_cu_seqlens(cu_seqlens, q.shape[0], max_seqlen)
    if positions is not None:
        check_positions(positions, q, max_seqlen)


def _kernel_positions(
    buckets: Tensor | None,
    bias: Tensor | None,
    query_scores: Tensor | None,
    key_scores: Tensor | None,
) -> RelativePositions | None:
    """The tables as the kernels follow them: any stride of tokens and heads, the buckets of a row
    adjacent.
    """
    tables = (bias, query_scores, key_scores)
    if all(table is None for table in tables):
        return None
    if buckets is None:
        raise ValueError("buckets is None and a table is given; the tables are indexed by buckets")
    scores = (None if x is None else _rows_contiguous(x) for x in (query_scores, key_scores))
    return RelativePositions(
        buckets.contiguous(), None if bias is None else bias.contiguous(), *scores
    )


def _named_tables(positions: RelativePositions | None) -> dict[str, Tensor | None]:
    """The buckets and the tables as the C++ extension names them."""
    names = ("buckets", "bias", "query_scores", "key_scores")
    tensors = (positions.buckets, *positions.tables) if positions else (None,) * 4
    return dict(zip(names, tensors, strict=True))


def _empty_gradients(
    q: Tensor, tables: tuple[Tensor | None, ...], wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the gradients of q, k and v, (tokens, 3, heads, head_dim), and of the tables.

    Those of q, k and v lie side by side, as one product of their projections takes them. A table
    whose gradient is not wanted gets no elements.
    """
    tokens, heads, head_dim = q.shape
    dqkv = q.new_empty(tokens, 3, heads, head_dim)
    dbias, dquery, dkey = (
        q.new_empty(x.shape if x is not None and want else 0)
        for x, want in zip(tables, wanted, strict=True)
    )
    return dqkv, dbias, dquery, dkey


@register_fake(_attention)
def _(
    q,
    k,
    v,
    cu_seqlens,
    seed,
    blocks,
    buckets,
    bias,
    query_scores,
    key_scores,
    max_seqlen,
    scale,
    threshold,
    window,
    backend,
):
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@register_fake(_attention_backward)
def _(
    dout, q, k, v, out, lse, cu_seqlens, seed, blocks, buckets, bias, query_scores, key_scores,
    wanted, max_seqlen, scale, threshold, window, backend,
):  # fmt: skip
    return _empty_gradients(q, (bias, query_scores, key_scores), wanted)


def _setup(ctx, inputs, output) -> None:
    q, k, v, cu_seqlens, seed, blocks, buckets, *tables = inputs[:10]
    ctx.constants = inputs[10:]
    ctx.save_for_backward(q, k, v, *output, cu_seqlens, seed, blocks, buckets, *tables)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, _dlse):
    if dout is None:
        return (None,) * 15
    wanted = ctx.needs_input_grad[7:10]
    dqkv, *tables = _attention_backward(dout, *ctx.saved_tensors, wanted, *ctx.constants)
    tables = [gradient if want else None for gradient, want in zip(tables, wanted, strict=True)]
    return *dqkv.unbind(1), None, None, None, None, *tables, *(None,) * 5


_attention.register_autograd(_backward, setup_context=_setup)


def _rows_contiguous(x: Tensor) -> Tensor:
    """The kernels follow any stride of tokens and heads; within a head the elements must be
    adjacent.
    """
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
    window: int | None = None,
    positions: RelativePositions | None = None,
    blocks: Tensor | None = None,
) -> Tensor:
    """Bidirectional attention within each sequence of a packed batch.

    Args:
        q, k, v: (tokens, heads, head_dim), one floating dtype, any strides. Nothing is copied where
            a head's elements are adjacent, as in slices of one fused projection. The GPU and C++
            backends take head_dim 16, 32, 48, 64, 80, 96 or 128, the reference backend any.
        cu_seqlens: (sequences + 1,) int32, from 0 and never falling. Tokens past the last boundary
            are slack: they give zeros and take no gradient. A sequence may be empty.
        max_seqlen: at least the longest sequence's length.
        scale: of the scores; None is ``head_dim ** -0.5``.
        dropout_p: of the probabilities, in [0, 1), rounded to a multiple of 1/256: 0.1 is 26/256.
            Above 0 it is at least 1/256 and at most 255/256. Kept probabilities are scaled by one
            over the share that is kept after the rounding.
        seed: of the dropout, an int of 64 bits or an int64 tensor of one element. A score's bit
            follows from the seed, the row where its sequence begins, and the head. It also follows
            from the positions of query and key in their sequence. It comes from Philox-4x32-7
            (Salmon et al., SC 2011).
        window: a query at position i sees the keys from i - window to i + window alone; None is all
            of its sequence.
        positions: what the relative positions add to the scores; each of its tables gets a
            gradient. On a GPU that gradient, and it alone, takes a scratch of (tokens, heads,
            max_seqlen) in q's dtype. The values of its buckets are trusted there.
        blocks: what `attention_blocks` gave for a call of the same boundaries, which spares making
            it again; its values are trusted.

    Returns:
        (tokens, heads, head_dim), contiguous, of q's dtype; sums are kept in float32.

    Raises:
        TypeError: a dtype that does not fit.
        ValueError: a shape, device, boundary or option that does not fit.
        BackendError: the forced backend cannot serve the call.
    """
    check_tensor("q", q, ("tokens", "heads", "head_dim"))
    if q.shape[2] == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}; head_dim must be at least 1")
    for name, x in (("k", k), ("v", v)):
        check_tensor(name, x, ("tokens", "heads", "head_dim"))
        check_like(name, x, "q", q)
        if x.shape != q.shape:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)} and q {tuple(q.shape)}; they must be the same"
            )
    check_integers("cu_seqlens", cu_seqlens, ("sequences + 1",), torch.int32)
    check_device("cu_seqlens", cu_seqlens, "q", q)
    max_seqlen = as_int("max_seqlen", max_seqlen)
    if max_seqlen < 0:
        raise ValueError(f"max_seqlen is {max_seqlen}; it must be at least 0")
    check_cu_seqlens(cu_seqlens, q.shape[0], max_seqlen)
    if scale is None:
        scale = q.shape[2] ** -0.5
    elif not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; it must be finite")
    window = None if window is None else as_int("window", window)
    if window is not None and window < 0:
        raise ValueError(f"window is {window}; it must be at least 0, or None for all keys")
    if window is None or window >= max_seqlen - 1:
        window = -1
    if positions is not None:
        check_positions(positions, q, max_seqlen)
        if all(table is None for table in positions.tables):
            positions = None
    threshold = attention_threshold(dropout_p)
    seed = as_seed(seed, q.device)
    backend = dispatch.select("attention", q.device, q.dtype, q.shape[2])
    if backend == "reference":
        return reference.attention(
            q, k, v, cu_seqlens, seed, max_seqlen, scale, threshold, window, positions
        )
    if backend == "cpp":
        blocks = None
    elif blocks is not None:
        check_integers("blocks", blocks, ("blocks", "2"), torch.int32)
        check_device("blocks", blocks, "q", q)
    tensors = (positions.buckets, *positions.tables) if positions else (None,) * 4
    return _attention(
        q, k, v, cu_seqlens, seed, blocks, *tensors, max_seqlen, scale, threshold, window, backend
    )[0]


@torch.library.custom_op("bertfast::attention_blocks", mutates_args=())
def _attention_blocks(q: Tensor, cu_seqlens: Tensor, max_seqlen: int, backend: str) -> Tensor:
    boundaries = (cu_seqlens, torch.int32, (cu_seqlens.numel(),))
    check_launch("attention", backend, q, cu_seqlens=boundaries)
    check_cu_seqlens(cu_seqlens, q.shape[0], max_seqlen)
    return tile_list(cu_seqlens.contiguous(), q.shape[0], max_seqlen)


@register_fake(_attention_blocks)
def _(q, cu_seqlens, max_seqlen, backend):
    return cu_seqlens.new_empty(list_size(cu_seqlens, q.shape[0], max_seqlen), 2)


def attention_blocks(q: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor | None:
    """The blocks of a batch's sequences for `attention`, so that all layers share one list.

    Args:
        q: (tokens, heads, head_dim), as `attention` takes it.
        cu_seqlens: (sequences + 1,) int32, as `attention` takes it.
        max_seqlen: at least the longest sequence's length.

    Returns:
        (blocks, 2) int32; None where the backend that serves ``q`` reads none.

    Raises:
        TypeError: a dtype that does not fit.
        ValueError: a shape, device or boundary that does not fit.
        BackendError: the forced backend cannot serve the call.
    """
    check_tensor("q", q, ("tokens", "heads", "head_dim"))
    check_integers("cu_seqlens", cu_seqlens, ("sequences + 1",), torch.int32)
    check_device("cu_seqlens", cu_seqlens, "q", q)
    max_seqlen = as_int("max_seqlen", max_seqlen)
    backend = dispatch.select("attention", q.device, q.dtype, q.shape[2])
    if backend in ("cpp", "reference"):
        return None
    return _attention_blocks(q.detach(), cu_seqlens, max_seqlen, backend)
