"""Tags of words: told from the file, learned, scored as seqeval scores them, and predicted in
windows that lose no word.
"""

from __future__ import annotations

import json
import random
import runpy
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import GOOD, POSITIONS, THINGS, run_cli, sentences, write_model

import bertfast
from bertfast.data.tagged import Sentence, sentence
from bertfast.data.windows import widest, windows
from bertfast.errors import BertfastError
from bertfast.model import BertForTokenClassification
from bertfast.tasks import TASKS
from bertfast.tasks.token_classification import first_pieces, score, table, words_of
from bertfast.tokenization import (
    SpecialIds,
    load_tokenizer,
    train_byte_level_bpe,
    train_unigram,
    train_wordpiece,
)
from bertfast.training.evaluate import evaluate
from bertfast.training.predict import Predictor

SETTINGS = {"epochs": 8, "lr": 5e-3, "batch_size": 8}


def rows(count: int, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    """Reviews, in which a thing and "was" behind it are an entity."""
    found = []
    for text, _ in sentences(count, seed):
        words, tags = text.split(), []
        for place, word in enumerate(words):
            inside = place and words[place - 1] in THINGS and word == "was"
            tags.append("B-THING" if word in THINGS else "I-THING" if inside else "O")
        found.append((words, tags))
    return found


def write_conll(path: Path, data: list[tuple[list[str], list[str]]]) -> Path:
    path.write_text(
        "\n".join("".join(f"{w}\t{t}\n" for w, t in zip(*row, strict=True)) for row in data)
    )
    return path


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tagger")
    write_model(place / "model")
    train = write_conll(place / "train.conll", rows(120, 1))
    dev = write_conll(place / "dev.conll", rows(30, 2))
    result = bertfast.finetune(
        str(place / "model"), str(train), str(dev), str(place / "out"), **SETTINGS
    )
    assert result.task == "token-classification"
    assert result.scores.keys() == {"f1", "precision", "recall", "accuracy"}
    assert result.scores["f1"] > 0.95
    return place


def test_it_is_told_learned_scored_and_predicted(
    tagger: Path, monkeypatch: Any, capfd: Any
) -> None:
    out, dev = tagger / "out", tagger / "dev.conll"
    assert bertfast.load(out).config.id2label == {0: "O", 1: "B-THING", 2: "I-THING"}
    told = json.loads((out / "metrics.json").read_text())
    assert evaluate(out, dev)["f1"] == pytest.approx(told["dev_f1"])
    done = run_cli(monkeypatch, capfd, "evaluate", out, "--data", dev)
    assert done.out.startswith("entity F1 ")
    done = run_cli(monkeypatch, capfd, "predict", out, dev)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["words"] for line in lines] == [words for words, _ in rows(30, 2)]
    for line in lines:
        for entity in line["entities"]:
            assert line["text"][entity["start"] : entity["end"]] == entity["text"]
            assert 0 < entity["score"] <= 1
    assert score([line["tags"] for line in lines], [tags for _, tags in rows(30, 2)])[
        "f1"
    ] == pytest.approx(told["dev_f1"])
    card = (out / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "type: f1" in card


def test_text_is_predicted_with_offsets_and_the_pipeline_says_the_same(
    tagger: Path, monkeypatch: Any, capfd: Any
) -> None:
    pipeline = pytest.importorskip("transformers").pipeline
    texts = ["the film, was warm; the  CAST was long.", "", " a story"]
    (tagger / "texts.txt").write_text("".join(f"{text}\n" for text in texts))
    done = run_cli(monkeypatch, capfd, "predict", tagger / "out", tagger / "texts.txt")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["text"] for line in lines] == texts
    assert lines[0]["words"][:4] == ["the", "film", ",", "was"]
    theirs = pipeline(
        "token-classification", str(tagger / "out"), device=-1, aggregation_strategy="first"
    )
    for line in lines:
        expected = theirs(line["text"]) if line["text"] else []
        assert [
            (entity["label"], entity["start"], entity["end"]) for entity in line["entities"]
        ] == [(entity["entity_group"], entity["start"], entity["end"]) for entity in expected]
        assert [entity["score"] for entity in line["entities"]] == pytest.approx(
            [float(entity["score"]) for entity in expected], abs=1e-4
        )
    assert lines[0]["entities"]


def test_the_script_in_the_folder_predicts(tagger: Path, monkeypatch: Any, capsys: Any) -> None:
    script = tagger / "out" / "predict.py"
    monkeypatch.setattr(sys, "argv", [str(script), "the film was warm"])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out == "film was [THING]\tthe film was warm\n"


@pytest.mark.parametrize("overlap", [0, 4, 128])
def test_a_long_sentence_stands_in_windows_and_no_word_is_lost(tagger: Path, overlap: int) -> None:
    words = [word for row, _ in rows(40, 5) for word in row]
    words[7] = "\u200b"  # of which the tokenizer leaves nothing
    predictor = Predictor(tagger / "out")
    task = predictor.task.configured({"overlap": overlap})
    example = sentence(words)
    config, tokenizer = predictor.model.config, predictor.tokenizer
    inputs = task.encode([example], tokenizer, config, POSITIONS)
    assert len(inputs) > 10
    assert max(item.tokens for item in inputs) == POSITIONS
    assert sorted(word for item in inputs for word in item.words) == list(range(len(words)))
    assert not any(item.truncated for item in inputs)
    (made,) = predictor.predict([example])
    assert made["words"] == words
    assert len(made["tags"]) == len(words)


