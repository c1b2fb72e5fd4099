"""Rows of Parquet files, Arrow files and folders that `datasets` saved, a few at a time.

A column of `datasets`' class labels holds their names; -1, which stands for none there, is None.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from bertfast.errors import BertfastError
from bertfast.files import check_file, read_object

SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")
STATE, SPLITS = "state.json", "dataset_dict.json"  # of a saved data set, and of several
AT_ONCE = 1024  # rows


def is_columnar(path: Path) -> bool:
    """Whether the name says Parquet or Arrow, or it is a folder."""
    return path.suffix.lower() in SUFFIXES or path.is_dir()


def column_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, row) of a Parquet or an Arrow file, or of a folder that `datasets` saved.

    Raises:
        BertfastError: it cannot be used, or pyarrow is not installed.
    """
    number = 0
    for part in _parts(path):
        arrow = import_arrow(part)
        try:
            for names, batch in _local_batches(arrow, part):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {**row, **_named(row, names, part, number)}
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise _not_columnar(part, error) from error


def text_rows(source: BinaryIO, name: str, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, row) of an open Parquet or Arrow file; of Parquet, where it has the
    column, that alone is read.

    Raises:
        BertfastError: it cannot be used, or pyarrow is not installed.
    """
    arrow, number = import_arrow(name), 0
    try:
        for _, batch in _batches(arrow, arrow.PythonFile(source), name, column):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise _not_columnar(name, error) from error


def _not_columnar(name: str | Path, error: Exception) -> BertfastError:
    kind = "Parquet" if str(name).lower().endswith(".parquet") else "Arrow"
    return BertfastError(f"{name}: cannot be read as {kind} ({' '.join(str(error).split())})")


def data_files(path: str | Path) -> list[Path]:
    """The files that hold a data set: those of a folder that `datasets` saved, or the file itself.

    Raises:
        BertfastError: the folder holds no data set, or several.
    """
    return _parts(Path(path)) if Path(path).is_dir() else [Path(path)]


def import_arrow(path: str | Path) -> ModuleType:
    """pyarrow, which a file is read or written with.

    Raises:
        BertfastError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise BertfastError(
            f"{path}: pyarrow reads and writes it and is not installed; pip install "
            "'bertfast[data]'"
        ) from None
    return pyarrow


def _parts(path: Path) -> list[Path]:
    if not path.is_dir():
        check_file(path)
        return [path]
    if (path / SPLITS).is_file():
        splits = read_object(path / SPLITS).get("splits", [])
        raise BertfastError(
            f"{path}: holds the splits {', '.join(map(repr, splits))}; name one, as "
            f"{path / str(next(iter(splits), 'train'))}"
        )
    if not (path / STATE).is_file():
        raise BertfastError(
            f"{path}: is a folder, and none that datasets saved (it has no {STATE}); name the "
            "files in it"
        )
    names = [part.get("filename") for part in read_object(path / STATE).get("_data_files", [])]
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise BertfastError(f"{path / STATE}: names no files of the folder as _data_files")
    for name in names:
        check_file(path / name)
    return [path / name for name in names]


def _local_batches(arrow: ModuleType, path: Path) -> Iterator[tuple[dict[str, list[str]], Any]]:
    with arrow.memory_map(str(path)) as source:
        if source.size() == 0:
            raise BertfastError(f"{path}: the file is empty")
        yield from _batches(arrow, source, path)


def _batches(
    arrow: ModuleType, source: Any, name: str | Path, column: str | None = None
) -> Iterator[tuple[dict[str, list[str]], Any]]:
    """The names of each class label's column, and a few rows; of one column alone, or of all."""
    if str(name).lower().endswith(".parquet"):
        from pyarrow import parquet

        file = parquet.ParquetFile(source)
        schema = file.schema_arrow
        batches = file.iter_batches(
            batch_size=AT_ONCE, columns=[column] if column in schema.names else None
        )
    elif source.read(6) == b"ARROW1":
        reader = arrow.ipc.open_file(source)
        schema = reader.schema
        batches = map(reader.get_batch, range(reader.num_record_batches))
    else:
        source.seek(0)
        batches = reader = arrow.ipc.open_stream(source)
        schema = reader.schema
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise BertfastError(
            f"{name}: names {', '.join(map(repr, repeated))} more than once among its columns"
        )
    names = _class_names(schema.metadata or {})
    for batch in batches:
        for start in range(0, batch.num_rows, AT_ONCE):
            yield names, batch.slice(start, AT_ONCE)


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The names of the class labels, by column, that `datasets` writes beside the columns."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        kinds = {column: kind for column, kind in features.items() if isinstance(kind, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    # A column of lists, as of tags, has its class label as the feature of its items.
    found = {column: kind.get("feature", kind) for column, kind in kinds.items()}
    return {
        column: kind["names"]
        for column, kind in found.items()
        if isinstance(kind, dict)
        and kind.get("_type") == "ClassLabel"
        and isinstance(kind.get("names"), list)
    }


def _named(
    row: dict[str, Any], names: dict[str, list[str]], path: Path, number: int
) -> dict[str, Any]:
    """The class labels of a row, or of its lists, by their names."""

    def name(column: str, label: Any) -> Any:
        if isinstance(label, list):
            return [name(column, one) for one in label]
        if label is None or label == -1:
            return None
        if isinstance(label, int) and 0 <= label < len(names[column]):
            return str(names[column][label])
        raise BertfastError(
            f"{path}, line {number}: the class label {column!r} is {label!r}, and it has "
            f"{len(names[column])} names"
        )

    return {column: name(column, row[column]) for column in names.keys() & row.keys()}
