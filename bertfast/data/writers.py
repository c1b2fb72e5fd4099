"""Rows out: JSON lines, CSV and Parquet, a few at a time."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from bertfast.errors import BertfastError

from .columnar import import_arrow
from .readers import JSON_SUFFIXES

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

    Of CSV, the numbers of a mapping are columns of their own, as ``probabilities.good``, and other
    lists and mappings are JSON. Of Parquet, such mappings are maps, and the others are JSON.
    """
    if kind == "parquet":
        assert out is not None
        writer = _Parquet(out)
        try:
            yield writer
        finally:
            writer.close()
        return
    opened = (
        nullcontext(sys.stdout) if out is None else open(out, "w", encoding="utf-8", newline="")  # noqa: SIM115 (the next line closes it)
    )
    with opened as stream:
        yield _Csv(stream) if kind == "csv" else lambda rows: stream.writelines(json_lines(rows))


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


class _Csv:
    """The columns are the first row's."""

    def __init__(self, stream: TextIO) -> None:
        self.writer = csv.writer(stream, lineterminator="\n")
        self.columns: list[str] | None = None

    def __call__(self, rows: Sequence[Row]) -> None:
        for row in rows:
            cells: dict[str, Any] = {}
            for name, value in row.items():
                if _is_numbers(value):
                    cells |= {f"{name}.{key}": number for key, number in value.items()}
                else:
                    cells[name] = _as_json(value) if isinstance(value, list | Mapping) else value
            if self.columns is None:
                self.columns = list(cells)
                self.writer.writerow(self.columns)
            self.writer.writerow([cells.get(name) for name in self.columns])


class _Parquet:
    """The columns, and their types, are those of the rows written first."""

    def __init__(self, out: Path) -> None:
        self.arrow, self.out = import_arrow(out), out
        self.writer: Any = None

    def __call__(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        if self.writer is None:
            from pyarrow import parquet

            self.schema = self.arrow.schema(
                [(name, self._type([row.get(name) for row in rows])) for name in rows[0]]
            )
            self.writer = parquet.ParquetWriter(self.out, self.schema)
        columns = [self._column(field.name, field.type, rows) for field in self.schema]
        self.writer.write_table(self.arrow.Table.from_arrays(columns, schema=self.schema))

    def close(self) -> None:
        """Writes the file's end."""
        if self.writer is not None:
            self.writer.close()

    def _type(self, values: list[Any]) -> Any:
        known = [value for value in values if value is not None]
        for kind, type_ in (
            (bool, self.arrow.bool_()),
            (int, self.arrow.int64()),
            (int | float, self.arrow.float64()),
        ):
            if known and all(isinstance(value, kind) for value in known):
                return type_
        if known and all(map(_is_numbers, known)):
            return self.arrow.map_(self.arrow.string(), self.arrow.float64())
        return self.arrow.string()

    def _column(self, name: str, kind: Any, rows: Sequence[Row]) -> Any:
        values = [row.get(name) for row in rows]
        if self.arrow.types.is_map(kind):
            values = [None if value is None else list(value.items()) for value in values]
        elif self.arrow.types.is_string(kind):
            values = [
                value if value is None or isinstance(value, str) else _as_json(value)
                for value in values
            ]
        try:
            return self.arrow.array(values, kind)
        except (self.arrow.ArrowException, TypeError, ValueError, AttributeError) as error:
            raise BertfastError(
                f"{self.out}: {name!r} is not of the type {kind} that the first rows have ({error})"
            ) from error
