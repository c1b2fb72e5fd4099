"""Self-attention and its output projection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bertfast import kernels
from bertfast.config import BertConfig


class ResidualOutput(nn.Module):
    """LN(dropout(dense(x)) + residual): how both halves of a post-norm block end."""

    def __init__(self, config: BertConfig, in_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_p = config.hidden_dropout_prob

    def forward(self, x: Tensor, residual: Tensor, seed: Tensor | None, rows: Sequence[Tensor] | None = None) -> Tensor:
        """x (tokens, in_features), residual (tokens, hidden); no dropout where seed is None.

        ``rows`` are the indexes that gave these tokens, one's after another's: then the bits dropped of one's do not depend on how many
        tokens, or how much slack, another has.
        """
        x = self.dense(x).to(residual.dtype)  # under autocast the residual stays in float32
        if seed is None or rows is None or len(rows) == 1:
            return self._norm(x, residual, seed)
        sizes = [len(index) for index in rows]
        parts = enumerate(zip(x.split(sizes), residual.split(sizes), strict=True))
        return torch.cat([self._norm(*part, seed + number) for number, part in parts])

    def _norm(self, x: Tensor, residual: Tensor, seed: Tensor | None) -> Tensor:
        norm, p = self.LayerNorm, 0.0 if seed is None else self.dropout_p
        return kernels.add_layer_norm(
            x, residual, norm.weight, norm.bias, eps=norm.eps, dropout_p=p, seed=0 if seed is None else seed
        )


class SelfAttention(nn.Module):
    """The projections to queries, keys and values, and the attention itself. Vaswani et al., section 3.2.2."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.heads = config.num_attention_heads
        self.dropout_p = config.attention_probs_dropout_prob

    def forward(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, seed: Tensor | None) -> Tensor:
        """(tokens, hidden) to (tokens, hidden), each sequence by itself; no dropout where seed is None."""
        q, k, v = (project(x).unflatten(1, (self.heads, -1)) for project in (self.query, self.key, self.value))
        if seed is None:
            return kernels.attention(q, k, v, cu_seqlens, max_seqlen).flatten(1)
        return kernels.attention(q, k, v, cu_seqlens, max_seqlen, dropout_p=self.dropout_p, seed=seed).flatten(1)


class BertAttention(nn.Module):
    """The first half of a block."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = ResidualOutput(config, config.hidden_size)

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        seed: Tensor | None,
        output_seed: Tensor | None,
        rows: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """(tokens, hidden) to (tokens, hidden); with ``rows``, indexes of tokens, to those rows, one index's after another's."""
        context = self.self(x, cu_seqlens, max_seqlen, seed)
        if rows is not None:
            context, x = (torch.cat([kernels.gather_rows(y, index) for index in rows]) for y in (context, x))
        return self.output(context, x, output_seed, rows)
