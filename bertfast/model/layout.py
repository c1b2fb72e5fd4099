"""Where the modules of each member stand in its tree: Hugging Face's names for what the encoder
calls by one name.

The encoder and the heads are written once, over a `View` of a tree of leaf modules (linear layers,
norms, embedding tables). A model of ours makes its leaves at these places; the drop-in backend lays
the same view over a live model of `transformers`. A leaf is looked up at each use, so one that was
exchanged, by an adapter library say, takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bertfast.config import AlbertConfig, EncoderConfig


class View:
    """Modules of a tree under other names; a module that the tree lacks is None.

    Args:
        root: of the tree.
        paths: from the name here to the dotted path below ``root``.
    """

    def __init__(self, root: nn.Module, paths: dict[str, str]) -> None:
        self._homes: dict[str, tuple[nn.Module, str]] = {}
        for name, path in paths.items():
            parent, _, leaf = path.rpartition(".")
            try:
                self._homes[name] = (root.get_submodule(parent), leaf)
            except AttributeError:
                continue

    def __getattr__(self, name: str) -> Any:  # a module with its kind's attributes, or None
        if name.startswith("__"):  # copying and pickling ask for their hooks
            raise AttributeError(name)
        home = self.__dict__["_homes"].get(name)
        return None if home is None else home[0]._modules.get(home[1])

    def names(self) -> list[str]:
        """Of what the tree may hold."""
        return list(self._homes)

    def parameter(self, name: str) -> Tensor:
        """The parameter, not module, at that name's path."""
        home, leaf = self._homes[name]
        return getattr(home, leaf)


