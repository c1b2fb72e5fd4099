"""Which columns hold texts and labels: those given, trained with, or found by usual names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import run_cli, sentences, write_model, write_table

from bertfast.data.columns import PAIRS, Columns
from bertfast.data.labelled import find_columns


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_pairs_are_found_and_said(first: str, second: str, tmp_path: Path, capsys: Any) -> None:
    path = write_table(tmp_path / "a.tsv", [("1", "a", "b", "x")], ("idx", second, first, "label"))
    assert find_columns(path, Columns()) == Columns(first, second, "label")
    assert f"a.tsv: pairs of texts, {first!r} and {second!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "given", "found"),
    [
        ("sentence label", Columns(), Columns("sentence", None, "label")),
        ("text sentence label", Columns(), Columns("sentence", None, "label")),
        ("text question answer label", Columns(), Columns("text", None, "label")),
        ("premise hypothesis label", Columns("premise"), Columns("premise", None, "label")),
        (
            "premise hypothesis label",
            Columns(None, "hypothesis"),
            Columns("premise", "hypothesis", "label"),
        ),
        ("a b y", Columns("a", "b", "y"), Columns("a", "b", "y")),
        ("sentence b label", Columns(None, "b"), Columns("sentence", "b", "label")),
        ("sentence1 sentence2 score", Columns(), Columns("sentence1", "sentence2", "score")),
        ("foo bar", Columns(), Columns("sentence", None, "label")),
    ],
)
def test_what_is_given_wins(names: str, given: Columns, found: Columns) -> None:
    assert given.among(names.split()) == found


def test_later_data_has_the_columns_of_the_training(tmp_path: Path, capsys: Any) -> None:
    path = write_table(
        tmp_path / "a.tsv", [("a", "b", "c", "x")], ("text1", "text2", "text", "label")
    )
    trained = Columns("text1", "text2", "label")
    assert find_columns(path, Columns(), trained) == trained
    single = Columns("sentence", None, "label")
    assert find_columns(path, Columns(), single) == Columns("text", None, "label")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (("sentence", "label"), "has no column 'premise'; its columns are 'sentence', 'label'"),
        (("premise", "label"), "has no column 'hypothesis'"),
        (("premise", "hypothesis", "gold"), "has no column 'label'"),
    ],
)
def test_columns_that_differ_between_files_are_one_line(
    header: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    write_model(tmp_path / "model")
    rows = [(text, "the cast", label) for text, label in sentences(8)]
    train = write_table(tmp_path / "a.tsv", rows, ("premise", "hypothesis", "label"))
    dev = write_table(tmp_path / "b.tsv", [row[: len(header)] for row in rows], header)
    command = ["finetune", tmp_path / "model", "--train", train, "--dev", dev]
    done = run_cli(monkeypatch, capfd, *command, "--out", tmp_path / "out")
    assert done.code == 2
    assert len(done.errors) == 1
    assert f"{dev}, line 2: {said}" in done.errors[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tsv", "b.tsv", "model"]


def test_a_pair_goes_from_its_columns_to_its_predictions(
    tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    write_model(tmp_path / "model")
    rows = [(text, "the cast", label) for text, label in sentences(16)]
    data = write_table(tmp_path / "a.tsv", rows, ("premise", "hypothesis", "label"))
    out = tmp_path / "out"
    command = ["finetune", tmp_path / "model", "--train", data, "--dev", data, "--out", out]
    assert run_cli(monkeypatch, capfd, *command, "--epochs", 1).code == 0
    assert run_cli(monkeypatch, capfd, "evaluate", out, "--data", data).code == 0
    done = run_cli(monkeypatch, capfd, "predict", out, data)
    assert '"pair": "the cast"' in done.out.splitlines()[0]
