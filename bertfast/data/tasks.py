"""Labelled examples: TSV, CSV and JSON lines with a header, to token ids and label numbers."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from bertfast.errors import BertfastError

from .readers import is_json, open_text, read_json_lines
from .tokenizer import SpecialIds

TEXT_COLUMNS = ("sentence", "text")
LABEL_COLUMN = "label"
TABLE_SUFFIXES = (".tsv", ".csv")


@dataclass(frozen=True)
class Example:
    """One row: its line in the file, the text, the second text of a pair, and the label as written."""

    line: int
    text: str
    pair: str | None = None
    label: str | None = None


def read_task(
    path: str | Path,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    require_labels: bool = True,
) -> list[Example]:
    """The rows of a file whose name ends in .tsv, .csv or .jsonl (or .json), gzip of it too.

    Args:
        path: of the file; TSV is split at tabs and its quotes are text, CSV is quoted as usual.
        text_column: None is ``sentence``, or else ``text``.
        pair_column: of the second text; None for single texts.
        label_column: None is ``label``.
        require_labels: False leaves labels out, unless ``label_column`` asks for them.

    Raises:
        BertfastError: a file that cannot be used, no such column, a row with too few fields, or no
            rows.
    """
    path = Path(path)
    rows = _json_rows(path) if is_json(path) else _table_rows(path)
    examples: list[Example] = []
    wanted_label = label_column or LABEL_COLUMN
    for line, row in rows:
        if not examples:
            text = text_column or next(
                (name for name in TEXT_COLUMNS if name in row), TEXT_COLUMNS[0]
            )
            needed = [text, *([pair_column] if pair_column else [])]
            labelled = require_labels or label_column is not None
            needed += [wanted_label] if labelled else []
        for name in needed:
            if name not in row:
                raise BertfastError(
                    f"{path}, line {line}: has no column {name!r}; its columns are {', '.join(map(repr, row))} "
                    "(--text-column, --pair-column and --label-column name them; a table needs a header line)"
                )
        label = row[wanted_label].strip() if labelled else None
        if require_labels and not label:
            raise BertfastError(f"{path}, line {line}: the label is empty")
        examples.append(Example(line, row[text], row[pair_column] if pair_column else None, label))
    if not examples:
        raise BertfastError(f"{path}: has no rows below its header")
    return examples


def is_task_file(path: Path) -> bool:
    """Whether the name says that the file has columns: .tsv, .csv or JSON lines, gzip of them too."""
    return is_json(path) or _suffix(path) in TABLE_SUFFIXES


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for line, record in read_json_lines(path):
        yield (
            line,
            {
                name: value if isinstance(value, str) else _plain(value)
                for name, value in record.items()
            },
        )


def _plain(value: object) -> str:
    """A JSON number or truth value as a table would have it."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _table_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    suffix = _suffix(path)
    if suffix not in TABLE_SUFFIXES:
        raise BertfastError(f"{path}: the name must end in .tsv, .csv or .jsonl (.gz may follow)")
    with open_text(path) as stream:
        if suffix == ".tsv":
            reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(stream, strict=True)
        try:
            header = next(reader, [])
            repeated = sorted({name for name in header if header.count(name) > 1})
            if repeated:
                raise BertfastError(
                    f"{path}: the header names {', '.join(map(repr, repeated))} more than once"
                )
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise BertfastError(
                        f"{path}, line {reader.line_num}: has {len(row)} fields and the header {len(header)} "
                        f"({', '.join(map(repr, header))}); a table needs a header line with a name for each field"
                    )
                yield reader.line_num, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise BertfastError(
                f"{path}, line {reader.line_num}: is not to be read as {suffix[1:].upper()} ({error})"
            ) from error


def label_names(examples: Sequence[Example]) -> list[str]:
    """The labels that occur, numbers in order of size, names in order of spelling.

    Raises:
        BertfastError: there are fewer than two.
    """
    names = {example.label for example in examples if example.label is not None}

    def order(name: str) -> tuple[int, float, str]:
        try:
            return 0, float(name), name
        except ValueError:
            return 1, 0.0, name

    if len(names) < 2:
        raise BertfastError(
            f"the training data has {len(names)} label(s) ({', '.join(names)}); a classifier needs two at least"
        )
    return sorted(names, key=order)


def encode_labels(
    examples: Sequence[Example], label2id: dict[str, int], source: str | Path
) -> list[int]:
    """Each example's label number.

    Raises:
        BertfastError: a label that is not in ``label2id``: it was not seen in training.
    """
    for example in examples:
        if example.label not in label2id:
            known = ", ".join(map(repr, label2id))
            raise BertfastError(
                f"{source}, line {example.line}: the label {example.label!r} was not seen in training; known are {known}"
            )
    return [label2id[example.label] for example in examples if example.label is not None]


@dataclass(frozen=True)
class Encoded:
    """Token ids with special tokens and segment ids of one input, and whether it was cut."""

    ids: list[int]
    segments: list[int]
    truncated: bool


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
