"""The input: word, position and segment embeddings, summed, normalised, dropped out and, where the
encoder is of another width, projected.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bertfast import kernels
from bertfast.config import DebertaV2Config, EncoderConfig
from bertfast.errors import BertfastError

from .layout import View
from .leaves import dropout, is_plain, norm


def make_embeddings(config: EncoderConfig) -> dict[str, nn.Module]:
    """The leaves that a member has."""
    width = config.embedding_width
    relative = isinstance(config, DebertaV2Config)
    norm_bias = getattr(config, "norm_bias", True)
    leaves: dict[str, nn.Module] = {
        "word": nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id),
        # DeBERTa normalises past its projection.
        "embedding_norm": nn.LayerNorm(
            config.hidden_size if relative else width, eps=config.layer_norm_eps, bias=norm_bias
        ),
    }
    if config.model_type != "modernbert" and getattr(config, "position_biased_input", True):
        padding = config.position_offset - 1 if config.position_offset else None
        leaves["position"] = nn.Embedding(
            config.max_position_embeddings, width, padding_idx=padding
        )
    if config.type_vocab_size:
        leaves["segment"] = nn.Embedding(config.type_vocab_size, width)
    if config.model_type == "albert" or width != config.hidden_size:
        leaves["projection"] = nn.Linear(width, config.hidden_size, bias=not relative)
    return leaves


def is_fused(parts: View, config: EncoderConfig) -> bool:
    """Whether `embed` is one op, which can give the word table a sparse gradient."""
    tables = (table for table in (parts.word, parts.position, parts.segment) if table is not None)
    return (
        all(is_plain(table, nn.Embedding) and table.max_norm is None for table in tables)
        and is_plain(parts.embedding_norm, nn.LayerNorm)
        and not _projects_first(parts, config)
    )


def _projects_first(parts: View, config: EncoderConfig) -> bool:
    return isinstance(config, DebertaV2Config) and parts.projection is not None


def embed(
    parts: View,
    config: EncoderConfig,
    input_ids: Tensor | None,
    segment_ids: Tensor,
    position_ids: Tensor,
    seed: Tensor | None,
    inputs_embeds: Tensor | None = None,
    tied: Tensor | None = None,
) -> Tensor:
    """(tokens,) ids, or (tokens, width) word embeddings in their place, to (tokens, hidden); no
    dropout where seed is None.

    ``tied`` is the word table as `tie` gives it, which takes a sparse gradient. Devlin et al.,
    "BERT", figure 2; Lan et al., "ALBERT", section 3.1.
    """
    word, position, segment, layer_norm = (
        parts.word,
        parts.position,
        parts.segment,
        parts.embedding_norm,
    )
    for name, ids, table, limit in (
        ("input_ids", input_ids, word, "vocab_size"),
        ("token_type_ids", segment_ids, segment, "type_vocab_size"),
        ("position_ids", position_ids, position, "max_position_embeddings"),
    ):
        if ids is not None and table is not None:
            _check_range(name, ids, table.weight.shape[0], limit)
    p = config.hidden_dropout_prob
    if inputs_embeds is None and is_fused(parts, config):
        assert input_ids is not None
        x = kernels.embed(
            input_ids,
            None if position is None else position_ids,
            None if segment is None else segment_ids,
            word.weight if tied is None else tied,
            None if position is None else _position_table(position),
            None if segment is None else segment.weight,
            layer_norm.weight,
            layer_norm.bias,
            eps=layer_norm.eps,
            dropout_p=0.0 if seed is None else p,
            seed=0 if seed is None else seed,
            padding_idx=word.padding_idx,
            sparse_grad=tied is not None,
        )
        return x if parts.projection is None else parts.projection(x)
    total = word(input_ids) if inputs_embeds is None else inputs_embeds
    if segment is not None:
        total = total + segment(segment_ids)
    if position is not None:
        total = total + position(position_ids)
    if _projects_first(parts, config):
        return dropout(norm(layer_norm, parts.projection(total)), p, seed)
    x = dropout(norm(layer_norm, total), p, seed)
    return x if parts.projection is None else parts.projection(x)


def _position_table(position: nn.Embedding) -> Tensor:
    """RoBERTa's row for padding takes no gradient, as in `torch.nn.Embedding`; the fused op knows
    only the word table's.
    """
    table = position.weight
    if position.padding_idx is None or not (table.requires_grad and torch.is_grad_enabled()):
        return table
    row = torch.arange(table.shape[0], device=table.device)[:, None]
    return torch.where(row == position.padding_idx, table.detach(), table)


def _check_range(name: str, ids: Tensor, size: int, limit: str) -> None:
    """Values on a GPU are not read: that would stall its queue."""
    if torch.compiler.is_compiling() or ids.device.type != "cpu" or ids.numel() == 0:
        return
    low, high = (int(value) for value in ids.aminmax())
    if low < 0 or high >= size:
        raise BertfastError(
            f"{name} hold {low if low < 0 else high}; {limit} is {size}, so they must be from 0 to {size - 1}"
        )
