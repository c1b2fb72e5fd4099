"""The configuration of an encoder: Hugging Face's field names, checked when it is made, with the published presets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .errors import BertfastError

# layers, width; heads of 64 throughout. Turc et al., "Well-Read Students Learn Better", table 1; Devlin et al., "BERT", section 3.
PRESETS: dict[str, tuple[int, int]] = {
    "bert-tiny": (2, 128),
    "bert-mini": (4, 256),
    "bert-small": (4, 512),
    "bert-medium": (8, 512),
    "bert-base": (12, 768),
    "bert-large": (24, 1024),
}
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True)
class BertConfig:
    """Shape and rates of a BERT encoder, under the names of Hugging Face's ``config.json``.

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

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        )
        for name in sizes:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BertfastError(f"config: {name} is {value!r}; it must be a whole number of at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise BertfastError(
                f"config: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 <= value < 1):
                raise BertfastError(f"config: {name} is {value!r}; it must be at least 0 and below 1")
        for name in ("initializer_range", "layer_norm_eps"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 < value < float("inf")):
                raise BertfastError(f"config: {name} is {value!r}; it must be above 0")
        if self.hidden_act not in ACTIVATIONS:
            raise BertfastError(f"config: hidden_act is {self.hidden_act!r}; supported are {', '.join(ACTIVATIONS)}")
        pad = self.pad_token_id
        if pad is not None and not (isinstance(pad, int) and 0 <= pad < self.vocab_size):
            raise BertfastError(f"config: pad_token_id is {pad!r}, outside the vocabulary of {self.vocab_size}")
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise BertfastError(
                f"config: problem_type is {self.problem_type!r}; supported are {', '.join(PROBLEM_TYPES)}"
            )
        if sorted(self.id2label) != list(range(len(self.id2label))) or not self.id2label:
            raise BertfastError("config: id2label must name the labels 0, 1, 2, ... without a gap")

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_labels(self) -> int:
        """How many labels the classification head has."""
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        """The inverse of id2label."""
        return {label: index for index, label in self.id2label.items()}

    def with_labels(self, labels: list[str]) -> BertConfig:
        """This configuration with these label names, in order."""
        return replace(self, id2label=dict(enumerate(labels)))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> BertConfig:
        """The published configuration of that name, with fields overridden.

        Raises:
            BertfastError: no such preset; the message lists them.
        """
        if name not in PRESETS:
            raise BertfastError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
        layers, width = PRESETS[name]
        shape = {
            "num_hidden_layers": layers,
            "hidden_size": width,
            "num_attention_heads": width // 64,
            "intermediate_size": 4 * width,
        }
        return cls(**{**shape, **overrides})

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> BertConfig:
        """From the fields of a Hugging Face ``config.json``; fields that do not concern the encoder are left aside.

        Raises:
            BertfastError: another architecture, a feature that is not supported, or a field out of range.
        """
        model_type = values.get("model_type", "bert")
        if model_type != "bert":
            raise BertfastError(f"{source}: model_type is {model_type!r}; supported is bert")
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise BertfastError(
                f"{source}: position_embedding_type is {values['position_embedding_type']!r}; supported is absolute"
            )
        for name in ("is_decoder", "add_cross_attention"):
            if values.get(name):
                raise BertfastError(f"{source}: {name} is set; only bidirectional encoders are supported")
        if values.get("tie_word_embeddings") is False:
            raise BertfastError(
                f"{source}: tie_word_embeddings is false; the MLM decoder is tied to the word embeddings here"
            )
        known = {f.name for f in fields(cls)}
        kept = {name: value for name, value in values.items() if name in known and name != "id2label"}
        required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        missing = [name for name in required if name not in values]
        if missing:
            raise BertfastError(f"{source}: no {', '.join(missing)}; is it the config.json of a BERT?")
        labels = values.get("id2label")
        if labels is None and "num_labels" in values:
            count = values["num_labels"]
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise BertfastError(f"{source}: num_labels is {count!r}; it must be a whole number of at least 1")
            labels = {index: f"LABEL_{index}" for index in range(count)}
        if labels is not None:
            try:
                kept["id2label"] = {int(index): str(label) for index, label in labels.items()}
            except (AttributeError, TypeError, ValueError) as error:
                raise BertfastError(f"{source}: id2label must map whole numbers to names ({error})") from error
        return cls(**kept)

    @classmethod
    def from_json_file(cls, path: str | Path) -> BertConfig:
        """From a ``config.json``.

        Raises:
            BertfastError: the file is missing, is no JSON object, or does not describe a supported encoder.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BertfastError(
                f"{path}: no such file; a model folder holds config.json and model.safetensors"
            ) from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BertfastError(f"{path}: cannot be read as JSON ({error})") from error
        if not isinstance(values, dict):
            raise BertfastError(f"{path}: holds a {type(values).__name__}; a config is a JSON object")
        return cls.from_dict(values, str(path))

    def to_dict(self, architecture: str | None = None) -> dict[str, Any]:
        """The fields of a Hugging Face ``config.json``."""
        values = asdict(self)
        values["id2label"] = {str(index): label for index, label in self.id2label.items()}
        values["label2id"] = self.label2id
        values["model_type"] = "bert"
        values["tie_word_embeddings"] = True
        if architecture is not None:
            values["architectures"] = [architecture]
        return dict(sorted(values.items()))
