"""A configuration of each member, small enough for tests and with its own ways switched on."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from bertfast.config import (
    AlbertConfig,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    EncoderConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

VOCABULARY = 97
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
MEMBERS: dict[type[EncoderConfig], dict[str, Any]] = {
    BertConfig: {},
    RobertaConfig: {"type_vocab_size": 1},
    XLMRobertaConfig: {"type_vocab_size": 1},
    CamembertConfig: {"type_vocab_size": 1},
    MPNetConfig: {},
    AlbertConfig: {
        "embedding_size": 16,
        "num_hidden_layers": 4,
        "num_hidden_groups": 2,
        "inner_group_num": 2,
    },
    DistilBertConfig: {},
    ElectraConfig: {"embedding_size": 16},
    DebertaV2Config: {
        "relative_attention": True,
        "position_buckets": 8,
        "max_relative_positions": 16,
        "pos_att_type": ("c2p", "p2c"),
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    ModernBertConfig: {"num_hidden_layers": 4, "local_attention": 8, "pad_token_id": 0},
}


def small(config_class: type[EncoderConfig], **overrides: Any) -> Any:
    """That member's, without dropout."""
    rates = {f.name: 0.0 for f in fields(config_class) if "dropout" in f.name}
    return config_class(**{**rates, **SHAPE, **MEMBERS[config_class], **overrides})
