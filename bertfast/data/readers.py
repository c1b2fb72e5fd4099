"""Text in: plain files, JSON lines, and gzip or Zstandard of either, as documents of lines."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from bertfast.errors import BertfastError
from bertfast.files import check_file

from .columnar import import_arrow

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
COMPRESSED = (".gz", ".zst")
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
HEAD = 8192  # bytes in which a zero byte is looked for


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A UTF-8 text stream of a file, or of the gzip or Zstandard of one, told by its first bytes; a
    byte-order mark is dropped. ``newline`` is that of `open`.

    Raises:
        BertfastError: the file is missing, a folder, empty, not to be read, or not text.
    """
    if path.is_dir():
        raise BertfastError(f"{path}: is a folder; name the files in it")
    check_file(path)
    try:
        with open(path, "rb") as raw, decoded(raw, path, newline) as stream:
            yield stream
    except FileNotFoundError:
        raise BertfastError(f"{path}: no such file") from None
    except OSError as error:
        raise BertfastError(f"{path}: cannot be read ({error})") from error


@contextmanager
def decoded(raw: BinaryIO, name: str | Path, newline: str | None = None) -> Iterator[TextIO]:
    """The text of an open file, as `open_text` gives it; ``name`` is the file's in errors.

    Raises:
        BertfastError: the file is empty, damaged or not text.
    """
    try:
        if not raw.read(1):
            raise BertfastError(f"{name}: the file is empty")
        start = _expanded(raw, name).read(HEAD)
        if b"\0" in start:
            raise BertfastError(
                f"{name}: is a binary file (a zero byte at {start.index(0)}); "
                "text in UTF-8 is wanted"
            )
        yield io.TextIOWrapper(_expanded(raw, name), encoding="utf-8-sig", newline=newline)
    except UnicodeDecodeError as error:
        raise BertfastError(
            f"{name}: is not UTF-8 text ({error.reason}: byte {error.object[error.start]:#04x})"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BertfastError(f"{name}: the gzip data is damaged or cut short ({error})") from error


def _expanded(raw: BinaryIO, name: str | Path) -> BinaryIO:
    """The bytes that a file holds, from its beginning."""
    raw.seek(0)
    magic = raw.read(4)
    raw.seek(0)
    if magic.startswith(GZIP_MAGIC):
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if magic == ZSTD_MAGIC:
        return import_arrow(name).input_stream(_KeptOpen(raw), compression="zstd")
    return raw


class _KeptOpen(io.RawIOBase):
    """The bytes of a file that its reader does not close."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.raw.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def suffix_of(path: Path) -> str:
    """The ending of a name in lower case, less ``.gz`` or ``.zst``."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


def is_json(path: Path) -> bool:
    """Whether the name, less ``.gz`` or ``.zst``, says JSON lines."""
    return suffix_of(path) in JSON_SUFFIXES


def without_end(line: str) -> str:
    """The line without its end, which is a line feed or a carriage return and a line feed.

    No other character ends a line: not a form feed, not U+0085, not U+2028.
    """
    return line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line


def read_lines(source: str | Path) -> list[str]:
    """What `stream_lines` gives of a file, whole."""
    return list(stream_lines(source))


def stream_lines(source: str | Path) -> Iterator[str]:
    """The lines of a text file, or of standard input for ``-``, without their ends; blank ones are
    kept.

    Raises:
        BertfastError: the file cannot be used, or holds nothing.
    """
    name = "standard input" if source == "-" else str(source)
    number = 0
    try:
        with open_text(Path(source), "\n") if source != "-" else _standard_input() as stream:
            for number, line in enumerate(map(without_end, stream), 1):
                if "\0" in line:
                    raise BertfastError(
                        f"{name}, line {number}: holds a zero byte, as binary files do; text in "
                        "UTF-8 is wanted"
                    )
                yield line
    except UnicodeDecodeError as error:
        raise BertfastError(f"{name} is not UTF-8 text ({error.reason})") from error
    if not number:
        raise BertfastError(f"{name} holds no text")


@contextmanager
def _standard_input() -> Iterator[TextIO]:
    stream = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="\n")
    try:
        yield stream
    finally:
        stream.detach()  # standard input stays open


