"""Labelled examples: TSV, CSV and JSON lines with a header, to token ids and label numbers."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bertfast.errors import BertfastError
from bertfast.tokenization import SpecialIds

from .columnar import column_rows, is_columnar
from .columns import LABELS, NONE, TEXTS, Columns
from .labels import ONE_A_ROW, class_names, label_number, quoted
from .readers import is_json, open_text, read_json_lines, suffix_of, without_end

TABLE_SUFFIXES = (".tsv", ".csv")
MAX_FIELD = 2**31 - 1  # characters of a CSV field; a larger limit overflows C's long on Windows


@dataclass(frozen=True)
class Example:
    """One row: its line in the file, the text, the second text of a pair, and the label as written.

    A JSON list of labels is a tuple.
    """

    line: int
    text: str
    pair: str | None = None
    label: str | tuple[str, ...] | None = None


def read_task(
    path: str | Path,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    require_labels: bool = True,
    lists: bool = False,
) -> list[Example]:
    """What `stream_task` gives of a file, whole."""
    columns = text_column, pair_column, label_column
    return list(stream_task(path, *columns, require_labels=require_labels, lists=lists))


def stream_task(
    path: str | Path,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    require_labels: bool = True,
    lists: bool = False,
) -> Iterator[Example]:
    """The rows, one after another, of a file or of a folder that `datasets` saved.

    The file is .tsv, .csv or .jsonl (or .json) by its name, with gzip or Zstandard too, or a
    Parquet or an Arrow file.

    Where no labels are required, a blank line is a row of empty texts, so that predictions match
    lines. Where they are, it holds no example and is passed over.

    Args:
        path: of the file; TSV is split at tabs and its quotes are text, CSV is quoted as usual.
        text_column, pair_column, label_column: None for the usual ones, which the first row's are
            looked through for; see `Columns.among`.
        require_labels: False leaves labels out, unless ``label_column`` asks for them.
        lists: whether a label may be a JSON list of labels.

    Raises:
        BertfastError: a file that cannot be used, no such column, a row with too few fields, or no
            rows.
    """
    path = Path(path)
    labelled = require_labels or label_column is not None
    columns = Columns(text_column, pair_column, label_column)
    needed: list[str] = []
    blank: list[int] = []
    for line, row in table_rows(path):
        if row is None:
            # Blank lines above the first record wait until it has named the columns.
            blank.append(line)
            if not needed:
                continue
        elif not needed:
            columns = columns.among(row)
            needed = [name for name in columns[: 3 if labelled else 2] if name is not None]
        if not labelled:
            nothing = None if columns.pair is None else ""
            yield from (Example(number, "", nothing) for number in blank)
        blank.clear()
        if row is not None:
            yield _example(path, line, row, columns, needed, require_labels, lists)
    if not needed:
        raise BertfastError(f"{path}: has no rows below its header")


def _example(
    path: Path,
    line: int,
    row: dict[str, Any],
    columns: Columns,
    needed: Sequence[str],
    require_labels: bool,
    lists: bool,
) -> Example:
    """A row's texts, and its label where ``needed`` has the label's column."""
    for name in needed:
        if name not in row:
            raise BertfastError(
                f"{path}, line {line}: has no column {name!r}; "
                f"its columns are {', '.join(map(repr, row))} (--text-column, "
                "--pair-column and --label-column name them; a table needs a header line)"
            )
    words = [
        None if name is None else cell(row[name], path, line, name, "a text is advice")
        for name in columns[:2]
    ]
    label: str | tuple[str, ...] | None = None
    if columns.label in needed:
        assert columns.label is not None
        label = _label(row[columns.label], path, line, columns.label, lists)
    if require_labels and label == "":
        raise BertfastError(f"{path}, line {line}: the label is empty")
    if require_labels and not any(word and word.strip() for word in words):
        raise BertfastError(
            f"{path}, line {line}: the text is empty; leave out rows without a text"
        )
    return Example(line, words[0] or "", words[1], label)


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line number, row) of a table, None for the row of a blank line.

    Raises:
        BertfastError: the file cannot be used.
    """
    return read_json_lines(path) if is_json(path) else _table_rows(path)


def column_names(path: str | Path) -> list[str]:
    """The columns of the first row of a table or of JSON lines; none where there is no row."""
    return next((list(row) for _, row in table_rows(Path(path)) if row is not None), [])


def find_columns(path: str | Path, columns: Columns, trained: Columns = NONE) -> Columns:
    """Those columns of a file; the usual ones where none is given, or those that a model was
    trained with. A pair that is found, and labels that have another name than most, are said on
    standard error.
    """
    names = column_names(path)
    text, pair, label = (given or known for given, known in zip(columns, trained, strict=True))
    if columns.text is None and pair is None and text not in (None, *names):
        # A single text may have another usual name; it is no half of a pair for that.
        text = next((name for name in TEXTS if name in names), text)
    if columns.label is None and label not in names:
        label = None
    columns = Columns(text, pair, label)
    found = columns.among(names)
    if found.pair != columns.pair:
        print(
            f"bertfast: {path}: pairs of texts, {found.text!r} and {found.pair!r}; --text-column "
            "and --pair-column name others",
            file=sys.stderr,
        )
    if found.label not in (columns.label, LABELS[0]):
        print(
            f"bertfast: {path}: the labels are {found.label!r}; --label-column names others",
            file=sys.stderr,
        )
    return found


