"""The models of each member under Hugging Face's names: one encoder, one set of heads, and a configuration that says the rest."""

from bertfast import config as c
from bertfast.errors import BertfastError

from .models import (
    EncoderModel,
    ForMaskedLM,
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    ForTokenClassification,
    NextSentencePreTraining,
    PreTrainedModel,
    ReplacedTokenPreTraining,
    SentenceOrderPreTraining,
)


# BERT
class BertModel(EncoderModel):
    config_class = c.BertConfig


class BertForPreTraining(NextSentencePreTraining):
    config_class = c.BertConfig


class BertForMaskedLM(ForMaskedLM):
    config_class = c.BertConfig


class BertForSequenceClassification(ForSequenceClassification):
    config_class = c.BertConfig


class BertForTokenClassification(ForTokenClassification):
    config_class = c.BertConfig


class BertForQuestionAnswering(ForQuestionAnswering):
    config_class = c.BertConfig


class BertForMultipleChoice(ForMultipleChoice):
    config_class = c.BertConfig


# RoBERTa
class RobertaModel(EncoderModel):
    config_class = c.RobertaConfig


class RobertaForMaskedLM(ForMaskedLM):
    config_class = c.RobertaConfig


class RobertaForSequenceClassification(ForSequenceClassification):
    config_class = c.RobertaConfig


class RobertaForTokenClassification(ForTokenClassification):
    config_class = c.RobertaConfig


class RobertaForQuestionAnswering(ForQuestionAnswering):
    config_class = c.RobertaConfig


class RobertaForMultipleChoice(ForMultipleChoice):
    config_class = c.RobertaConfig


# XLM-RoBERTa
class XLMRobertaModel(EncoderModel):
    config_class = c.XLMRobertaConfig


class XLMRobertaForMaskedLM(ForMaskedLM):
    config_class = c.XLMRobertaConfig


class XLMRobertaForSequenceClassification(ForSequenceClassification):
    config_class = c.XLMRobertaConfig


class XLMRobertaForTokenClassification(ForTokenClassification):
    config_class = c.XLMRobertaConfig


class XLMRobertaForQuestionAnswering(ForQuestionAnswering):
    config_class = c.XLMRobertaConfig


class XLMRobertaForMultipleChoice(ForMultipleChoice):
    config_class = c.XLMRobertaConfig


# ALBERT
class AlbertModel(EncoderModel):
    config_class = c.AlbertConfig


class AlbertForPreTraining(SentenceOrderPreTraining):
    config_class = c.AlbertConfig


class AlbertForMaskedLM(ForMaskedLM):
    config_class = c.AlbertConfig


class AlbertForSequenceClassification(ForSequenceClassification):
    config_class = c.AlbertConfig


class AlbertForTokenClassification(ForTokenClassification):
    config_class = c.AlbertConfig


class AlbertForQuestionAnswering(ForQuestionAnswering):
    config_class = c.AlbertConfig


class AlbertForMultipleChoice(ForMultipleChoice):
    config_class = c.AlbertConfig


# DistilBERT
class DistilBertModel(EncoderModel):
    config_class = c.DistilBertConfig


class DistilBertForMaskedLM(ForMaskedLM):
    config_class = c.DistilBertConfig


class DistilBertForSequenceClassification(ForSequenceClassification):
    config_class = c.DistilBertConfig


class DistilBertForTokenClassification(ForTokenClassification):
    config_class = c.DistilBertConfig


class DistilBertForQuestionAnswering(ForQuestionAnswering):
    config_class = c.DistilBertConfig


class DistilBertForMultipleChoice(ForMultipleChoice):
    config_class = c.DistilBertConfig


# ELECTRA
class ElectraModel(EncoderModel):
    config_class = c.ElectraConfig


class ElectraForPreTraining(ReplacedTokenPreTraining):
    config_class = c.ElectraConfig


class ElectraForMaskedLM(ForMaskedLM):
    config_class = c.ElectraConfig


class ElectraForSequenceClassification(ForSequenceClassification):
    config_class = c.ElectraConfig


class ElectraForTokenClassification(ForTokenClassification):
    config_class = c.ElectraConfig


class ElectraForQuestionAnswering(ForQuestionAnswering):
    config_class = c.ElectraConfig


class ElectraForMultipleChoice(ForMultipleChoice):
    config_class = c.ElectraConfig


# DeBERTa v2 and v3
class DebertaV2Model(EncoderModel):
    config_class = c.DebertaV2Config


class DebertaV2ForMaskedLM(ForMaskedLM):
    config_class = c.DebertaV2Config


class DebertaV2ForSequenceClassification(ForSequenceClassification):
    config_class = c.DebertaV2Config


class DebertaV2ForTokenClassification(ForTokenClassification):
    config_class = c.DebertaV2Config


class DebertaV2ForQuestionAnswering(ForQuestionAnswering):
    config_class = c.DebertaV2Config


class DebertaV2ForMultipleChoice(ForMultipleChoice):
    config_class = c.DebertaV2Config


# ModernBERT
class ModernBertModel(EncoderModel):
    config_class = c.ModernBertConfig


class ModernBertForMaskedLM(ForMaskedLM):
    config_class = c.ModernBertConfig


class ModernBertForSequenceClassification(ForSequenceClassification):
    config_class = c.ModernBertConfig


class ModernBertForTokenClassification(ForTokenClassification):
    config_class = c.ModernBertConfig


class ModernBertForQuestionAnswering(ForQuestionAnswering):
    config_class = c.ModernBertConfig


class ModernBertForMultipleChoice(ForMultipleChoice):
    config_class = c.ModernBertConfig


# Classes by the name that a config.json's ``architectures`` has.
ARCHITECTURES: dict[str, type[PreTrainedModel]] = {
    cls.__name__: cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, PreTrainedModel) and cls.__module__ == __name__
}


def member_class(config: c.EncoderConfig, head: str) -> type[PreTrainedModel]:
    """The member's class with that head: ``member_class(RobertaConfig(), "ForMaskedLM")`` is `RobertaForMaskedLM`.

    Raises:
        BertfastError: the member has no such head.
    """
    member = type(config).__name__.removesuffix("Config")
    if f"{member}{head}" not in ARCHITECTURES:
        known = [name.removeprefix(member) for name in ARCHITECTURES if name.startswith(member)]
        raise BertfastError(f"{config.model_type} has no {head}; it has {', '.join(known)}")
    return ARCHITECTURES[f"{member}{head}"]
