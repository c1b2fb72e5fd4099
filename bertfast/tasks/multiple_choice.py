"""One of several choices for a question, a softmax over their scores. Devlin et al., "BERT",
section 4.4.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from bertfast.config import EncoderConfig
from bertfast.data import choices, labelled
from bertfast.data.choices import Choice
from bertfast.data.columns import NONE, Columns
from bertfast.errors import BertfastError
from bertfast.escape import one_line
from bertfast.packed import PackedBatch
from bertfast.registry import SUMMARIES
from bertfast.scoring import Scorer, mean_of

from .registry import Task, register_task


@dataclass(frozen=True)
class Choices:
    """A question with each of its choices, one sequence each, and the place of the right one."""

    parts: list[labelled.Encoded]
    target: int | None = None

    @property
    def tokens(self) -> int:
        """How many tokens all sequences have."""
        return sum(part.tokens for part in self.parts)

    @property
    def truncated(self) -> bool:
        """Whether one of them was cut."""
        return any(part.truncated for part in self.parts)


@register_task
class MultipleChoice(Task):
    """Questions with two choices or more, which may differ in number."""

    name, summary = "multiple-choice", SUMMARIES["task"]["multiple-choice"]
    scores: ClassVar = {"accuracy": "accuracy"}
    head = "ForMultipleChoice"
    pipeline = "multiple-choice"
    usage = ('"a question" "a choice" "another"', "")

    def recognizes(self, path: Path) -> bool:
        return choices.has_choices(path)

    def columns(self, path: str | Path, columns: Columns, trained: Columns = NONE) -> Columns:
        return choices.find_columns(path, columns, trained)

    def read(self, path: str | Path, columns: Columns, labels: bool = True) -> list[Choice]:
        return choices.read_choices(path, columns, labels)

    def of_text(self, line: int, text: str) -> Choice:
        raise BertfastError(
            f"line {line}: is a text alone, and a question has choices; give a table or JSON lines"
        )

    def of_arguments(self, arguments: Sequence[str]) -> list[Choice]:
        question, *texts = arguments
        if len(texts) < 2:
            raise BertfastError(f"got {len(texts)} choice(s); give a question and two or more")
        return [Choice(1, question, "", tuple(texts))]

    def encode(
        self,
        examples: Sequence[Any],
        tokenizer: Tokenizer,
        config: EncoderConfig,
        max_length: int,
        source: str | Path | None = None,
    ) -> list[Choices]:
        texts = [example.text for example in examples for _ in example.choices]
        endings = [ending for example in examples for ending in example.endings]
        parts = iter(labelled.encode(tokenizer, texts, endings, max_length))
        return [
            Choices(
                [next(parts) for _ in example.choices], None if source is None else example.label
            )
            for example in examples
        ]

    def batch(self, inputs: Sequence[Any]) -> PackedBatch:
        parts = [part for item in inputs for part in item.parts]
        batch = PackedBatch.from_sequences(
            [part.ids for part in parts], [part.segments for part in parts]
        )
        counts = torch.tensor([len(item.parts) for item in inputs], dtype=torch.int64)
        batch.per_sequence["question"] = torch.arange(len(inputs)).repeat_interleave(counts)
        if inputs and inputs[0].target is not None:
            batch.labels = torch.tensor(
                [int(place == item.target) for item in inputs for place in range(len(item.parts))]
            )
        return batch

    def run(self, model: Any, batch: PackedBatch, seed: int | Tensor | None = None) -> Any:
        """``logits`` (choices,), and the mean cross-entropy of the right ones of each question."""
        output = model(batch, num_choices=1, seed=seed)
        logits = output.logits[:, 0].float()
        if batch.labels is None:
            return replace(output, logits=logits)
        question = batch.per_sequence["question"]
        counts = torch.bincount(question)
        place = torch.arange(len(question), device=question.device)
        place = place - (counts.cumsum(0) - counts)[question]
        grid = logits.new_full((len(counts), int(counts.max())), -torch.inf)
        grid = grid.index_put((question, place), logits)
        loss = F.cross_entropy(grid, place[batch.labels == 1])
        return replace(output, loss=loss, logits=logits)

    def outputs(self, output: Any, inputs: Sequence[Any]) -> list[Tensor]:
        """(choices,) of each question: the logits."""
        return list(output.logits.cpu().split([len(item.parts) for item in inputs]))

    def scorer(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> Scorer:
        right = [int(out.argmax()) == row.label for out, row in zip(outputs, examples, strict=True)]
        return mean_of({"accuracy": np.array(right, np.float64)})

    def stratum(self, example: Any) -> Hashable:
        """The right choice."""
        return example.label

    def predict(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Any],
        examples: Sequence[Any],
        config: EncoderConfig,
    ) -> list[dict[str, Any]]:
        """``label``, the place of the likeliest choice from 0, ``choice``, its text, and
        ``probabilities``, of each choice in order.
        """
        made = []
        for output, example in zip(outputs, examples, strict=True):
            best = int(output.argmax())
            probabilities = output.softmax(-1).tolist()
            made.append(
                {"label": best, "choice": example.choices[best], "probabilities": probabilities}
            )
        return made

    def echo(self, example: Any) -> dict[str, Any]:
        return {"text": example.text} | ({"question": example.question} if example.question else {})

    def wanted(self, example: Any) -> str:
        return one_line(example.choices[example.label])

    def shown(self, prediction: dict[str, Any]) -> str:
        probability = prediction["probabilities"][prediction["label"]]
        return f"{one_line(prediction['choice'])}\t{probability:.3f}"
