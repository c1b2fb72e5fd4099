"""Scores of a fine-tuned model, with intervals, and what else its task reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertfast.config import EncoderConfig
from bertfast.data.columns import Columns
from bertfast.escape import one_line
from bertfast.files import whole_folder
from bertfast.scoring import LEVEL, RESAMPLES, intervals, pictures
from bertfast.tasks import TASKS, Task

from .predict import Predictor

LISTED, WIDEST = 50, 40  # labels of a table that are shown, and characters of each


def evaluate(
    folder: str | Path,
    data: str | Path,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    *,
    device: str | None = None,
    precision: str = "fp32",
    task_options: Mapping[str, Any] | Sequence[str] = (),
) -> dict[str, Any]:
    """Scores the model in ``folder`` on a labelled file; the other arguments are those of
    `Predictor`.

    Returns:
        The task, each of its scores (of a classifier accuracy, macro_f1, micro_f1 and mcc),
        intervals and examples. Then truncated (how many inputs were cut), max_length (at how many
        tokens), and what `Task.report` gives.

    Raises:
        BertfastError: no fine-tuned model there, a file that cannot be used, or a label that
            training did not see.
    """
    predictor = Predictor(folder, device=device, precision=precision, task_options=task_options)
    task = predictor.task
    given = Columns(text_column, pair_column, label_column)
    columns = task.columns(data, given, predictor.columns)
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


def shown(found: Mapping[str, Any]) -> str:
    """What `evaluate` gave, as lines to read: a score a line, then a table of the labels."""
    lines = TASKS[found["task"]].said(found, found["intervals"])
    if calibration := found.get("calibration"):
        low, high = calibration["interval"]
        lines.append(f"calibration error {calibration['ece']:.4f} [{low:.4f}, {high:.4f}]")
    note = f"{found['examples']} examples"
    if found["intervals"]:
        note += f"; in brackets {found['level']:.0%} intervals of {found['resamples']} resamples"
    lines.append(f"({note})")
    if table := found.get("table"):
        names = [one_line(row["label"])[:WIDEST] for row in table[:LISTED]]
        width = max(map(len, ["label", *names]))
        lines += ["", f"{'label':<{width}}  precision  recall      F1  support"]
        lines += [
            f"{name:<{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  "
            f"{row['support']:7d}"
            for name, row in zip(names, table, strict=False)
        ]
        if len(table) > LISTED:
            lines.append(f"and {len(table) - LISTED} labels more (--json has them all)")
    return "\n".join(lines)


def write_evaluation(found: Mapping[str, Any], out: Path) -> None:
    """Makes a folder of what `evaluate` gave: ``scores.json``, and pictures where matplotlib is
    installed.

    Raises:
        BertfastError: the folder cannot be written.
    """
    with whole_folder(out) as folder:
        text = json.dumps(found, indent=2, ensure_ascii=False)
        for name, content in {"scores.json": f"{text}\n", **pictures(found)}.items():
            (folder / name).write_text(content, encoding="utf-8")
