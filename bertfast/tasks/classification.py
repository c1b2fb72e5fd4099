"""One of several labels for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from bertfast.config import EncoderConfig
from bertfast.data import labelled
from bertfast.escape import one_line
from bertfast.model import PreTrainedModel
from bertfast.registry import SUMMARIES
from bertfast.scoring import (
    Calibration,
    LabelTable,
    Scorer,
    best_temperature,
    confusion,
    mean_of,
    single_label,
    together,
)

from .label_names import by_label, labels_file, names_of
from .registry import Task, register_task


@register_task
class Classification(Task):
    """Words or whole numbers as labels, one a row; see `bertfast.data.labels`."""

    name, summary = "classification", SUMMARIES["task"]["classification"]
    scores: ClassVar = {
        "accuracy": "accuracy",
        "macro_f1": "macro F1",
        "micro_f1": "micro F1",
        "mcc": "MCC",
    }
    lowest: ClassVar = {"loss": "loss", "ece": "calibration error"}
    classes = "one"
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

    def scorer(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> Scorer:
        targets, chosen = _choices(outputs, inputs)
        logits = torch.stack(list(outputs)).double()
        losses = cross_entropy(logits, torch.from_numpy(targets), reduction="none")
        return together(
            single_label(targets, chosen),
            mean_of({"loss": losses.numpy()}),
            _calibration(logits, targets == chosen).scorer,
        )

    def temperature(self, outputs: Sequence[Tensor], inputs: Sequence[Any]) -> float | None:
        return best_temperature(torch.stack(list(outputs)), _choices(outputs, inputs)[0])

    def stratum(self, example: Any) -> Hashable:
        return example.label

    def report(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> dict[str, Any]:
        """``table``, ``confusion``, and the likeliest label's ``calibration``."""
        targets, chosen = _choices(outputs, inputs)
        names = names_of(config)
        return {
            "table": LabelTable(names, targets, chosen).rows(),
            "confusion": confusion(names, targets, chosen),
            "calibration": _calibration(torch.stack(list(outputs)), targets == chosen).report(),
        }

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
            named = by_label(output.softmax(-1).tolist(), config)
            label = max(named, key=named.__getitem__)
            made.append({"label": label, "probabilities": named})
        return made

    def shown(self, prediction: dict[str, Any]) -> str:
        label = prediction["label"]
        return f"{one_line(label)}\t{prediction['probabilities'][label]:.3f}"

    def files(self, config: EncoderConfig) -> dict[str, str]:
        return labels_file(config)

    def serves(self, model: PreTrainedModel) -> bool:
        config = model.config
        kinds = (None, "single_label_classification")
        return super().serves(model) and config.num_labels > 1 and config.problem_type in kinds


def _choices(
    outputs: Sequence[Tensor], inputs: Sequence[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The label number that each input has, and the likeliest one."""
    targets = np.array([item.target for item in inputs], np.int64)
    return targets, torch.stack(list(outputs)).argmax(-1).numpy()


def _calibration(logits: Tensor, right: NDArray[np.bool_]) -> Calibration:
    """Of the likeliest label's probability."""
    return Calibration(logits.double().softmax(-1).amax(-1), right)