def place(root: nn.Module, path: str, leaf: nn.Module | nn.Parameter) -> None:
    """Puts ``leaf`` at a dotted path below ``root``, making the modules between."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root._modules[parent]  # type: ignore[assignment]
    if isinstance(leaf, nn.Parameter):
        root.register_parameter(name, leaf)
    else:
        root.add_module(name, leaf)


@dataclass(frozen=True)
class Layout:
    """The places of one member.

    Attributes:
        base: the encoder's attribute in a model with a head, and the prefix of its weights.
        encoder: what stands outside the layers.
        block: path of a layer, from its number and the configuration.
        parts: of a layer, below it.
        lm: of the masked-LM head: dense, norm, bias, and the decoders that `transformers` ties to
            them.
        classifier, choice: of the heads over the first token, for whole inputs and for multiple
            choice.
        tokens, span: of the heads over every token.
        others: of heads that one class alone has, and of those that were published and are used no
            more.
    """

    base: str
    encoder: dict[str, str]
    parts: dict[str, str]
    lm: dict[str, str]
    block: Callable[[int, EncoderConfig], str] = lambda index, config: f"encoder.layer.{index}"
    classifier: dict[str, str] = field(default_factory=lambda: {"out": "classifier"})
    choice: dict[str, str] = field(default_factory=lambda: {"out": "classifier"})
    tokens: dict[str, str] = field(default_factory=lambda: {"out": "classifier"})
    span: dict[str, str] = field(default_factory=lambda: {"out": "qa_outputs"})
    others: tuple[str, ...] = ()

    @property
    def head_paths(self) -> set[str]:
        """Of every head that the member's checkpoints may have: what a model without that head
        leaves out.
        """
        heads = (self.lm, self.classifier, self.choice, self.tokens, self.span)
        return {path for head in heads for path in head.values()} | set(self.others)


def _albert_block(index: int, config: EncoderConfig) -> str:
    """Layers of one group share their weights, and a group may hold several layers, run one after
    another.
    """
    assert isinstance(config, AlbertConfig)
    turn, inner = divmod(index, config.inner_group_num)
    group = int(turn / (config.num_hidden_layers / config.num_hidden_groups))
    return f"encoder.albert_layer_groups.{group}.albert_layers.{inner}"


_EMBEDDINGS = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "segment": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
}
_POOLER = {"pooler": "pooler.dense"}
_BERT_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}
_BERT_LM = {
    "dense": "cls.predictions.transform.dense",
    "norm": "cls.predictions.transform.LayerNorm",
    "bias": "cls.predictions.bias",
    "decoder": "cls.predictions.decoder",
}
_DENSE_AND_OUT = {"dense": "classifier.dense", "out": "classifier.out_proj"}
_ROBERTA = Layout(
    base="roberta",
    encoder=_EMBEDDINGS | _POOLER,
    parts=_BERT_PARTS,
    lm={
        "dense": "lm_head.dense",
        "norm": "lm_head.layer_norm",
        "bias": "lm_head.bias",
        "decoder": "lm_head.decoder",
    },
    classifier=_DENSE_AND_OUT,
)
_MODERN_HEAD = {"dense": "head.dense", "norm": "head.norm", "out": "classifier"}

# DeBERTa's masked-LM head where the configuration says that it is not the legacy one.
DEBERTA_LM = {
    "dense": "lm_predictions.lm_head.dense",
    "norm": "lm_predictions.lm_head.LayerNorm",
    "bias": "lm_predictions.lm_head.bias",
}

LAYOUTS: dict[str, Layout] = {
    "bert": Layout(
        base="bert",
        encoder=_EMBEDDINGS | _POOLER,
        parts=_BERT_PARTS,
        lm=_BERT_LM,
        others=("cls.seq_relationship",),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "albert": Layout(
        base="albert",
        encoder=_EMBEDDINGS
        | {"pooler": "pooler", "projection": "encoder.embedding_hidden_mapping_in"},
        block=_albert_block,
        parts={
            "query": "attention.query",
            "key": "attention.key",
            "value": "attention.value",
            "attention_output": "attention.dense",
            "attention_norm": "attention.LayerNorm",
            "up": "ffn",
            "down": "ffn_output",
            "output_norm": "full_layer_layer_norm",
        },
        lm={
            "dense": "predictions.dense",
            "norm": "predictions.LayerNorm",
            "bias": "predictions.bias",
            "decoder": "predictions.decoder",
        },
        others=("sop_classifier.classifier",),
    ),
    "distilbert": Layout(
        base="distilbert",
        encoder=_EMBEDDINGS,
        block=lambda index, config: f"transformer.layer.{index}",
        parts={
            "query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "attention_output": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "up": "ffn.lin1",
            "down": "ffn.lin2",
            "output_norm": "output_layer_norm",
        },
        lm={
            "dense": "vocab_transform",
            "norm": "vocab_layer_norm",
            "bias": "vocab_projector.bias",
            "decoder": "vocab_projector",
        },
        classifier={"dense": "pre_classifier", "out": "classifier"},
        choice={"dense": "pre_classifier", "out": "classifier"},
    ),
    "electra": Layout(
        base="electra",
        encoder=_EMBEDDINGS | {"projection": "embeddings_project"},
        parts=_BERT_PARTS,
        lm={
            "dense": "generator_predictions.dense",
            "norm": "generator_predictions.LayerNorm",
            "bias": "generator_lm_head.bias",
            "decoder": "generator_lm_head",
        },
        classifier=_DENSE_AND_OUT,
        choice={"dense": "sequence_summary.summary", "out": "classifier"},
        others=("discriminator_predictions.dense", "discriminator_predictions.dense_prediction"),
    ),
    "deberta-v2": Layout(
        base="deberta",
        encoder=_EMBEDDINGS
        | {
            "projection": "embeddings.embed_proj",
            "relative": "encoder.rel_embeddings",
            "relative_norm": "encoder.LayerNorm",
            "conv": "encoder.conv.conv",
            "conv_norm": "encoder.conv.LayerNorm",
        },
        parts=_BERT_PARTS
        | {
            "query": "attention.self.query_proj",
            "key": "attention.self.key_proj",
            "value": "attention.self.value_proj",
            "position_key": "attention.self.pos_key_proj",
            "position_query": "attention.self.pos_query_proj",
        },
        lm=_BERT_LM,
        others=(
            *DEBERTA_LM.values(),
            "mask_predictions.dense",
            "mask_predictions.LayerNorm",
            "mask_predictions.classifier",
        ),
        classifier={"dense": "pooler.dense", "out": "classifier"},
        choice={"dense": "pooler.dense", "out": "classifier"},
    ),
    "modernbert": Layout(
        base="model",
        encoder={
            "word": "embeddings.tok_embeddings",
            "embedding_norm": "embeddings.norm",
            "final_norm": "final_norm",
        },
        block=lambda index, config: f"layers.{index}",
        parts={
            "attention_norm": "attn_norm",
            "query_key_value": "attn.Wqkv",
            "attention_output": "attn.Wo",
            "output_norm": "mlp_norm",
            "up": "mlp.Wi",
            "down": "mlp.Wo",
        },
        lm={
            "dense": "head.dense",
            "norm": "head.norm",
            "bias": "decoder.bias",
            "decoder": "decoder",
        },
        classifier=_MODERN_HEAD,
        choice=_MODERN_HEAD,
        tokens=_MODERN_HEAD,
        span=_MODERN_HEAD,
    ),
}