def is_task_file(path: Path) -> bool:
    """Whether the name says that the file has columns, or the path is a folder as `datasets` saves
    one.

    Files with columns are .tsv, .csv or JSON lines, compressed too, and Parquet or Arrow.
    """
    return is_json(path) or suffix_of(path) in TABLE_SUFFIXES or is_columnar(path)


def cell(value: Any, path: Path, line: int, column: str, advice: str) -> str:
    """A cell as text; null is an empty one, and a number of JSON is as it is written.

    Raises:
        BertfastError: a JSON list or object, or half of a surrogate pair, which is no character.
    """
    if isinstance(value, list | dict):
        kind = "list" if isinstance(value, list) else "object"
        raise BertfastError(
            f"{path}, line {line}: {column!r} holds a JSON {kind}, {quoted(json.dumps(value))}; "
            f"{advice}"
        )
    if isinstance(value, bytes):
        raise BertfastError(f"{path}, line {line}: {column!r} holds bytes; {advice}")
    text = "" if value is None else str(value)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise BertfastError(
            f"{path}, line {line}: {column!r} holds half of a surrogate pair, which is no character"
        )
    return text


def _label(value: Any, path: Path, line: int, column: str, lists: bool) -> str | tuple[str, ...]:
    if not (lists and isinstance(value, list)):
        return cell(value, path, line, column, ONE_A_ROW).strip()
    advice = "a list holds labels, each a word or a number"
    return tuple(cell(item, path, line, column, advice).strip() for item in value)


def _table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line number, row) of a table, None for the row of a blank line."""
    if is_columnar(path):
        yield from column_rows(path)
        return
    suffix = suffix_of(path)
    if suffix not in TABLE_SUFFIXES:
        raise BertfastError(
            f"{path}: the name must end in .tsv, .csv or .jsonl (.gz or .zst may follow), .parquet "
            "or .arrow"
        )
    cells = _tsv_cells(path) if suffix == ".tsv" else _csv_cells(path)
    _, header = next(cells, (0, []))
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise BertfastError(
            f"{path}: the header names {', '.join(map(repr, repeated))} more than once"
        )
    for line, row in cells:
        if row and len(row) != len(header):
            raise BertfastError(
                f"{path}, line {line}: has {len(row)} fields and the header {len(header)} "
                f"({', '.join(map(repr, header))}); a table needs a header line with a name for "
                "each field"
            )
        yield line, dict(zip(header, row, strict=True)) if row else None


def _tsv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each line; a blank line has no fields."""
    with open_text(path, newline="\n") as stream:
        for number, line in enumerate(map(without_end, stream), 1):
            yield number, line.split("\t") if line else []


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of the last line, fields) of each record; a blank line has no fields."""
    # The limit is the whole process's; it only ever grows, since other readers may count on theirs.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))
    with open_text(path, newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise BertfastError(
                f"{path}, line {reader.line_num}: is not to be read as CSV ({error})"
            ) from error


def label_names(examples: Sequence[Example], source: str | Path = "the training data") -> list[str]:
    """The classes that the examples' labels name; see `bertfast.data.labels.class_names`.

    Raises:
        BertfastError: the labels do not look like the names of two classes or more.
    """
    return class_names(
        (
            (example.line, one_label(example, source))
            for example in examples
            if example.label is not None
        ),
        source,
    )


def one_label(example: Example, source: str | Path) -> str:
    """The example's label.

    Raises:
        BertfastError: it is a list.
    """
    if isinstance(example.label, tuple):
        held = json.dumps(example.label, ensure_ascii=False)
        raise BertfastError(
            f"{source}, line {example.line}: the label is a JSON list, {quoted(held)}; {ONE_A_ROW}"
        )
    return example.label or ""


def encode_labels(
    examples: Sequence[Example], label2id: dict[str, int], source: str | Path
) -> list[int]:
    """Each example's label number.

    Raises:
        BertfastError: a label that is not in ``label2id``: it was not seen in training.
    """
    return [
        label_number(one_label(example, source), label2id, source, example.line)
        for example in examples
    ]


@dataclass(frozen=True)
class Encoded:
    """Token ids with special tokens and segment ids of one input, whether it was cut, and what is
    to be predicted of it.
    """

    ids: list[int]
    segments: list[int]
    truncated: bool
    target: Any = None

    @property
    def tokens(self) -> int:
        """How many tokens the input has."""
        return len(self.ids)


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str | None], max_length: int
) -> list[Encoded]:
    """Each text, or text and pair, as the tokenizer frames it, of ``max_length`` tokens at most; of
    a pair the longer text is cut.
    """
    special = SpecialIds(tokenizer)
    firsts = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    seconds = tokenizer.encode_batch_fast([pair or "" for pair in pairs], add_special_tokens=False)
    result = []
    for first, second, pair in zip(firsts, seconds, pairs, strict=True):
        a, b = first.ids, second.ids
        frame = special.single if pair is None else special.pair
        room = max_length - frame.added
        excess = len(a) + len(b) - room
        if excess > 0:
            keep_a = max(room - len(b), min(len(a), (room + 1) // 2))
            a = a[:keep_a]
            b = b[: room - len(a)]
        ids = [index for part in frame.around(a, b) for index in part]
        result.append(Encoded(ids, frame.segment_ids(len(a), len(b)).tolist(), excess > 0))
    return result
