"""Each op in plain PyTorch: the specification that every other backend answers to.

Differentiable through autograd, for any floating dtype; half precision is computed in float32,
float64 stays float64. Nothing here is fast or sparing with memory. It also serves where no other
backend can.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .padded_attention import PaddedForm, no_autocast
from .philox import flat_lanes, keep_scale, token_words
from .positions import RelativePositions


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    max_seqlen: int,
    scale: float,
    threshold: int,
    window: int = -1,
    positions: RelativePositions | None = None,
) -> Tensor:
    """softmax(scale Q Kᵀ + terms of the positions) V of each sequence by itself, a window of -1
    being none; see `bertfast.kernels.attention`.
    """
    form = PaddedForm(cu_seqlens, q.shape[0], max_seqlen)
    if form.empty:
        return form.zeros(q, k, v, positions)
    dtype = torch.promote_types(q.dtype, torch.float32)
    q_pad, k_pad, v_pad = (form.padded(x).to(dtype) for x in (q, k, v))
    with no_autocast(q):
        scores = torch.einsum("bihd,bjhd->bhij", q_pad, k_pad) * scale
    distance = (form.position[:, None] - form.position)[None, None]
    if positions is not None:
        scores = scores + form.position_scores(positions, distance, dtype)
    seen = form.real[:, None, None, :]
    if window >= 0:
        seen = seen & (distance.abs() <= window)
    probabilities = scores.masked_fill(~seen, torch.finfo(dtype).min).softmax(-1)
    probabilities = form.dropped(probabilities, seed, threshold)
    with no_autocast(q):
        return form.packed(torch.einsum("bhij,bjhd->bihd", probabilities, v_pad).to(q.dtype))


def dropout(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    """x with dropped elements zero and kept ones scaled up; see `bertfast.kernels.dropout`."""
    keep = (flat_lanes(seed, x.numel()) >= threshold).view(x.shape)
    return torch.where(keep, x * keep_scale(threshold), 0.0)


def add_layer_norm(
    x: Tensor,
    x_bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    eps: float,
    threshold: int,
    rms: bool,
) -> tuple[Tensor, Tensor]:
    """The norm of dropout(x + x_bias) + residual, and that sum; see
    `bertfast.kernels.add_layer_norm`.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    s = x.to(dtype) if x_bias is None else x.to(dtype) + x_bias.to(dtype)
    s = dropout(s, seed, threshold)
    if residual is not None:
        s = s + residual.to(dtype)
    centred = s if rms else s - s.mean(-1, keepdim=True)
    normed = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.to(dtype)
    return (normed if bias is None else normed + bias.to(dtype)).to(x.dtype), s.to(x.dtype)


def bias_gelu(x: Tensor, bias: Tensor | None, approximate: str, gated: bool) -> Tensor:
    """gelu(x + bias), gated or not; see `bertfast.kernels.bias_gelu`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if bias is not None:
        wide = wide + bias.to(wide.dtype)
    if not gated:
        return F.gelu(wide, approximate=approximate).to(x.dtype)
    first, second = wide.chunk(2, -1)
    return (F.gelu(first, approximate=approximate) * second).to(x.dtype)


def embed(
    input_ids: Tensor,
    position_ids: Tensor | None,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor | None,
    segment: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    eps: float,
    threshold: int,
    padding_idx: int | None,
    position_padding_idx: int | None,
    sparse_grad: bool,
) -> Tensor:
    """The normalised sum of embeddings, dropped out; see `bertfast.kernels.embed`."""
    dtype = torch.promote_types(word.dtype, torch.float32)
    s = F.embedding(input_ids, word, padding_idx, sparse=sparse_grad).to(dtype)
    others = (position_ids, position, position_padding_idx), (segment_ids, segment, None)
    for ids, table, row in others:
        if ids is not None and table is not None:
            s = s + F.embedding(ids, table, row).to(dtype)
    normed, _ = add_layer_norm(s, None, None, weight, bias, seed, eps, 0, False)
    return dropout(normed, seed, threshold).to(word.dtype)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index], a zero row where the index is -1; see `bertfast.kernels.gather_rows`."""
    return torch.cat([x.new_zeros(1, x.shape[1]), x])[index + 1]


def scatter_rows(x: Tensor, index: Tensor, rows: int) -> Tensor:
    """``rows`` rows of zeros with x's put at the index, -1 nowhere; see
    `bertfast.kernels.unpack`.
    """
    return x.new_zeros(rows + 1, x.shape[1]).index_copy(0, index + 1, x)[1:]


def rotary(
    q: Tensor, k: Tensor, position_ids: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """x cos + rotate_half(x) sin of queries and keys; see `bertfast.kernels.rotary`."""
    cos, sin = (table.detach()[position_ids, None] for table in (cos, sin))

    def rotated(x: Tensor) -> Tensor:
        first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)

    return rotated(q), rotated(k)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """CE(hidden Wᵀ + bias, labels) and the count of correct ones; see
    `bertfast.kernels.linear_cross_entropy`.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    with no_autocast(hidden):
        logits = F.linear(
            hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        )
    counted = labels != ignore_index
    losses = F.cross_entropy(
        logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )
    losses = losses + torch.where(counted, z_loss * logits.logsumexp(-1).square(), 0.0)
    correct = ((logits.argmax(-1) == labels) & counted).sum()
    if reduction == "none":
        return losses, correct
    total = losses.sum()
    return (total / counted.sum().clamp(min=1) if reduction == "mean" else total), correct


def mask_tokens(
    input_ids: Tensor,
    special: Tensor,
    counters: Tensor | None,
    choices: Tensor | None,
    seed: Tensor,
    mask_id: int,
    first_random_id: int,
    random_ids: int,
    choose_below: int,
    mask_below: int,
    random_below: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """The ids with some hidden, and the labels of these; see `bertfast.kernels.mask_tokens`."""
    own = (
        torch.arange(input_ids.shape[0], device=input_ids.device) if counters is None else counters
    )
    choice, action, draw, _ = token_words(seed, own)
    if choices is not None:
        choice = token_words(seed, choices)[0]
    chosen = (choice < choose_below) & ~special
    other = first_random_id + (draw * random_ids >> 32)
    hidden = torch.where(
        action < mask_below, mask_id, torch.where(action < random_below, other, input_ids)
    )
    return torch.where(chosen, hidden, input_ids), torch.where(chosen, input_ids, ignore_index)


def adamw(
    weights: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    copies: list[Tensor],
    *,
    rates: Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: list[float],
) -> None:
    """One step in place; see `bertfast.kernels.adamw`."""
    lr, correction1, correction2, gradient_scale = rates.unbind()
    beta1, beta2 = betas
    for number, (w, g, m, v) in enumerate(zip(weights, gradients, means, squares, strict=True)):
        g = g.to(w.dtype) * gradient_scale
        m.mul_(beta1).add_(g * (1 - beta1))
        v.mul_(beta2).add_(g.square() * (1 - beta2))
        w.mul_(1 - lr * weight_decay[number]).sub_(
            lr / correction1 * m / ((v / correction2).sqrt() + eps)
        )
        if copies:
            copies[number].copy_(w)
