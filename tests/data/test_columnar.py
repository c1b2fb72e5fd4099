"""Parquet, Arrow and saved data sets give the rows of a table, and name what is wrong in a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertfast.data import columnar
from bertfast.data.columnar import column_rows, data_files
from bertfast.errors import BertfastError

pa = pytest.importorskip("pyarrow")
ROWS = [
    {"text": "a\tb\u2028", "label": "x", "tags": ["B", "O"], "number": 0.5},
    {"text": "", "label": None, "tags": [], "number": None},
]
TABLE = pa.Table.from_pylist(ROWS)


def parquet(path: Path, table: Any = TABLE) -> None:
    from pyarrow import parquet

    parquet.write_table(table, path)


def ipc(stream: bool) -> Callable[..., None]:
    def save(path: Path, table: Any = TABLE) -> None:
        new = pa.ipc.new_stream if stream else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table)

    return save


def feather(path: Path, table: Any = TABLE) -> None:
    from pyarrow import feather

    feather.write_feather(table, str(path))


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.parquet", parquet),
        ("a.PARQUET", parquet),
        ("a.arrow", ipc(stream=True)),
        ("a.arrow", ipc(stream=False)),
        ("a.feather", feather),
    ],
)
def test_the_rows_are_those_of_the_table(
    name: str, save: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    save(tmp_path / name)
    assert list(column_rows(tmp_path / name)) == list(enumerate(ROWS, 1))
    monkeypatch.setattr(columnar, "AT_ONCE", 1)
    assert list(column_rows(tmp_path / name)) == list(enumerate(ROWS, 1))


def test_a_saved_data_set_and_its_class_labels(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["bad", "good"])
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    saved = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=saved, dev=saved).save_to_disk(
        tmp_path / "both", num_shards={"train": 2, "dev": 1}
    )
    saved.to_parquet(tmp_path / "a.parquet")
    for place in ("both/train", "both/dev", "a.parquet"):
        found = [row for _, row in column_rows(tmp_path / place)]
        assert [row["label"] for row in found] == ["good", "bad", None]
        assert [row["text"] for row in found] == ["a", "b", "c"]
    assert len(data_files(tmp_path / "both/train")) == 2
    with pytest.raises(BertfastError, match="holds the splits 'train', 'dev'; name one"):
        list(column_rows(tmp_path / "both"))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("content", [b"", b"PAR1 no table PAR1", b"ARROW1\0\0 no more", b"text\n"])
def test_what_is_no_table_is_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BertfastError, match=name) as caught:
        list(column_rows(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_half_a_file_is_one_line(tmp_path: Path) -> None:
    whole = pa.Table.from_pylist(ROWS * 500)
    for name, save in {"a.parquet": parquet, "a.arrow": ipc(True), "b.arrow": ipc(False)}.items():
        save(tmp_path / name, whole)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(BertfastError, match="cannot be read as"):
            list(column_rows(tmp_path / name))


def test_a_column_named_twice_is_one_line(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    ipc(stream=True)(tmp_path / "a.arrow", table)
    with pytest.raises(BertfastError, match="names 'text' more than once"):
        list(column_rows(tmp_path / "a.arrow"))


@pytest.mark.parametrize("names", [["../a.arrow"], [], [3], ["nowhere.arrow"]])
def test_a_folder_that_names_no_files_of_its_own_is_one_line(names: Any, tmp_path: Path) -> None:
    parts = [{"filename": name} for name in names]
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": parts}))
    with pytest.raises(BertfastError, match=r"names no files|no such file"):
        list(column_rows(tmp_path))


def test_a_folder_of_something_else_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BertfastError, match="is a folder, and none that datasets saved"):
        list(column_rows(tmp_path))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BertfastError, match=r"pip install 'bertfast\[data\]'"):
        list(column_rows(tmp_path / "a.parquet"))
