"""Labels and probabilities from a fine-tuned classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bertfast.data import tasks
from bertfast.errors import BertfastError
from bertfast.files import read_object
from bertfast.model import load
from bertfast.model.models import ForSequenceClassification
from bertfast.packed import PackedBatch
from bertfast.tokenization import SpecialIds, check_tokenizer_fits, load_tokenizer

BATCH_TOKENS = 16384


@dataclass(frozen=True)
class Prediction:
    """The likeliest label, each label's probability, and whether the input was cut."""

    label: str
    probabilities: dict[str, float]
    truncated: bool


class Classifier:
    """A classification model with its tokenizer.

    Attributes:
        max_length: tokens of an input at most: the tokenizer's ``model_max_length``, the model's
            positions where that is more or absent.
        pair_column: of the second text, where training had one.

    Args:
        folder: as `bertfast finetune` wrote it, or any folder of a ForSequenceClassification model
            with a tokenizer.

    Raises:
        BertfastError: the folder cannot be read, or its model has no classification head.
    """

    def __init__(self, folder: str | Path) -> None:
        model = load(folder)
        if not isinstance(model, ForSequenceClassification):
            raise BertfastError(
                f"{folder}: is a {type(model).__name__}, which has no classification head; fine-tune it first (bertfast finetune)"
            )
        if model.config.num_labels < 2 or model.config.problem_type not in (
            None,
            "single_label_classification",
        ):
            kind = model.config.problem_type or "regression"
            raise BertfastError(
                f"{folder}: is a model for {kind}; one that chooses between labels is wanted"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device)
        self.tokenizer = load_tokenizer(folder)
        check_tokenizer_fits(self.tokenizer, model.config, f"{folder}: the tokenizer")
        SpecialIds(self.tokenizer, folder)
        # What training cut texts to is what predictions cut them to.
        told = read_object(Path(folder) / "tokenizer_config.json", optional=True).get(
            "model_max_length"
        )
        positions = model.config.max_length
        self.max_length = (
            min(int(told), positions) if isinstance(told, (int, float)) and told >= 4 else positions
        )
        settings = read_object(Path(folder) / "metrics.json", optional=True).get("settings")
        self.pair_column: str | None = (
            settings.get("pair_column") if isinstance(settings, dict) else None
        )

    @torch.no_grad()
    def predict(
        self, texts: Sequence[str], pairs: Sequence[str | None] | None = None
    ) -> list[Prediction]:
        """Labels texts, or pairs of texts, in their order; inputs beyond ``max_length`` tokens are
        cut.
        """
        inputs = tasks.encode(self.tokenizer, texts, pairs or [None] * len(texts), self.max_length)
        # Alike lengths together: a batch then takes about the same time on every thread.
        order = sorted(range(len(inputs)), key=lambda row: len(inputs[row].ids))
        result: list[Prediction | None] = [None] * len(inputs)
        start = 0
        while start < len(order):
            end, total = start, 0
            while end < len(order) and (
                end == start or total + len(inputs[order[end]].ids) <= BATCH_TOKENS
            ):
                total += len(inputs[order[end]].ids)
                end += 1
            rows = order[start:end]
            batch = PackedBatch.from_sequences(
                [inputs[row].ids for row in rows], [inputs[row].segments for row in rows]
            )
            logits = self.model(batch.to(self.device).on_grid()).logits[: len(rows)]
            probabilities = logits.float().softmax(-1).cpu()
            for row, values in zip(rows, probabilities.tolist(), strict=True):
                named = {
                    self.model.config.id2label[index]: value for index, value in enumerate(values)
                }
                result[row] = Prediction(
                    max(named, key=lambda name: named[name]), named, inputs[row].truncated
                )
            start = end
        return [prediction for prediction in result if prediction is not None]
