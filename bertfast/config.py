"""The configurations of the family: Hugging Face's field names, checked when they are made, with
the published presets.

`EncoderConfig` holds what every member has. A member's own class adds its fields and its defaults.
They are those of `transformers`, so that a ``config.json`` that leaves a field out means the same
here.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from .errors import BertfastError
from .files import MissingFileError, read_object

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
POOLINGS = ("cls", "mean")
# The most that a field may ask for, far beyond what was ever published: a file of one line cannot
# take the machine.
MOST_LAYERS = 1024
MOST_WIDTH = 1 << 18
MOST_ROWS = 1 << 24
MOST_LABELS = 1 << 20
TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
}


@dataclass(frozen=True)
class EncoderConfig:
    """Shape and rates of an encoder, under the names of Hugging Face's ``config.json`` for BERT.

    Raises:
        BertfastError: a field out of range, or fields that contradict one another.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    classifier_dropout: float | None = None
    problem_type: str | None = None
    id2label: dict[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})

    model_type: ClassVar[str] = ""
    # Of the fields that the member's config.json calls otherwise.
    json_names: ClassVar[dict[str, str]] = {}
    # Whether the member's files may ask for another kind of positions; those of the others hold
    # anything under that name.
    has_position_embedding_type: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for f in fields(self):
            self._check_type(f.name, str(f.type))
        for name in ("hidden_size", "num_attention_heads", "intermediate_size"):
            self._check_whole(name, 1, MOST_WIDTH)
        self._check_whole("num_hidden_layers", 1, MOST_LAYERS)
        self._check_whole("vocab_size", 1)
        self._check_whole("max_position_embeddings", 1)
        self._check_whole("type_vocab_size", 0)
        if self.hidden_size % self.num_attention_heads:
            raise BertfastError(
                f"config: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        for name in (f.name for f in fields(self) if "dropout" in f.name):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise BertfastError(
                    f"config: {self._label(name)} is {value!r}; it must be at least 0 and below 1"
                )
        for name in ("initializer_range", "layer_norm_eps"):
            self._check_positive(name)
        self._check_choice("hidden_act", ACTIVATIONS)
        pad = self.pad_token_id
        if pad is not None and not 0 <= pad < self.vocab_size:
            raise BertfastError(
                f"config: pad_token_id is {pad!r}, outside the vocabulary of {self.vocab_size}"
            )
        if self.problem_type is not None:
            self._check_choice("problem_type", PROBLEM_TYPES)
        if len(self.id2label) > MOST_LABELS:
            raise BertfastError(
                f"config: there are {len(self.id2label)} labels; "
                f"at most {MOST_LABELS} are supported"
            )
        if sorted(self.id2label) != list(range(len(self.id2label))) or not self.id2label:
            raise BertfastError("config: id2label must name the labels 0, 1, 2, ... without a gap")

    def _label(self, name: str) -> str:
        """A field's name, and what the member's config.json calls it where that is another."""
        other = self.json_names.get(name)
        return f"{name} ({other})" if other else name

    def _check_type(self, name: str, annotation: str) -> None:
        """Of the fields that are plain values; what the others hold is checked where it is read."""
        kind, _, optional = annotation.partition(" | ")
        value = getattr(self, name)
        if kind not in TYPES or (value is None and optional):
            return
        if not isinstance(value, TYPES[kind]) or isinstance(value, bool) != (kind == "bool"):
            raise BertfastError(
                f"config: {self._label(name)} is {value!r}; it must be of type {kind}"
            )
        if kind == "float":  # transformers 5 takes no 1 where it wants 1.0
            try:
                object.__setattr__(self, name, float(getattr(self, name)))
            except OverflowError:
                raise BertfastError(
                    f"config: {self._label(name)} is beyond the largest number"
                ) from None

    def _check_whole(self, name: str, least: int, most: int = MOST_ROWS) -> None:
        value = getattr(self, name)
        if value < least:
            raise BertfastError(
                f"config: {self._label(name)} is {_shown(value)}; it must be a whole number of at "
                f"least {least}"
            )
        if value > most:
            raise BertfastError(
                f"config: {self._label(name)} is {_shown(value)}; it must be at most {most}"
            )

    def _check_positive(self, name: str) -> None:
        value = getattr(self, name)
        if not 0 < value < float("inf"):
            raise BertfastError(f"config: {self._label(name)} is {value!r}; it must be above 0")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise BertfastError(
                f"config: {self._label(name)} is {value!r}; supported are {', '.join(choices)}"
            )

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def embedding_width(self) -> int:
        """Width of the word embeddings; a projection follows where it is not hidden_size."""
        return getattr(self, "embedding_size", None) or self.hidden_size

    @property
    def is_factorised(self) -> bool:
        """Whether the word embeddings are of another width than the layers."""
        return self.embedding_width != self.hidden_size

    @property
    def padding_row(self) -> int | None:
        """The row of the word table that takes no gradient."""
        return self.pad_token_id

    @property
    def position_offset(self) -> int:
        """Row of the position table for the first token of a sequence."""
        return 0

    @property
    def padding_position(self) -> int | None:
        """The row of the position table that takes no gradient, the last before the offset."""
        return self.position_offset - 1 if self.position_offset else None

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that there are positions for; None for no limit."""
        return self.max_length

    @property
    def max_length(self) -> int:
        """Tokens of the longest input to make: as many as the model was made for."""
        return self.max_position_embeddings - self.position_offset

    @property
    def attention_output_dropout(self) -> float:
        """Of the dropout before the attention's residual."""
        return self.hidden_dropout_prob

    @property
    def feed_forward_dropout(self) -> float:
        """Of the dropout before the feed-forward's residual."""
        return self.hidden_dropout_prob

    @property
    def head_dropout(self) -> float:
        """Of the dropouts in a classification head."""
        return (
            self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout
        )

    @property
    def qa_dropout(self) -> float:
        """Of the dropout before the layer that scores an answer's ends."""
        return 0.0

    @property
    def norm_bias(self) -> bool:
        """Whether LayerNorms have a bias."""
        return True

    @property
    def inner_group_num(self) -> int:
        """How many layers a turn through a layer's weights runs."""
        return 1

    @property
    def initializer_cutoff_factor(self) -> float:
        """At how many deviations the initial weights' normal is cut off."""
        return 2.0

    @property
    def classifier_pooling(self) -> str:
        """What a classifier reads: "cls", the first token, or "mean", the mean of all."""
        return "cls"

    @property
    def num_labels(self) -> int:
        """How many labels the classification head has."""
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        """The inverse of id2label."""
        return {label: index for index, label in self.id2label.items()}

    def with_labels(self, labels: list[str]) -> Self:
        """This configuration with these label names, in order."""
        return replace(self, id2label=dict(enumerate(labels)))

    def overridden(self, **changes: Any) -> Self:
        """This configuration with fields changed, under their names here or in the member's
        config.json.

        Beside the fields there are ``num_labels``, which names the labels LABEL_0 and on unless
        there are so many already, and ``label2id``, the inverse of ``id2label``.

        Raises:
            BertfastError: a name that is no field, or a value out of range.
        """
        names = {f.name: f.name for f in fields(self)}
        names |= {other: name for name, other in self.json_names.items()}
        labels = {name: changes.pop(name, None) for name in ("num_labels", "id2label", "label2id")}
        unknown = [name for name in changes if name not in names]
        if unknown:
            known = sorted({*names, *labels})
            raise BertfastError(
                f"{', '.join(unknown)}: no such option, nor a field of {type(self).__name__}, "
                f"whose fields are {', '.join(known)}"
            )
        kept: dict[str, Any] = {}
        for name, value in changes.items():
            kept[names[name]] = tuple(value) if isinstance(value, list) else value
        try:
            if labels["id2label"] is not None:
                kept["id2label"] = {int(i): str(label) for i, label in labels["id2label"].items()}
            if labels["label2id"] is not None:
                inverse = {int(i): str(label) for label, i in labels["label2id"].items()}
                if kept.setdefault("id2label", inverse) != inverse:
                    raise ValueError("label2id is not its inverse")
        except (AttributeError, TypeError, ValueError) as error:
            raise BertfastError(
                "config: id2label must map whole numbers to names, "
                f"label2id the names to them ({error})"
            ) from None
        count = labels["num_labels"]
        if count is not None:
            if (
                isinstance(count, bool)
                or not isinstance(count, int)
                or not 1 <= count <= MOST_LABELS
            ):
                raise BertfastError(
                    f"config: num_labels is {count!r}; it must be a whole number from 1 to "
                    f"{MOST_LABELS}"
                )
            if "id2label" not in kept and count != self.num_labels:
                kept["id2label"] = {index: f"LABEL_{index}" for index in range(count)}
            if count != len(kept.get("id2label", self.id2label)):
                raise BertfastError(
                    f"config: num_labels is {count} and id2label names {len(kept['id2label'])}"
                )
        return replace(self, **kept)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The published configuration of that name, with fields overridden.

        Called on `EncoderConfig`, it gives the class of the preset's member.

        Raises:
            BertfastError: no such preset, or one of another member; the message lists those of
                this class.
        """
        own = [key for key, (config, _) in PRESETS.items() if cls in (config, EncoderConfig)]
        if name not in own:
            problem = f"unknown preset {name!r}"
            if name in PRESETS:
                other = PRESETS[name][0].__name__
                problem = (
                    f"the preset {name!r} is a {other}, so take {other}.preset or "
                    f"EncoderConfig.preset"
                )
            raise BertfastError(f"{problem}; of {cls.__name__} there are {', '.join(own)}")
        member, shape = PRESETS[name]
        config = member(**{**shape, **overrides})
        assert isinstance(config, cls)
        return config

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> Self:
        """From the fields of a Hugging Face ``config.json``; fields that do not concern the encoder
        are left aside.

        Called on `EncoderConfig`, it gives the class of the member that ``model_type`` names.

        Raises:
            BertfastError: another architecture, a feature that is not supported, or a field out of
                range.
        """
        model_type = values.get("model_type", cls.model_type or "bert")
        member = CONFIGS.get(model_type) if isinstance(model_type, str) else None
        if member is None or not issubclass(member, cls):
            supported = [name for name, config in CONFIGS.items() if issubclass(config, cls)]
            raise BertfastError(
                f"{source}: model_type is {model_type!r}; supported is {', '.join(supported)}"
            )
        kind = values.get("position_embedding_type", "absolute")
        if member.has_position_embedding_type and kind != "absolute":
            raise BertfastError(
                f"{source}: position_embedding_type is {kind!r}; supported is absolute"
            )
        for name in ("is_decoder", "add_cross_attention"):
            if values.get(name):
                raise BertfastError(
                    f"{source}: {name} is set; only bidirectional encoders are supported"
                )
        if values.get("tie_word_embeddings") is False:
            raise BertfastError(
                f"{source}: tie_word_embeddings is false; the MLM decoder is tied to the word "
                "embeddings here"
            )
        known = {member.json_names.get(f.name, f.name): f.name for f in fields(member)}
        kept = {
            known[name]: value
            for name, value in values.items()
            if name in known and name != "id2label"
        }
        required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        missing = [
            name for name in (member.json_names.get(r, r) for r in required) if name not in values
        ]
        if missing:
            raise BertfastError(
                f"{source}: no {', '.join(missing)}; is it the config.json of a {model_type} model?"
            )
        labels = values.get("id2label")
        if labels is None and "num_labels" in values:
            count = values["num_labels"]
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise BertfastError(
                    f"{source}: num_labels is {count!r}; it must be a whole number of at least 1"
                )
            if count > MOST_LABELS:
                raise BertfastError(
                    f"{source}: num_labels is {_shown(count)}; it must be at most {MOST_LABELS}"
                )
            labels = {index: f"LABEL_{index}" for index in range(count)}
        if labels is not None:
            try:
                kept["id2label"] = {int(index): str(label) for index, label in labels.items()}
            except (AttributeError, TypeError, ValueError) as error:
                raise BertfastError(
                    f"{source}: id2label must map whole numbers to names ({error})"
                ) from error
        try:
            return member._from_json(kept, values)
        except BertfastError as error:
            raise BertfastError(source + str(error).removeprefix("config")) from None

    @classmethod
    def _from_json(cls, kept: dict[str, Any], values: dict[str, Any]) -> Self:
        """From the fields that are this class's own, already under its names; ``values`` is the
        whole file.
        """
        return cls(**kept)

    @classmethod
    def from_json_file(cls, path: str | Path) -> Self:
        """From a ``config.json``.

        Raises:
            BertfastError: the file is missing, is no JSON object, or does not describe a supported
                encoder.
        """
        path = Path(path)
        try:
            values = read_object(path)
        except MissingFileError:
            raise BertfastError(
                f"{path}: no such file; a model folder holds config.json and model.safetensors"
            ) from None
        return cls.from_dict(values, str(path))

    def to_dict(self, architecture: str | None = None) -> dict[str, Any]:
        """The fields of a Hugging Face ``config.json``."""
        values = {self.json_names.get(name, name): value for name, value in asdict(self).items()}
        values["id2label"] = {str(index): label for index, label in self.id2label.items()}
        values["label2id"] = self.label2id
        values["model_type"] = self.model_type
        values["tie_word_embeddings"] = True
        if architecture is not None:
            values["architectures"] = [architecture]
        return dict(sorted(values.items()))


@dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """BERT, and what has its shape: MiniLM, and the encoders of most sentence-transformers. Devlin
    et al., 2019.
    """

    model_type: ClassVar[str] = "bert"


@dataclass(frozen=True)
class RobertaConfig(EncoderConfig):
    """RoBERTa: positions are numbered from past the padding id. Liu et al., 2019."""

    vocab_size: int = 50265
    pad_token_id: int | None = 1

    model_type: ClassVar[str] = "roberta"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pad_token_id is None:
            raise BertfastError(
                "config: pad_token_id is null; positions are numbered from it, so it must be an id"
            )

    @property
    def position_offset(self) -> int:
        """The positions up to the padding id are those of padding."""
        assert self.pad_token_id is not None
        return self.pad_token_id + 1


@dataclass(frozen=True)
class XLMRobertaConfig(RobertaConfig):
    """XLM-RoBERTa, RoBERTa's shape over a SentencePiece vocabulary. Conneau et al., 2020."""

    vocab_size: int = 30522

    model_type: ClassVar[str] = "xlm-roberta"


