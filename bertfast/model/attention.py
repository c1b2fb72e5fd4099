"""Self-attention on packed sequences: the projections, what each member knows of positions, and the
op. Vaswani et al., section 3.2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertfast import kernels
from bertfast.config import EncoderConfig
from bertfast.kernels import products
from bertfast.kernels.linear import unbind
from bertfast.kernels.padded_attention import padded_attention
from bertfast.kernels.philox import as_seed, attention_threshold
from bertfast.packed import padded_rows

from .family import member_of
from .functional import (
    ACTIVATIONS,
    convolved,
    dropout,
    norm,
    project,
    project_beside,
    project_together,
)
from .submodules import Submodules


@dataclass
class Sequences:
    """Where the tokens of a forward stand.

    Attributes:
        cu_seqlens: (sequences + 1,) int32.
        max_seqlen: at least the longest sequence's length.
        position_ids: (tokens,) int64, as the position table or the rotation takes them.
        positions: above every position id.
        columns: (tokens,) int64, each token's place among those of its sequence that were left out
            too; None where none was.
        width: above every column.
        visible: (tokens,) bool, where padding was kept among the tokens: false for it; None where
            it was not.
        blocks: what `kernels.attention_blocks` made of them, for every layer's attention; None
            where no layer asked yet, or the backend reads none.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    position_ids: Tensor
    positions: int
    columns: Tensor | None = None
    width: int = 0
    visible: Tensor | None = None
    blocks: Tensor | None = None

    @cached_property
    def rows(self) -> Tensor:
        """(tokens,) int64, each token's row in the flattened (sequences, `padded_width`) form; -1
        for slack.
        """
        tokens, width = self.position_ids.shape[0], self.padded_width
        rows = padded_rows(self.cu_seqlens, tokens, width)
        return (
            rows
            if self.columns is None
            else torch.where(rows < 0, -1, rows // width * width + self.columns)
        )

    @property
    def padded_width(self) -> int:
        """Positions of the padded form."""
        return self.max_seqlen if self.columns is None else self.width

    def hide(self, x: Tensor) -> Tensor:
        """(tokens, hidden) with zeros at padding that was kept."""
        return x if self.visible is None else x.masked_fill(~self.visible[:, None], 0)

    def rotation(self, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
        """The tables of `kernels.rotary`, of at least ``positions`` rows."""
        # Of a power of two of rows: the next batch, a little longer, finds them made.
        rows = 1 << max(self.positions - 1, 0).bit_length()
        settings = (rows, head_dim, theta, self.position_ids.device)
        tables: tuple[Tensor, Tensor] = self._kept(kernels.rotary_tables, *settings)
        return tables

    def buckets(self, make: Callable[..., Tensor], *settings: int) -> Tensor:
        """``make(padded width, *settings)``, the bucket of each distance."""
        buckets: Tensor = self._kept(make, self.padded_width, *settings)
        return buckets

    def _kept(self, make: Callable[..., Any], *settings: Any) -> Any:
        """``make(*settings)`` on the tokens' device, made once in a process."""
        get = _made if torch.compiler.is_compiling() else _made_once
        x = self.position_ids
        return get(make, settings, x.device, getattr(x, "fake_mode", None))


def _made(
    make: Callable[..., Any], settings: tuple[Any, ...], device: torch.device, mode: object
) -> Any:
    """What ``make`` makes on the host, on the device; ``mode`` keeps fake tensors apart."""
    with torch.inference_mode(False):  # a backward may save what inference made first
        tables = make(*settings)
        return (
            tables.to(device) if isinstance(tables, Tensor) else tuple(x.to(device) for x in tables)
        )


# Nothing is ever dropped. A CUDA graph can neither record a copy from the host, nor go on reading
# what was freed after it was captured.
_made_once = cache(_made)


class Scoring(NamedTuple):
    """What a layer's attention is computed from, beside the values.

    Attributes:
        q, k: (tokens, heads, head_dim).
        scale: of their product.
        window: how far to each side a token sees; None for all of its sequence.
        positions: what distances add to the scores; None for nothing.
    """

    q: Tensor
    k: Tensor
    scale: float
    window: int | None = None
    positions: kernels.RelativePositions | None = None


class AbsolutePositions:
    """Positions that the embeddings alone know of; the base of the others.

    Attributes:
        reads_distances: whether attention reads how far apart two tokens are.
    """

    reads_distances = False

    def reach(self, config: Any) -> int | None:
        """How far to each side a token sees where it sees least; None for all of its sequence."""
        return None

    def table(self, modules: Submodules, config: Any) -> Tensor | None:
        """What a forward reads once of the encoder's ``modules``; None for nothing."""
        return None

    def layer_table(self, table: Tensor, config: Any, seed: Tensor | None) -> Tensor:
        """`table` as one layer reads it; no dropout where seed is None."""
        return table

    def scoring(
        self,
        modules: Submodules,
        config: Any,
        layer: int,
        q: Tensor,
        k: Tensor,
        table: Tensor | None,
        sequences: Sequences,
    ) -> Scoring:
        """The scores' makings in a layer, of its ``modules`` and of `layer_table`."""
        return Scoring(q, k, config.head_dim**-0.5)


class RotaryPositions(AbsolutePositions):
    """Queries and keys turned by their positions, in some layers within a window. Su et al.,
    "RoFormer", 2021, section 3.2.
    """

    reads_distances = True

    def reach(self, config: Any) -> int | None:
        """As of `AbsolutePositions`."""
        return config.local_attention // 2

    def scoring(
        self,
        modules: Submodules,
        config: Any,
        layer: int,
        q: Tensor,
        k: Tensor,
        table: Tensor | None,
        sequences: Sequences,
    ) -> Scoring:
        """As of `AbsolutePositions`."""
        window = config.window(layer)
        theta = config.global_rope_theta if window is None else config.local_rope_theta
        rotation = sequences.rotation(config.head_dim, theta)
        q, k = kernels.rotary(q, k, sequences.position_ids, *rotation)
        return Scoring(q, k, config.head_dim**-0.5, window)


class DisentangledPositions(AbsolutePositions):
    """DeBERTa's content-to-position and position-to-content scores. He et al., "DeBERTa", section
    3.1, equation 4.
    """

    reads_distances = True

    def table(self, modules: Submodules, config: Any) -> Tensor | None:
        """(2 * span, hidden) embeddings of distances, normalised where the checkpoint has it so;
        None without relative attention.
        """
        if modules.relative is None:
            return None
        table: Tensor = modules.relative.weight
        if modules.relative_norm is not None:
            table = modules.relative_norm(table)
        return table[: config.relative_rows]

    def layer_table(self, table: Tensor, config: Any, seed: Tensor | None) -> Tensor:
        """As of `AbsolutePositions`."""
        return dropout(table, config.hidden_dropout_prob, seed)

    def scoring(
        self,
        modules: Submodules,
        config: Any,
        layer: int,
        q: Tensor,
        k: Tensor,
        table: Tensor | None,
        sequences: Sequences,
    ) -> Scoring:
        """As of `AbsolutePositions`."""
        scale = (config.head_dim * (1 + len(set(config.pos_att_type)))) ** -0.5
        if table is None:
            return Scoring(q, k, scale)
        key, query = (
            (modules.key, modules.query)
            if config.share_att_key
            else (modules.position_key, modules.position_query)
        )
        scores: dict[str, Tensor | None] = {"c2p": None, "p2c": None}
        for kind, projection, content in (("c2p", key, q), ("p2c", query, k)):
            if kind in config.pos_att_type:
                assert projection is not None
                rows = project(projection, table).unflatten(1, (config.num_attention_heads, -1))
                scores[kind] = products.einsum(
                    "thd,bhd->thb", content * scale, rows.to(content.dtype)
                )
        buckets = sequences.buckets(
            kernels.deberta_buckets, config.position_buckets, config.max_relative_distance
        )
        positions = kernels.RelativePositions(
            buckets, query_scores=scores["c2p"], key_scores=scores["p2c"]
        )
        return Scoring(q, k, scale, positions=positions)


class SharedBiasPositions(AbsolutePositions):
    """A learned bias for each head and bucket of distances, the same in every layer. Raffel et al.,
    "T5", section 2.1.
    """

    reads_distances = True

    def table(self, modules: Submodules, config: Any) -> Tensor | None:
        """(heads, buckets)."""
        table: Tensor = modules.relative_bias.weight
        return table.T

    def scoring(
        self,
        modules: Submodules,
        config: Any,
        layer: int,
        q: Tensor,
        k: Tensor,
        table: Tensor | None,
        sequences: Sequences,
    ) -> Scoring:
        """As of `AbsolutePositions`."""
        assert table is not None
        positions = kernels.RelativePositions(
            sequences.buckets(kernels.t5_buckets), bias=table.to(q.dtype)
        )
        return Scoring(q, k, config.head_dim**-0.5, positions=positions)


POSITIONS: dict[str, AbsolutePositions] = {
    "absolute": AbsolutePositions(),
    "rotary": RotaryPositions(),
    "disentangled": DisentangledPositions(),
    "shared bias": SharedBiasPositions(),
}


def attend(
    modules: Submodules,
    config: EncoderConfig,
    layer: int,
    x: Tensor,
    sequences: Sequences,
    seed: Tensor | None,
    table: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(tokens, hidden) to (tokens, hidden), each sequence by itself, before the output projection;
    and x for the residual beside it, as of `project_beside`.

    Args:
        modules: of the layer.
        layer: its number.
        sequences: where the tokens stand.
        seed: of the dropout; None for none.
        table: what its positions read of the encoder.
    """
    member, heads = member_of(config), config.num_attention_heads
    apart = (modules.query, modules.key, modules.value)
    if modules.query_key_value is not None:
        whole: tuple[Tensor, Tensor] | None = project_beside(modules.query_key_value, x)
    else:
        whole = project_together(apart, x)
    if whole is not None:
        q, k, v = unbind(whole[0].unflatten(1, (3, heads, -1)))
        x = whole[1]
    else:
        q, k, v = (project(projection, x).unflatten(1, (heads, -1)) for projection in apart)
    q, k, scale, window, positions = POSITIONS[member.positions].scoring(
        modules, config, layer, q, k, table, sequences
    )
    p = 0.0 if seed is None else config.attention_probs_dropout_prob
    gaps = sequences.columns is not None and (window is not None or positions is not None)
    if gaps or sequences.visible is not None:
        # Distances over tokens that are left out, or tokens that are not seen: packed batches have
        # neither, and no kernel serves them.
        seed = as_seed(0 if seed is None else seed, q.device)
        context = padded_attention(
            q,
            k,
            v,
            sequences.cu_seqlens,
            seed,
            sequences.max_seqlen,
            scale,
            attention_threshold(p),
            -1 if window is None else window,
            positions,
            sequences.columns,
            sequences.visible,
            blind=member.hides_padding,
        )
        return context.flatten(1), x
    if sequences.blocks is None:
        sequences.blocks = kernels.attention_blocks(q, sequences.cu_seqlens, sequences.max_seqlen)
    context = kernels.attention(
        q,
        k,
        v,
        sequences.cu_seqlens,
        sequences.max_seqlen,
        scale=scale,
        dropout_p=p,
        seed=0 if seed is None else seed,
        window=window,
        positions=positions,
        blocks=sequences.blocks,
    )
    return context.flatten(1), x


def convolve(
    modules: Submodules,
    config: Any,
    embedded: Tensor,
    x: Tensor,
    sequences: Sequences,
    seed: Tensor | None,
) -> Tensor:
    """LN(x + act(dropout(conv(embedded)))): what DeBERTa v2 adds to its first layer, a convolution
    over each sequence by itself.

    embedded, the layer's input, and x, its output, are (tokens, hidden). He et al., the released
    code ("nGiE").
    """
    shape = (len(sequences.cu_seqlens) - 1, sequences.padded_width)
    padded = kernels.unpack(embedded, sequences.rows, shape)
    out = sequences.hide(
        kernels.pack(
            convolved(modules.conv, padded.transpose(1, 2)).transpose(1, 2), sequences.rows
        )
    )
    out = ACTIVATIONS[config.conv_act](dropout(out, config.hidden_dropout_prob, seed))
    return sequences.hide(norm(modules.conv_norm, out, x))
