"""Questions with choices: read in the forms that are around, learned, scored, and predicted with a
probability a choice.
"""

from __future__ import annotations

import csv
import json
import random
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BAD, GOOD, run_cli, write_model

import bertfast
from bertfast.data.choices import Choice, find_columns, has_choices, read_choices
from bertfast.data.columns import Columns
from bertfast.model import BertForMultipleChoice
from bertfast.training.evaluate import evaluate
from bertfast.training.predict import Predictor

SETTINGS = {"epochs": 6, "lr": 5e-3, "batch_size": 8}


def questions(count: int, seed: int) -> list[dict[str, Any]]:
    """Which of two to four words is a good one."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        choices = [draw.choice(BAD) for _ in range(draw.randint(2, 4))]
        label = draw.randrange(len(choices))
        choices[label] = draw.choice(GOOD)
        rows.append({"question": "the film was", "choices": choices, "answer": label})
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def chooser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("chooser")
    write_model(place / "model")
    train = write_lines(place / "train.jsonl", questions(120, 1))
    dev = write_lines(place / "dev.jsonl", questions(30, 2))
    result = bertfast.finetune(
        str(place / "model"), str(train), str(dev), str(place / "out"), **SETTINGS
    )
    assert result.task == "multiple-choice"
    assert result.scores["accuracy"] > 0.9
    return place


def test_it_is_told_learned_scored_and_predicted(
    chooser: Path, monkeypatch: Any, capfd: Any
) -> None:
    out, dev = chooser / "out", chooser / "dev.jsonl"
    told = json.loads((out / "metrics.json").read_text())
    assert evaluate(out, dev)["accuracy"] == pytest.approx(told["dev_accuracy"])
    done = run_cli(monkeypatch, capfd, "predict", out, dev)
    lines = [json.loads(line) for line in done.out.splitlines()]
    rows = questions(30, 2)
    for line, row in zip(lines, rows, strict=True):
        assert len(line["probabilities"]) == len(row["choices"])
        assert sum(line["probabilities"]) == pytest.approx(1)
        assert line["choice"] == row["choices"][line["label"]]
    right = sum(line["label"] == row["answer"] for line, row in zip(lines, rows, strict=True))
    assert right / len(rows) == pytest.approx(told["dev_accuracy"])
    assert "pipeline_tag: multiple-choice" in (out / "README.md").read_text()


def test_the_script_takes_a_question_and_its_choices(
    chooser: Path, monkeypatch: Any, capsys: Any
) -> None:
    script = chooser / "out" / "predict.py"
    monkeypatch.setattr(sys, "argv", [str(script), "the film was", "dull", "warm"])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.endswith("\tthe film was\n")


def test_the_logits_are_those_of_transformers(chooser: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForMultipleChoice.from_pretrained(chooser / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(chooser / "out")
    row = Choice(1, "the cast was long", "the film was", ("dull and cold", "warm", "clever"))
    (ours,), _ = Predictor(chooser / "out").run([row])
    inputs = tokenizer([row.text] * 3, row.endings, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(**{name: tensor[None] for name, tensor in inputs.items()}).logits[0]
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_loss_is_the_mean_over_questions(chooser: Path) -> None:
    predictor = Predictor(chooser / "out")
    rows = read_choices(chooser / "dev.jsonl", Columns("question", None, "answer"))[:7]
    task, config = predictor.task, predictor.model.config
    inputs = task.encode(rows, predictor.tokenizer, config, 24, "dev.jsonl")
    with torch.no_grad():
        output = task.run(predictor.model, task.batch(inputs))
    logits = task.outputs(output, inputs)
    losses = [-out.log_softmax(0)[row.label] for out, row in zip(logits, rows, strict=True)]
    assert float(output.loss) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


SWAG = {"sent1": "A man sits.", "sent2": "He", "ending0": "sings.", "ending1": "flies.", "label": 1}
RACE = {"article": "It rains.", "question": "What falls?", "options": ["snow", "rain"]}
CSQA = {"question": "What falls?", "choices": {"label": ["A", "B"], "text": ["snow", "rain"]}}
COPA = {
    "premise": "It rained.",
    "question": "effect",
    "choice1": "dry",
    "choice2": "wet",
    "label": 1,
}
FORMS = [
    (SWAG, ("A man sits.", ["He sings.", "He flies."])),
    ({**RACE, "answer": "B"}, ("It rains.", ["What falls? snow", "What falls? rain"])),
    ({**CSQA, "answerKey": "B"}, ("What falls?", ["snow", "rain"])),
    (COPA, ("It rained.", ["effect dry", "effect wet"])),
    ({"ctx": "It", "endings": ["sits", "rains"], "label": "1"}, ("It", ["sits", "rains"])),
    (
        {"question": "It", "choices": ["sits", "rains"], "answer": "rains"},
        ("It", ["sits", "rains"]),
    ),
]


@pytest.mark.parametrize(("row", "wanted"), FORMS)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_the_forms_that_are_around_are_read(
    row: dict[str, Any], wanted: tuple[str, list[str]], kind: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        if any(isinstance(value, list | dict) for value in row.values()):
            pytest.skip("a CSV has no lists")
        with path.open("w", newline="") as stream:
            csv.writer(stream).writerows([row.keys(), row.values()])
    else:
        write_lines(path, [row])
    assert has_choices(path)
    (found,) = read_choices(path, find_columns(path, Columns()))
    assert (found.text, found.endings, found.label) == (*wanted, 1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": 2}, "the right choice is '2', and there are 2. Write a number from 0 to 1"),
        ({"answer": "C"}, "the right choice is 'C'"),
        ({"answer": None}, "the right choice is ''"),
        ({"choices": ["warm"]}, "has 1 choice(s); two at least"),
        ({"choices": ["warm", ""]}, "'choices' is empty"),
        ({"choices": "warm"}, "'choices' holds 'warm'; a list is wanted"),
        ({"question": ""}, "'question' is empty"),
    ],
)
def test_rows_that_cannot_be_used_are_one_line(
    row: dict[str, Any], said: str, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    write_model(tmp_path / "model")
    good = {"question": "the film was", "choices": ["dull", "warm"], "answer": 1}
    train = write_lines(tmp_path / "train.jsonl", [good])
    dev = write_lines(tmp_path / "dev.jsonl", [good, {**good, **row}])
    command = ["finetune", tmp_path / "model", "--train", train, "--dev", dev]
    done = run_cli(monkeypatch, capfd, *command, "--out", tmp_path / "out")
    assert done.code == 2
    assert len(done.errors) == 1
    assert f"{dev}, line 2: " in done.errors[0]
    assert said in done.errors[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dev.jsonl", "model", "train.jsonl"]


def test_a_model_of_another_maker_is_served(tmp_path: Path) -> None:
    write_model(tmp_path / "model", BertForMultipleChoice)
    predictor = Predictor(tmp_path / "model")
    assert predictor.task.name == "multiple-choice"