@dataclass(frozen=True)
class CamembertConfig(RobertaConfig):
    """CamemBERT, RoBERTa's shape over a French SentencePiece vocabulary. Martin et al., 2020."""

    vocab_size: int = 30522

    model_type: ClassVar[str] = "camembert"


@dataclass(frozen=True)
class MPNetConfig(EncoderConfig):
    """MPNet: a learned bias for each distance, which all layers share. Song et al., 2020; Raffel et
    al., "T5", section 2.1.

    Positions are numbered from past the id 1, and its row of the word table takes no gradient,
    whatever ``pad_token_id`` says, as in `transformers`.
    """

    vocab_size: int = 30527
    type_vocab_size: int = 0
    pad_token_id: int | None = 1
    relative_attention_num_buckets: int = 32

    model_type: ClassVar[str] = "mpnet"
    has_position_embedding_type: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        # Distances always fall into 32 buckets, those of T5; further rows are never read.
        self._check_whole("relative_attention_num_buckets", 32)
        self._check_whole("vocab_size", 2)

    @classmethod
    def _from_json(cls, kept: dict[str, Any], values: dict[str, Any]) -> Self:
        """The member has no segments."""
        return cls(**{**kept, "type_vocab_size": 0})

    @property
    def head_dropout(self) -> float:
        """The member has no dropout of a classifier's own."""
        return self.hidden_dropout_prob

    @property
    def padding_row(self) -> int | None:
        """The id that the released code takes for padding."""
        return 1

    @property
    def position_offset(self) -> int:
        """The positions up to `padding_row` are those of padding."""
        return 2


