"""Words with tags: CoNLL files of any order of columns, and records of lists of words and tags."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import contains
from pathlib import Path
from typing import Any, NamedTuple

from bertfast.errors import BertfastError

from . import tagging
from .columns import NONE, TEXTS, Columns
from .labelled import column_names, is_task_file, table_rows
from .labels import quoted
from .readers import is_json, open_text, suffix_of, without_end

WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels", "pos_tags", "upos")
SUFFIXES = (".conll", ".conllu", ".conll03", ".bio", ".iob", ".iob2", ".bioes", ".bilou")
CONLLU = 10  # columns of CoNLL-U: the number, the word, the lemma, the part of speech, ...
LOOKED_AT = 500  # lines of a file whose name does not say what it is
DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence: where each is in the text, its tag and its line in the file.

    Attributes:
        line: of the first word.
        text: words of a file are joined by spaces.
        spans: of each word, its first character and the one behind its last; None for a text whose
            words are for the tokenizer to find.
        tags: of each word, in BIO where they are of entities; None where there are none.
        lines: of each word.
    """

    line: int
    text: str
    spans: tuple[tuple[int, int], ...] | None = None
    tags: tuple[str, ...] | None = None
    lines: tuple[int, ...] = ()

    @property
    def words(self) -> list[str]:
        """The words, where they are known."""
        return [self.text[start:end] for start, end in self.spans or ()]


def sentence(
    words: Sequence[str], tags: Sequence[str] | None = None, lines: Sequence[int] = (1,)
) -> Sentence:
    """A sentence of these words; ``lines`` is one for all of them or one each."""
    spans, end = [], -1
    for word in words:
        spans.append((end + 1, end + 1 + len(word)))
        end += 1 + len(word)
    numbers = lines if len(lines) == len(words) else [lines[0]] * len(words)
    tags = None if tags is None else tuple(tags)
    return Sentence(lines[0], " ".join(words), tuple(spans), tags, tuple(numbers))


def is_tagged(path: Path) -> bool:
    """Whether a file holds words with tags, by its name or its first rows."""
    if not path.exists():
        return False
    if suffix_of(path) in SUFFIXES:
        return True
    try:
        if _is_records(path):
            row = next((row for _, row in table_rows(path) if row is not None), {})
            found = [next((name for name in group if name in row), "") for group in (WORDS, TAGS)]
            return all(isinstance(row.get(name), list) for name in found)
        if suffix_of(path) not in (".txt", ".tsv"):
            return False
        table = _Table(path, LOOKED_AT)
    except BertfastError:  # which reading says, whatever the task
        return False
    return len(table.sentences) > 1 and any(map(table.is_of_entities, range(table.width)))


def has_words(path: Path) -> bool:
    """Whether a file has columns of words or of texts, and is no plain text."""
    return is_task_file(path) or is_tagged(path)


def find_columns(path: str | Path, columns: Columns, trained: Columns = NONE) -> Columns:
    """The columns of words and of tags: those given, or else those trained with, or else found, and
    said on standard error. Those of CoNLL are numbered from 1.

    Raises:
        BertfastError: the file cannot be used, or a number is no column's.
    """
    path = Path(path)
    if columns.pair is not None:
        raise BertfastError(f"pair-column is {columns.pair!r}; words with tags have no second text")
    text, label = columns.text or trained.text, columns.label or trained.label
    if _is_records(path):
        names = column_names(path)
        words = next((name for name in WORDS if name in names), None)
        plain = next((name for name in TEXTS if name in names), WORDS[0])
        if columns.text is None and text not in names:
            text = words or plain
        if columns.label is None and label not in names:
            label = next((name for name in TAGS if name in names), TAGS[0])
        return Columns(text, None, label)
    table = _Table(path)
    if not (trained.text or "").isdecimal():
        text, label = columns.text, columns.label
    word, tag = table.find(_number(text, path), _number(label, path))
    if text is None and tag is not None:
        print(
            f"bertfast: {path}: words in column {word + 1}, tags in column {tag + 1}; "
            "--text-column and --label-column number others",
            file=sys.stderr,
        )
    return Columns(str(word + 1), None, None if tag is None else str(tag + 1))


