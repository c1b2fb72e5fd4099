"""Labels and probabilities from a fine-tuned classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bertfast.data import tasks
from bertfast.errors import BertfastError
from bertfast.hub import check_tokenizer_fits, load, load_tokenizer
from bertfast.model import BertForSequenceClassification
from bertfast.packed import PackedBatch

BATCH_TOKENS = 16384


@dataclass(frozen=True)
class Prediction:
    """The likeliest label, each label's probability, and whether the input was cut."""

    label: str
    probabilities: dict[str, float]
    truncated: bool


class Classifier:
    """A classification model with its tokenizer.

    Args:
        folder: as `bertfast finetune` wrote it, or any BertForSequenceClassification folder with a tokenizer.

    Raises:
        BertfastError: the folder cannot be read, or its model has no classification head.
    """

    def __init__(self, folder: str | Path) -> None:
        model = load(folder)
        if not isinstance(model, BertForSequenceClassification):
            raise BertfastError(
                f"{folder}: is a {type(model).__name__}, which has no classification head; fine-tune it first (bertfast finetune)"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device)
        self.tokenizer = load_tokenizer(folder)
        check_tokenizer_fits(self.tokenizer, model.config, f"{folder}: the tokenizer")

    @torch.no_grad()
    def predict(self, texts: Sequence[str], pairs: Sequence[str | None] | None = None) -> list[Prediction]:
        """Labels texts, or pairs of texts, in their order; texts beyond the model's positions are cut."""
        limit = self.model.config.max_position_embeddings
        inputs = tasks.encode(self.tokenizer, texts, pairs or [None] * len(texts), limit)
        # Alike lengths together: a batch then takes about the same time on every thread.
        order = sorted(range(len(inputs)), key=lambda row: len(inputs[row].ids))
        result: list[Prediction | None] = [None] * len(inputs)
        start = 0
        while start < len(order):
            end, total = start, 0
            while end < len(order) and (end == start or total + len(inputs[order[end]].ids) <= BATCH_TOKENS):
                total += len(inputs[order[end]].ids)
                end += 1
            rows = order[start:end]
            batch = PackedBatch.from_sequences(
                [inputs[row].ids for row in rows], [inputs[row].segments for row in rows]
            )
            probabilities = self.model(batch.to(self.device)).logits.float().softmax(-1).cpu()
            for row, values in zip(rows, probabilities.tolist(), strict=True):
                named = {self.model.config.id2label[index]: value for index, value in enumerate(values)}
                result[row] = Prediction(max(named, key=lambda name: named[name]), named, inputs[row].truncated)
            start = end
        return [prediction for prediction in result if prediction is not None]