@given(st.integers(0, 200), st.integers(1, 40), st.integers(0, 50))
@settings(deadline=None)
def test_windows_cover_every_token_and_the_one_with_most_context_is_taken(
    tokens: int, room: int, overlap: int
) -> None:
    found = windows(tokens, room, overlap)
    assert all(end - start <= room for start, end in found)
    assert all(
        later.start < earlier.end for earlier, later in pairwise(found) if overlap and room > 1
    )
    for place in range(tokens):
        contexts = {
            number: window.context(place, tokens)
            for number, window in enumerate(found)
            if window.start <= place < window.end
        }
        assert contexts[widest(found, place, tokens)] == max(contexts.values())


@given(st.data())
@settings(deadline=None, max_examples=80)
def test_the_scores_are_those_of_seqeval(data: st.DataObject) -> None:
    metrics = pytest.importorskip("seqeval.metrics", reason="seqeval is a test's extra")
    from seqeval.scheme import IOB2

    tags = ["O", *(f"{letter}-{kind}" for letter in "BI" for kind in ("PER", "LOC", "LOC-X"))]
    lengths = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    said, true = (
        [data.draw(st.lists(st.sampled_from(tags), min_size=n, max_size=n)) for n in lengths]
        for _ in range(2)
    )
    ours = score(said, true)
    strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ours["f1"] == pytest.approx(metrics.f1_score(true, said, **strict))
        assert ours["precision"] == pytest.approx(metrics.precision_score(true, said, **strict))
        assert ours["recall"] == pytest.approx(metrics.recall_score(true, said, **strict))
        report = metrics.classification_report(true, said, output_dict=True, **strict)
    assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(true, said))
    rows = {row["label"]: row for row in table(said, true).rows()}
    for label, theirs in report.items():
        if label in rows and any(tag != "O" for tags in true for tag in tags):
            assert rows[label]["f1"] == pytest.approx(theirs["f1-score"])
            assert rows[label]["support"] == theirs["support"]