def read_sentences(
    path: str | Path, columns: Columns, labels: bool = True, scheme: str = tagging.AUTO
) -> list[Sentence]:
    """The sentences of a file, their tags in BIO where they are of entities.

    Args:
        path: CoNLL (.conll, .tsv, .txt and the like), or JSON lines and tables of lists of words
            and of tags. Without ``labels`` it may hold texts in their place.
        columns: as `find_columns` gives them.
        labels: whether there are to be tags.
        scheme: of the tags; see `tagging.to_bio`.

    Raises:
        BertfastError: the file cannot be used, or a tag breaks the scheme: file and line are named.
    """
    path = Path(path)
    rows = _records(path, columns, labels) if _is_records(path) else _conll(path, columns, labels)
    found = list(rows)
    if not found:
        raise BertfastError(f"{path}: holds no sentences")
    if not labels:
        return found
    tags, known = tagging.to_bio(
        [row.tags or () for row in found], [row.lines for row in found], path, scheme
    )
    if known not in ("bio", tagging.PLAIN):
        print(f"bertfast: {path}: its tags are {known.upper()}, turned into BIO", file=sys.stderr)
    return [
        Sentence(row.line, row.text, row.spans, tuple(bio), row.lines)
        for row, bio in zip(found, tags, strict=True)
    ]


def _is_records(path: Path) -> bool:
    """Whether a file has columns with names; a .tsv has where its first line names the texts'."""
    if suffix_of(path) == ".tsv":
        with open_text(path, "\n") as stream:
            header = without_end(stream.readline()).split("\t")
        return any(name in header for name in TEXTS)
    return is_json(path) or is_task_file(path)


def _records(path: Path, columns: Columns, labels: bool) -> Iterator[Sentence]:
    words_name, tags_name = columns.text or WORDS[0], columns.label or TAGS[0]
    for line, row in table_rows(path):
        if row is None:
            continue
        where = f"{path}, line {line}"
        wanted = [words_name, *([tags_name] if labels else [])]
        for name in wanted:
            if name not in row:
                raise BertfastError(
                    f"{where}: has no column {name!r}; its columns are "
                    f"{', '.join(map(repr, row))} (--text-column names the words', --label-column "
                    "the tags')"
                )
        if not labels and isinstance(row[words_name], str):
            yield Sentence(line, row[words_name])
            continue
        words, *tags = (_list(row[name], where, name) for name in wanted)
        if labels and len(words) != len(tags[0]):
            raise BertfastError(
                f"{where}: has {len(words)} {words_name} and {len(tags[0])} {tags_name}; each word "
                "has one tag"
            )
        if labels and not words:
            raise BertfastError(f"{where}: has no words; leave out rows without a text")
        _refuse_empty(tags[0] if labels else [], [line] * len(words), path)
        yield sentence(words, tags[0] if labels else None, [line])


def _list(value: Any, where: str, name: str) -> list[str]:
    """The words of a list; whole numbers stand for the classes that they name."""
    items = list(value) if isinstance(value, list | tuple) else None
    if items is None or not all(type(item) in (str, int) for item in items):
        raise BertfastError(
            f"{where}: {name!r} holds {quoted(value)}; a list of words is wanted, as "
            '["New", "York"]'
        )
    texts = list(map(str, items))
    for text in texts:
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise BertfastError(
                f"{where}: {name!r} holds half of a surrogate pair, which is no character"
            )
    return texts


def _refuse_empty(tags: Sequence[str], lines: Sequence[int], path: Path) -> None:
    for tag, line in zip(tags, lines, strict=False):
        if not tag.strip():
            raise BertfastError(f"{path}, line {line}: the tag is empty")


def _conll(path: Path, columns: Columns, labels: bool) -> Iterator[Sentence]:
    table = _Table(path)
    word, tag = table.find(_number(columns.text, path), _number(columns.label, path))
    for rows in table.sentences:
        lines = [line for line, _ in rows]
        words = [cells[word] for _, cells in rows]
        tags = [cells[tag] for _, cells in rows] if labels and tag is not None else None
        if labels and tags is None:
            raise BertfastError(
                f"{path}, line {lines[0]}: has {table.width} column; words and tags are wanted"
            )
        _refuse_empty(tags or [], lines, path)
        yield sentence(words, tags, lines)


def _number(column: str | None, path: Path) -> int | None:
    """The place of a column that is given by its number."""
    if column is None:
        return None
    if not column.isdecimal() or not 0 < len(column) < 5 or int(column) < 1:
        raise BertfastError(
            f"{path}: has no column {column!r}; its columns have no names, and are numbered from 1"
        )
    return int(column) - 1


class _Row(NamedTuple):
    line: int
    cells: list[str]


