"""Attention in the padded form, for what no packed batch needs.

It serves tokens that were left out of a sequence, and tokens that no other may see.

Differentiable through autograd, for any floating dtype; half precision is computed in float32,
float64 stays float64.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .philox import ATTENTION_LANE_RANGE, attention_lanes, keep_scale
from .positions import RelativePositions


class PaddedForm:
    """Where the tokens of a packed batch stand when its sequences are padded.

    Attributes:
        position: (max_seqlen,) int64.
        real: (sequences, max_seqlen) bool, false at padding.
        row: (sequences, max_seqlen) int64, the token that stands there; 0 at padding.
        empty: whether there is no such place.
    """

    def __init__(self, cu_seqlens: Tensor, tokens: int, max_seqlen: int) -> None:
        self.token = torch.arange(tokens, device=cu_seqlens.device)
        self.position = torch.arange(max_seqlen, device=cu_seqlens.device)
        self.starts, self.ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
        self.real = self.position < (self.ends - self.starts)[:, None]
        self.row = torch.where(self.real, self.starts[:, None] + self.position, 0)
        self.empty = tokens == 0 or self.real.numel() == 0

    def zeros(self, q: Tensor, k: Tensor, v: Tensor, positions: RelativePositions | None) -> Tensor:
        """The output of an empty form, with every input in its graph."""
        tables = [x.sum() for x in positions.tables if x is not None] if positions else []
        return torch.where(self.token[:, None, None] < 0, q + k + v + sum(tables), 0.0)

    def padded(self, x: Tensor) -> Tensor:
        """(tokens, heads, columns) to (sequences, max_seqlen, heads, columns), zeros at padding."""
        return torch.where(self.real[..., None, None], x[self.row], 0.0)

    def packed(self, x: Tensor) -> Tensor:
        """(sequences, max_seqlen, heads, columns) to (tokens, heads, columns), zeros at slack."""
        last = self.ends.shape[0] - 1
        sequence = torch.searchsorted(self.ends, self.token, right=True).clamp(max=last)
        place = (self.token - self.starts[sequence]).clamp(0, x.shape[1] - 1)
        return torch.where((self.token < self.ends[-1])[:, None, None], x[sequence, place], 0.0)

    def position_scores(
        self, positions: RelativePositions, distance: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """What relative positions add to the scores; broadcasts to (sequences, heads, queries,
        keys). ``distance`` is (sequences or 1, 1, queries, keys).
        """
        bucket = positions.buckets.long()[distance + positions.buckets.shape[0] // 2]
        terms = torch.zeros((), dtype=dtype, device=distance.device)
        if positions.bias is not None:
            terms = terms + positions.bias.to(dtype)[:, bucket.squeeze(1)].transpose(0, 1)
        for table, by_query in ((positions.query_scores, True), (positions.key_scores, False)):
            if table is not None:
                entries = self.padded(table).to(dtype).transpose(1, 2)
                index = (bucket if by_query else bucket.mT).expand(*entries.shape[:2], -1, -1)
                picked = entries.gather(3, index)
                terms = terms + (picked if by_query else picked.mT)
        return terms

    def dropped(self, probabilities: Tensor, seed: Tensor, threshold: int) -> Tensor:
        """(sequences, heads, queries, keys) with dropped elements zero and kept ones scaled up."""
        if threshold == 0:
            return probabilities
        lanes = attention_lanes(seed, self.starts, *probabilities.shape[1:3])
        scale = keep_scale(threshold, ATTENTION_LANE_RANGE)
        return torch.where(lanes >= threshold, probabilities * scale, 0.0)


def padded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    max_seqlen: int,
    scale: float,
    threshold: int,
    window: int,
    positions: RelativePositions | None,
    columns: Tensor | None,
    visible: Tensor | None,
    blind: bool = False,
) -> Tensor:
    """`attention` of sequences with tokens left out, or with tokens that are not seen.

    Args:
        q, k, v, cu_seqlens, max_seqlen, scale, positions: as `attention` takes them.
        seed: (1,) int64.
        threshold: of `attention_threshold`.
        window: as `attention` takes it; -1 for none.
        columns: (tokens,) int64, by which distances are counted; None for places in a sequence.
        visible: (tokens,) bool, false for tokens that no one sees; None where all are seen.
        blind: whether such tokens see nothing either. One that sees nothing gets the mean.

    Returns:
        (tokens, heads, head_dim), of q's dtype.
    """
    form = PaddedForm(cu_seqlens, q.shape[0], max_seqlen)
    if form.empty:
        return form.zeros(q, k, v, positions)
    dtype = torch.promote_types(q.dtype, torch.float32)
    q_pad, k_pad, v_pad = (form.padded(x).to(dtype) for x in (q, k, v))
    with no_autocast(q):
        scores = torch.einsum("bihd,bjhd->bhij", q_pad, k_pad) * scale
    column = form.position if columns is None else torch.where(form.real, columns[form.row], 0)
    distance = (column[..., :, None] - column[..., None, :]).view(-1, 1, max_seqlen, max_seqlen)
    if positions is not None:
        scores = scores + form.position_scores(positions, distance, dtype)
    seen = form.real[:, None, None, :]
    if window >= 0:
        seen = seen & (distance.abs() <= window)
    if visible is not None:
        seen = seen & visible[form.row][:, None, None, :]
        if blind:
            seen = seen & visible[form.row][:, None, :, None]
    lowest = torch.finfo(dtype).min
    # Where a token that sees nothing gets the mean, that mean has a gradient.
    mean = visible is not None and not blind
    hidden = scores.new_zeros(seen.shape).masked_fill(~seen, lowest)
    scores = scores + hidden if mean else scores.masked_fill(~seen, lowest)
    probabilities = form.dropped(scores.softmax(-1), seed, threshold)
    with no_autocast(q):
        return form.packed(torch.einsum("bhij,bjhd->bihd", probabilities, v_pad).to(q.dtype))


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Products in the dtype of their factors; the meta device knows no autocast."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