def test_parts_of_speech_are_scored_by_words(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    write_model(tmp_path / "model")
    data = tmp_path / "pos.jsonl"
    with data.open("w") as stream:
        for words, _ in rows(60, 3):
            tags = ["NN" if w in THINGS else "JJ" if w in GOOD else "X," for w in words]
            stream.write(json.dumps({"tokens": words, "pos_tags": tags}) + "\n")
    parts = {**SETTINGS, "dev_split": 0.2, "seeds": 2}
    result = bertfast.finetune(
        str(tmp_path / "model"), str(data), None, str(tmp_path / "out"), **parts
    )
    assert result.scores.keys() == {"accuracy"}
    assert result.scores["accuracy"] > 0.95
    done = run_cli(monkeypatch, capfd, "evaluate", tmp_path / "out", "--data", data)
    assert done.out.startswith("token accuracy ")
    done = run_cli(monkeypatch, capfd, "predict", tmp_path / "out", data)
    assert json.loads(done.out.splitlines()[0]).keys() == {"text", "words", "tags"}


def test_a_stopped_run_goes_on_to_the_same_result(tagger: Path, monkeypatch: Any) -> None:
    kind = type(TASKS["token-classification"])
    plain, calls = kind.score, []

    def stop_at_the_second(self: Any, *arguments: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            raise BertfastError("enough")
        return plain(self, *arguments)

    places = [str(tagger / name) for name in ("model", "train.conll", "dev.conll")]
    options = {**SETTINGS, "epochs": 3}
    whole = bertfast.finetune(*places, str(tagger / "whole"), **options)
    monkeypatch.setattr(kind, "score", stop_at_the_second)
    with pytest.raises(BertfastError, match="enough"):
        bertfast.finetune(*places, str(tagger / "parts"), **options)
    parts = bertfast.finetune(*places, str(tagger / "parts"), resume=True, **options)
    assert parts.history == whole.history
    ours, theirs = (bertfast.load(tagger / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def refused(place: Path, monkeypatch: Any, capfd: Any, train: Any, dev: Any, *options: str) -> str:
    if not (place / "model").exists():
        write_model(place / "model")
    files = [
        write_conll(place / f"{name}.conll", data) for name, data in (("a", train), ("b", dev))
    ]
    command = ["finetune", place / "model", "--train", files[0], "--dev", files[1], *options]
    done = run_cli(monkeypatch, capfd, *command, "--out", place / "out")
    assert done.code == 2
    assert len(done.errors) == 1
    assert "Traceback" not in done.err
    assert sorted(path.name for path in place.iterdir()) == ["a.conll", "b.conll", "model"]
    return done.errors[0]


FINE = [(["a", "b"], ["B-X", "O"])]


@pytest.mark.parametrize(
    ("train", "dev", "options", "said"),
    [
        ([(["a", "b"], ["O", "O"])], FINE, [], "a.conll: the training data has 1 tag(s) ('O')"),
        (FINE, [(["a"], ["B-Y"])], [], "b.conll, line 1: the tag 'B-Y' was not seen in training"),
        (
            FINE,
            [(["a", "b"], ["O", "I-X"]), (["a"], ["B-X"])],
            [],
            "b.conll, line 2: the tag 'I-X'",
        ),
        ([([str(i)], [f"T{i}"]) for i in range(300)], FINE, [], "is one of 300 different ones"),
        (FINE, FINE, ["--task-option", "scheme=bio"], "has no option 'scheme'; its options"),
        (FINE, FINE, ["--task-option", "overlap=x"], "overlap of the task 'token-classification'"),
        (FINE, FINE, ["--task-option", "overlap=-1"], "overlap of windows is -1"),
        (FINE, FINE, ["--task-option", "tag_scheme=x"], "tag_scheme is 'x'; it must be one of"),
        (FINE, FINE, ["--task-option", "overlap"], "task-option is 'overlap'; it must be NAME=VAL"),
        (FINE, FINE, ["--label-column", "3"], "has 2 column(s), and --label-column is 3"),
        (FINE, FINE, ["--pair-column", "3"], "words with tags have no second text"),
    ],
)
def test_data_that_cannot_be_used_is_one_line(
    train: Any,
    dev: Any,
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: Any,
    capfd: Any,
) -> None:
    assert said in refused(tmp_path, monkeypatch, capfd, train, dev, *options)


def test_words_of_a_text_are_parted_at_punctuation(tagger: Path) -> None:
    tokenizer = load_tokenizer(tagger / "model")
    text = "a U.S. film (was)\twarm\u3000."
    spans = words_of(text, tokenizer.encode(text, add_special_tokens=False))
    assert [text[start:end] for start, end in spans] == [
        *("a", "U", ".", "S", ".", "film", "(", "was", ")", "warm", ".")
    ]


@pytest.mark.parametrize("kind", ["bytes", "unigram", "mpnet"])
def test_every_kind_of_tokenizer_keeps_words_and_offsets(kind: str) -> None:
    texts = [text for text, _ in sentences(200)]
    tokenizer = {
        "bytes": lambda: train_byte_level_bpe(texts, 300),
        "unigram": lambda: train_unigram(texts, 60),
        "mpnet": lambda: train_wordpiece(texts, 200, mpnet=True),
    }[kind]()
    unk = SpecialIds(tokenizer).unk
    draw = random.Random(1)
    pool = ["film", "filming", "é", "中文", "\u200b", "", "a b", "film.", "\U0001f600", "x"]
    for _ in range(60):
        row = sentence([draw.choice(pool) for _ in range(draw.randint(1, 9))])
        encoding = tokenizer.encode(row.text, add_special_tokens=False)
        ids, firsts = first_pieces(row.text, row.spans, encoding, unk)
        assert len(firsts) == len(row.words)
        assert firsts == sorted(set(firsts))
        # Where a word has a token of its own, its first piece is that.
        plain = [place for place, word in enumerate(row.words) if word == "film"]
        for place in plain:
            piece = tokenizer.decode([ids[firsts[place]]]).strip()
            assert row.words[place].startswith(piece)
            # A unigram's mark of a word's beginning may be a token of its own.
            assert piece or kind == "unigram"
    text = "the film, was  warm."
    spans = words_of(text, tokenizer.encode(text, add_special_tokens=False))
    assert [text[a:b] for a, b in spans][:1] == ["the"]
    assert all(text[a:b] == text[a:b].strip() != "" for a, b in spans)
    assert "".join(text[a:b] for a, b in spans) == text.replace(" ", "")


def test_empty_texts_have_no_entities(tagger: Path) -> None:
    predictor = Predictor(tagger / "out")
    nothing = {"entities": [], "words": [], "tags": []}
    assert predictor.predict([Sentence(1, ""), Sentence(2, "  ")]) == [nothing, nothing]


def test_a_model_of_another_maker_is_served(tmp_path: Path) -> None:
    labels = {0: "O", 1: "B-X", 2: "I-X"}
    write_model(tmp_path / "model", BertForTokenClassification, id2label=labels)
    predictor = Predictor(tmp_path / "model")
    assert predictor.task.name == "token-classification"
    (made,) = predictor.predict([Sentence(1, "the film was warm")])
    assert made["words"] == ["the", "film", "was", "warm"]


def test_random_words_keep_their_spans(tagger: Path) -> None:
    draw = random.Random(0)
    predictor = Predictor(tagger / "out")
    pool = [
        "film",
        "fílm",
        "\u200b",
        "",
        "a b",
        "ﬁ",
        "中文",
        "...",
        "x" * 300,
        "[MASK]",
        "\x07",
        "é",
    ]
    examples = [sentence([draw.choice(pool) for _ in range(draw.randint(1, 9))]) for _ in range(30)]
    for example, made in zip(examples, predictor.predict(examples), strict=True):
        assert made["words"] == example.words
