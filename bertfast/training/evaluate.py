"""Scores of a fine-tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertfast.data.labelled import Columns

from .predict import Predictor


def evaluate(
    folder: str | Path,
    data: str | Path,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    *,
    device: str | None = None,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Scores the model in ``folder`` on a labelled file; the other arguments are those of
    `Predictor`.

    Returns:
        task, each of its scores (of a classifier accuracy and macro_f1), examples, truncated (how
        many inputs were cut), max_length (at how many tokens).

    Raises:
        BertfastError: no fine-tuned model there, a file that cannot be used, or a label that
            training did not see.
    """
    predictor = Predictor(folder, device=device, precision=precision)
    task = predictor.task
    columns = Columns(text_column, pair_column or predictor.columns.pair, label_column)
    examples = task.read(data, columns)
    outputs, inputs = predictor.run(examples, data)
    return {
        "task": task.name,
        **task.score(outputs, inputs, examples, predictor.model.config),
        "examples": len(examples),
        "truncated": sum(item.truncated for item in inputs),
        "max_length": predictor.max_length,
    }
