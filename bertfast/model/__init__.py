"""One encoder, its heads, and their outputs."""

from .bert import BertForMaskedLM, BertForPreTraining, BertForSequenceClassification, BertModel, PreTrainedModel

__all__ = ["BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification", "BertModel", "PreTrainedModel"]
