"""The input: word, position and segment embeddings, summed, normalised and dropped out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bertfast import kernels
from bertfast.config import BertConfig
from bertfast.errors import BertfastError


class BertEmbeddings(nn.Module):
    """LN(word + position + segment), dropout. Devlin et al., "BERT", figure 2."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout_p = config.hidden_dropout_prob

    def forward(
        self,
        input_ids: Tensor | None,
        segment_ids: Tensor,
        position_ids: Tensor,
        seed: Tensor | None,
        inputs_embeds: Tensor | None = None,
        tied: Tensor | None = None,
    ) -> Tensor:
        """(tokens,) ids, or (tokens, hidden) word embeddings in their place, to (tokens, hidden); no dropout where seed is None.

        ``tied`` is the word table as `tie` gives it, which takes a sparse gradient.
        """
        word, position, segment = self.word_embeddings, self.position_embeddings, self.token_type_embeddings
        _check_range("token_type_ids", segment_ids, segment.num_embeddings, "type_vocab_size")
        _check_range("position_ids", position_ids, position.num_embeddings, "max_position_embeddings")
        norm = self.LayerNorm
        if inputs_embeds is not None:
            total = inputs_embeds + segment(segment_ids) + position(position_ids)
            normed = kernels.add_layer_norm(total, None, norm.weight, norm.bias, eps=norm.eps)
            return normed if seed is None else kernels.dropout(normed, self.dropout_p, seed=seed)
        assert input_ids is not None
        _check_range("input_ids", input_ids, word.num_embeddings, "vocab_size")
        return kernels.embed(
            input_ids,
            position_ids,
            segment_ids,
            word.weight if tied is None else tied,
            position.weight,
            segment.weight,
            norm.weight,
            norm.bias,
            eps=norm.eps,
            dropout_p=0.0 if seed is None else self.dropout_p,
            seed=0 if seed is None else seed,
            padding_idx=word.padding_idx,
            sparse_grad=tied is not None,
        )


def _check_range(name: str, ids: Tensor, size: int, limit: str) -> None:
    """Values on a GPU are not read: that would stall its queue."""
    if torch.compiler.is_compiling() or ids.device.type != "cpu" or ids.numel() == 0:
        return
    low, high = (int(value) for value in ids.aminmax())
    if low < 0 or high >= size:
        raise BertfastError(
            f"{name} hold {low if low < 0 else high}; {limit} is {size}, so they must be from 0 to {size - 1}"
        )
