"""What pretraining predicts: one small class an objective, and the registry that the command line
reads.

An own objective is a subclass of `Objective` that is registered; those here use nothing else.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from bertfast.config import PRESETS, ElectraConfig, EncoderConfig
from bertfast.errors import BertfastError
from bertfast.model import (
    ARCHITECTURES,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    PreTrainedModel,
    member_class,
)
from bertfast.model.models import MaskedLMModel
from bertfast.packed import PackedBatch
from bertfast.registry import SUMMARIES, Registry

from . import mlm, rtd
from .joint import (
    GENERATOR,
    Distillation,
    ReplacedTokenDetection,
    generator_config,
    start_from_teacher,
)
from .nsp import Spans, document_spans, sentence_pairs
from .sop import ordered_pairs


class Setup(Protocol):
    """What an objective builds its model from.

    Attributes:
        options: the run's `PretrainConfig`.
        shape: configuration of the model, over the tokenizer's words.
        tokenizer: of the run.
    """

    options: Any
    shape: EncoderConfig
    tokenizer: Tokenizer

    def load_weights(self, model: PreTrainedModel, subfolder: str = "") -> None:
        """Reads the weights of ``--model``, or of that folder in it, where it is no shape alone."""

    def config_at(self, subfolder: str) -> EncoderConfig | None:
        """The configuration in that folder of ``--model``; None where there is none."""

    def other_model(self, folder: str) -> tuple[PreTrainedModel, Tokenizer]:
        """Another model with its tokenizer."""

    def say(self, text: str) -> None:
        """Tells the user."""


class Objective:
    """How a corpus is cut, what is hidden and predicted, which model it needs, and what is saved.

    What is logged are the model's outputs named ``X_loss``, ``X_correct`` and ``X_count``.

    Attributes:
        name: on the command line.
        summary: a few words of help.
        head: class of the model; None is the member's masked-LM model.
        pairs: whether a sequence is of two segments.
        default_of: model types that it is the default of; "mlm" is that of the others.
        masked_share, random_share: of the chosen tokens become [MASK], or a random word.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    head: ClassVar[str | None] = None
    pairs: ClassVar[bool] = False
    default_of: ClassVar[tuple[str, ...]] = ()
    masked_share: ClassVar[float] = mlm.MASKED_SHARE
    random_share: ClassVar[float] = mlm.RANDOM_SHARE

    def check(self, options: Any) -> None:
        """Raises BertfastError for options that do not fit."""
        if options.teacher is not None:
            raise BertfastError(
                f"teacher is {options.teacher!r} and objective {self.name!r}; "
                "only --objective distill takes one"
            )

    def cut(
        self,
        sentences: NDArray[np.int64],
        documents: NDArray[np.int64],
        max_tokens: int,
        rng: np.random.Generator,
    ) -> Spans:
        """One pass over the corpus; see `document_spans`."""
        return document_spans(sentences, documents, max_tokens, rng)

    def finish(self, batch: PackedBatch, spans: Spans, rows: NDArray[np.int64]) -> PackedBatch:
        """The batch of these rows with labels of the objective's own; the masked one as it is."""
        return batch

    def build(self, setup: Setup) -> nn.Module:
        """The module that is trained, called with a batch and a seed."""
        if self.head and not isinstance(setup.shape, ARCHITECTURES[self.head].config_class):
            raise wrong_member(setup, self.head)
        cls = ARCHITECTURES[self.head] if self.head else member_class(setup.shape, "ForMaskedLM")
        model = cls(setup.shape)
        setup.load_weights(model)
        return model

    def saved(self, model: nn.Module) -> dict[str, PreTrainedModel]:
        """The models that the run leaves, each by its folder below the run's."""
        assert isinstance(model, PreTrainedModel)
        return {"": model}


OBJECTIVES: Registry[Objective] = Registry("objective")
register_objective = OBJECTIVES.register
"""Makes a subclass of `Objective` known under its name; a decorator. See `Registry.register`."""


def default_objective(config: EncoderConfig) -> str:
    """The name of the objective that models of this member are pretrained with."""
    fitting = [name for name, one in OBJECTIVES.items() if config.model_type in one.default_of]
    return fitting[0] if fitting else "mlm"


