"""One number a text: told from the labels, learned, scored, and predicted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import BAD, run_cli, sentences, write_model, write_table

import bertfast
from bertfast.data.labelled import Example
from bertfast.tasks import infer_task
from bertfast.training.evaluate import evaluate

SETTINGS = {"epochs": 6, "lr": 5e-3, "batch_size": 8}


def rows(count: int, seed: int) -> list[tuple[str, ...]]:
    """Texts whose word decides a number of about 1.25 or 3.75, and a second text."""
    draw = random.Random(seed)
    found = []
    for text, _ in sentences(count, seed):
        middle = 1.25 if any(word in text for word in BAD) else 3.75
        found.append((text, "the cast was long", f"{middle + draw.uniform(-0.5, 0.5):.2f}"))
    return found


def task_of_labels(*labels: Any) -> str:
    examples = [Example(number, "x", None, label) for number, label in enumerate(labels, 2)]
    return infer_task(examples, "f.tsv").name


@pytest.mark.parametrize(
    "options", [{}, {"freeze_encoder": True, "lr": 0.05}, {"precision": "bf16"}], ids=str
)
def test_it_is_told_learned_scored_and_predicted(
    options: dict[str, Any], tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    write_model(tmp_path / "model")
    columns = ("sentence", "other", "label")
    train = write_table(tmp_path / "train.tsv", rows(160, 1), columns)
    dev = write_table(tmp_path / "dev.tsv", rows(40, 2), columns)
    result = bertfast.finetune(
        str(tmp_path / "model"),
        str(train),
        str(dev),
        str(tmp_path / "out"),
        pair_column="other",
        **{**SETTINGS, **options},
    )
    assert "train.tsv: the task is regression (a number)" in capfd.readouterr().err
    assert result.task == "regression"
    assert result.scores.keys() == {"pearson", "spearman"}
    config = bertfast.load(result.out).config
    assert (config.problem_type, config.num_labels) == ("regression", 1)
    scores = evaluate(result.out, dev)
    assert scores["pearson"] == pytest.approx(result.scores["pearson"], abs=1e-4)
    if options:
        return
    assert result.scores["pearson"] > 0.9
    done = run_cli(monkeypatch, capfd, "predict", result.out, dev)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert all(line.keys() == {"text", "pair", "score"} for line in lines)
    theirs = np.corrcoef([line["score"] for line in lines], [float(row[2]) for row in rows(40, 2)])
    assert theirs[0, 1] == pytest.approx(scores["pearson"])
    pipeline = pytest.importorskip("transformers").pipeline(
        "text-classification", str(result.out), device=-1
    )
    theirs = pipeline([{"text": line["text"], "text_pair": line["pair"]} for line in lines[:4]])
    assert [row["score"] for row in theirs] == pytest.approx(
        [line["score"] for line in lines[:4]], abs=1e-4
    )


def test_numbers_with_a_fraction_are_targets_and_others_are_no_ones_guess() -> None:
    assert task_of_labels("0.5", "1", "2.25") == "regression"
    assert task_of_labels("0.5", "nan") == "regression"  # which then names the row
    for labels in (("0", "1"), ("1.0", "0.0"), ("a", "0.5"), ("0,5", "1,5"), ("1_0.5", "2.5")):
        assert task_of_labels(*labels) == "classification"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("0.5", "nan"), "line 3: the label 'nan' is no finite number"),
        (("0.5", "1e999"), "line 3: the label '1e999' is no finite number"),
        (("0.5", "0.5", "0.5"), "every target is 0.5"),
    ],
)
def test_targets_that_cannot_be_used_are_one_line(
    labels: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    write_model(tmp_path / "model")
    data = write_table(tmp_path / "a.tsv", [("the film", label) for label in labels])
    command = ["finetune", tmp_path / "model", "--train", data, "--dev", data]
    done = run_cli(monkeypatch, capfd, *command, "--out", tmp_path / "out")
    assert done.code == 2
    assert said in done.err
    assert len(done.errors) == 1
    assert not (tmp_path / "out").exists()
