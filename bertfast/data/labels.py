"""Which labels name classes: words, or whole numbers of few values.

Labels that look like something else are refused with a reason, since a classifier trained on them
would be of no use. These are regression targets, several labels in one cell, ids, missing values,
and one label in two spellings.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from bertfast.errors import BertfastError

FEW_NUMBERS = 20  # distinct whole numbers that are classes, whatever their values
ROWS_OF_A_NUMBER = 5  # on average, where there are more of them
FEW_CLASSES = 10  # that may have a single row each
ROWS_OF_A_CLASS = 2  # on average, where there are more of them
MOST_CLASSES = 10_000  # however many rows each has
NAMED = 10  # labels that an error lists; the rest it counts
SHOWN = 60  # characters of a label that an error quotes
SEPARATORS = ",;|"
ONE_A_ROW = "finetune takes one label a row, or a JSON list of them in a .jsonl file"
MISSING = ("nan", "na", "n/a", "<na>", "#n/a", "none", "null", "nil", "undefined")

# int() takes no more than 4300 digits.
_WHOLE = re.compile(r"[+-]?[0-9]{1,4000}")
_DECIMAL = re.compile(
    r"[+\-\u2212]?(\d+(\.\d*)?|\.\d+)(e[+\-\u2212]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE
)
# "3,27" and "0 1 0" are several numbers, "0,5" may be one with a decimal comma.
_SEVERAL_NUMBERS = re.compile(r"[+-]?\d+([.]\d+)?(\s*[,;|\s]\s*[+-]?\d+([.]\d+)?)+")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_LIST = re.compile(r"""[,'":]|^[\d\s.+-]*$""")


@dataclass
class _Count:
    """The line in which a label occurs first, and the rows that have it."""

    line: int
    rows: int = 0


def quoted(label: object) -> str:
    """The label as an error shows it, cut where it is long."""
    text = str(label)
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


def listed(labels: Iterable[object]) -> str:
    """The first of the labels, and how many more there are."""
    names = list(labels)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(quoted, names[:NAMED])) + more


def class_names(labels: Iterable[tuple[int, str]], source: str | Path) -> list[str]:
    """The classes that labels name: numbers in order of size, words in order of spelling.

    Labels that may stand for a missing value, and numbers of many values that may be scores, are
    said on standard error.

    Args:
        labels: the line and the label of each row.
        source: the file, for errors.

    Raises:
        BertfastError: the labels do not look like the names of two classes or more.
    """
    counts: dict[str, _Count] = {}
    for line, label in labels:
        counts.setdefault(label, _Count(line)).rows += 1
    _refuse_several(counts, source)
    whole = _refuse_numbers(counts, source)
    _refuse_too_many(counts, source, whole)
    _refuse_spellings(counts, source, whole)
    if len(counts) < 2:
        raise BertfastError(
            f"{source}: the training data has {len(counts)} label(s) ({listed(counts)}); "
            "a classifier needs two at least"
        )
    for label, count in counts.items():
        if label.casefold() in MISSING:
            print(
                f"bertfast: {source}: {count.rows} row(s) have the label {quoted(label)}, which is "
                "trained as a class; leave those rows out if it stands for a missing label",
                file=sys.stderr,
            )
    return sorted(counts, key=int if whole else str)


def label_number(label: str, label2id: Mapping[str, int], source: str | Path, line: int) -> int:
    """The number of a row's label.

    Raises:
        BertfastError: it is not in ``label2id``: it was not seen in training.
    """
    if label not in label2id:
        raise BertfastError(
            f"{source}, line {line}: the label {quoted(label)} was not seen in training; "
            f"known are {listed(label2id)}"
        )
    return label2id[label]


def _refuse(source: str | Path, counts: Mapping[str, _Count], label: str, why: str) -> NoReturn:
    raise BertfastError(f"{source}, line {counts[label].line}: the label {quoted(label)} {why}")


