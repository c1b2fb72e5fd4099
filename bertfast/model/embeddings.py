"""The input: word, position and segment embeddings, summed, normalised, dropped out and, where the
encoder is of another width, projected.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bertfast import kernels
from bertfast.config import EncoderConfig
from bertfast.errors import BertfastError
from bertfast.kernels.linear import widened_products

from .family import member_of
from .functional import dropout, is_plain, norm, project
from .submodules import Submodules


def is_fused(modules: Submodules, config: EncoderConfig) -> bool:
    """Whether `embed` is one op, which can give the word table a sparse gradient."""
    found = (modules.word, modules.position, modules.segment)
    tables = [table for table in found if table is not None]
    return (
        all(is_plain(table, nn.Embedding) and table.max_norm is None for table in tables)
        and is_plain(modules.embedding_norm, nn.LayerNorm)
        and not _projects_first(modules, config)
    )


def _projects_first(modules: Submodules, config: EncoderConfig) -> bool:
    return member_of(config).projects_first and modules.projection is not None


def embed(
    modules: Submodules,
    config: EncoderConfig,
    input_ids: Tensor | None,
    segment_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
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
        modules.word,
        modules.position,
        modules.segment,
        modules.embedding_norm,
    )
    for name, ids, table, limit in (
        ("input_ids", input_ids, word, "vocab_size"),
        ("token_type_ids", segment_ids, segment, "type_vocab_size"),
        ("position_ids", position_ids, position, "max_position_embeddings"),
    ):
        if ids is not None and table is not None:
            _check_range(name, ids, table.weight.shape[0], limit)
    p = config.hidden_dropout_prob
    if inputs_embeds is None and is_fused(modules, config):
        assert input_ids is not None
        x = kernels.embed(
            input_ids,
            None if position is None else position_ids,
            None if segment is None else segment_ids,
            word.weight if tied is None else tied,
            None if position is None else position.weight,
            None if segment is None else segment.weight,
            layer_norm.weight,
            layer_norm.bias,
            eps=layer_norm.eps,
            dropout_p=0.0 if seed is None else p,
            seed=0 if seed is None else seed,
            padding_idx=word.padding_idx,
            position_padding_idx=None if position is None else position.padding_idx,
            cu_seqlens=cu_seqlens,
            sparse_grad=tied is not None,
        )
        return x if modules.projection is None else project(modules.projection, x)
    with widened_products(word.weight):  # of adapters to the tables
        total = word(input_ids) if inputs_embeds is None else inputs_embeds
        if segment is not None:
            total = total + segment(segment_ids)
        if position is not None:
            total = total + position(position_ids)
    if _projects_first(modules, config):
        return dropout(norm(layer_norm, project(modules.projection, total)), p, seed)
    x = dropout(norm(layer_norm, total), p, seed)
    return x if modules.projection is None else project(modules.projection, x)


def _check_range(name: str, ids: Tensor, size: int, limit: str) -> None:
    """Values on a GPU are not read: that would stall its queue."""
    if torch.compiler.is_compiling() or ids.device.type != "cpu" or ids.numel() == 0:
        return
    low, high = (int(value) for value in ids.aminmax())
    if low < 0 or high >= size:
        raise BertfastError(
            f"{name} hold {low if low < 0 else high}; {limit} is {size}, "
            f"so they must be from 0 to {size - 1}"
        )
