"""Questions about a context, with answers that stand in it: SQuAD's JSON, and records of the same.

Rajpurkar et al., "SQuAD", 2016, and "Know What You Don't Know" (SQuAD 2.0), 2018.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bertfast.errors import BertfastError

from .columns import NONE, Columns
from .labelled import column_names, is_task_file, table_rows
from .labels import quoted
from .readers import is_json, open_text

QUESTIONS = ("question", "query")
CONTEXTS = ("context", "passage")
ANSWERS = ("answers", "answer")
HEAD = 1 << 20  # characters of a file in which its kind shows
_SQUAD = re.compile(r'\s*\{.*"paragraphs"\s*:\s*\[', re.DOTALL)


class Answer(NamedTuple):
    """A text, and its first character in the context."""

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
        line: the row in the file: the question's number in SQuAD's JSON, else the line.
        id: the file's name of it.
        text: the question.
        context: that the answer is looked for in.
        answers: any of them is right; none says that the context has no answer. None is unknown.
    """

    line: int
    id: str
    text: str
    context: str
    answers: tuple[Answer, ...] | None = None


def is_squad(path: Path) -> bool:
    """Whether a file holds questions with answers, by its first rows."""
    if not path.is_file() or not is_task_file(path):
        return False
    try:
        if _is_nested(path):
            return True
        row = next((row for _, row in table_rows(path) if row is not None), {})
    except BertfastError:  # which reading says, whatever the task
        return False
    return (
        any(name in row for name in QUESTIONS)
        and any(name in row for name in CONTEXTS)
        and any(isinstance(row.get(name), Mapping | list) for name in ANSWERS)
    )


def find_columns(path: str | Path, columns: Columns, trained: Columns = NONE) -> Columns:
    """The columns of questions, of contexts and of answers: those given, or else those trained
    with, or else the usual ones.
    """
    names = [] if _is_nested(Path(path)) else column_names(path)
    found = []
    for given, known, usual in zip(columns, trained, (QUESTIONS, CONTEXTS, ANSWERS), strict=True):
        candidates = (*usual, known) if known is None or known not in names else (known,)
        found.append(given or next((name for name in candidates if name in names), usual[0]))
    return Columns(*found)


def read_questions(path: str | Path, columns: Columns, labels: bool = True) -> list[Question]:
    """The questions of a file.

    Args:
        path: SQuAD's JSON, of version 1.1 or 2.0; or a table or JSON lines with a column each for
            questions, contexts and answers. An answer is an object of ``text`` and
            ``answer_start``, of one each or of lists; or a text, which stands in the context.
        columns: as `find_columns` gives them.
        labels: whether there are to be answers.

    Raises:
        BertfastError: the file cannot be used, or an answer is not in its context: its file, row
            and id are named.
    """
    path = Path(path)
    rows = _nested(path) if _is_nested(path) else _records(path, columns, labels)
    found = []
    for line, row in rows:
        where = f"{path}, row {line}, id {quoted(row['id'])}"
        for name in ("question", "context"):
            text = row[name]
            if not isinstance(text, str) or not text.strip():
                what = "is empty" if isinstance(text, str) else f"is {quoted(text)}, and no text"
                raise BertfastError(f"{where}: the {name} {what}")
            _refuse_half(text, where)
        answers = None
        if labels:
            answers = tuple(_answers(row, where))
        found.append(Question(line, str(row["id"]), row["question"], row["context"], answers))
    if not found:
        raise BertfastError(f"{path}: holds no questions")
    return found


def _is_nested(path: Path) -> bool:
    """Whether a file is SQuAD's JSON, and not a record a line."""
    if not is_json(path):
        return False
    with open_text(path) as stream:
        return _SQUAD.match(stream.read(HEAD)) is not None


