"""A corpus wherever it lies, in pieces of bounded size.

It may be files, folders, globs, data sets that `datasets` saved or the Hub has, and fsspec's
addresses (s3://, gs://, hf://, https://).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from bertfast.errors import BertfastError
from bertfast.files import check_file

from .columnar import SPLITS, STATE, SUFFIXES, data_files, text_rows
from .readers import (
    COMPRESSED,
    JSON_SUFFIXES,
    decoded,
    is_json,
    json_records,
    lines_of_record,
)

PLAIN_SUFFIXES = (".txt", ".text")
# What is taken of a folder; a file that is named itself may have any other ending, for plain text.
ENDINGS = (
    *(
        f"{suffix}{packed}"
        for suffix in (*PLAIN_SUFFIXES, *JSON_SUFFIXES)
        for packed in ("", *COMPRESSED)
    ),
    *SUFFIXES,
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB = "hf://datasets/"
LONGEST = 1 << 22  # characters of a piece, unless somebody wants fewer


class Piece(NamedTuple):
    """Lines of one document, with something on each; a long document is several pieces, of which
    all but the first go on.
    """

    lines: list[str]
    goes_on: bool

    @property
    def size(self) -> int:
        """Characters."""
        return sum(map(len, self.lines))


@dataclass(frozen=True)
class Part:
    """One file of a corpus: its path or address, its bytes, and when it was last written, in
    nanoseconds.

    The bytes are 0 where nobody says, and the time is 0 of an address.
    """

    name: str
    size: int
    written: int = 0


def is_address(name: str) -> bool:
    """Whether it is fsspec's to open, as ``s3://bucket/file``."""
    return "://" in name


def find_parts(data: Iterable[str | Path]) -> list[Part]:
    """The files that these files, folders, globs, addresses and Hub ids stand for.

    Those of a folder or a glob are in the order of their names.

    Raises:
        BertfastError: nothing is there, or it cannot be looked at.
    """
    found = [part for name in data for part in _parts(str(name))]
    if not found:
        raise BertfastError("data names no file")
    return found


def _parts(name: str) -> list[Part]:
    if is_address(name):
        return _remote_parts(name)
    path = Path(name)
    if path.is_dir():
        return [_local(file) for file in _files_of(path)]
    if path.exists():
        return [_local(path)]
    if glob.has_magic(name):
        matched = sorted(Path(match) for match in glob.glob(name, recursive=True))
        files = [path for path in matched if path.is_file()]
        if not files:
            raise BertfastError(f"{name}: matches no file")
        return [_local(path) for path in files]
    if HUB_ID.fullmatch(name) and not name.lower().endswith(ENDINGS):
        try:
            return _remote_parts(f"{HUB}{name}")
        except BertfastError as error:
            raise BertfastError(
                f"{name}: is no file or folder, nor a data set of the Hub ({error})"
            ) from error
    raise BertfastError(f"{name}: no such file")


def _local(path: Path) -> Part:
    size = check_file(path)
    return Part(str(path.resolve()), size, path.stat().st_mtime_ns)


def _files_of(folder: Path) -> list[Path]:
    if (folder / STATE).is_file() or (folder / SPLITS).is_file():
        return data_files(folder)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(ENDINGS)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise BertfastError(f"{folder}: holds no file that ends in {', '.join(ENDINGS)}")
    return files


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Turns whatever goes wrong with an address into one `BertfastError`: a file system says so in
    ways of its own.
    """
    try:
        yield
    except BertfastError:
        raise
    except FileNotFoundError:
        raise BertfastError(f"{address}: no such file") from None
    except ImportError as error:
        raise BertfastError(
            f"{address}: what opens it is not installed ({_line(error)}); "
            "pip install 'bertfast[remote]'"
        ) from error
    except Exception as error:
        raise BertfastError(
            f"{address}: cannot be reached ({type(error).__name__}: {_line(error)}); check the "
            "address, the network and the credentials"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path there; to be called `reaching` it."""
    import fsspec

    return fsspec.core.url_to_fs(address)


def _remote_parts(address: str) -> list[Part]:
    with reaching(address):
        system, path = file_system(address)
        if glob.has_magic(address):
            names = sorted(name for name in system.glob(path) if system.isfile(name))
        elif system.isdir(path):
            names = sorted(
                name
                for name in system.find(path)
                if name.lower().endswith(ENDINGS) and not Path(name).name.startswith(".")
            )
        else:
            return [Part(address, int(system.info(path).get("size") or 0))]
        if not names:
            raise BertfastError(f"{address}: there is no file of text")
        return [
            Part(system.unstrip_protocol(name), int(system.info(name).get("size") or 0))
            for name in names
        ]


