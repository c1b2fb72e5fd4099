"""Questions with choices, of which one is right: as in SWAG, RACE, CommonsenseQA and COPA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertfast.errors import BertfastError

from .columns import NONE, Columns
from .labelled import column_names, is_task_file, table_rows
from .labels import quoted

CONTEXTS = ("article", "context", "passage", "sent1", "premise", "ctx")
QUESTIONS = ("question", "sent2", "prompt")
CHOICES = ("choices", "options", "endings")
LABELS = ("label", "answer", "answerKey")
_NUMBERED = re.compile(r"(ending|choice|option|answer)_?(\d+)")


@dataclass(frozen=True)
class Choice:
    """A question with its choices.

    Attributes:
        line: of the file.
        text: what stands before each choice: a context, or the question itself.
        question: what stands in front of each choice; "" for nothing.
        choices: two at least.
        label: the place of the right one; None is unknown.
    """

    line: int
    text: str
    question: str
    choices: tuple[str, ...]
    label: int | None = None

    @property
    def endings(self) -> list[str]:
        """The question, where the context is another text, and a choice, for each."""
        return [f"{self.question} {choice}".strip() for choice in self.choices]


def has_choices(path: Path) -> bool:
    """Whether a file holds choices with the right one, by its columns."""
    if not path.exists() or not is_task_file(path):
        return False
    try:
        row = next((row for _, row in table_rows(path) if row is not None), {})
    except BertfastError:  # which reading says, whatever the task
        return False
    texts = any(name in row for name in (*CONTEXTS, *QUESTIONS))
    listed = any(isinstance(row.get(name), list | Mapping) for name in CHOICES)
    numbered = {match[1] for name in row if (match := _NUMBERED.fullmatch(name))}
    labelled = any(name in row for name in LABELS)
    return texts and labelled and (listed or bool(numbered - {"answer"}))


def find_columns(path: str | Path, columns: Columns, trained: Columns = NONE) -> Columns:
    """The columns of the text before each choice, of a question in front of it, and of the right
    choice.

    They are those given, or else those trained with, or else the usual ones.

    The choices stand in one of `CHOICES`, or in columns with numbers: ``ending0``, ``ending1``.
    """
    names = column_names(path)
    known = trained if {trained.text, trained.label} & set(names) else NONE
    text, question, label = (given or before for given, before in zip(columns, known, strict=True))
    if text is None:
        context = next((name for name in CONTEXTS if name in names), None)
        asked = next((name for name in QUESTIONS if name in names), None)
        text, other = (context, asked) if context is not None else (asked, None)
        question = question or other
    label = label or next((name for name in LABELS if name in names), LABELS[0])
    return Columns(text or QUESTIONS[0], question, label)


def read_choices(path: str | Path, columns: Columns, labels: bool = True) -> list[Choice]:
    """The questions of a table, or of JSON lines.

    Args:
        path: of the file.
        columns: as `find_columns` gives them. The right choice is its number from 0, its letter
            from A, its own label, or its text.
        labels: whether the right choices are to be there.

    Raises:
        BertfastError: the file cannot be used, a question has fewer than two choices, or the right
            one is none of them. The message names file and row.
    """
    path = Path(path)
    found = []
    for line, row in table_rows(path):
        if row is None:
            continue
        where = f"{path}, line {line}"
        for name in (*columns[:2], columns.label if labels else None):
            if name is not None and name not in row:
                raise BertfastError(
                    f"{where}: has no column {name!r}; its columns are "
                    f"{', '.join(map(repr, row))}. --text-column names the text before each "
                    "choice, --pair-column the question in front of it, --label-column the right "
                    "choice"
                )
        assert columns.text is not None
        choices, names = _choices(row, where)
        if len(choices) < 2:
            raise BertfastError(f"{where}: has {len(choices)} choice(s); two at least are wanted")
        text, asked = _text(row[columns.text], where, columns.text), ""
        if columns.pair is not None and row[columns.pair] not in (None, ""):
            asked = _text(row[columns.pair], where, columns.pair)
        label = None
        if labels:
            label = _label(row[columns.label or LABELS[0]], choices, names, where)
        found.append(Choice(line, text, asked, tuple(choices), label))
    if not found:
        raise BertfastError(f"{path}: has no rows")
    return found


def _choices(row: Mapping[str, Any], where: str) -> tuple[list[str], list[str]]:
    """The choices, and their own labels where they have some."""
    for name in CHOICES:
        if name not in row:
            continue
        given, names = row[name], []
        if isinstance(given, Mapping):  # of a list of labels and one of texts
            names, given = given.get("label", []), given.get("text")
        elif isinstance(given, list) and all(isinstance(choice, Mapping) for choice in given):
            names = [choice.get("label") for choice in given]
            given = [choice.get("text") for choice in given]
        if not isinstance(given, list):
            raise BertfastError(f"{where}: {name!r} holds {quoted(given)}; a list is wanted")
        return [_text(choice, where, name) for choice in given], list(map(str, names))
    numbered = sorted((int(match[2]), name) for name in row if (match := _NUMBERED.fullmatch(name)))
    while numbered and row[numbered[-1][1]] in (None, ""):  # a question may have fewer
        numbered.pop()
    return [_text(row[name], where, name) for _, name in numbered], []


def _text(value: Any, where: str, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BertfastError(f"{where}: {name!r} holds {quoted(value)}; a text is wanted")
    text = str(value)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise BertfastError(
            f"{where}: {name!r} holds half of a surrogate pair, which is no character"
        )
    if not text.strip():
        raise BertfastError(f"{where}: {name!r} is empty")
    return text


def _label(value: Any, choices: Sequence[str], names: Sequence[str], where: str) -> int:
    """The place of the right choice."""
    text = "" if value is None else str(value).strip()
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and len(text) < 10 and int(text) < len(choices):
        return int(text)
    letter = ord(text) - ord("A") if len(text) == 1 and text.isascii() else -1
    if 0 <= letter < len(choices):
        return letter
    if text and list(map(str.strip, choices)).count(text) == 1:
        return [choice.strip() for choice in choices].index(text)
    raise BertfastError(
        f"{where}: the right choice is {quoted(text)}, and there are {len(choices)}. Write a "
        f"number from 0 to {len(choices) - 1}, a letter from A on, or the text of one"
    )