def _nested(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_text(path) as stream:
        try:
            data = json.load(stream)
        except (ValueError, RecursionError) as error:
            raise BertfastError(f"{path}: is not JSON ({error})") from error
    number = 0
    for article in _list(data, "data", path):
        for paragraph in _list(article, "paragraphs", path):
            for question in _list(paragraph, "qas", path):
                number += 1
                if not isinstance(question, dict):
                    raise BertfastError(f"{path}, row {number}: the question is no JSON object")
                yield (
                    number,
                    {
                        "id": question.get("id", number),
                        "question": question.get("question"),
                        "context": paragraph.get("context"),
                        "answers": question.get("answers"),
                        "is_impossible": question.get("is_impossible"),
                    },
                )


def _list(holder: Any, name: str, path: Path) -> list[Any]:
    value = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(value, list):
        raise BertfastError(
            f"{path}: has no list {name!r} where SQuAD's JSON has data, paragraphs and qas"
        )
    return value


def _records(path: Path, columns: Columns, labels: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    wanted = columns if labels else columns[:2]
    for line, row in table_rows(path):
        if row is None:
            continue
        for name in wanted:
            if name not in row:
                raise BertfastError(
                    f"{path}, line {line}: has no column {name!r}; its columns are "
                    f"{', '.join(map(repr, row))} (--text-column names the questions', "
                    "--pair-column the contexts' and --label-column the answers')"
                )
        cells = [row[name] for name in wanted if name is not None]
        values = dict(zip(("question", "context", "answers"), cells, strict=False))
        if isinstance(values.get("answers"), str) and "answer_start" in row:
            values["answers"] = {"text": values["answers"], "answer_start": row["answer_start"]}
        yield line, {"id": row.get("id", line), **values, "is_impossible": row.get("is_impossible")}


def _answers(row: Mapping[str, Any], where: str) -> Iterator[Answer]:
    """The answers of a row, each where it says that it is."""
    given, context = row["answers"], row["context"]
    if row["is_impossible"] is True:
        return
    if given is None:
        raise BertfastError(f"{where}: has no answers; an empty list says that there is none")
    for text, start in _pairs(given, where):
        if not isinstance(text, str) or not text:
            raise BertfastError(f"{where}: the answer is {quoted(text)}; a text is wanted")
        _refuse_half(text, where)
        if isinstance(start, str) and start.isdecimal():
            start = int(start)
        if start is None:
            start = context.find(text)
            if start < 0:
                raise BertfastError(f"{where}: the answer {quoted(text)} is not in its context")
        if type(start) is not int or start < 0:
            raise BertfastError(f"{where}: answer_start is {quoted(start)}; it must be a place")
        there = context[start : start + len(text)]
        if there != text:
            place = context.find(text)
            more = f"it begins at {place}" if place >= 0 else "it is nowhere else"
            raise BertfastError(
                f"{where}: the answer {quoted(text)} is not in its context at {start}, where "
                f"{quoted(there)} is; {more}"
            )
        yield Answer(text, start)


def _pairs(given: Any, where: str) -> Sequence[tuple[Any, Any]]:
    """(text, start) of each answer, in any of the forms."""
    if isinstance(given, str):
        return [(given, None)] if given else []
    if isinstance(given, Mapping):
        texts, starts = given.get("text"), given.get("answer_start")
        if not isinstance(texts, list):
            return [(texts, starts)]
        starts = [None] * len(texts) if starts is None else starts
        if not isinstance(starts, list) or len(starts) != len(texts):
            raise BertfastError(f"{where}: has {len(texts)} answers and {quoted(starts)} as places")
        return list(zip(texts, starts, strict=True))
    if not isinstance(given, list):
        raise BertfastError(f"{where}: the answers are {quoted(given)}; a list is wanted")
    return [
        (answer, None)
        if isinstance(answer, str)
        else (answer.get("text"), answer.get("answer_start"))
        if isinstance(answer, Mapping)
        else (answer, None)
        for answer in given
    ]


def _refuse_half(text: str, where: str) -> None:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise BertfastError(f"{where}: holds half of a surrogate pair, which is no character")
