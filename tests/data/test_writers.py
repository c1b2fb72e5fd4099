"""Rows out, in every format: read back as they were."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bertfast.data.writers import format_of, row_writer
from bertfast.errors import BertfastError

ROWS: list[dict[str, Any]] = [
    {"text": 'a "b",\n\u2028c', "pair": None, "p": {"good": 0.25, "b,d": 1}, "spans": [], "n": 1},
    {"text": "", "pair": "é", "p": {"good": 0.5, "b,d": 0.5}, "spans": [{"start": 1}], "n": 2},
]


def write(path: Path, kind: str, *parts: list[dict[str, Any]]) -> None:
    with row_writer(path, kind) as writer:
        for rows in parts:
            writer(rows)


def test_json_lines_are_a_line_a_row(tmp_path: Path) -> None:
    write(tmp_path / "a", "jsonl", ROWS[:1], [], ROWS[1:])
    lines = (tmp_path / "a").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ROWS


def test_csv_has_a_column_for_each_number(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "csv", ROWS[:1], ROWS[1:])
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    assert [row["p.good"] for row in rows] == ["0.25", "0.5"]
    assert [row["p.b,d"] for row in rows] == ["1", "0.5"]
    assert [json.loads(row["spans"]) for row in rows] == [[], [{"start": 1}]]


def test_parquet_keeps_numbers_and_maps(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "a.parquet", "parquet", ROWS[:1], [], ROWS[1:])
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    for row, expected in zip(rows, ROWS, strict=True):
        assert dict(row.pop("p")) == expected["p"]
        assert json.loads(row.pop("spans")) == expected["spans"]
        assert row == {name: expected[name] for name in ("text", "pair", "n")}


LATER: list[dict[str, Any]] = [
    {"text": "a", "n": 1, "p": {"x": 0.5}},
    {"text": "b", "n": 2.5, "pair": "c", "p": {"x": 0.25, "y": 1}},
    {"text": "d", "n": None, "pair": None, "p": None},
]


def test_columns_that_come_later_are_columns_of_all(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "csv", LATER[:1], LATER[1:])
    assert (
        tmp_path / "a.csv"
    ).read_text() == "text,n,p.x,p.y,pair\na,1,0.5,,\nb,2.5,0.25,1,c\nd,,,,\n"
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "a.parquet", "parquet", LATER[:1], LATER[1:])
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["pair"] for row in rows] == [None, "c", None]
    assert [row["n"] for row in rows] == [1.0, 2.5, None]
    assert [row["p"] and dict(row["p"]) for row in rows] == [row["p"] for row in LATER]


def test_values_of_several_kinds_are_text_in_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "a.parquet", "parquet", [{"n": 1}], [{"n": "x"}])
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == [{"n": "1"}, {"n": "x"}]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_no_rows_are_an_empty_file_or_none(kind: str, tmp_path: Path) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    write(tmp_path / "a", kind, [])
    assert not (tmp_path / "a").exists() or (tmp_path / "a").read_text() == ""


@pytest.mark.parametrize(
    ("out", "name", "kind"),
    [
        (None, None, "jsonl"),
        ("a.JSONL", None, "jsonl"),
        ("a.csv", None, "csv"),
        ("a.txt", "csv", "csv"),
        (None, "csv", "csv"),
        ("a.txt", None, "must end in"),
        ("a.csv", "xml", "must be one of jsonl, csv, parquet"),
        (None, "parquet", "does not go to standard output"),
    ],
)
def test_the_format_is_the_one_named_or_that_of_the_ending(
    out: str | None, name: str | None, kind: str
) -> None:
    if " " in kind:
        with pytest.raises(BertfastError, match=kind):
            format_of(out, name)
    else:
        assert format_of(out, name) == kind