def read_json_lines(path: Path) -> Iterator[tuple[int, dict | None]]:
    """(line number, object) of each line, or of each object of a JSON list.

    The object of a blank line is None. An object of a list has the line in which it begins.

    Raises:
        BertfastError: a line that is no JSON object.
    """
    with open_text(path) as stream:
        yield from json_records(stream, path)


def json_records(stream: TextIO, name: str | Path) -> Iterator[tuple[int, dict | None]]:
    """What `read_json_lines` gives, of an open file; ``name`` is the file's in errors."""
    for number, line in enumerate(stream, 1):
        if not line.strip():
            yield number, None
            continue
        if number == 1 and line.lstrip().startswith("["):
            yield from _list_of_objects(name, line + stream.read())
            return
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BertfastError(f"{name}, line {number}: is not JSON ({error})") from error
        if not isinstance(record, dict):
            raise BertfastError(
                f"{name}, line {number}: is a {type(record).__name__}; "
                "each line must be a JSON object"
            )
        yield number, record


def _list_of_objects(path: str | Path, text: str) -> Iterator[tuple[int, dict]]:
    """(line number, object) of each object of a JSON list."""
    decode, space = json.JSONDecoder().raw_decode, re.compile(r"[\s]*")
    place, line, counted, some = text.index("[") + 1, 1, 0, False
    while True:
        place = space.match(text, place).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, place), place
        if text[place : place + 1] == "]" and not text[place + 1 :].strip():
            return
        try:
            record, place = decode(text, place)
        except (ValueError, RecursionError) as error:
            raise BertfastError(f"{path}, line {line}: is not JSON ({error})") from error
        if not isinstance(record, dict):
            kind = type(record).__name__ if some else "list"
            raise BertfastError(
                f"{path}, line {line}: is a {kind}; each line must be a JSON object, or the file a "
                "list of them"
            )
        some = True
        yield line, record
        place = space.match(text, place).end()  # type: ignore[union-attr]
        if text[place : place + 1] == ",":
            place += 1


def _plain_documents(path: Path) -> Iterator[list[str]]:
    with open_text(path) as stream:
        document: list[str] = []
        for line in stream:
            if "\0" in line:
                raise BertfastError(
                    f"{path}: is a binary file (a zero byte); text in UTF-8 is wanted"
                )
            if line := line.strip():
                document.append(line)
            elif document:
                yield document
                document = []
        if document:
            yield document


def lines_of_record(record: dict, text_field: str, name: str | Path, number: int) -> list[str]:
    """The lines of a record's text with something on them.

    Raises:
        BertfastError: the record has no such text; ``name`` and ``number`` say where it stands.
    """
    text = record.get(text_field)
    if not isinstance(text, str):
        raise BertfastError(
            f"{name}, line {number}: has no text in the field {text_field!r}; "
            f"its fields are {', '.join(record)} (--text-field names another)"
        )
    return [line.strip() for line in text.splitlines() if line.strip()]


def _json_documents(path: Path, text_field: str) -> Iterator[list[str]]:
    for number, record in read_json_lines(path):
        if record is not None and (lines := lines_of_record(record, text_field, path, number)):
            yield lines


def read_documents(paths: Iterable[str | Path], text_field: str = "text") -> Iterator[list[str]]:
    """The documents of these files in order, each a list of lines with something on them.

    In plain text a blank line stands between documents; in JSON lines each record's ``text_field``
    is a document.

    Raises:
        BertfastError: a file that cannot be used, or one with no text in it.
    """
    for path in map(Path, paths):
        documents = _json_documents(path, text_field) if is_json(path) else _plain_documents(path)
        some = False
        for document in documents:
            some = True
            yield document
        if not some:
            raise BertfastError(f"{path}: holds no text")