class _Table:
    """The sentences of a CoNLL file as rows of cells.

    Cells stand between tabs where any line has one, or else between spaces. A blank line ends a
    sentence, and so does one of `DOCUMENT`. A line that begins with "#" is a comment where it
    stands before a sentence's first word and does not have the cells of other lines.

    Args:
        path: of the file.
        most: lines to read.

    Raises:
        BertfastError: the file cannot be read, or its lines differ in their cells.
    """

    def __init__(self, path: Path, most: int | None = None) -> None:
        self.path = path
        with open_text(path, "\n") as stream:
            lines = [without_end(line) for line in islice(stream, most)]
        self.tabs = any("\t" in line for line in lines if line.strip())
        sure = [
            self._cells(line)
            for line in lines
            if line.strip() and not line.startswith(("#", DOCUMENT))
        ]
        counts = Counter(map(len, sure))
        self.width = counts.most_common(1)[0][0] if counts else 0
        known = [
            set(column) for column in zip(*(c for c in sure if len(c) == self.width), strict=True)
        ]
        self.sentences: list[list[_Row]] = []
        rows: list[_Row] = []
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith(DOCUMENT):
                rows = self._end(rows)
                continue
            cells = self._cells(line)
            if line.startswith("#") and not rows and self._is_comment(cells, known):
                continue
            if "\0" in line:
                raise BertfastError(f"{path}, line {number}: holds a zero byte, as binary files do")
            if len(cells) != self.width:
                raise BertfastError(
                    f"{path}, line {number}: has {len(cells)} columns and most lines have "
                    f"{self.width}; columns stand between {'tabs' if self.tabs else 'spaces'}"
                )
            # CoNLL-U numbers words; 1-2 is two of them in one, and 1.1 is one that is not there.
            if self.width == CONLLU and not cells[0].isdecimal() and re.match(r"\d", cells[0]):
                continue
            rows.append(_Row(number, cells))
        self._end(rows)

    def _end(self, rows: list[_Row]) -> list[_Row]:
        if rows:
            self.sentences.append(rows)
        return []

    def _cells(self, line: str) -> list[str]:
        return line.split("\t") if self.tabs else re.split(" +", line.strip(" "))

    def _is_comment(self, cells: list[str], known: Sequence[set[str]]) -> bool:
        """Whether a line that begins with "#" is one: it has not the cells of other lines, or none
        of them is a tag.
        """
        if len(cells) != self.width:
            return True
        tags = any(map(contains, known[1:], cells[1:])) or any(map(tagging.TAG.fullmatch, cells))
        return self.width > 1 and not tags

    def column(self, place: int) -> list[str]:
        """A column's cells."""
        return [cells[place] for rows in self.sentences for _, cells in rows]

    def is_of_entities(self, place: int) -> bool:
        """Whether a column holds tags of entities, some of which begin or go on."""
        cells = set(self.column(place))
        prefixed = [cell for cell in cells if tagging.TAG.fullmatch(cell)]
        return bool(prefixed) and cells <= {tagging.OUTSIDE, *prefixed}

    def find(self, word: int | None, tag: int | None) -> tuple[int, int | None]:
        """The places of the words and of the tags, found where they are None; there may be no
        column for tags.

        Raises:
            BertfastError: there are no words, or a place is beyond the last column.
        """
        if not self.sentences:
            raise BertfastError(f"{self.path}: holds no sentences")
        for place, name in ((word, "text"), (tag, "label")):
            if place is not None and place >= self.width:
                raise BertfastError(
                    f"{self.path}: has {self.width} column(s), and --{name}-column is {place + 1}"
                )
        numbered = (
            self.width > 1
            and all(cell.isdecimal() for cell in self.column(0))
            and all(rows[0].cells[0] in ("0", "1") for rows in self.sentences)
        )
        if self.width == CONLLU and numbered:
            return (1 if word is None else word), (3 if tag is None else tag)
        places = [place for place in range(self.width) if place > 0 or not numbered]
        if tag is None:
            marked = [
                place
                for place in places
                if place != word and (self.is_of_entities(place) or self._is_outside(place))
            ]
            if marked:
                tag = marked[-1]
        if word is None:
            rest = [place for place in places if place != tag]
            word = max(rest, key=lambda place: len(set(self.column(place))), default=0)
        if tag is None:
            tag = next((place for place in reversed(places) if place != word), None)
        return word, tag

    def _is_outside(self, place: int) -> bool:
        return set(self.column(place)) == {tagging.OUTSIDE}
