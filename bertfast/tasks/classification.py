"""One of several labels for a text or a pair of texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bertfast.config import EncoderConfig
from bertfast.data import labelled
from bertfast.escape import one_line
from bertfast.model import PreTrainedModel

from .registry import Task, register_task


@register_task
class Classification(Task):
    """Words or whole numbers as labels, one a row; see `bertfast.data.labels`."""

    name, summary = "classification", "one label of several"
    scores: ClassVar = {"accuracy": "accuracy", "macro_f1": "macro F1"}
    pipeline = "text-classification"

    def configure(
        self, config: EncoderConfig, examples: Sequence[Any], source: str | Path
    ) -> EncoderConfig:
        labels = labelled.label_names(examples, source)
        return replace(config.with_labels(labels), problem_type="single_label_classification")

    def targets(
        self, examples: Sequence[Any], config: EncoderConfig, source: str | Path
    ) -> list[int]:
        return labelled.encode_labels(examples, config.label2id, source)

    def score(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> dict[str, float]:
        chosen = torch.stack(list(outputs)).argmax(-1)
        return score(chosen.tolist(), [item.target for item in inputs], config.num_labels)

    def predict(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> list[dict[str, Any]]:
        """``label``, the likeliest one, and ``probabilities``, of every label."""
        made = []
        for output in outputs:
            values = output.softmax(-1).tolist()
            named = {config.id2label[index]: value for index, value in enumerate(values)}
            label = max(named, key=named.__getitem__)
            made.append({"label": label, "probabilities": named})
        return made

    def shown(self, prediction: dict[str, Any]) -> str:
        label = prediction["label"]
        return f"{one_line(label)}\t{prediction['probabilities'][label]:.3f}"

    def files(self, config: EncoderConfig) -> dict[str, str]:
        names = list(config.id2label.values())
        return {"labels.json": json.dumps(names, indent=2, ensure_ascii=False) + "\n"}

    def serves(self, model: PreTrainedModel) -> bool:
        config = model.config
        kinds = (None, "single_label_classification")
        return super().serves(model) and config.num_labels > 1 and config.problem_type in kinds


def score(predicted: Sequence[int], labels: Sequence[int], num_labels: int) -> dict[str, float]:
    """Accuracy, and macro F1: the mean over labels of the harmonic mean of precision and recall.

    A label that occurs neither in the predictions nor in the data does not enter macro F1, as in
    scikit-learn.
    """
    confusion = np.zeros((num_labels, num_labels), np.int64)
    np.add.at(confusion, (np.asarray(labels), np.asarray(predicted)), 1)
    right = np.diag(confusion)
    occurrences = confusion.sum(0) + confusion.sum(1)
    f1 = 2 * right[occurrences > 0] / occurrences[occurrences > 0]
    return {"accuracy": float(right.sum() / len(labels)), "macro_f1": float(f1.mean())}
