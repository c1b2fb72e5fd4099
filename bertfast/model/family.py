"""What each member of the family is made of: one table, a row a member.

A row names the modules of the member's encoder and heads in the order in which they are made. It
also says where each stands in Hugging Face's tree. That serves our models, `accelerate` and the
checkpoints alike. What a member's forward does otherwise is said here too; the code that does it
asks for the way, never for the member.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

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


class Field(str):
    """The name of a field or property of the configuration, whose value is meant."""

    __slots__ = ()


ACTIVATION, WORD_WIDTH = Field("hidden_act"), Field("embedding_width")
HEAD_DROPOUT, HIDDEN_DROPOUT = Field("head_dropout"), Field("hidden_dropout_prob")
ATTENTION_DROPOUT = Field("attention_probs_dropout_prob")
_BERT_DROPOUTS = {
    "attention.self.dropout": ATTENTION_DROPOUT,
    "attention.output.dropout": HIDDEN_DROPOUT,
    "output.dropout": HIDDEN_DROPOUT,
}


def value(config: EncoderConfig, entry: Any) -> Any:
    """An entry of a row: the configuration's value of a `Field`, anything else as it stands."""
    return getattr(config, entry) if isinstance(entry, Field) else entry


@dataclass(frozen=True)
class ModuleSpec:
    """One module of a row.

    Attributes:
        path: in Hugging Face's tree, below the encoder or below a layer.
        make: the module for a configuration.
        when: the field or property that says whether the module is there; none for always.
        in_first: False for what the first layer alone goes without.
    """

    path: str
    make: Callable[[Any], nn.Module]
    when: Field | None = None
    in_first: bool = True

    def is_in(self, config: EncoderConfig, first: bool = False) -> bool:
        """Whether an encoder of this configuration, or its first layer, has the module."""
        return (self.in_first or not first) and bool(self.when is None or value(config, self.when))


def linear(
    inputs: str, outputs: str, bias: bool | Field = True, times: int = 1
) -> Callable[[Any], nn.Module]:
    """A linear layer between two widths of the configuration, ``times`` of them side by side."""
    return lambda config: nn.Linear(
        getattr(config, inputs), times * getattr(config, outputs), bias=value(config, bias)
    )


def layer_norm(width: str = "hidden_size") -> Callable[[Any], nn.Module]:
    """A LayerNorm over a width of the configuration."""
    return lambda config: nn.LayerNorm(
        getattr(config, width), eps=config.layer_norm_eps, bias=config.norm_bias
    )


def embedding(rows: str, width: str, padding: Field | None = None) -> Callable[[Any], nn.Module]:
    """A table of so many rows, of which the one for padding takes no gradient."""
    return lambda config: nn.Embedding(
        getattr(config, rows), getattr(config, width), padding_idx=value(config, padding)
    )


