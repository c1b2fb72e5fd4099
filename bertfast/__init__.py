"""Pretrain and fine-tune BERT-family encoders on packed batches, with fused Triton and C++ kernels.

Names are loaded on first use, so that ``import bertfast`` costs nothing. The models and
configurations of every member are here under Hugging Face's names: ``bertfast.RobertaForMaskedLM``,
``bertfast.AlbertConfig``.

Linux can tell whether others want the processors. Where it does not, the import says how long
OpenMP's threads may spin (`bertfast.openmp`). Their runtime reads it when it starts, with PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import openmp as openmp
from ._version import __version__
from .registration import register_attention, register_attention_on_import

if TYPE_CHECKING:
    from . import kernels as kernels
    from .config import *  # noqa: F403
    from .errors import BertfastError as BertfastError
    from .hub.accelerate import accelerate as accelerate
    from .hub.accelerate import restore as restore
    from .model import *  # noqa: F403
    from .model import load as load
    from .objectives import Objective as Objective
    from .objectives import register_objective as register_objective
    from .packed import PackedBatch as PackedBatch
    from .sentences import CrossEncoder as CrossEncoder
    from .sentences import Loss as Loss
    from .sentences import SentenceEncoder as SentenceEncoder
    from .sentences import register_loss as register_loss
    from .tasks import Task as Task
    from .tasks import register_task as register_task
    from .training.finetune import finetune as finetune
    from .training.pretrain import pretrain as pretrain
    from .training.rerank import train_reranker as train_reranker
    from .training.sentences import train_sentences as train_sentences
    from .training.trainer import Callback as Callback
    from .training.trainer import Trainer as Trainer

_HOMES = {
    "BertfastError": "errors",
    "Callback": "training.trainer",
    "CrossEncoder": "sentences",
    "Loss": "sentences",
    "Objective": "objectives",
    "PackedBatch": "packed",
    "SentenceEncoder": "sentences",
    "Task": "tasks",
    "Trainer": "training.trainer",
    "accelerate": "hub.accelerate",
    "finetune": "training",
    "load": "model",
    "pretrain": "training",
    "register_loss": "sentences",
    "register_objective": "objectives",
    "register_task": "tasks",
    "restore": "hub.accelerate",
    "train_reranker": "training.rerank",
    "train_sentences": "training.sentences",
}
_MEMBERS = (
    "Bert",
    "Roberta",
    "XLMRoberta",
    "Camembert",
    "MPNet",
    "Albert",
    "DistilBert",
    "Electra",
    "DebertaV2",
    "ModernBert",
)
_HEADS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
_HOMES |= {f"{member}Config": "config" for member in _MEMBERS}
_HOMES |= {f"{member}{head}": "model" for member in _MEMBERS for head in _HEADS}
_HOMES |= {f"{member}ForPreTraining": "model" for member in ("Bert", "Albert", "Electra")}

__all__ = ["__version__", "kernels", "register_attention", *_HOMES]

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
    return list(__all__)
