"""A number for a text or a pair of texts, as in the STS benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertfast.config import EncoderConfig
from bertfast.data.labels import quoted
from bertfast.errors import BertfastError
from bertfast.model import PreTrainedModel
from bertfast.registry import SUMMARIES
from bertfast.scoring import Scorer, correlations

from .registry import Task, register_task


@register_task
class Regression(Task):
    """Numbers as labels; the loss is the mean square of the errors."""

    name, summary = "regression", SUMMARIES["task"]["regression"]
    scores: ClassVar = {"pearson": "Pearson", "spearman": "Spearman"}
    pipeline = "text-classification"

    def fits(self, examples: Sequence[Any]) -> bool:
        """Whether all labels are numbers, and some are not whole."""
        numbers = [_number(example.label) for example in examples]
        known = [number for number in numbers if number is not None]
        return len(known) == len(numbers) and any(x % 1 for x in known if math.isfinite(x))

    def configure(
        self, config: EncoderConfig, examples: Sequence[Any], source: str | Path
    ) -> EncoderConfig:
        targets = self.targets(examples, config, source)
        if len(set(targets)) < 2:
            raise BertfastError(
                f"{source}: every target is {targets[0]:g}; a regression needs different ones"
            )
        return replace(config.with_labels(["LABEL_0"]), problem_type="regression")

    def targets(
        self, examples: Sequence[Any], config: EncoderConfig, source: str | Path
    ) -> list[float]:
        found = []
        for example in examples:
            number = _number(example.label)
            if number is None or not math.isfinite(number):
                raise BertfastError(
                    f"{source}, line {example.line}: the label {quoted(example.label)} is no "
                    "finite number; a regression has a number in every row"
                )
            found.append(number)
        return found

    def scorer(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> Scorer:
        return correlations(torch.cat(list(outputs)), [item.target for item in inputs])

    def each(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> NDArray[np.float64]:
        """Minus the distance from the right number."""
        targets = np.array([item.target for item in inputs], np.float64)
        return -np.abs(torch.cat(list(outputs)).double().numpy() - targets)

    def predict(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> list[dict[str, Any]]:
        """``score``, the number."""
        return [{"score": float(output)} for output in outputs]

    def serves(self, model: PreTrainedModel) -> bool:
        config = model.config
        kinds = (None, "regression")
        return super().serves(model) and config.num_labels == 1 and config.problem_type in kinds


def _number(label: Any) -> float | None:
    """The label as a number; None where it is none, or is written as no Latin number."""
    if not isinstance(label, str) or not label.isascii() or "_" in label:
        return None
    try:
        return float(label)
    except ValueError:
        return None
