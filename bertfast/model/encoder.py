"""The stack of post-norm blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bertfast import kernels
from bertfast.config import BertConfig

from .attention import BertAttention, ResidualOutput

GELUS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}  # and how `kernels.bias_gelu` calls them
SITES_PER_LAYER = 3  # dropouts: attention probabilities, attention output, feed-forward output


class ActivatedLinear(nn.Module):
    """act(dense(x))."""

    def __init__(self, in_features: int, out_features: int, activation: str) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, in_features) to (tokens, out_features)."""
        if self.activation == "relu":
            return F.relu(self.dense(x))
        return kernels.bias_gelu(F.linear(x, self.dense.weight), self.dense.bias, approximate=GELUS[self.activation])


class BertLayer(nn.Module):
    """Attention and feed-forward, each with its residual and LayerNorm. Devlin et al., section 3."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = ActivatedLinear(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.output = ResidualOutput(config, config.intermediate_size)

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        seeds: tuple[Tensor | None, ...],
        rows: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """(tokens, hidden) to (tokens, hidden); ``seeds`` of the three dropouts, None for no dropout.

        With ``rows``, indexes as `kernels.gather_rows` takes them, the output has those rows alone, one index's after another's:
        past the attention no token meets another, so the others are not computed.
        """
        x = self.attention(x, cu_seqlens, max_seqlen, seeds[0], seeds[1], rows)
        return self.output(self.intermediate(x), x, seeds[2], rows)


class BertEncoder(nn.Module):
    """The blocks, one after another."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        seeds: tuple[Tensor | None, ...],
        rows: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """The input and the output of each block, each (tokens, hidden); ``seeds`` are three to a block.

        With ``rows`` the last block's output has those rows alone, as `BertLayer.forward` says.
        """
        states = [x]
        for number, layer in enumerate(self.layer, 1):
            own = seeds[SITES_PER_LAYER * (number - 1) : SITES_PER_LAYER * number]
            states.append(layer(states[-1], cu_seqlens, max_seqlen, own, rows if number == len(self.layer) else None))
        return states