@dataclass(frozen=True)
class AlbertConfig(EncoderConfig):
    """ALBERT: factorised embeddings, layers shared within groups. Lan et al., "ALBERT", 2020,
    section 3.1.
    """

    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    num_hidden_groups: int = 1
    inner_group_num: int = 1
    classifier_dropout_prob: float = 0.1

    model_type: ClassVar[str] = "albert"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_whole("embedding_size", 1, MOST_WIDTH)
        self._check_whole("num_hidden_groups", 1, MOST_LAYERS)
        self._check_whole("inner_group_num", 1, max(MOST_LAYERS // self.num_hidden_layers, 1))

    @property
    def feed_forward_dropout(self) -> float:
        """The released model has none there."""
        return 0.0

    @property
    def head_dropout(self) -> float:
        """ALBERT's own field."""
        return self.classifier_dropout_prob


@dataclass(frozen=True)
class DistilBertConfig(EncoderConfig):
    """DistilBERT: BERT with neither segments nor a pooler. Sanh et al., "DistilBERT", 2019, section
    3.
    """

    num_hidden_layers: int = 6
    type_vocab_size: int = 0
    classifier_dropout: float = 0.2
    qa_dropout: float = 0.1
    sinusoidal_pos_embds: bool = False

    model_type: ClassVar[str] = "distilbert"
    has_position_embedding_type: ClassVar[bool] = False
    json_names: ClassVar[dict[str, str]] = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
    }

    @property
    def attention_output_dropout(self) -> float:
        """The released model has none there."""
        return 0.0

    @classmethod
    def _from_json(cls, kept: dict[str, Any], values: dict[str, Any]) -> Self:
        return cls(
            **{**kept, "type_vocab_size": 0, "layer_norm_eps": 1e-12}
        )  # the member has no such fields


@dataclass(frozen=True)
class ElectraConfig(EncoderConfig):
    """ELECTRA, generator and discriminator. Clark et al., "ELECTRA", 2020, section 2 and appendix
    A.
    """

    embedding_size: int = 128
    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    summary_type: str = "first"
    summary_use_proj: bool = True
    summary_activation: str | None = "gelu"
    summary_last_dropout: float = 0.1

    model_type: ClassVar[str] = "electra"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_whole("embedding_size", 1, MOST_WIDTH)
        self._check_choice("summary_type", ("first",))
        if self.summary_activation:
            self._check_choice("summary_activation", ACTIVATIONS)

    def to_dict(self, architecture: str | None = None) -> dict[str, Any]:
        """As of `EncoderConfig`; no activation is no name, as `transformers` 5 wants it."""
        return super().to_dict(architecture) | {"summary_activation": self.summary_activation or ""}


@dataclass(frozen=True)
class DebertaV2Config(EncoderConfig):
    """DeBERTa v2 and v3: disentangled attention. He et al., "DeBERTa", 2021, section 3;
    "DeBERTaV3", 2023.
    """

    vocab_size: int = 128100
    embedding_size: int | None = None
    hidden_size: int = 1536
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    relative_attention: bool = False
    max_relative_positions: int = -1
    position_buckets: int = -1
    position_biased_input: bool = True
    pos_att_type: tuple[str, ...] = ()
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    conv_kernel_size: int = 0
    conv_groups: int = 1
    conv_act: str = "tanh"
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"
    cls_dropout: float | None = None
    legacy: bool = True

    model_type: ClassVar[str] = "deberta-v2"
    has_position_embedding_type: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_whole("conv_kernel_size", 0, MOST_LAYERS)
        self._check_whole("conv_groups", 1)
        if self.embedding_size is not None:
            self._check_whole("embedding_size", 1, MOST_WIDTH)
        for name in ("max_relative_positions", "position_buckets"):
            self._check_whole(name, -MOST_ROWS)
        unknown = [kind for kind in self.pos_att_type if kind not in ("c2p", "p2c")]
        if unknown:
            raise BertfastError(
                f"config: pos_att_type holds {unknown[0]!r}; supported are c2p, p2c"
            )
        for name in ("conv_act", "pooler_hidden_act"):
            self._check_choice(name, ACTIVATIONS)
        if self.conv_kernel_size and self.conv_kernel_size % 2 == 0:
            raise BertfastError(
                f"config: conv_kernel_size is {self.conv_kernel_size}; it must be odd, "
                "or 0 for none"
            )
        if self.hidden_size % self.conv_groups:
            raise BertfastError(
                f"config: conv_groups is {self.conv_groups}; it must divide hidden_size, "
                f"{self.hidden_size}"
            )
        buckets, furthest = self.position_buckets, self.max_relative_distance
        if (
            self.relative_attention
            and buckets > 0
            and not (buckets > 1 and furthest > buckets // 2)
        ):
            raise BertfastError(
                f"config: position_buckets is {buckets} and the furthest distance {furthest} "
                "(max_relative_positions, or max_position_embeddings); "
                "there must be 2 buckets at least, and distances beyond half of them"
            )

    @classmethod
    def _from_json(cls, kept: dict[str, Any], values: dict[str, Any]) -> Self:
        kinds = kept.get("pos_att_type") or ()
        kinds = (
            [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
        )
        kept["pos_att_type"] = _names("pos_att_type", kinds)
        size = values.get("attention_head_size")
        shape = cls(**kept)
        if size is not None and size != shape.head_dim:
            raise BertfastError(
                f"config: attention_head_size is {size}; "
                f"supported is hidden_size / num_attention_heads, {shape.head_dim}"
            )
        if values.get("pooler_hidden_size", shape.hidden_size) != shape.hidden_size:
            raise BertfastError(
                f"config: pooler_hidden_size is {values['pooler_hidden_size']}; "
                f"supported is hidden_size, {shape.hidden_size}"
            )
        return shape

    def to_dict(self, architecture: str | None = None) -> dict[str, Any]:
        """As of `EncoderConfig`; what the released code reads by its presence alone is left out
        where it is not there.
        """
        values = super().to_dict(architecture)
        values["pos_att_type"] = list(self.pos_att_type)
        values["pooler_hidden_size"] = self.hidden_size
        if self.embedding_size is None:
            del values["embedding_size"]
        return values

    @property
    def max_positions(self) -> int | None:
        """Relative positions alone set no limit: the far ones share a bucket."""
        return super().max_positions if self.position_biased_input else None

    @property
    def relative_rows(self) -> int:
        """How many distances have an embedding."""
        return 2 * self.relative_span

    @property
    def has_relative_norm(self) -> bool:
        """Whether the distances' embeddings are normalised."""
        return "layer_norm" in self.norm_rel_ebd

    @property
    def has_position_key(self) -> bool:
        """Whether distances have a key projection of their own in each layer."""
        return self.relative_attention and not self.share_att_key and "c2p" in self.pos_att_type

    @property
    def has_position_query(self) -> bool:
        """Whether distances have a query projection of their own in each layer."""
        return self.relative_attention and not self.share_att_key and "p2c" in self.pos_att_type

    @property
    def relative_span(self) -> int:
        """How many distances to each side have an embedding of their own."""
        return self.position_buckets if self.position_buckets > 0 else self.max_relative_distance

    @property
    def max_relative_distance(self) -> int:
        """The distance beyond which all are alike."""
        return (
            self.max_relative_positions
            if self.max_relative_positions > 0
            else self.max_position_embeddings
        )

    @property
    def head_dropout(self) -> float:
        """DeBERTa's own field."""
        return self.hidden_dropout_prob if self.cls_dropout is None else self.cls_dropout


@dataclass(frozen=True)
class ModernBertConfig(EncoderConfig):
    """ModernBERT: pre-norm, rotary positions, GeGLU, alternating global and local attention. Warner
    et al., 2024, section 2.1.
    """

    vocab_size: int = 50368
    num_hidden_layers: int = 22
    intermediate_size: int = 1152
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    mlp_dropout: float = 0.0
    max_position_embeddings: int = 8192
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 50283
    classifier_dropout: float = 0.0
    initializer_cutoff_factor: float = 2.0
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    decoder_bias: bool = True
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    classifier_pooling: str = "cls"
    local_attention: int = 128
    layer_types: tuple[str, ...] = ()
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0

    model_type: ClassVar[str] = "modernbert"
    has_position_embedding_type: ClassVar[bool] = False
    json_names: ClassVar[dict[str, str]] = {
        "hidden_act": "hidden_activation",
        "layer_norm_eps": "norm_eps",
        "hidden_dropout_prob": "embedding_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layer_types:
            object.__setattr__(self, "layer_types", _layer_types(self.num_hidden_layers, 3))
        kinds = ("full_attention", "sliding_attention")
        if len(self.layer_types) != self.num_hidden_layers or not set(self.layer_types) <= set(
            kinds
        ):
            raise BertfastError(
                f"config: layer_types must name {' or '.join(kinds)} for each of the "
                f"{self.num_hidden_layers} layers"
            )
        self._check_choice("classifier_activation", ACTIVATIONS)
        self._check_choice("classifier_pooling", POOLINGS)
        self._check_whole("local_attention", 0)
        for name in ("initializer_cutoff_factor", "global_rope_theta", "local_rope_theta"):
            self._check_positive(name)
        if self.head_dim % 2:
            raise BertfastError(
                f"config: hidden_size {self.hidden_size} over num_attention_heads "
                f"{self.num_attention_heads} is {self.head_dim}; rotary positions turn pairs, "
                "so it must be even"
            )

    @classmethod
    def _from_json(cls, kept: dict[str, Any], values: dict[str, Any]) -> Self:
        """Both forms: `transformers` 4 writes two thetas and a period of layers, 5 a type and a
        rotary dictionary for each kind.
        """
        kept["type_vocab_size"] = 0
        period = values.get("global_attn_every_n_layers", 3)
        if isinstance(period, bool) or not isinstance(period, int) or period < 1:
            raise BertfastError(
                f"config: global_attn_every_n_layers is {period!r}; it must be a whole number of "
                "at least 1"
            )
        if kept.get("layer_types"):
            kept["layer_types"] = _names("layer_types", kept["layer_types"])
        elif isinstance(layers := values.get("num_hidden_layers"), int) and layers <= MOST_LAYERS:
            kept["layer_types"] = _layer_types(layers, period)
        if values.get("rope_scaling"):
            raise BertfastError(
                "config: rope_scaling is set; supported is unscaled rotary positions"
            )
        rotary = values.get("rope_parameters") or {}
        for kind, name in (
            ("full_attention", "global_rope_theta"),
            ("sliding_attention", "local_rope_theta"),
        ):
            own = rotary.get(kind) or {} if isinstance(rotary, dict) else rotary
            if not isinstance(own, dict):
                raise BertfastError(
                    f"config: rope_parameters is {rotary!r}; it must map each kind of layer to an "
                    "object"
                )
            if own.get("rope_type", "default") != "default":
                raise BertfastError(
                    f"config: the rope_type of {kind} is {own['rope_type']!r}; supported is default"
                )
            if "rope_theta" in own:
                kept[name] = own["rope_theta"]
        if kept.get("local_rope_theta", 0.0) is None:  # once written for "as the global one"
            kept["local_rope_theta"] = kept.get("global_rope_theta", cls.global_rope_theta)
        return cls(**kept)

    def to_dict(self, architecture: str | None = None) -> dict[str, Any]:
        """As of `EncoderConfig`, in both forms where the layers have a period."""
        values = super().to_dict(architecture)
        values["layer_types"] = list(self.layer_types)
        values["rope_parameters"] = {
            "full_attention": {"rope_type": "default", "rope_theta": self.global_rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": self.local_rope_theta},
        }
        for period in range(1, self.num_hidden_layers + 1):
            if self.layer_types == _layer_types(self.num_hidden_layers, period):
                values["global_attn_every_n_layers"] = period
                break
        return values

    @property
    def max_positions(self) -> int | None:
        """Rotary positions set no limit."""
        return None

    @property
    def attention_output_dropout(self) -> float:
        """That of the attention, which is dropped twice."""
        return self.attention_probs_dropout_prob

    def window(self, layer: int) -> int | None:
        """How far to each side a layer sees; None for all of its sequence."""
        return self.local_attention // 2 if self.layer_types[layer] == "sliding_attention" else None

    @property
    def classifier_deviation(self) -> float:
        """Of a classifier's initial weights."""
        return self.hidden_size**-0.5

    @property
    def residual_deviation(self) -> float:
        """Of the initial weights that end a residual branch. Warner et al., appendix: Megatron's
        initialisation.
        """
        return self.initializer_range / math.sqrt(2.0 * self.num_hidden_layers)


def _shown(number: int) -> str:
    """A number as messages have it; Python writes none of more than 4,300 digits."""
    return str(number) if abs(number) < 10**18 else f"{'-' * (number < 0)}1e18 or more"


def _names(field_name: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise BertfastError(f"config: {field_name} is {values!r}; it must be a list of names")
    return tuple(values)


def _layer_types(layers: int, period: int) -> tuple[str, ...]:
    return tuple(
        "sliding_attention" if layer % period else "full_attention" for layer in range(layers)
    )


CONFIGS: dict[str, type[EncoderConfig]] = {
    config.model_type: config
    for config in (
        BertConfig,
        RobertaConfig,
        XLMRobertaConfig,
        AlbertConfig,
        DistilBertConfig,
        ElectraConfig,
        DebertaV2Config,
        ModernBertConfig,
        CamembertConfig,
        MPNetConfig,
    )
}


def _shape(layers: int, hidden: int, heads: int, intermediate: int, **rest: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        **rest,
    }


_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_DEBERTA_V2 = {
    "relative_attention": True,
    "position_buckets": 256,
    "position_biased_input": False,
    "pos_att_type": ("p2c", "c2p"),
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
_DEBERTA_CONV = {**_DEBERTA_V2, "conv_kernel_size": 3, "conv_act": "gelu"}
# The shapes of the checkpoints that the papers' authors published; BERT's small ones: Turc et al.,
# "Well-Read Students Learn Better", table 1.
PRESETS: dict[str, tuple[type[EncoderConfig], dict[str, Any]]] = {
    "bert-tiny": (BertConfig, _shape(2, 128, 2, 512)),
    "bert-mini": (BertConfig, _shape(4, 256, 4, 1024)),
    "bert-small": (BertConfig, _shape(4, 512, 8, 2048)),
    "bert-medium": (BertConfig, _shape(8, 512, 8, 2048)),
    "bert-base": (BertConfig, _shape(12, 768, 12, 3072)),
    "bert-large": (BertConfig, _shape(24, 1024, 16, 4096)),
    "minilm-l3": (BertConfig, _shape(3, 384, 12, 1536)),
    "minilm-l6": (BertConfig, _shape(6, 384, 12, 1536)),
    "minilm-l12": (BertConfig, _shape(12, 384, 12, 1536)),
    "minilm-l6-h768": (BertConfig, _shape(6, 768, 12, 3072)),
    "roberta-base": (RobertaConfig, _shape(12, 768, 12, 3072, **_ROBERTA)),
    "roberta-large": (RobertaConfig, _shape(24, 1024, 16, 4096, **_ROBERTA)),
    "distilroberta-base": (RobertaConfig, _shape(6, 768, 12, 3072, **_ROBERTA)),
    "xlm-roberta-base": (
        XLMRobertaConfig,
        _shape(12, 768, 12, 3072, vocab_size=250002, **_ROBERTA),
    ),
    "xlm-roberta-large": (
        XLMRobertaConfig,
        _shape(24, 1024, 16, 4096, vocab_size=250002, **_ROBERTA),
    ),
    "camembert-base": (CamembertConfig, _shape(12, 768, 12, 3072, vocab_size=32005, **_ROBERTA)),
    "camembert-large": (CamembertConfig, _shape(24, 1024, 16, 4096, vocab_size=32005, **_ROBERTA)),
    "mpnet-base": (
        MPNetConfig,
        _shape(12, 768, 12, 3072, max_position_embeddings=514, layer_norm_eps=1e-5),
    ),
    "albert-base": (AlbertConfig, _shape(12, 768, 12, 3072)),
    "albert-large": (AlbertConfig, _shape(24, 1024, 16, 4096)),
    "albert-xlarge": (AlbertConfig, _shape(24, 2048, 16, 8192)),
    "albert-xxlarge": (AlbertConfig, _shape(12, 4096, 64, 16384)),
    "distilbert-base": (DistilBertConfig, _shape(6, 768, 12, 3072)),
    "electra-small": (ElectraConfig, _shape(12, 256, 4, 1024, embedding_size=128)),
    "electra-base": (ElectraConfig, _shape(12, 768, 12, 3072, embedding_size=768)),
    "electra-large": (ElectraConfig, _shape(24, 1024, 16, 4096, embedding_size=1024)),
    "electra-small-generator": (ElectraConfig, _shape(12, 256, 4, 1024, embedding_size=128)),
    "electra-base-generator": (ElectraConfig, _shape(12, 256, 4, 1024, embedding_size=768)),
    "electra-large-generator": (ElectraConfig, _shape(24, 256, 4, 1024, embedding_size=1024)),
    "deberta-v2-xlarge": (DebertaV2Config, _shape(24, 1536, 24, 6144, **_DEBERTA_CONV)),
    "deberta-v2-xxlarge": (DebertaV2Config, _shape(48, 1536, 24, 6144, **_DEBERTA_CONV)),
    "deberta-v3-xsmall": (DebertaV2Config, _shape(12, 384, 6, 1536, **_DEBERTA_V2)),
    "deberta-v3-small": (DebertaV2Config, _shape(6, 768, 12, 3072, **_DEBERTA_V2)),
    "deberta-v3-base": (DebertaV2Config, _shape(12, 768, 12, 3072, **_DEBERTA_V2)),
    "deberta-v3-large": (DebertaV2Config, _shape(24, 1024, 16, 4096, **_DEBERTA_V2)),
    "mdeberta-v3-base": (
        DebertaV2Config,
        _shape(12, 768, 12, 3072, vocab_size=251000, **_DEBERTA_V2),
    ),
    "modernbert-base": (ModernBertConfig, _shape(22, 768, 12, 1152)),
    "modernbert-large": (ModernBertConfig, _shape(28, 1024, 16, 2624)),
}
