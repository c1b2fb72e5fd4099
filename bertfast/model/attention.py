"""Self-attention on packed sequences: the projections, what each member knows of positions, and the
op. Vaswani et al., section 3.2.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from bertfast import kernels
from bertfast.config import DebertaV2Config, EncoderConfig, ModernBertConfig
from bertfast.kernels import reference
from bertfast.kernels.philox import as_seed, dropout_threshold
from bertfast.packed import padded_rows

from .layout import View
from .leaves import ACTIVATIONS, dropout, norm, project


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
    """

    cu_seqlens: Tensor
    max_seqlen: int
    position_ids: Tensor
    positions: int
    columns: Tensor | None = None
    width: int = 0
    visible: Tensor | None = None
    tables: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)

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
        """The tables of `kernels.rotary`, made once a forward."""
        if theta not in self.tables:
            self.tables[theta] = kernels.rotary_tables(
                self.positions, head_dim, theta, self.position_ids.device
            )
        return self.tables[theta]


def make_attention(config: EncoderConfig) -> dict[str, nn.Module]:
    """The leaves of a layer's attention."""
    width = config.hidden_size
    if isinstance(config, ModernBertConfig):
        bias = config.attention_bias
        return {
            "query_key_value": nn.Linear(width, 3 * width, bias=bias),
            "attention_output": nn.Linear(width, width, bias=bias),
        }
    leaves: dict[str, nn.Module] = {
        name: nn.Linear(width, width) for name in ("query", "key", "value")
    }
    if (
        isinstance(config, DebertaV2Config)
        and config.relative_attention
        and not config.share_att_key
    ):
        for name, kind in (("position_key", "c2p"), ("position_query", "p2c")):
            if kind in config.pos_att_type:
                leaves[name] = nn.Linear(width, width)
    return leaves | {"attention_output": nn.Linear(width, width)}


def attend(
    parts: View,
    config: EncoderConfig,
    layer: int,
    x: Tensor,
    sequences: Sequences,
    seed: Tensor | None,
    relative: Tensor | None = None,
) -> Tensor:
    """(tokens, hidden) to (tokens, hidden), each sequence by itself, before the output projection.

    Args:
        parts: of the layer.
        layer: its number.
        sequences: where the tokens stand.
        seed: of the dropout; None for none.
        relative: DeBERTa's (2 * span, hidden) embeddings of distances.
    """
    heads = config.num_attention_heads
    if parts.query_key_value is not None:
        q, k, v = project(parts.query_key_value, x).unflatten(1, (3, heads, -1)).unbind(1)
    else:
        q, k, v = (
            project(part, x).unflatten(1, (heads, -1))
            for part in (parts.query, parts.key, parts.value)
        )
    window, positions, scale = None, None, config.head_dim**-0.5
    if isinstance(config, ModernBertConfig):
        window = config.window(layer)
        theta = config.global_rope_theta if window is None else config.local_rope_theta
        q, k = kernels.rotary(
            q, k, sequences.position_ids, *sequences.rotation(config.head_dim, theta)
        )
    elif isinstance(config, DebertaV2Config):
        scale = (config.head_dim * (1 + len(set(config.pos_att_type)))) ** -0.5
        if relative is not None:
            positions = _disentangled(parts, config, q, k, relative, scale, sequences)
    p = 0.0 if seed is None else config.attention_probs_dropout_prob
    gaps = sequences.columns is not None and (window is not None or positions is not None)
    if gaps or sequences.visible is not None:
        # Distances over tokens that are left out, or tokens that are not seen: packed batches have
        # neither, so only the specification has them.
        seed = as_seed(0 if seed is None else seed, q.device)
        return reference.attention(
            q,
            k,
            v,
            sequences.cu_seqlens,
            seed,
            sequences.max_seqlen,
            scale,
            dropout_threshold(p),
            -1 if window is None else window,
            positions,
            sequences.columns,
            sequences.visible,
            blind=isinstance(config, DebertaV2Config),
        ).flatten(1)
    return kernels.attention(
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
    ).flatten(1)


def relative_embeddings(parts: View, config: EncoderConfig) -> Tensor | None:
    """DeBERTa's (2 * span, hidden) embeddings of distances, normalised where the checkpoint has it
    so; None without relative attention.
    """
    if not isinstance(config, DebertaV2Config) or parts.relative is None:
        return None
    table: Tensor = parts.relative.weight
    if parts.relative_norm is not None and "layer_norm" in config.norm_rel_ebd:
        table = parts.relative_norm(table)
    return table[: 2 * config.relative_span]


def _disentangled(
    parts: View,
    config: DebertaV2Config,
    q: Tensor,
    k: Tensor,
    relative: Tensor,
    scale: float,
    sequences: Sequences,
) -> kernels.RelativePositions:
    """The content-to-position and position-to-content scores. He et al., "DeBERTa", section 3.1,
    equation 4.
    """
    key, query = (
        (parts.key, parts.query)
        if config.share_att_key
        else (parts.position_key, parts.position_query)
    )
    scores: dict[str, Tensor | None] = {"c2p": None, "p2c": None}
    for kind, leaf, content in (("c2p", key, q), ("p2c", query, k)):
        if kind in config.pos_att_type:
            assert leaf is not None
            table = leaf(relative).unflatten(1, (config.num_attention_heads, -1))
            scores[kind] = torch.einsum("thd,bhd->thb", content * scale, table.to(content.dtype))
    buckets = kernels.deberta_buckets(
        sequences.padded_width, config.position_buckets, config.max_relative_distance
    )
    return kernels.RelativePositions(
        buckets.to(q.device), query_scores=scores["c2p"], key_scores=scores["p2c"]
    )


def convolve(
    parts: View,
    config: EncoderConfig,
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
    assert isinstance(config, DebertaV2Config)
    shape = (len(sequences.cu_seqlens) - 1, sequences.padded_width)
    padded = kernels.unpack(embedded, sequences.rows, shape)
    out = sequences.hide(
        kernels.pack(parts.conv(padded.transpose(1, 2)).transpose(1, 2), sequences.rows)
    )
    out = ACTIVATIONS[config.conv_act](dropout(out, config.hidden_dropout_prob, seed))
    return sequences.hide(norm(parts.conv_norm, out, x))
