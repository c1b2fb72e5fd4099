"""The experiment sheet: each cell once, whatever stopped it; the pages say what came out."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import run_cli, sentences, write_model, write_table

from bertfast.apps.compare.run import compare
from bertfast.apps.compare.sheet import read_sheet
from bertfast.data.labelled import read_task
from bertfast.errors import BertfastError
from bertfast.model import BertForMaskedLM

SETTINGS = {"epochs": 1, "lr": 5e-3, "batch_size": 16}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_model(folder / "model", BertForMaskedLM)
    for seed, (name, count) in enumerate((("train", 48), ("dev", 16), ("test", 30))):
        write_table(folder / f"{name}.tsv", [*sentences(count, seed)])
    return folder


def sheet(place: Path, path: Path, **changes: Any) -> Path:
    """A small sheet; None takes a key out."""
    values = {
        "data": {name: str(place / f"{name}.tsv") for name in ("train", "dev", "test")},
        "models": {"<b>small</b>": str(place / "model")},
        "baselines": ["most-frequent", "tfidf"],
        "labels": [16, "all"],
        "seeds": 2,
        "settings": SETTINGS,
        "resamples": 200,
        **changes,
    }
    kept = {name: value for name, value in values.items() if value is not None}
    path.write_text(yaml.safe_dump(kept), encoding="utf-8")
    return path


def table(out: Path, name: str = "cells.csv") -> list[dict[str, str]]:
    with open(out / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(place: Path) -> Path:
    """A sheet that was run, its folder."""
    pytest.importorskip("sklearn")
    compare(sheet(place, place / "sheet.yaml"), place / "out", jobs=1)
    return place / "out"


def test_each_cell_is_run_once_and_said_on_every_page(place: Path, made: Path) -> None:
    rows = table(made)
    keys = {(row["row"], row["labels"], row["seed"]) for row in rows}
    names = ("most frequent", "TF-IDF + logistic regression", "<b>small</b>")
    assert keys == {(r, n, s) for r in names for n in ("16", "48") for s in ("0", "1")}
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;small&lt;/b&gt;" in page
    assert "<b>small</b>" not in page
    assert page.count("<svg") == 2
    # Nothing is fetched.
    assert "src=" not in page
    assert "href=" not in page.replace("xlink:href=", "")
    text = (made / "report.md").read_text(encoding="utf-8")
    assert "\\<b\\>small" in text
    for said in ("SHA-256", "torch", "bertfast compare", "commit"):
        assert said in page
        assert said in text


def test_the_most_frequent_label_is_that_of_the_examples_drawn(place: Path, made: Path) -> None:
    test = [row.label for row in read_task(place / "test.tsv")]
    share = max(test.count("good"), test.count("bad")) / len(test)
    found = {float(r["accuracy"]) for r in table(made) if r["row"] == "most frequent"}
    assert all(value in (pytest.approx(share), pytest.approx(1 - share)) for value in found)
    words = {
        float(r["accuracy"])
        for r in table(made)
        if r["row"].startswith("TF") and r["labels"] == "48"
    }
    assert words == {1.0}  # one word of the text decides


def test_pairs_are_tested_and_corrected(made: Path) -> None:
    tests = table(made, "tests.csv")
    assert len(tests) == 6
    for row in tests:
        assert row["test"] == "sign flips"
        assert float(row["p"]) <= float(row["p_holm"]) <= 1
        low, value, high = (float(row[n]) for n in ("low", "accuracy_difference", "high"))
        assert low <= value <= high


def test_a_second_run_trains_nothing_and_a_longer_sheet_only_what_is_new(
    place: Path, made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.glob("cells/*/result.json")}
    assert len(before) == 12
    compare(sheet(place, tmp_path / "more.yaml", seeds=[0, 1, 2], labels=[16]), made, jobs=1)
    after = {path: path.stat().st_mtime_ns for path in made.glob("cells/*/result.json")}
    assert {path: after[path] for path in before} == before
    assert len(after) == 15
    assert "6 of 9 are there already" in capfd.readouterr().err


def test_rows_that_are_deterministic_draw_the_same_examples(made: Path) -> None:
    found = []
    for path in made.glob("cells/*/draws.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            found.append(arrays["draws_accuracy"].shape)
    assert set(found) == {(200,)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labells": [1]}, "no such key: labells; the nearest is labels"),
        ({"data": None}, "there is no data"),
        ({"data": {"trian": "x"}}, "no such key: trian; the nearest is train"),
        ({"data": {"train": 3}}, "train is 3; it must be text"),
        ({"data": {"train": "no.tsv", "dev": "no.tsv"}}, "no.tsv: no such file"),
        ({"models": {"x": "no/folder/here"}}, "the model x: no/folder/here"),
        ({"models": {"x": {"pretrain": {"dta": "x"}}}}, "no such key: dta; the nearest is data"),
        ({"models": {"x": {"pretrain": {"data": "x"}}}}, "x: no such file"),
        ({"models": ["x"]}, "models is ['x']; it must be a mapping"),
        ({"models": {}, "baselines": []}, "nothing to compare"),
        ({"ways": ["hole"]}, "the way 'hole' is not known; known are whole"),
        ({"ways": [{"name": "x", "epoch": 1}]}, "no such key: epoch; the nearest is epochs"),
        ({"baselines": ["most"]}, "the baseline 'most' is not known"),
        ({"labels": []}, "labels is empty"),
        ({"labels": ["many"]}, "labels is 'many'; it must be a whole number"),
        ({"labels": [16, 16]}, "labels has 16 twice"),
        ({"labels": [5000]}, "labels has 5000, and there are 48 examples"),
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": [1, 1]}, "each seed stands in it once"),
        ({"settings": {"epochs": "two"}}, "epochs is 'two'; it must be a whole number"),
        ({"settings": {"out": "x"}}, "no such key: out"),
        ({"settings": {"lr": []}}, "lr is []; it must be a number"),
        ({"compare_with": "me"}, "compare_with is 'me'; the rows are"),
        ({"title": "${who}"}, "there is no variable who"),
        ({"variables": {"who": None}, "title": "${who}"}, "the variable who has no value"),
        ({"resamples": 3}, "resamples is 3"),
    ],
)
def test_a_sheet_that_cannot_be_used_is_one_line(
    change: dict[str, Any],
    message: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = sheet(place, tmp_path / "sheet.yaml", **change)
    done = run_cli(monkeypatch, capfd, "compare", path, "--out", tmp_path / "out")
    assert done.code == 2
    assert [message in line for line in done.errors] == [True], done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "- a", "a: [", "models: *x", "\x00"])
def test_a_file_that_is_no_sheet_is_one_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sheet.yaml").write_text(text)
    done = run_cli(monkeypatch, capfd, "compare", tmp_path / "sheet.yaml", "--out", tmp_path / "o")
    assert (done.code, len(done.errors), (tmp_path / "o").exists()) == (2, 1, False)


def test_a_baseline_without_sense_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("the\tO\nfilm\tB-THING\n\n" * 8, encoding="utf-8")
    data = {"train": str(tmp_path / "train.conll"), "dev_split": 0.25}
    path = sheet(place, tmp_path / "sheet.yaml", data=data, labels=[2])
    with pytest.raises(BertfastError, match="tfidf labels whole texts, and the task is token"):
        compare(path, tmp_path / "out")


def test_somebody_elses_folder_is_left_alone(place: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(BertfastError, match="holds no comparison"):
        compare(sheet(place, tmp_path / "sheet.yaml"), tmp_path / "out")


def test_the_ready_sheets_are_sheets() -> None:
    folder = Path(__file__).parents[2] / "examples" / "sheets"
    found = sorted(folder.glob("*.yaml"))
    assert len(found) >= 3
    for path in found:
        read = read_sheet(path)
        assert read.rows
        assert read.title


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "score"),
    [
        (
            "x.jsonl",
            [{"text": f"word {n % 5}", "label": n % 5 + 0.5} for n in range(20)],
            "pearson",
        ),
        (
            "x.jsonl",
            [{"text": f"w {n % 3}", "label": ["a", "b"][: n % 3]} for n in range(20)],
            "exact",
        ),
        (
            "x.jsonl",
            [{"question": f"q {n}", "choices": ["a", "b"], "answer": n % 2} for n in range(20)],
            "accuracy",
        ),
        (
            "x.json",
            [
                {
                    "question": "was it?",
                    "context": "the film was warm",
                    "answers": {"text": ["warm"][: n % 3], "answer_start": [13][: n % 3]},
                }
                for n in range(20)
            ],
            "exact",
        ),
        ("x.conll", "the\tO\nfilm\tB-THING\nwas\tO\n\n" * 20, "f1"),
    ],
)
def test_every_task_has_a_table(
    name: str, text: Any, score: str, place: Path, tmp_path: Path
) -> None:
    if not isinstance(text, str):
        text = "".join(f"{json.dumps(row)}\n" for row in text)
    (tmp_path / name).write_text(text, encoding="utf-8")
    data = {"train": str(tmp_path / name), "test": str(tmp_path / name), "dev_split": 0.25}
    path = sheet(
        place,
        tmp_path / "sheet.yaml",
        data=data,
        labels=["all"],
        seeds=1,
        ways=["whole", "frozen"],
        baselines=["most-frequent"],
    )
    compare(path, tmp_path / "out", jobs=1)
    rows = table(tmp_path / "out")
    assert len(rows) == 3
    assert all(np.isfinite(float(row[score])) for row in rows)


@pytest.mark.slow
def test_what_was_killed_goes_on_and_two_run_at_once(place: Path, tmp_path: Path) -> None:
    path = sheet(place, tmp_path / "sheet.yaml", labels=[16], settings={**SETTINGS, "epochs": 4})
    command = [sys.executable, "-m", "bertfast", "compare", str(path), "--out", str(tmp_path / "o")]
    process = subprocess.Popen([*command, "--jobs", "1"], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list((tmp_path / "o").glob("cells/*/result.json")) and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = len(list((tmp_path / "o").glob("cells/*/result.json")))
    assert 0 < before < 6
    done = subprocess.run([*command, "--jobs", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(table(tmp_path / "o")) == 6
    assert not (tmp_path / "o" / "work").exists()
    # What was interrupted is what would have been.
    compare(path, tmp_path / "whole", jobs=1)
    scores = [
        [(r["row"], r["labels"], r["seed"], r["accuracy"]) for r in table(tmp_path / name)]
        for name in ("o", "whole")
    ]
    assert scores[0] == scores[1]