def _refuse_several(counts: Mapping[str, _Count], source: str | Path) -> None:
    """Refuses a cell that holds several labels."""
    for label in counts:
        inside = label[1:-1].strip()
        if len(label) > 1 and _BRACKETS.get(label[0]) == label[-1] and _LIST.search(inside):
            _refuse(source, counts, label, f"looks like a list of labels; {ONE_A_ROW}")
        if _SEVERAL_NUMBERS.fullmatch(label):
            _refuse(
                source,
                counts,
                label,
                f"looks like several numbers, or one with a decimal comma; {ONE_A_ROW}, "
                "a word or a whole number",
            )
    for separator in SEPARATORS:
        cells: dict[str, str] = {}
        for label in counts:
            for piece in {part.strip() for part in label.split(separator)} - {""}:
                other = cells.setdefault(piece, label)
                if other != label:
                    several = label if separator in label else other
                    alone = other if several is label else label
                    _refuse(
                        source,
                        counts,
                        several,
                        f"looks like several labels between {separator!r}, for {quoted(piece)} is "
                        f"in {quoted(alone)} too; {ONE_A_ROW}; rename a class whose name "
                        f"has {separator!r} in it",
                    )


def _refuse_numbers(counts: Mapping[str, _Count], source: str | Path) -> bool:
    """Refuses numbers that are not whole, or stand beside words; whether all are whole numbers."""
    whole = [label for label in counts if _WHOLE.fullmatch(label)]
    decimal = [
        label for label in counts if _DECIMAL.fullmatch(label) and not _WHOLE.fullmatch(label)
    ]
    # "nan" among words alone is a word: a language's code, say.
    spelled = [label for label in decimal if not any(map(str.isdigit, label))]
    numbers = [*whole, *(label for label in decimal if label not in spelled)]
    if not numbers and len(spelled) < len(counts):
        return False
    words = [label for label in counts if label not in {*numbers, *spelled}]
    if words and numbers:
        _refuse(
            source,
            counts,
            words[0],
            f"is a word, and {quoted(numbers[0])} in line {counts[numbers[0]].line} a number. "
            "Leave out rows whose label is missing, and write all labels as words (as 'class 1') "
            "or all as whole numbers",
        )
    if decimal:
        rows = sum(count.rows for count in counts.values())
        _refuse(
            source,
            counts,
            decimal[0],
            f"is no whole number: the labels look like targets of a regression ({len(counts)} "
            f"different numbers in {rows} rows), which --task regression trains on. Classes are "
            "words or whole numbers: write 1 for 1.0, and leave out rows without a label",
        )
    return True


def _refuse_spellings(counts: Mapping[str, _Count], source: str | Path, whole: bool) -> None:
    """Refuses two labels that are one but for case, spaces or leading zeros."""
    seen: dict[object, str] = {}
    for label in counts:
        other = seen.setdefault(int(label) if whole else _folded(label), label)
        if other != label:
            _refuse(
                source,
                counts,
                label,
                f"and {quoted(other)} in line {counts[other].line} differ in spelling alone; spell "
                "a class one way, or give two classes two names",
            )


def _refuse_too_many(counts: Mapping[str, _Count], source: str | Path, whole: bool) -> None:
    """Refuses labels that are nearly all different, and numbers of many values."""
    rows, classes = sum(count.rows for count in counts.values()), len(counts)
    first = next(iter(counts))
    if classes > MOST_CLASSES or (classes > FEW_CLASSES and classes * ROWS_OF_A_CLASS > rows):
        _refuse(
            source,
            counts,
            first,
            f"is one of {classes} different ones in {rows} rows: they look like "
            f"{'targets of a regression or ids' if whole else 'texts or ids'}, not like classes; "
            "--label-column names another column",
        )
    if not whole or classes <= FEW_NUMBERS:
        return
    numbers = sorted(map(int, counts))
    numbered = numbers[0] in (0, 1) and numbers[-1] - numbers[0] == classes - 1
    if not numbered or classes * ROWS_OF_A_NUMBER > rows:
        _refuse(
            source,
            counts,
            first,
            f"is one of {classes} different whole numbers in {rows} rows: "
            "they look like targets of a regression (--task regression), "
            f"counts or ids. Numbers of more than {FEW_NUMBERS} classes run from 0 or 1 without a "
            f"gap, over {ROWS_OF_A_NUMBER} rows each on average. Else write classes as words "
            "(as 'class 37')",
        )
    print(
        f"bertfast: {source}: the whole numbers {numbers[0]} to {numbers[-1]} are trained as "
        f"{classes} classes; if they are scores, this is no regression",
        file=sys.stderr,
    )


def _folded(label: str) -> str:
    """The label without what a reader does not see as a difference."""
    text = unicodedata.normalize("NFKC", label).casefold()
    return " ".join("".join(c for c in text if unicodedata.category(c) != "Cf").split())
