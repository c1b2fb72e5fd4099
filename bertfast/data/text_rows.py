"""Rows of several texts and perhaps a label, as sentence encoders are trained on them.

Columns count as sentence-transformers counts them. The first of `LABELS` that a file has is the
label. Every other column is a text, in the file's order. A JSON list in a text's column stands for
as many columns, as of negatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertfast.errors import BertfastError

from .labelled import cell, is_task_file, table_rows
from .labels import quoted
from .readers import read_lines

LABELS = ("label", "labels", "score", "scores")
ADVICE = "a text is wanted, or a list of texts"


@dataclass(frozen=True)
class TextRow:
    """One row: its line in the file, its texts, and its label as the file has it."""

    line: int
    texts: tuple[str, ...]
    label: Any = None


@dataclass(frozen=True)
class TextRows:
    """The rows of a file.

    Attributes:
        path: of the file.
        columns: of the texts.
        label: column of the label; None where there is none.
        rows: of one number of texts each, unless they may be uneven.
    """

    path: Path
    columns: tuple[str, ...]
    label: str | None
    rows: list[TextRow]

    @property
    def texts(self) -> int:
        """How many texts a row has."""
        return len(self.rows[0].texts)

    def scores(self) -> list[float]:
        """Each row's label as a number.

        Raises:
            BertfastError: one is none; its line is named.
        """
        return [score(row.label, self, row) for row in self.rows]

    def lists(self) -> list[list[float]]:
        """Each row's label as a list of numbers, all of one length; a number is a list of one.

        Raises:
            BertfastError: one is none; its line is named.
        """
        found = []
        for row in self.rows:
            label = row.label if isinstance(row.label, list) else [row.label]
            found.append([score(value, self, row) for value in label])
            if len(found[-1]) != len(found[0]):
                raise BertfastError(
                    f"{self.path}, line {row.line}: {self.label!r} has {len(found[-1])} numbers "
                    f"and the first row's has {len(found[0])}; each row must have as many"
                )
        return found

    def words(self) -> list[str]:
        """Each row's label as a word.

        Raises:
            BertfastError: one is a list, or empty; its line is named.
        """
        found = []
        for row in self.rows:
            label = cell(row.label, self.path, row.line, self.label or "label", "a word is wanted")
            found.append(label.strip())
            if not found[-1]:
                raise BertfastError(f"{self.path}, line {row.line}: the label is empty")
        return found


def score(value: Any, source: TextRows, row: TextRow) -> float:
    """A label as a finite number.

    Raises:
        BertfastError: it is none; the line is named.
    """
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BertfastError(
            f"{source.path}, line {row.line}: the label is {quoted(value)}, and a finite number is "
            "wanted"
        )
    return number


def read_text_rows(
    path: str | Path,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    *,
    uneven: bool = False,
) -> TextRows:
    """The rows of a table, of JSON lines, of a Parquet or an Arrow file, or of a folder that
    `datasets` saved.

    Of any other file each line that is not blank is a text without a label.

    Args:
        path: of the file.
        text_columns: columns of the texts, in their order; empty for every one but the label's.
        label_column: None for the first of `LABELS` that there is.
        uneven: take rows of different numbers of texts.

    Raises:
        BertfastError: the file cannot be used, lacks a column or has no rows, a text is empty, or
            rows have different numbers of texts.
    """
    path = Path(path)
    if not is_task_file(path):
        lines = [TextRow(n, (line,)) for n, line in enumerate(read_lines(path), 1) if line.strip()]
        if not lines:
            raise BertfastError(f"{path}: has no text")
        return TextRows(path, ("text",), None, lines)
    columns: tuple[str, ...] = ()
    rows: list[TextRow] = []
    for line, row in table_rows(path):
        if row is None:
            continue
        if not columns:
            if label_column is None:
                label_column = next((name for name in LABELS if name in row), None)
            columns = tuple(text_columns) or tuple(name for name in row if name != label_column)
        rows.append(_row(path, line, row, columns, label_column))
        if not uneven and len(rows[-1].texts) != len(rows[0].texts):
            raise BertfastError(
                f"{path}, line {line}: has {len(rows[-1].texts)} texts and the first row "
                f"{len(rows[0].texts)}; each row must have as many"
            )
    if not rows:
        raise BertfastError(f"{path}: has no rows below its header")
    if not columns:
        raise BertfastError(f"{path}: has no column of texts beside its label {label_column!r}")
    return TextRows(path, columns, label_column, rows)


def _row(
    path: Path, line: int, row: dict[str, Any], columns: Sequence[str], label: str | None
) -> TextRow:
    for name in (*columns, *([] if label is None else [label])):
        if name not in row:
            raise BertfastError(
                f"{path}, line {line}: has no column {name!r}; its columns are "
                f"{', '.join(map(repr, row))} (--text-column and --label-column name them)"
            )
    texts: list[str] = []
    for name in columns:
        values = row[name] if isinstance(row[name], list) else [row[name]]
        for value in values:
            texts.append(cell(value, path, line, name, ADVICE))
            if not texts[-1].strip():
                raise BertfastError(
                    f"{path}, line {line}: the text {name!r} is empty; leave out such rows"
                )
    return TextRow(line, tuple(texts), None if label is None else row[label])
