"""What the models return, under Hugging Face's field names.

From a packed batch the per-token tensors are (tokens, ...); from padded input they are (sequences,
positions, ...) with zeros at the padding.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from torch import Tensor


@dataclass
class ModelOutput:
    """Fields by attribute, by name (``output["loss"]``) or by place among those that are set
    (``output[0]``).
    """

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are set, in order."""
        values = (getattr(self, f.name) for f in fields(self))
        return tuple(value for value in values if value is not None)

    def detach(self) -> Self:
        """The tensors with no way back to what made them; without hidden states."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(
            **{name: x.detach() if isinstance(x, Tensor) else None for name, x in values.items()}
        )

    def __getitem__(self, key: str | int) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


@dataclass
class BaseModelOutputWithPooling(ModelOutput):
    """Of the bare encoder."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class BertForPreTrainingOutput(ModelOutput):
    """Of `BertForPreTraining` and `AlbertForPreTraining`; ``mlm_correct`` of ``mlm_count``
    predictions are right, and ``nsp_correct`` or ``sop_correct`` of the sequences."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    sop_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    mlm_loss: Tensor | None = None
    nsp_loss: Tensor | None = None
    sop_loss: Tensor | None = None
    mlm_correct: Tensor | None = None
    mlm_count: Tensor | None = None
    nsp_correct: Tensor | None = None
    sop_correct: Tensor | None = None


@dataclass
class ElectraForPreTrainingOutput(ModelOutput):
    """Of `ElectraForPreTraining`; logits (sequences, positions), above 0 where a token looks
    replaced.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class MaskedLMOutput(ModelOutput):
    """Of a masked-LM model; ``mlm_correct`` of ``mlm_count`` predictions are right."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    mlm_correct: Tensor | None = None
    mlm_count: Tensor | None = None


@dataclass
class SequenceClassifierOutput(ModelOutput):
    """Of a model for whole inputs; logits (sequences, labels)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """Of a model for tokens; logits (sequences, positions, labels)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """Of a model for spans; logits (sequences, positions), the lowest finite number at the
    padding.
    """

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class MultipleChoiceModelOutput(ModelOutput):
    """Of a model for multiple choice; logits (questions, choices)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
