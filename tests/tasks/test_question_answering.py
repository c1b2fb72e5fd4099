"""Answers in a context: told from SQuAD's JSON, learned in windows, scored as its script does, and
predicted with offsets or refused.
"""

from __future__ import annotations

import collections
import json
import random
import re
import runpy
import string
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import GOOD, POSITIONS, run_cli, sentences, write_model

import bertfast
from bertfast.data.squad import Answer, Question, is_squad
from bertfast.model import BertForQuestionAnswering
from bertfast.tasks.question_answering import (
    Candidate,
    Found,
    answers_of,
    best_threshold,
    candidates,
    score,
)
from bertfast.training.evaluate import evaluate
from bertfast.training.predict import Predictor

SETTINGS = {"epochs": 8, "lr": 5e-3, "batch_size": 16, "task_options": {"overlap": 8}}


def questions(count: int, seed: int, impossible: bool = False) -> list[Question]:
    """Which word of two reviews is a good one, if any of them has one."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        kinds = ["bad", "bad" if impossible and draw.random() < 0.4 else "good"]
        draw.shuffle(kinds)
        pool = sentences(60, draw.randrange(10**6))
        context = " ".join(next(text for text, label in pool if label == kind) for kind in kinds)
        places = [(context.find(f" {word} ") + 1, word) for word in GOOD]
        answers = tuple(Answer(word, start) for start, word in places if start > 0)
        found.append(Question(number, f"q{number}", "was the film bright", context, answers))
    return found


def write_squad(path: Path, rows: list[Question]) -> Path:
    paragraphs = [
        {
            "context": row.context,
            "qas": [
                {
                    "id": row.id,
                    "question": row.text,
                    "answers": [
                        {"text": a.text, "answer_start": a.start} for a in row.answers or ()
                    ],
                    "is_impossible": not row.answers,
                }
            ],
        }
        for row in rows
    ]
    data = {"version": "v2.0", "data": [{"title": "reviews", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(data))
    return path


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("answerer")
    write_model(place / "model", max_position_embeddings=2 * POSITIONS, hidden_dropout_prob=0.0)
    config = json.loads((place / "model" / "tokenizer_config.json").read_text())
    config["model_max_length"] = 2 * POSITIONS
    (place / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    train = write_squad(place / "train.json", questions(160, 1, impossible=True))
    dev = write_squad(place / "dev.json", questions(40, 2, impossible=True))
    result = bertfast.finetune(
        str(place / "model"), str(train), str(dev), str(place / "out"), **SETTINGS
    )
    assert result.task == "question-answering"
    assert result.scores.keys() == {"f1", "exact"}
    return place


def test_it_is_told_learned_scored_and_predicted(
    answerer: Path, monkeypatch: Any, capfd: Any
) -> None:
    out, dev = answerer / "out", answerer / "dev.json"
    told = json.loads((out / "metrics.json").read_text())
    assert told["dev_f1"] > 0.6
    assert evaluate(out, dev)["f1"] == pytest.approx(told["dev_f1"])
    kept = json.loads((out / "task.json").read_text())
    assert isinstance(kept["no_answer_threshold"], float)
    done = run_cli(monkeypatch, capfd, "predict", out, dev)
    lines = [json.loads(line) for line in done.out.splitlines()]
    rows = questions(40, 2, impossible=True)
    assert [line["id"] for line in lines] == [row.id for row in rows]
    for line, row in zip(lines, rows, strict=True):
        if line["answer"]:
            assert row.context[line["start"] : line["end"]] == line["answer"]
        else:
            assert line["start"] is line["end"] is None
        values = [answer["score"] for answer in line["n_best"]]
        assert values == sorted(values, reverse=True)
        assert len(values) <= 5
    rights = [[answer.text for answer in row.answers] for row in rows]
    assert score([line["answer"] for line in lines], rights)["f1"] == pytest.approx(told["dev_f1"])
    assert {True, False} == {bool(line["answer"]) for line in lines}
    assert "pipeline_tag: question-answering" in (out / "README.md").read_text()


def test_a_question_and_its_context_are_predicted_by_the_script(
    answerer: Path, monkeypatch: Any, capsys: Any
) -> None:
    script = answerer / "out" / "predict.py"
    monkeypatch.setattr(sys, "argv", [str(script), "the film was", "the film was warm"])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.endswith("\tthe film was\n")


def test_records_are_read_as_squad_is(answerer: Path, monkeypatch: Any, capfd: Any) -> None:
    rows = questions(12, 3, impossible=True)
    nested = write_squad(answerer / "a.json", rows)
    lines = answerer / "b.jsonl"
    with lines.open("w") as stream:
        for row in rows:
            texts, starts = [a.text for a in row.answers], [a.start for a in row.answers]
            answers = {"text": texts, "answer_start": starts}
            record = {"id": row.id, "question": row.text, "context": row.context}
            stream.write(json.dumps({**record, "answers": answers}) + "\n")
    assert is_squad(nested)
    assert is_squad(lines)
    assert evaluate(answerer / "out", nested) == evaluate(answerer / "out", lines)
    table = answerer / "c.csv"
    table.write_text(f"question,context\n{rows[0].text},{rows[0].context}\n")
    done = run_cli(monkeypatch, capfd, "predict", answerer / "out", table)
    first = run_cli(monkeypatch, capfd, "predict", answerer / "out", nested).out.splitlines()[0]
    assert json.loads(done.out)["answer"] == json.loads(first)["answer"]


def test_long_contexts_stand_in_windows_that_keep_every_answer(answerer: Path) -> None:
    predictor = Predictor(answerer / "out")
    rows = questions(30, 4)
    inputs = predictor.task.encode(
        rows, predictor.tokenizer, predictor.model.config, POSITIONS, "f.json"
    )
    assert max(item.tokens for item in inputs) == POSITIONS
    for number, row in enumerate(rows):
        parts = [item for item in inputs if item.example == number]
        assert len(parts) > 1
        held = [item for item in parts if item.target != (0, 0)]
        assert held
        for item in held:
            first, last = (place - item.first for place in item.target)
            text = row.context[item.spans[first][0] : item.spans[last][1]]
            assert text == row.answers[0].text


def pipelined(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    try:
        return transformers.pipeline("question-answering", str(folder), device=-1)
    except KeyError:
        pytest.skip("this transformers has no pipeline for questions")


def test_the_pipeline_says_the_same(answerer: Path) -> None:
    answer = pipelined(answerer / "out")
    predictor = Predictor(answerer / "out")
    rows = [q for q in questions(20, 5) if len(q.context.split()) < 40][:8]
    for row, made in zip(rows, predictor.predict(rows), strict=True):
        theirs = answer(
            question=row.text,
            context=row.context,
            align_to_words=False,
            max_answer_len=30,
            max_seq_len=2 * POSITIONS,
        )
        ours = next(a for a in made["n_best"] if a["answer"])
        assert (ours["answer"], ours["start"], ours["end"]) == (
            theirs["answer"],
            theirs["start"],
            theirs["end"],
        )
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)


def test_the_logits_are_those_of_transformers(answerer: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(answerer / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(answerer / "out")
    predictor = Predictor(answerer / "out")
    row = Question(1, "a", "the film was", "the film was warm and the cast was long")
    inputs = tokenizer(row.text, row.context, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**inputs)
    ((ours,), (item,)) = predictor.run([row])
    assert item.ids == inputs["input_ids"][0].tolist()
    rows = [0, *range(item.first, item.first + len(item.spans))]
    wanted = torch.stack([theirs.start_logits[0, rows], theirs.end_logits[0, rows]], -1)
    assert np.allclose(ours, wanted.numpy(), atol=1e-4)


# The rules of the official script, evaluate-v2.0.py, written again.


def official_tokens(text: str) -> list[str]:
    text = text.lower()
    text = "".join(" " if False else c for c in text if c not in set(string.punctuation))
    return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text).split()


def official(predicted: str, golds: list[str]) -> tuple[float, float]:
    golds = [gold for gold in golds if " ".join(official_tokens(gold))]
    golds = golds if golds else [""]
    best_exact = best_f1 = 0.0
    for gold in golds:
        best_exact = max(best_exact, float(official_tokens(gold) == official_tokens(predicted)))
        gold_tokens, tokens = official_tokens(gold), official_tokens(predicted)
        same = sum((collections.Counter(gold_tokens) & collections.Counter(tokens)).values())
        if not gold_tokens or not tokens:
            value = float(gold_tokens == tokens)
        elif same == 0:
            value = 0.0
        else:
            precision, recall = same / len(tokens), same / len(gold_tokens)
            value = 2 * precision * recall / (precision + recall)
        best_f1 = max(best_f1, value)
    return best_f1, best_exact


TEXT = st.lists(
    st.sampled_from(["the", "The", "cat", "cat's", "a", "--", "sat", "é", "x.y", "an,"]), max_size=5
).map(" ".join)


@given(st.lists(st.tuples(TEXT, st.lists(TEXT, max_size=3)), min_size=1, max_size=6))
@settings(deadline=None)
def test_the_scores_are_those_of_the_official_script(rows: list[tuple[str, list[str]]]) -> None:
    ours = score([text for text, _ in rows], [golds for _, golds in rows])
    theirs = np.mean([official(text, golds) for text, golds in rows], 0)
    assert [ours["f1"], ours["exact"]] == pytest.approx(theirs.tolist())


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.booleans()), min_size=1, max_size=9)
)
@settings(deadline=None)
def test_the_threshold_is_the_best_one(rows: list[tuple[int, bool, bool]]) -> None:
    found, examples = [], []
    for number, (doubt, has_answer, is_right) in enumerate(rows):
        context = "right wrong"
        span = (0, 5) if is_right else (6, 11)
        found.append(Found([Candidate(*span, 0.0, 0.5)], float(doubt), 0.1))
        answers = (Answer("right", 0),) if has_answer else ()
        examples.append(Question(number, "", "q", context, answers))
    rights = [[answer.text for answer in example.answers] for example in examples]

    def f1_of(threshold: float | None) -> float:
        return score(answers_of(found, examples, threshold), rights)["f1"]

    threshold = best_threshold(found, examples)
    if all(has_answer for _, has_answer, _ in rows):
        assert threshold is None
        return
    best = max(f1_of(cut) for cut in np.arange(-4.5, 4.6, 0.5))
    assert f1_of(threshold) == pytest.approx(best)


def test_candidates_are_the_best_spans_of_all_windows() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        logits = [draw.normal(size=(draw.integers(2, 9), 2)).astype(np.float32) for _ in range(2)]
        spans, start = [], 0
        for window in logits:
            spans.append([(start + 2 * i, start + 2 * i + 1) for i in range(len(window) - 1)])
            start += 100
        found = candidates(logits, spans, 3, 4)
        every = {
            (places[i][0], places[j][1]): float(window[i + 1, 0]) + float(window[j + 1, 1])
            for window, places in zip(logits, spans, strict=True)
            for i in range(len(places))
            for j in range(i, min(i + 3, len(places)))
        }
        best = sorted(every, key=every.__getitem__, reverse=True)[:4]
        assert [(one.start, one.end) for one in found.candidates] == best
        assert found.null == pytest.approx(min(float(window[0].sum()) for window in logits))


RIGHT = {"id": "x7", "question": "what?", "context": "the film was warm"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answers": [{"text": "cold", "answer_start": 13}]}, "'cold' is not in its context at 13"),
        ({"answers": [{"text": "warm", "answer_start": 12}]}, "where ' war' is; it begins at 13"),
        ({"answers": ["cold"]}, "the answer 'cold' is not in its context"),
        ({"answers": [{"text": "warm", "answer_start": -1}]}, "answer_start is '-1'"),
        ({"answers": {"text": ["warm"], "answer_start": []}}, "has 1 answers and '[]' as places"),
        ({"answers": [{"text": "", "answer_start": 0}]}, "the answer is ''"),
        ({"answers": [], "context": " "}, "the context is empty"),
        ({"answers": [], "question": 3}, "the question is '3', and no text"),
    ],
)
def test_answers_that_are_not_in_their_context_are_one_line(
    row: dict[str, Any], said: str, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    write_model(tmp_path / "model")
    good = {**RIGHT, "answers": [{"text": "warm", "answer_start": 13}]}
    train, dev = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    train.write_text(json.dumps(good) + "\n")
    dev.write_text(json.dumps(good) + "\n" + json.dumps({**RIGHT, **row}) + "\n")
    command = ["finetune", tmp_path / "model", "--train", train, "--dev", dev]
    done = run_cli(monkeypatch, capfd, *command, "--out", tmp_path / "out")
    assert done.code == 2
    assert len(done.errors) == 1
    assert f"{dev}, row 2, id 'x7': " in done.errors[0]
    assert said in done.errors[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dev.jsonl", "model", "train.jsonl"]


def test_the_real_data_is_read(capsys: Any) -> None:
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data of ../shared/data is not on this machine")
    for name in ("squad2_cs224n/dev-v2.0.json", "policyqa/dev.json"):
        assert is_squad(folder / name)


def test_a_model_of_another_maker_is_served(tmp_path: Path) -> None:
    write_model(tmp_path / "model", BertForQuestionAnswering)
    predictor = Predictor(tmp_path / "model")
    assert predictor.task.name == "question-answering"
    (made,) = predictor.predict([Question(1, "1", "the film was", "the film was warm")])
    assert made["answer"]
