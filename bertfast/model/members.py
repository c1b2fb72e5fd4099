"""The models of each member under Hugging Face's names: one encoder, one set of heads, and a
configuration that says the rest.
"""

from pathlib import Path
from typing import Any

from bertfast import config as c
from bertfast.errors import BertfastError
from bertfast.files import read_object
from bertfast.resolve import resolve

from .adapters import load_adapted_config
from .checkpoint import is_adapter, load_config
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
    """BERT, the bare encoder with its pooler."""

    config_class = c.BertConfig


class BertForPreTraining(NextSentencePreTraining):
    """BERT with the masked-LM and the next-sentence head."""

    config_class = c.BertConfig


class BertForMaskedLM(ForMaskedLM):
    """BERT with the masked-LM head."""

    config_class = c.BertConfig


class BertForSequenceClassification(ForSequenceClassification):
    """BERT for whole inputs and pairs."""

    config_class = c.BertConfig


class BertForTokenClassification(ForTokenClassification):
    """BERT for tokens."""

    config_class = c.BertConfig


class BertForQuestionAnswering(ForQuestionAnswering):
    """BERT for spans."""

    config_class = c.BertConfig


class BertForMultipleChoice(ForMultipleChoice):
    """BERT for multiple choice."""

    config_class = c.BertConfig


# RoBERTa
class RobertaModel(EncoderModel):
    """RoBERTa, the bare encoder."""

    config_class = c.RobertaConfig


class RobertaForMaskedLM(ForMaskedLM):
    """RoBERTa with the masked-LM head."""

    config_class = c.RobertaConfig


class RobertaForSequenceClassification(ForSequenceClassification):
    """RoBERTa for whole inputs and pairs."""

    config_class = c.RobertaConfig


class RobertaForTokenClassification(ForTokenClassification):
    """RoBERTa for tokens."""

    config_class = c.RobertaConfig


class RobertaForQuestionAnswering(ForQuestionAnswering):
    """RoBERTa for spans."""

    config_class = c.RobertaConfig


class RobertaForMultipleChoice(ForMultipleChoice):
    """RoBERTa for multiple choice."""

    config_class = c.RobertaConfig


# XLM-RoBERTa
class XLMRobertaModel(EncoderModel):
    """XLM-RoBERTa, the bare encoder."""

    config_class = c.XLMRobertaConfig


class XLMRobertaForMaskedLM(ForMaskedLM):
    """XLM-RoBERTa with the masked-LM head."""

    config_class = c.XLMRobertaConfig


class XLMRobertaForSequenceClassification(ForSequenceClassification):
    """XLM-RoBERTa for whole inputs and pairs."""

    config_class = c.XLMRobertaConfig


class XLMRobertaForTokenClassification(ForTokenClassification):
    """XLM-RoBERTa for tokens."""

    config_class = c.XLMRobertaConfig


class XLMRobertaForQuestionAnswering(ForQuestionAnswering):
    """XLM-RoBERTa for spans."""

    config_class = c.XLMRobertaConfig


class XLMRobertaForMultipleChoice(ForMultipleChoice):
    """XLM-RoBERTa for multiple choice."""

    config_class = c.XLMRobertaConfig


# CamemBERT
class CamembertModel(EncoderModel):
    """CamemBERT, the bare encoder."""

    config_class = c.CamembertConfig


class CamembertForMaskedLM(ForMaskedLM):
    """CamemBERT with the masked-LM head."""

    config_class = c.CamembertConfig


class CamembertForSequenceClassification(ForSequenceClassification):
    """CamemBERT for whole inputs and pairs."""

    config_class = c.CamembertConfig


class CamembertForTokenClassification(ForTokenClassification):
    """CamemBERT for tokens."""

    config_class = c.CamembertConfig


class CamembertForQuestionAnswering(ForQuestionAnswering):
    """CamemBERT for spans."""

    config_class = c.CamembertConfig


class CamembertForMultipleChoice(ForMultipleChoice):
    """CamemBERT for multiple choice."""

    config_class = c.CamembertConfig


# MPNet
class MPNetModel(EncoderModel):
    """MPNet, the bare encoder."""

    config_class = c.MPNetConfig


class MPNetForMaskedLM(ForMaskedLM):
    """MPNet with the masked-LM head."""

    config_class = c.MPNetConfig


class MPNetForSequenceClassification(ForSequenceClassification):
    """MPNet for whole inputs and pairs."""

    config_class = c.MPNetConfig


class MPNetForTokenClassification(ForTokenClassification):
    """MPNet for tokens."""

    config_class = c.MPNetConfig


class MPNetForQuestionAnswering(ForQuestionAnswering):
    """MPNet for spans."""

    config_class = c.MPNetConfig


class MPNetForMultipleChoice(ForMultipleChoice):
    """MPNet for multiple choice."""

    config_class = c.MPNetConfig


# ALBERT
class AlbertModel(EncoderModel):
    """ALBERT, the bare encoder."""

    config_class = c.AlbertConfig


class AlbertForPreTraining(SentenceOrderPreTraining):
    """ALBERT with the masked-LM and the sentence-order head."""

    config_class = c.AlbertConfig


class AlbertForMaskedLM(ForMaskedLM):
    """ALBERT with the masked-LM head."""

    config_class = c.AlbertConfig


class AlbertForSequenceClassification(ForSequenceClassification):
    """ALBERT for whole inputs and pairs."""

    config_class = c.AlbertConfig


class AlbertForTokenClassification(ForTokenClassification):
    """ALBERT for tokens."""

    config_class = c.AlbertConfig


class AlbertForQuestionAnswering(ForQuestionAnswering):
    """ALBERT for spans."""

    config_class = c.AlbertConfig