def wrong_member(setup: Setup, head: str) -> BertfastError:
    """The error for a model that is of no member with this head."""
    fitting = [
        name for name, (cls, _) in PRESETS.items() if cls is ARCHITECTURES[head].config_class
    ]
    return BertfastError(
        f"objective is {setup.options.objective!r}, whose head is {head}'s, "
        f"and {setup.options.start} is a {setup.shape.model_type} model; "
        f"take one of {', '.join(fitting)}, or another --objective"
    )


@register_objective
class MaskedLM(Objective):
    """Masked words alone."""

    name, summary = "mlm", SUMMARIES["objective"]["mlm"]


@register_objective
class NextSentence(Objective):
    """Masked words, and whether the second segment follows the first."""

    name, summary = "mlm+nsp", SUMMARIES["objective"]["mlm+nsp"]
    head, pairs = "BertForPreTraining", True
    default_of = ("bert",)

    def cut(
        self,
        sentences: NDArray[np.int64],
        documents: NDArray[np.int64],
        max_tokens: int,
        rng: np.random.Generator,
    ) -> Spans:
        return sentence_pairs(sentences, documents, max_tokens, rng)


@register_objective
class SentenceOrder(Objective):
    """Masked words, and whether two segments are swapped."""

    name, summary = "mlm+sop", SUMMARIES["objective"]["mlm+sop"]
    head, pairs = "AlbertForPreTraining", True
    default_of = ("albert",)

    def cut(
        self,
        sentences: NDArray[np.int64],
        documents: NDArray[np.int64],
        max_tokens: int,
        rng: np.random.Generator,
    ) -> Spans:
        return ordered_pairs(sentences, documents, max_tokens, rng)


@register_objective
class ReplacedTokens(Objective):
    """ELECTRA's generator and discriminator."""

    name, summary = "rtd", SUMMARIES["objective"]["rtd"]
    default_of = ("electra",)
    masked_share, random_share = rtd.MASKED_SHARE, rtd.RANDOM_SHARE

    def build(self, setup: Setup) -> nn.Module:
        if not isinstance(setup.shape, ElectraConfig):
            raise wrong_member(setup, "ElectraForPreTraining")
        discriminator = ElectraForPreTraining(setup.shape)
        published = setup.config_at(GENERATOR)
        own = published or generator_config(setup.shape, setup.options.generator_size)
        assert isinstance(own, ElectraConfig)
        generator = ElectraForMaskedLM(own)
        setup.load_weights(discriminator)
        if published is not None:
            setup.load_weights(generator, GENERATOR)
        return ReplacedTokenDetection(discriminator, generator)

    def saved(self, model: nn.Module) -> dict[str, PreTrainedModel]:
        assert isinstance(model, ReplacedTokenDetection)
        return {"": model.discriminator, GENERATOR: model.generator}


@register_objective
class Distil(Objective):
    """A student that learns from a teacher."""

    name, summary = "distill", SUMMARIES["objective"]["distill"]

    def check(self, options: Any) -> None:
        if not options.teacher:
            raise BertfastError(
                "objective is 'distill', which needs a teacher: a model's folder or Hub id; "
                "give --teacher"
            )

    def build(self, setup: Setup) -> nn.Module:
        model, options = super().build(setup), setup.options
        assert isinstance(model, MaskedLMModel)
        teacher, words = setup.other_model(options.teacher)
        if not isinstance(teacher, MaskedLMModel):
            raise BertfastError(
                f"{options.teacher}: is a {type(teacher).__name__}, which has no masked-LM head "
                "to learn from"
            )
        if words.get_vocab() != setup.tokenizer.get_vocab():
            raise BertfastError(
                f"{options.tokenizer}: is not the tokenizer of the teacher {options.teacher}; "
                f"give --tokenizer {options.teacher}"
            )
        both = Distillation(model, teacher)
        if options.starts_random and not start_from_teacher(model, teacher):
            setup.say(
                f"{options.start} is wider or deeper than its teacher, or of other shapes; "
                "it starts from random weights"
            )
        if setup.shape.hidden_size != teacher.config.hidden_size:
            setup.say("the widths differ, so the cosine loss is left out")
        return both

    def saved(self, model: nn.Module) -> dict[str, PreTrainedModel]:
        assert isinstance(model, Distillation)
        return {"": model.student}
