"""Scores of a fine-tuned model, with intervals, and what else its task reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertfast.config import EncoderConfig
from bertfast.data.labelled import Columns
from bertfast.scoring import LEVEL, RESAMPLES, intervals
from bertfast.tasks import Task

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
        task, each of its scores (of a classifier accuracy, macro_f1, micro_f1 and mcc), intervals,
        examples, truncated (how many inputs were cut), max_length (at how many tokens), and what
        `Task.report` gives.

    Raises:
        BertfastError: no fine-tuned model there, a file that cannot be used, or a label that
            training did not see.
    """
    predictor = Predictor(folder, device=device, precision=precision)
    task = predictor.task
    columns = Columns(text_column, pair_column or predictor.columns.pair, label_column)
    examples = task.read(data, columns)
    outputs, inputs = predictor.run(examples, data)
    found = measure(task, outputs, inputs, examples, predictor.model.config)
    return {
        "task": task.name,
        **found.pop("scores"),
        "examples": len(examples),
        "truncated": sum(item.truncated for item in inputs),
        "max_length": predictor.max_length,
        **found,
    }


def measure(
    task: Task,
    outputs: Sequence[Any],
    inputs: Sequence[Any],
    examples: Sequence[Any],
    config: EncoderConfig,
) -> dict[str, Any]:
    """What an evaluation says of the model's outputs: ``scores``, ``intervals`` of those that the
    task has a scorer for, and the task's report.
    """
    scorer = task.scorer(outputs, inputs, examples, config)
    ends = {} if scorer is None else intervals(scorer, len(examples))
    return {
        "scores": task.score(outputs, inputs, examples, config),
        "intervals": {name: ends[name].tolist() for name in task.scores if name in ends},
        "level": LEVEL,
        "resamples": RESAMPLES,
        **task.report(outputs, inputs, examples, config),
    }