class AlbertForMultipleChoice(ForMultipleChoice):
    """ALBERT for multiple choice."""

    config_class = c.AlbertConfig


# DistilBERT
class DistilBertModel(EncoderModel):
    """DistilBERT, the bare encoder."""

    config_class = c.DistilBertConfig


class DistilBertForMaskedLM(ForMaskedLM):
    """DistilBERT with the masked-LM head."""

    config_class = c.DistilBertConfig


class DistilBertForSequenceClassification(ForSequenceClassification):
    """DistilBERT for whole inputs and pairs."""

    config_class = c.DistilBertConfig


class DistilBertForTokenClassification(ForTokenClassification):
    """DistilBERT for tokens."""

    config_class = c.DistilBertConfig


class DistilBertForQuestionAnswering(ForQuestionAnswering):
    """DistilBERT for spans."""

    config_class = c.DistilBertConfig


class DistilBertForMultipleChoice(ForMultipleChoice):
    """DistilBERT for multiple choice."""

    config_class = c.DistilBertConfig


# ELECTRA
class ElectraModel(EncoderModel):
    """ELECTRA, the bare encoder."""

    config_class = c.ElectraConfig


class ElectraForPreTraining(ReplacedTokenPreTraining):
    """ELECTRA's discriminator: which tokens were replaced."""

    config_class = c.ElectraConfig


class ElectraForMaskedLM(ForMaskedLM):
    """ELECTRA's generator."""

    config_class = c.ElectraConfig


class ElectraForSequenceClassification(ForSequenceClassification):
    """ELECTRA for whole inputs and pairs."""

    config_class = c.ElectraConfig


class ElectraForTokenClassification(ForTokenClassification):
    """ELECTRA for tokens."""

    config_class = c.ElectraConfig


class ElectraForQuestionAnswering(ForQuestionAnswering):
    """ELECTRA for spans."""

    config_class = c.ElectraConfig


class ElectraForMultipleChoice(ForMultipleChoice):
    """ELECTRA for multiple choice."""

    config_class = c.ElectraConfig


# DeBERTa v2 and v3
class DebertaV2Model(EncoderModel):
    """DeBERTa v2 and v3, the bare encoder."""

    config_class = c.DebertaV2Config


class DebertaV2ForMaskedLM(ForMaskedLM):
    """DeBERTa v2 and v3 with the masked-LM head."""

    config_class = c.DebertaV2Config


class DebertaV2ForSequenceClassification(ForSequenceClassification):
    """DeBERTa v2 and v3 for whole inputs and pairs."""

    config_class = c.DebertaV2Config


class DebertaV2ForTokenClassification(ForTokenClassification):
    """DeBERTa v2 and v3 for tokens."""

    config_class = c.DebertaV2Config


class DebertaV2ForQuestionAnswering(ForQuestionAnswering):
    """DeBERTa v2 and v3 for spans."""

    config_class = c.DebertaV2Config


class DebertaV2ForMultipleChoice(ForMultipleChoice):
    """DeBERTa v2 and v3 for multiple choice."""

    config_class = c.DebertaV2Config


# ModernBERT
class ModernBertModel(EncoderModel):
    """ModernBERT, the bare encoder."""

    config_class = c.ModernBertConfig


class ModernBertForMaskedLM(ForMaskedLM):
    """ModernBERT with the masked-LM head."""

    config_class = c.ModernBertConfig


class ModernBertForSequenceClassification(ForSequenceClassification):
    """ModernBERT for whole inputs and pairs."""

    config_class = c.ModernBertConfig


class ModernBertForTokenClassification(ForTokenClassification):
    """ModernBERT for tokens."""

    config_class = c.ModernBertConfig


class ModernBertForQuestionAnswering(ForQuestionAnswering):
    """ModernBERT for spans."""

    config_class = c.ModernBertConfig


class ModernBertForMultipleChoice(ForMultipleChoice):
    """ModernBERT for multiple choice."""

    config_class = c.ModernBertConfig


# Classes by the name that a config.json's ``architectures`` has.
ARCHITECTURES: dict[str, type[PreTrainedModel]] = {
    cls.__name__: cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, PreTrainedModel) and cls.__module__ == __name__
}


def member_class(config: c.EncoderConfig, head: str) -> type[PreTrainedModel]:
    """The member's class with that head: ``member_class(RobertaConfig(), "ForMaskedLM")`` is
    `RobertaForMaskedLM`.

    Raises:
        BertfastError: the member has no such head.
    """
    member = type(config).__name__.removesuffix("Config")
    if f"{member}{head}" not in ARCHITECTURES:
        known = [name.removeprefix(member) for name in ARCHITECTURES if name.startswith(member)]
        raise BertfastError(f"{config.model_type} has no {head}; it has {', '.join(known)}")
    return ARCHITECTURES[f"{member}{head}"]


def load(model: str | Path, *, revision: str | None = None, **options: Any) -> PreTrainedModel:
    """The model in a Hugging Face folder or on the Hub, of the class that its config.json names.

    Where it names none, that is the bare encoder. Arguments are as of
    `PreTrainedModel.from_pretrained`.

    Raises:
        BertfastError: the folder cannot be read, the Hub cannot be reached, or the architecture
            is not supported.
    """
    path = resolve(model, revision).folder
    if is_adapter(path):
        config, head, _ = load_adapted_config(path)
        return member_class(config, head or "Model").from_pretrained(path, config=config, **options)
    config = load_config(path)
    names = read_object(path / "config.json").get("architectures")
    if not names:
        return member_class(config, "Model").from_pretrained(path, config=config, **options)
    name = names[0] if isinstance(names, list) else names
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise BertfastError(
            f"{path}: architecture {name} is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name].from_pretrained(path, config=config, **options)
