"""Any number of labels for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from bertfast.config import EncoderConfig
from bertfast.data.labels import class_names, label_number, quoted
from bertfast.errors import BertfastError
from bertfast.escape import one_line
from bertfast.model import PreTrainedModel
from bertfast.registry import SUMMARIES
from bertfast.scoring import (
    Calibration,
    LabelTable,
    Scorer,
    best_temperature,
    mean_of,
    multi_label,
    together,
)

from .label_names import by_label, labels_file, names_of
from .registry import Task, register_task

LEAST = 0.5  # probability from which on a label is given


@register_task
class MultiLabel(Task):
    """JSON lists of words or whole numbers as labels, which may be empty; each label is a question
    of its own.
    """

    name, summary = "multilabel", SUMMARIES["task"]["multilabel"]
    scores: ClassVar = {
        "micro_f1": "micro F1",
        "macro_f1": "macro F1",
        "exact": "share of rows with every label right",
    }
    lowest: ClassVar = {"loss": "loss", "ece": "calibration error"}
    classes = "several"
    pipeline = "text-classification"

    def fits(self, examples: Sequence[Any]) -> bool:
        """Whether every label is a list."""
        return bool(examples) and all(isinstance(row.label, tuple) for row in examples)

    def configure(
        self, config: EncoderConfig, examples: Sequence[Any], source: str | Path
    ) -> EncoderConfig:
        pairs = [(row.line, label) for row in examples for label in _labels(row, source)]
        if not pairs:
            raise BertfastError(f"{source}: no row has a label; every list is empty")
        names = class_names(pairs, source)
        return replace(config.with_labels(names), problem_type="multi_label_classification")

    def targets(
        self, examples: Sequence[Any], config: EncoderConfig, source: str | Path
    ) -> list[list[float]]:
        label2id, found = config.label2id, []
        for example in examples:
            row = [0.0] * len(label2id)
            for label in _labels(example, source):
                row[label_number(label, label2id, source, example.line)] = 1.0
            found.append(row)
        return found

    def scorer(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> Scorer:
        probabilities, right = _decisions(outputs, inputs)
        losses = binary_cross_entropy_with_logits(
            torch.stack(list(outputs)), torch.from_numpy(right).float(), reduction="none"
        )
        return together(
            multi_label(probabilities >= LEAST, right),
            mean_of({"loss": losses.mean(-1).double().numpy()}),
            Calibration(probabilities, right).scorer,
        )

    def temperature(self, outputs: Sequence[Tensor], inputs: Sequence[Any]) -> float | None:
        return best_temperature(torch.stack(list(outputs)), _decisions(outputs, inputs)[1])

    def stratum(self, example: Any) -> Hashable:
        return example.label

    def report(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> dict[str, Any]:
        """``table``, and the ``calibration`` of every label's probability."""
        probabilities, right = _decisions(outputs, inputs)
        names = names_of(config)
        return {
            "table": LabelTable(names, right, probabilities >= LEAST).rows(),
            "calibration": Calibration(probabilities, right).report(),
        }

    def predict(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> list[dict[str, Any]]:
        """``labels``, those of a probability of a half at least, and ``probabilities``, of all."""
        made = []
        for output in outputs:
            named = by_label(output.sigmoid().tolist(), config)
            labels = [name for name, value in named.items() if value >= LEAST]
            made.append({"labels": labels, "probabilities": named})
        return made

    def shown(self, prediction: dict[str, Any]) -> str:
        return ", ".join(map(one_line, prediction["labels"])) or "-"

    def files(self, config: EncoderConfig) -> dict[str, str]:
        return labels_file(config)

    def serves(self, model: PreTrainedModel) -> bool:
        return super().serves(model) and model.config.problem_type == "multi_label_classification"


def _labels(example: Any, source: str | Path) -> tuple[str, ...]:
    """The example's labels, each once.

    Raises:
        BertfastError: it has no list, or an empty label in it.
    """
    labels = example.label
    if not isinstance(labels, tuple) or "" in labels:
        raise BertfastError(
            f"{source}, line {example.line}: the label is {quoted(labels)}; a JSON list of labels "
            'is wanted, as ["a", "b"], in a .jsonl file'
        )
    return tuple(dict.fromkeys(labels))


def _decisions(
    outputs: Sequence[Tensor], inputs: Sequence[Any]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Each label's probability, and whether the input has it: (inputs, labels) each."""
    right = np.array([item.target for item in inputs], bool)
    return torch.stack(list(outputs)).sigmoid().numpy(), right
