"""Lists of labels: told from the data, learned, scored, and predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import run_cli, sentences, write_model

import bertfast
from bertfast.data.labelled import Example
from bertfast.tasks import infer_task
from bertfast.training.evaluate import evaluate


def write_rows(path: Path, labels: list[Any]) -> Path:
    texts = [text for text, _ in sentences(len(labels))]
    pairs = zip(texts, labels, strict=True)
    path.write_text("".join(json.dumps({"text": t, "label": x}) + "\n" for t, x in pairs))
    return path


def read_labels(count: int) -> list[list[str]]:
    """Whether the text's words are good, and whether it names the film."""
    return [
        [*(["good"] if label == "good" else []), *(["film"] if "film" in text else [])]
        for text, label in sentences(count)
    ]


def test_it_is_told_learned_scored_and_predicted(
    tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    write_model(tmp_path / "model")
    data = write_rows(tmp_path / "train.jsonl", read_labels(160))
    result = bertfast.finetune(
        str(tmp_path / "model"),
        str(data),
        str(data),
        str(tmp_path / "out"),
        epochs=12,
        lr=5e-3,
        batch_size=8,
        seed=2,
    )
    assert "train.jsonl: the task is multilabel (any of several labels)" in capfd.readouterr().err
    assert result.task == "multilabel"
    assert result.scores["micro_f1"] > 0.7  # 0.57 without a word learned; whether both are is luck
    config = bertfast.load(result.out).config
    assert config.problem_type == "multi_label_classification"
    assert json.loads((result.out / "labels.json").read_text()) == ["film", "good"]
    assert evaluate(result.out, data)["micro_f1"] == pytest.approx(result.scores["micro_f1"])
    done = run_cli(monkeypatch, capfd, "predict", result.out, data)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert all(
        line["labels"] == [name for name, p in line["probabilities"].items() if p >= 0.5]
        for line in lines
    )
    pipeline = pytest.importorskip("transformers").pipeline(
        "text-classification", str(result.out), device=-1, top_k=None
    )
    theirs = {row["label"]: row["score"] for row in pipeline([lines[0]["text"]])[0]}
    assert theirs == pytest.approx(lines[0]["probabilities"], abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ([["a"], "b", ["b"]], [], "line 1: the label is a JSON list"),
        ([["a"], "b", ["b"]], ["--task", "multilabel"], "line 2: the label is 'b'; a JSON list"),
        ([["a", ""], ["b"]], [], "line 1: the label is"),
        ([["a", {"b": 1}], ["b"]], [], "line 1: 'label' holds a JSON object"),
        ([["a"], ["a"]], [], "the training data has 1 label"),
        ([[], []], [], "no row has a label"),
        ([["a", "b"], ["b"]], ["--task", "classification"], "line 1: the label is a JSON list"),
    ],
)
def test_lists_that_cannot_be_used_are_one_line(
    labels: list[Any],
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: Any,
    capfd: Any,
) -> None:
    write_model(tmp_path / "model")
    data = write_rows(tmp_path / "a.jsonl", labels)
    command = ["finetune", tmp_path / "model", "--train", data, "--dev", data, *options]
    done = run_cli(monkeypatch, capfd, *command, "--out", tmp_path / "out")
    assert done.code == 2
    assert said in done.errors[0]
    assert len(done.errors) == 1
    assert not (tmp_path / "out").exists()


def test_a_list_in_every_row_is_this_task() -> None:
    def told(*labels: Any) -> str:
        examples = [Example(number, "x", None, label) for number, label in enumerate(labels)]
        return infer_task(examples, "f").name

    assert told(("a",), ()) == "multilabel"
    assert told(("a",), "b") == "classification"