def convolution(config: DebertaV2Config) -> nn.Module:
    """DeBERTa's convolution, as wide as the input on both sides."""
    width, size = config.hidden_size, config.conv_kernel_size
    return nn.Conv1d(width, width, size, padding=size // 2, groups=config.conv_groups)


@dataclass(frozen=True)
class MaskedLMSpec:
    """A masked-LM head: LN(act(dense(x))), and a decoder that is the word table with a bias.

    Attributes:
        dense, norm, bias: their paths.
        decoder: the path of what `transformers` ties to the word table and the bias.
        activation: its name, or the `Field` that holds the name; likewise the others.
        dense_bias, decoder_bias: whether there are these biases.
        width: what dense gives.
    """

    dense: str
    norm: str
    bias: str
    decoder: str | None = None
    activation: str | Field = ACTIVATION
    dense_bias: bool | Field = True
    decoder_bias: bool | Field = True
    width: Field = WORD_WIDTH

    @property
    def paths(self) -> dict[str, str]:
        """Name to path of what there is."""
        paths = {"dense": self.dense, "norm": self.norm, "bias": self.bias}
        return paths if self.decoder is None else paths | {"decoder": self.decoder}


@dataclass(frozen=True)
class HeadSpec:
    """A head over one row a sequence or a token: out(dropout(norm(act(dense(dropout(x)))))).

    Attributes:
        out, dense, norm: their paths; one that is None is left out.
        activation: its name, or the `Field` that holds the name; "" for none. Likewise the others.
        has_dense: whether dense is there; the activation stands without it too.
        dense_bias: whether dense has a bias.
        dense_dropout, dropout: rates before dense and before out.
        pooled: whether the head reads the pooler's output, not the first token's.
    """

    out: str
    dense: str | None = None
    norm: str | None = None
    activation: str | Field = ""
    has_dense: bool | Field = True
    dense_bias: bool | Field = True
    dense_dropout: float | Field = 0.0
    dropout: float | Field = HEAD_DROPOUT
    pooled: bool = False

    @property
    def paths(self) -> dict[str, str]:
        """Name to path of what there may be."""
        paths = {"dense": self.dense, "norm": self.norm, "out": self.out}
        return {name: path for name, path in paths.items() if path is not None}


@dataclass(frozen=True)
class Member:
    """A row: what one member is made of, and what its forward does otherwise.

    Attributes:
        config: the class of its configuration.
        base: the encoder's attribute in a model with a head, and the prefix of its weights.
        modules: of the encoder outside its layers, by the name that our forward has for each.
        layer: of a layer, with paths below it.
        tokenizer: the class of its tokenizer in `transformers`, where a folder's files name none:
            it says how text is cleaned and framed.
        layer_path: a layer's path, from its number and the configuration.
        lm: the masked-LM head.
        lm_otherwise: a field and the masked-LM head where that field is false; None for one alone.
        sequence, token, span, choice: the heads for whole inputs, for each token, for the first and
            last token of an answer, and for multiple choice. None is as for whole inputs.
        other_heads: paths of heads that one class alone has, and of those that were published and
            are used no more.
        positions: what attention knows of positions, a name in `attention.POSITIONS`.
        pre_norm: LayerNorms stand before the attention and the feed-forward, not past them.
        gated: the feed-forward multiplies the half that is activated with the other half.
        projects_first: embeddings are projected before their LayerNorm, not past it.
        hides_padding: padding that is kept is zeros past the embeddings, and sees nothing.
        float_labels: the loss for labels that are no class each, of a classifier whose
            configuration names no problem. It is "each" for a binary one of each, "distribution"
            for their cross-entropy.
        deviations: of initial weights, by the end of a module's path, where initializer_range is
            not meant.
        output: the class of what the base model in `transformers` returns.
        dropouts: paths of its dropouts outside the layers, with the fields that are their rates.
        layer_dropouts: the same below a layer.
        activation: path of the activation below a layer.
    """

    config: type[EncoderConfig]
    base: str
    modules: dict[str, ModuleSpec]
    layer: dict[str, ModuleSpec]
    lm: MaskedLMSpec
    sequence: HeadSpec
    choice: HeadSpec | None = None
    token: HeadSpec = HeadSpec("classifier")
    span: HeadSpec = HeadSpec("qa_outputs", dropout=Field("qa_dropout"))
    tokenizer: str = "BertTokenizer"
    layer_path: Callable[[int, Any], str] = lambda index, config: f"encoder.layer.{index}"
    lm_otherwise: tuple[Field, MaskedLMSpec] | None = None
    other_heads: tuple[str, ...] = ()
    positions: str = "absolute"
    pre_norm: bool = False
    gated: bool = False
    projects_first: bool = False
    hides_padding: bool = False
    float_labels: str = "each"
    deviations: dict[str, Field] = field(default_factory=dict)
    output: str = "BaseModelOutput"
    dropouts: dict[str, Field] = field(
        default_factory=lambda: {"embeddings.dropout": HIDDEN_DROPOUT}
    )
    layer_dropouts: dict[str, Field] = field(default_factory=lambda: _BERT_DROPOUTS)
    activation: str = "intermediate.intermediate_act_fn"

    @property
    def name(self) -> str:
        """What the names of its classes begin with."""
        return self.config.__name__.removesuffix("Config")

    @property
    def modelling_file(self) -> str:
        """The module of `transformers` that has its classes."""
        folder = self.config.model_type.replace("-", "_")
        return f"transformers.models.{folder}.modeling_{folder}"

    @property
    def choice_head(self) -> HeadSpec:
        """The head for multiple choice."""
        return self.sequence if self.choice is None else self.choice

    @property
    def module_paths(self) -> dict[str, str]:
        """Name to path of what stands outside the layers."""
        return {name: spec.path for name, spec in self.modules.items()}

    @property
    def layer_paths(self) -> dict[str, str]:
        """Name to path, below a layer, of what stands in it."""
        return {name: spec.path for name, spec in self.layer.items()}

    @property
    def head_paths(self) -> set[str]:
        """Paths of every head that the member's checkpoints may have: what a model without that
        head leaves out.
        """
        heads: list[MaskedLMSpec | HeadSpec]
        heads = [self.lm, self.sequence, self.choice_head, self.token, self.span]
        if self.lm_otherwise is not None:
            heads.append(self.lm_otherwise[1])
        return {path for head in heads for path in head.paths.values()} | set(self.other_heads)

    def masked_lm(self, config: EncoderConfig) -> MaskedLMSpec:
        """The masked-LM head that a configuration asks for."""
        if self.lm_otherwise is None or value(config, self.lm_otherwise[0]):
            return self.lm
        return self.lm_otherwise[1]


def _albert_layer(index: int, config: AlbertConfig) -> str:
    """Layers of one group share their weights, and a group may hold several layers, run one after
    another.
    """
    turn, inner = divmod(index, config.inner_group_num)
    group = int(turn / (config.num_hidden_layers / config.num_hidden_groups))
    return f"encoder.albert_layer_groups.{group}.albert_layers.{inner}"


WIDTH, INNER = "hidden_size", "intermediate_size"
SQUARE = linear(WIDTH, WIDTH)
WORDS = embedding("vocab_size", WORD_WIDTH, Field("padding_row"))
POSITIONS = embedding("max_position_embeddings", WORD_WIDTH, Field("padding_position"))
SEGMENTS = embedding("type_vocab_size", WORD_WIDTH)

_EMBEDDINGS = {
    "word": ModuleSpec("embeddings.word_embeddings", WORDS),
    "embedding_norm": ModuleSpec("embeddings.LayerNorm", layer_norm(WORD_WIDTH)),
    "position": ModuleSpec("embeddings.position_embeddings", POSITIONS),
    "segment": ModuleSpec(
        "embeddings.token_type_embeddings", SEGMENTS, when=Field("type_vocab_size")
    ),
}
_POOLER = {"pooler": ModuleSpec("pooler.dense", SQUARE)}


def _layer(
    query: str = "attention.self.query",
    key: str = "attention.self.key",
    value: str = "attention.self.value",
    output: str = "attention.output.dense",
    attention_norm: str = "attention.output.LayerNorm",
    output_norm: str = "output.LayerNorm",
    up: str = "intermediate.dense",
    down: str = "output.dense",
    between: dict[str, ModuleSpec] | None = None,
) -> dict[str, ModuleSpec]:
    """The layer of Devlin et al., section 3, from the paths of its modules; ``between`` are others,
    made past the projections.
    """
    return {
        "query": ModuleSpec(query, SQUARE),
        "key": ModuleSpec(key, SQUARE),
        "value": ModuleSpec(value, SQUARE),
        **(between or {}),
        "attention_output": ModuleSpec(output, SQUARE),
        "attention_norm": ModuleSpec(attention_norm, layer_norm()),
        "output_norm": ModuleSpec(output_norm, layer_norm()),
        "up": ModuleSpec(up, linear(WIDTH, INNER)),
        "down": ModuleSpec(down, linear(INNER, WIDTH)),
    }


_BERT_LM = MaskedLMSpec(
    dense="cls.predictions.transform.dense",
    norm="cls.predictions.transform.LayerNorm",
    bias="cls.predictions.bias",
    decoder="cls.predictions.decoder",
)

BERT = Member(
    config=BertConfig,
    base="bert",
    modules=_EMBEDDINGS | _POOLER,
    layer=_layer(),
    lm=_BERT_LM,
    sequence=HeadSpec("classifier", pooled=True),
    other_heads=("cls.seq_relationship",),
    output="BaseModelOutputWithPoolingAndCrossAttentions",
)

ROBERTA = Member(
    config=RobertaConfig,
    base="roberta",
    tokenizer="RobertaTokenizer",
    modules=_EMBEDDINGS | _POOLER,
    layer=_layer(),
    lm=MaskedLMSpec(
        dense="lm_head.dense",
        norm="lm_head.layer_norm",
        bias="lm_head.bias",
        decoder="lm_head.decoder",
        activation="gelu",
    ),
    sequence=HeadSpec(
        dense="classifier.dense",
        out="classifier.out_proj",
        activation="tanh",
        dense_dropout=HEAD_DROPOUT,
    ),
    choice=HeadSpec("classifier", dropout=HIDDEN_DROPOUT, pooled=True),
    output="BaseModelOutputWithPoolingAndCrossAttentions",
)
XLM_ROBERTA = replace(ROBERTA, config=XLMRobertaConfig, tokenizer="XLMRobertaTokenizer")
CAMEMBERT = replace(ROBERTA, config=CamembertConfig, tokenizer="CamembertTokenizer")

MPNET = replace(
    ROBERTA,
    config=MPNetConfig,
    base="mpnet",
    tokenizer="MPNetTokenizer",
    modules={
        **{name: spec for name, spec in _EMBEDDINGS.items() if name != "segment"},
        "relative_bias": ModuleSpec(
            "encoder.relative_attention_bias",
            embedding("relative_attention_num_buckets", "num_attention_heads"),
        ),
        **_POOLER,
    },
    layer=_layer(
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        output="attention.attn.o",
        attention_norm="attention.LayerNorm",
    ),
    positions="shared bias",
    output="BaseModelOutputWithPooling",
    layer_dropouts={
        "attention.attn.dropout": ATTENTION_DROPOUT,
        "attention.dropout": HIDDEN_DROPOUT,
        "output.dropout": HIDDEN_DROPOUT,
    },
)

ALBERT = Member(
    config=AlbertConfig,
    base="albert",
    tokenizer="AlbertTokenizer",
    modules=_EMBEDDINGS
    | {
        "projection": ModuleSpec(
            "encoder.embedding_hidden_mapping_in", linear("embedding_size", WIDTH)
        ),
        "pooler": ModuleSpec("pooler", SQUARE),
    },
    layer_path=_albert_layer,
    layer=_layer(
        query="attention.query",
        key="attention.key",
        value="attention.value",
        output="attention.dense",
        attention_norm="attention.LayerNorm",
        output_norm="full_layer_layer_norm",
        up="ffn",
        down="ffn_output",
    ),
    lm=MaskedLMSpec(
        dense="predictions.dense",
        norm="predictions.LayerNorm",
        bias="predictions.bias",
        decoder="predictions.decoder",
    ),
    sequence=HeadSpec("classifier", pooled=True),
    other_heads=("sop_classifier.classifier",),
    output="BaseModelOutputWithPooling",
    layer_dropouts={
        "attention.attention_dropout": ATTENTION_DROPOUT,
        "attention.output_dropout": HIDDEN_DROPOUT,
    },
    activation="activation",
)

DISTILBERT = Member(
    config=DistilBertConfig,
    base="distilbert",
    modules=_EMBEDDINGS,
    layer_path=lambda index, config: f"transformer.layer.{index}",
    layer=_layer(
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        attention_norm="sa_layer_norm",
        output_norm="output_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
    ),
    lm=MaskedLMSpec(
        dense="vocab_transform",
        norm="vocab_layer_norm",
        bias="vocab_projector.bias",
        decoder="vocab_projector",
    ),
    sequence=HeadSpec("classifier", dense="pre_classifier", activation="relu"),
    token=HeadSpec("classifier", dropout=HIDDEN_DROPOUT),
    layer_dropouts={"attention.dropout": ATTENTION_DROPOUT, "ffn.dropout": HIDDEN_DROPOUT},
    activation="ffn.activation",
)

ELECTRA = Member(
    config=ElectraConfig,
    base="electra",
    modules=_EMBEDDINGS
    | {
        "projection": ModuleSpec(
            "embeddings_project", linear("embedding_size", WIDTH), when=Field("is_factorised")
        )
    },
    layer=_layer(),
    lm=MaskedLMSpec(
        dense="generator_predictions.dense",
        norm="generator_predictions.LayerNorm",
        bias="generator_lm_head.bias",
        decoder="generator_lm_head",
        activation="gelu",
    ),
    sequence=HeadSpec(
        dense="classifier.dense",
        out="classifier.out_proj",
        activation="gelu",
        dense_dropout=HEAD_DROPOUT,
    ),
    choice=HeadSpec(
        "classifier",
        dense="sequence_summary.summary",
        has_dense=Field("summary_use_proj"),
        activation=Field("summary_activation"),
        dropout=Field("summary_last_dropout"),
    ),
    other_heads=("discriminator_predictions.dense", "discriminator_predictions.dense_prediction"),
    output="BaseModelOutputWithPastAndCrossAttentions",
)

DEBERTA_V2 = Member(
    config=DebertaV2Config,
    base="deberta",
    tokenizer="DebertaV2Tokenizer",
    modules=_EMBEDDINGS
    | {
        "embedding_norm": ModuleSpec("embeddings.LayerNorm", layer_norm()),
        "position": ModuleSpec(
            "embeddings.position_embeddings", POSITIONS, when=Field("position_biased_input")
        ),
        "projection": ModuleSpec(
            "embeddings.embed_proj",
            linear(WORD_WIDTH, WIDTH, bias=False),
            when=Field("is_factorised"),
        ),
        "relative": ModuleSpec(
            "encoder.rel_embeddings",
            embedding("relative_rows", WIDTH),
            when=Field("relative_attention"),
        ),
        "relative_norm": ModuleSpec(
            "encoder.LayerNorm", layer_norm(), when=Field("has_relative_norm")
        ),
        "conv": ModuleSpec("encoder.conv.conv", convolution, when=Field("conv_kernel_size")),
        "conv_norm": ModuleSpec(
            "encoder.conv.LayerNorm", layer_norm(), when=Field("conv_kernel_size")
        ),
    },
    layer=_layer(
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        between={
            "position_key": ModuleSpec(
                "attention.self.pos_key_proj", SQUARE, when=Field("has_position_key")
            ),
            "position_query": ModuleSpec(
                "attention.self.pos_query_proj", SQUARE, when=Field("has_position_query")
            ),
        },
    ),
    lm=_BERT_LM,
    lm_otherwise=(
        Field("legacy"),
        MaskedLMSpec(
            dense="lm_predictions.lm_head.dense",
            norm="lm_predictions.lm_head.LayerNorm",
            bias="lm_predictions.lm_head.bias",
            width=Field("hidden_size"),
        ),
    ),
    sequence=HeadSpec(
        "classifier",
        dense="pooler.dense",
        activation=Field("pooler_hidden_act"),
        dense_dropout=Field("pooler_dropout"),
    ),
    token=HeadSpec("classifier", dropout=HIDDEN_DROPOUT),
    other_heads=(
        "mask_predictions.dense",
        "mask_predictions.LayerNorm",
        "mask_predictions.classifier",
    ),
    positions="disentangled",
    projects_first=True,
    hides_padding=True,
    float_labels="distribution",
    dropouts={"embeddings.dropout": HIDDEN_DROPOUT, "encoder.conv.dropout": HIDDEN_DROPOUT},
    layer_dropouts=_BERT_DROPOUTS | {"attention.self.pos_dropout": HIDDEN_DROPOUT},
)

_MODERNBERT_HEAD = HeadSpec(
    "classifier",
    dense="head.dense",
    norm="head.norm",
    activation=Field("classifier_activation"),
    dense_bias=Field("classifier_bias"),
)
MODERNBERT = Member(
    config=ModernBertConfig,
    base="model",
    tokenizer="PreTrainedTokenizerFast",
    modules={
        "word": ModuleSpec("embeddings.tok_embeddings", WORDS),
        "embedding_norm": ModuleSpec("embeddings.norm", layer_norm()),
        "final_norm": ModuleSpec("final_norm", layer_norm()),
    },
    layer_path=lambda index, config: f"layers.{index}",
    layer={
        "query_key_value": ModuleSpec(
            "attn.Wqkv", linear(WIDTH, WIDTH, bias=Field("attention_bias"), times=3)
        ),
        "attention_output": ModuleSpec(
            "attn.Wo", linear(WIDTH, WIDTH, bias=Field("attention_bias"))
        ),
        # The embeddings' norm stands right before the first layer.
        "attention_norm": ModuleSpec("attn_norm", layer_norm(), in_first=False),
        "output_norm": ModuleSpec("mlp_norm", layer_norm()),
        "up": ModuleSpec("mlp.Wi", linear(WIDTH, INNER, bias=Field("mlp_bias"), times=2)),
        "down": ModuleSpec("mlp.Wo", linear(INNER, WIDTH, bias=Field("mlp_bias"))),
    },
    lm=MaskedLMSpec(
        dense="head.dense",
        norm="head.norm",
        bias="decoder.bias",
        decoder="decoder",
        activation=Field("classifier_activation"),
        dense_bias=Field("classifier_bias"),
        decoder_bias=Field("decoder_bias"),
    ),
    sequence=_MODERNBERT_HEAD,
    token=_MODERNBERT_HEAD,
    span=_MODERNBERT_HEAD,
    positions="rotary",
    pre_norm=True,
    gated=True,
    deviations={
        "Wo": Field("residual_deviation"),
        "head.dense": Field("residual_deviation"),
        "classifier": Field("classifier_deviation"),
    },
    dropouts={"embeddings.drop": HIDDEN_DROPOUT},
    layer_dropouts={
        "attn": ATTENTION_DROPOUT,
        "attn.out_drop": ATTENTION_DROPOUT,
        "mlp.drop": Field("mlp_dropout"),
    },
    activation="mlp.act",
)

# By the model_type of a config.json.
FAMILY: dict[str, Member] = {
    member.config.model_type: member
    for member in (
        BERT,
        ROBERTA,
        XLM_ROBERTA,
        CAMEMBERT,
        MPNET,
        ALBERT,
        DISTILBERT,
        ELECTRA,
        DEBERTA_V2,
        MODERNBERT,
    )
}


def member_of(config: EncoderConfig) -> Member:
    """The row of a configuration's member."""
    return FAMILY[config.model_type]
