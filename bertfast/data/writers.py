"""Rows out: JSON lines, CSV and Parquet, a few at a time."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Self, TextIO

from bertfast.errors import BertfastError

from .columnar import import_arrow
from .readers import JSON_SUFFIXES

AT_ONCE = 4096  # rows of a Parquet file's group
FORMATS = ("jsonl", "csv", "parquet")
# Some reader takes each for the end of a line.
_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
Row = Mapping[str, Any]
Write = Callable[[Sequence[Row]], None]


def format_of(out: str | Path | None, name: str | None = None) -> str:
    """The one of `FORMATS` that is named, or that the ending of the file's name says; JSON lines
    for standard output, None.

    Raises:
        BertfastError: the name or the ending is no format, or Parquet would go to standard output.
    """
    suffix = None if out is None else Path(out).suffix.lower()
    if name is None:
        name = "jsonl" if suffix is None or suffix in JSON_SUFFIXES else suffix.removeprefix(".")
        if name not in FORMATS:
            raise BertfastError(f"{out}: must end in .jsonl, .csv or .parquet, or give --format")
    if name not in FORMATS:
        raise BertfastError(f"format is {name!r}; it must be one of {', '.join(FORMATS)}")
    if name == "parquet":
        if out is None:
            raise BertfastError("Parquet does not go to standard output; give --out FILE.parquet")
        import_arrow(out)
    return name


@contextmanager
def row_writer(out: Path | None, kind: str) -> Iterator[Write]:
    """A function that writes rows, all of one kind, to a file, or to standard output for None.

    Of CSV and Parquet, the columns are those of all rows, so that the file comes when all are
    there. Of CSV, the numbers of a mapping are columns of their own, as ``probabilities.good``, and
    other lists and mappings are JSON. Of Parquet, such mappings are maps, and the others are JSON.
    """
    if kind != "jsonl":
        with _Spool() as spool:
            yield spool.add
            if kind == "parquet":
                assert out is not None
                if spool.columns:
                    _write_parquet(spool, out)
            else:
                with _opened(out) as stream:
                    _write_csv(spool, stream)
        return
    with _opened(out) as stream:
        yield lambda rows: stream.writelines(json_lines(rows))


def _opened(out: Path | None) -> AbstractContextManager[TextIO]:
    return nullcontext(sys.stdout) if out is None else open(out, "w", encoding="utf-8", newline="")


def json_lines(rows: Iterable[Row]) -> Iterator[str]:
    """Each row as a line of JSON with its end, and no other character that some reader takes for
    one.
    """
    for row in rows:
        yield json.dumps(row, ensure_ascii=False).translate(_ENDS) + "\n"


def _is_numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(x, int | float) for x in value.values())


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class _Spool:
    """Rows on their way to a file whose head needs all of them, on the disk meanwhile.

    Attributes:
        columns: the names of all rows, each where it came up first, with the kinds of its values.
    """

    def __init__(self) -> None:
        self.columns: dict[str, set[type]] = {}

    def __enter__(self) -> Self:
        self.stream = tempfile.TemporaryFile("w+", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in row.items():
                kinds = self.columns.setdefault(name, set())
                if _is_numbers(value):
                    kinds.add(Mapping)
                elif value is not None:
                    kinds.add(type(value))
        self.stream.writelines(json_lines(rows))

    def rows(self) -> Iterator[dict[str, Any]]:
        """All of them, from the first one."""
        self.stream.seek(0)
        yield from map(json.loads, self.stream)


def _cells(row: Row) -> dict[str, Any]:
    """A row of CSV."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if _is_numbers(value):
            cells |= {f"{name}.{key}": number for key, number in value.items()}
        else:
            cells[name] = _as_json(value) if isinstance(value, list | Mapping) else value
    return cells


def _write_csv(spool: _Spool, stream: TextIO) -> None:
    """The rows, with the columns of all of them."""
    writer = csv.writer(stream, lineterminator="\n")
    names: dict[str, dict[str, None]] = {name: {} for name in spool.columns}
    for row in spool.rows():
        for name, value in row.items():
            if value is not None or Mapping not in spool.columns[name]:
                names[name] |= dict.fromkeys(_cells({name: value}))
    columns = [cell for cells in names.values() for cell in cells]
    if columns:
        writer.writerow(columns)
    for row in spool.rows():
        cells = _cells(row)
        writer.writerow([cells.get(name) for name in columns])


def _write_parquet(spool: _Spool, out: Path) -> None:
    """The rows, with the columns of all of them, each of the narrowest type that holds it."""
    arrow = import_arrow(out)
    from pyarrow import parquet

    def type_of(kinds: set[type]) -> Any:
        for own, type_ in (
            ({bool}, arrow.bool_()),
            ({int}, arrow.int64()),
            ({int, float}, arrow.float64()),
            ({Mapping}, arrow.map_(arrow.string(), arrow.float64())),
        ):
            if kinds and kinds <= own:
                return type_
        return arrow.string()

    schema = arrow.schema([(name, type_of(kinds)) for name, kinds in spool.columns.items()])

    def column(field: Any, rows: Sequence[Row]) -> Any:
        values = [row.get(field.name) for row in rows]
        if arrow.types.is_map(field.type):
            values = [None if value is None else list(value.items()) for value in values]
        elif arrow.types.is_string(field.type):
            values = [
                value if value is None or isinstance(value, str) else _as_json(value)
                for value in values
            ]
        return arrow.array(values, field.type)

    remaining = spool.rows()
    with parquet.ParquetWriter(out, schema) as writer:
        while rows := list(islice(remaining, AT_ONCE)):
            columns = [column(field, rows) for field in schema]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
