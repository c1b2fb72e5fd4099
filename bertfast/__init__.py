"""Pretrain and fine-tune BERT-family encoders on packed batches, with fused Triton and C++ kernels.

Names are loaded on first use, so that ``import bertfast`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__
from .registration import register_attention, register_attention_on_import

if TYPE_CHECKING:
    from . import kernels
    from .config import BertConfig
    from .errors import BertfastError
    from .hub import load
    from .model import BertForMaskedLM, BertForPreTraining, BertForSequenceClassification, BertModel
    from .packed import PackedBatch
    from .training.finetune import finetune
    from .training.pretrain import pretrain

_HOMES = {
    "BertConfig": "config",
    "BertForMaskedLM": "model",
    "BertForPreTraining": "model",
    "BertForSequenceClassification": "model",
    "BertModel": "model",
    "BertfastError": "errors",
    "PackedBatch": "packed",
    "finetune": "training",
    "load": "hub",
    "pretrain": "training",
}

__all__ = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForSequenceClassification",
    "BertModel",
    "BertfastError",
    "PackedBatch",
    "__version__",
    "finetune",
    "kernels",
    "load",
    "pretrain",
    "register_attention",
]

register_attention_on_import()


def __getattr__(name: str) -> object:
    if name == "kernels":
        return import_module("bertfast.kernels")
    if name not in _HOMES:
        raise AttributeError(f"module 'bertfast' has no attribute {name!r}")
    value = getattr(import_module(f"bertfast.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