@contextmanager
def opened(part: Part) -> Iterator[BinaryIO]:
    """The file's bytes.

    Raises:
        BertfastError: it cannot be opened or read.
    """
    if is_address(part.name):
        with reaching(part.name):
            system, path = file_system(part.name)
            with system.open(path, "rb") as raw:
                yield raw
        return
    check_file(part.name)
    try:
        with open(part.name, "rb") as raw:
            yield raw
    except OSError as error:
        raise BertfastError(f"{part.name}: cannot be read ({error})") from error


def read_pieces(
    part: Part, text_field: str = "text", longest: int = LONGEST
) -> Iterator[tuple[Piece, int]]:
    """The pieces of a file in order, each with how many of its bytes were read by then.

    In plain text a blank line stands between documents; of JSON lines, Parquet and Arrow each
    record's ``text_field`` is a document.

    Raises:
        BertfastError: the file cannot be used, or has no text in it.
    """
    some = False
    with opened(part) as raw:
        if part.name.lower().endswith(SUFFIXES):
            if raw.seek(0, 2) == 0:
                raise BertfastError(f"{part.name}: the file is empty")
            raw.seek(0)
            rows = text_rows(raw, part.name, text_field)
            found = (lines_of_record(row, text_field, part.name, number) for number, row in rows)
            for piece in _cut(found, longest):
                some = True
                yield piece, raw.tell()
        else:
            with decoded(raw, part.name) as stream:
                for piece in _text_pieces(stream, part.name, text_field, longest):
                    some = True
                    yield piece, raw.tell()
    if not some:
        raise BertfastError(f"{part.name}: holds no text")


def _text_pieces(stream: TextIO, name: str, text_field: str, longest: int) -> Iterator[Piece]:
    if not is_json(Path(name)):
        return _plain_pieces(stream, name, longest)
    records = json_records(stream, name)
    return _cut(
        (
            lines_of_record(record, text_field, name, number)
            for number, record in records
            if record is not None
        ),
        longest,
    )


def _cut(documents: Iterable[Sequence[str]], longest: int) -> Iterator[Piece]:
    """Documents that are whole already, the long ones in pieces."""
    for document in documents:
        lines: list[str] = []
        size, goes_on = 0, False
        for line in document:
            for part in _shorter(line, longest):
                if lines and size + len(part) > longest:
                    yield Piece(lines, goes_on)
                    lines, size, goes_on = [], 0, True
                lines.append(part)
                size += len(part)
        if lines:
            yield Piece(lines, goes_on)


def _shorter(line: str, longest: int) -> Iterator[str]:
    """A line in parts, cut at spaces where there are any."""
    while len(line) > longest:
        cut = line.rfind(" ", 0, longest) + 1 or longest
        yield line[:cut].strip() or line[:cut]
        line = line[cut:]
    if line:
        yield line


def _plain_pieces(stream: TextIO, name: str, longest: int) -> Iterator[Piece]:
    lines: list[str] = []
    size, goes_on = 0, False
    for line in _lines(stream, longest):
        if "\0" in line:
            raise BertfastError(f"{name}: is a binary file (a zero byte); text in UTF-8 is wanted")
        if stripped := line.strip():
            if lines and size + len(stripped) > longest:
                yield Piece(lines, goes_on)
                lines, size, goes_on = [], 0, True
            lines.append(stripped)
            size += len(stripped)
        elif line.endswith("\n"):  # the middle of a line too long for a piece may be blank
            if lines:
                yield Piece(lines, goes_on)
            lines, size, goes_on = [], 0, False
    if lines:
        yield Piece(lines, goes_on)


def _lines(stream: TextIO, longest: int) -> Iterator[str]:
    """The lines of a stream; one longer than this in parts, cut at spaces where there are any."""
    rest = ""
    while chunk := stream.readline(longest - len(rest)):
        line = rest + chunk
        rest = ""
        if len(line) >= longest and not line.endswith("\n"):
            cut = line.rfind(" ") + 1 or len(line)
            line, rest = line[:cut], line[cut:]
        yield line
    if rest:
        yield rest


class Lines:
    """Every line of a corpus, to be read as often as one likes.

    Args:
        data: as `find_parts` takes it.
        text_field: of records.
        share: of the pieces, drawn by their number, that are read.

    Raises:
        BertfastError: the corpus is not there, or the share is none.
    """

    def __init__(
        self, data: Iterable[str | Path], text_field: str = "text", share: float = 1.0
    ) -> None:
        if not 0 < share <= 1:
            raise BertfastError(f"sample is {share!r}; it must be above 0, and at most 1")
        self.parts, self.text_field, self.share = find_parts(data), text_field, share

    def __iter__(self) -> Iterator[str]:
        import random

        draw = random.Random(0)
        for part in self.parts:
            for piece, _ in read_pieces(part, self.text_field):
                if self.share == 1 or draw.random() < self.share:
                    yield from piece.lines
