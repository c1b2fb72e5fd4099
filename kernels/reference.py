"""Each op in plain PyTorch: the specification that every other backend answers to.

Differentiable through autograd, for any floating dtype; half precision is computed in float32, float64 stays float64.
Nothing here is fast or sparing with memory. It also serves where no other backend can.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .philox import flat_lanes, keep_scale, philox_lanes, token_words


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    max_seqlen: int,
    scale: float,
    threshold: int,
) -> Tensor:
    """softmax(scale Q Kᵀ) V of each sequence by itself; see `bertfast.kernels.attention`."""
    tokens, heads = q.shape[:2]
    sequences = cu_seqlens.shape[0] - 1
    token = torch.arange(tokens, device=q.device)
    if tokens == 0 or sequences == 0 or max_seqlen == 0:
        return torch.where(token[:, None, None] < 0, q + k + v, 0.0)  # zeros, with every input in the graph

    # To the padded form (sequences, positions, heads, head_dim), zeros where there is no token.
    dtype = torch.promote_types(q.dtype, torch.float32)
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    position = torch.arange(max_seqlen, device=q.device)
    real = position < (ends - starts)[:, None]
    row = torch.where(real, starts[:, None] + position, 0)
    q_pad, k_pad, v_pad = (torch.where(real[..., None, None], x[row], 0.0).to(dtype) for x in (q, k, v))

    with torch.autocast(q.device.type, enabled=False):
        scores = torch.einsum("bihd,bjhd->bhij", q_pad, k_pad) * scale
    scores = scores.masked_fill(~real[:, None, None, :], torch.finfo(dtype).min)
    probabilities = scores.softmax(-1)
    if threshold:
        head = torch.arange(heads, device=q.device)
        lanes = philox_lanes(seed, max_seqlen, row[:, None, :], head[:, None])
        probabilities = torch.where(lanes >= threshold, probabilities * keep_scale(threshold), 0.0)
    with torch.autocast(q.device.type, enabled=False):
        out_pad = torch.einsum("bhij,bjhd->bihd", probabilities, v_pad).to(q.dtype)

    sequence = torch.searchsorted(ends, token, right=True).clamp(max=sequences - 1)
    out = out_pad[sequence, (token - starts[sequence]).clamp(0, max_seqlen - 1)]
    return torch.where((token < ends[-1])[:, None, None], out, 0.0)


def dropout(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    """x with dropped elements zero and kept ones scaled up; see `bertfast.kernels.dropout`."""
    keep = (flat_lanes(seed, x.numel()) >= threshold).view(x.shape)
    return torch.where(keep, x * keep_scale(threshold), 0.0)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index], a zero row where the index is -1; see `bertfast.kernels.gather_rows`."""
    return torch.cat([x.new_zeros(1, x.shape[1]), x])[index + 1]


def scatter_rows(x: Tensor, index: Tensor, rows: int) -> Tensor:
    """``rows`` rows of zeros with x's put at the index, -1 nowhere; see `bertfast.kernels.unpack`."""
    return x.new_zeros(rows + 1, x.shape[1]).index_copy(0, index + 1, x)[1:]


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
    """CE(hidden Wᵀ + bias, labels) and the count of correct ones; see `bertfast.kernels.linear_cross_entropy`."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
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
    own = torch.arange(input_ids.shape[0], device=input_ids.device) if counters is None else counters
    choice, action, draw, _ = token_words(seed, own)
    if choices is not None:
        choice = token_words(seed, choices)[0]
    chosen = (choice < choose_below) & ~special
    other = first_random_id + (draw * random_ids >> 32)
    hidden = torch.where(action < mask_below, mask_id, torch.where(action < random_below, other, input_ids))
    return torch.where(chosen, hidden, input_ids), torch.where(chosen, input_ids, ignore_index)
