"""Labels, probabilities and words from saved models."""

from __future__ import annotations

import gzip
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import POSITIONS, Outcome, run_cli, sentences, write_model, write_table

from bertfast.data.labelled import Example
from bertfast.errors import BertfastError
from bertfast.model import BertForMaskedLM, BertForPreTraining, BertForSequenceClassification, load
from bertfast.tokenization import save_tokenizer, train_byte_level_bpe
from bertfast.training import predict as predict_module
from bertfast.training.fill import Filler, MaskFiller
from bertfast.training.predict import Classifier, Predictor


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {0: "bad", 1: "good", 2: "neither"}
    return write_model(
        tmp_path_factory.mktemp("predict") / "model",
        BertForSequenceClassification,
        id2label=labels,
        initializer_range=0.3,
    )


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(
        tmp_path_factory.mktemp("fill") / "model", BertForPreTraining, initializer_range=0.3
    )


TEXTS = [text for text, _ in sentences(7)] + ["the film", "", "a"]


def test_predictions_come_in_the_order_of_the_texts(classifier: Path) -> None:
    together = Classifier(classifier).predict(TEXTS)
    alone = [Classifier(classifier).predict([text])[0] for text in TEXTS]
    for one, other in zip(together, alone, strict=True):
        assert one.label == other.label
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_probabilities_are_of_every_label_and_sum_to_one(classifier: Path) -> None:
    for prediction in Classifier(classifier).predict(TEXTS):
        assert list(prediction.probabilities) == ["bad", "good", "neither"]
        assert math.isclose(sum(prediction.probabilities.values()), 1, abs_tol=1e-5)
        assert prediction.label == max(
            prediction.probabilities, key=prediction.probabilities.__getitem__
        )


def test_the_batch_size_changes_no_prediction(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Classifier(classifier).predict(TEXTS)
    monkeypatch.setattr(predict_module, "BATCH_TOKENS", 1)
    for one, other in zip(whole, Classifier(classifier).predict(TEXTS), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_no_text_gives_no_prediction(classifier: Path) -> None:
    assert Classifier(classifier).predict([]) == []


def test_a_text_beyond_the_positions_is_cut_and_counted(classifier: Path) -> None:
    short, long = Classifier(classifier).predict(
        ["the film was long", "the film was long " * POSITIONS]
    )
    assert (short.truncated, long.truncated) == (False, True)


def test_the_second_text_of_a_pair_counts(classifier: Path) -> None:
    model = Classifier(classifier)
    alone, paired = model.predict(["the film was warm"] * 2, [None, "the cast was cold"])
    assert alone.probabilities != paired.probabilities


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_a_head_that_does_not_choose_between_labels_is_refused(
    problem: str, tmp_path: Path
) -> None:
    write_model(tmp_path / "model", BertForSequenceClassification, problem_type=problem)
    with pytest.raises(BertfastError, match=problem):
        Classifier(tmp_path / "model")


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".ndjson", ".txt", ".tsv.gz", ".CSV"])
def test_predict_reads_every_kind_of_file(
    suffix: str,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    texts = ["the film was warm", "the cast was cold"]
    lines = {
        ".tsv": ["text", *texts],
        ".csv": ["text", *texts],
        ".jsonl": [json.dumps({"text": text}) for text in texts],
        ".ndjson": [json.dumps({"text": text}) for text in texts],
        ".txt": [texts[0], "", "  ", texts[1]],
    }
    content = "\n".join(lines[suffix.removesuffix(".gz").lower()]) + "\n"
    path = tmp_path / f"texts{suffix}"
    path.write_bytes(
        gzip.compress(content.encode()) if suffix.endswith(".gz") else content.encode()
    )
    done = run_cli(monkeypatch, capfd, "predict", classifier, path)
    assert done.code == 0
    rows = [json.loads(line) for line in done.out.splitlines()]
    blank = ["", "  "] if suffix == ".txt" else []
    assert [row["text"] for row in rows] == [texts[0], *blank, texts[1]]
    assert all(set(row) == {"text", "label", "probabilities"} for row in rows)


def test_predict_reads_standard_input(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # A line separator inside a line, as U+2028, does not end it.
    stream = io.TextIOWrapper(io.BytesIO("un \u2028 café\r\n\nthe film\n".encode()))
    monkeypatch.setattr("sys.stdin", stream)
    done = run_cli(monkeypatch, capfd, "predict", classifier, "-")
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == [
        "un \u2028 café",
        "",
        "the film",
    ]


ODD_LINES = ["", "  ", "a \x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r b", "", "the film", ""]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n"])
@pytest.mark.parametrize("source", ["-", "texts.txt", "texts.txt.gz"])
def test_every_line_has_one_result(
    source: str,
    last: str,
    end: str,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = (end.join(ODD_LINES) + last.replace("\n", end)).encode()
    # An empty line at the end without an end of its own is no line.
    lines = ODD_LINES if last else ODD_LINES[:-1]
    Path("texts.txt").write_bytes(data)
    Path("texts.txt.gz").write_bytes(gzip.compress(data))

    def run(*args: object) -> Outcome:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        return run_cli(monkeypatch, capfd, *args)

    done = run("predict", classifier, source)
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == lines
    assert run("embed", classifier, source, "--out", "out.npy").code == 0
    assert len(np.load("out.npy")) == len(lines)


@pytest.mark.parametrize("source", ["-", "empty.txt", "empty.txt.gz", "mark.txt"])
def test_nothing_at_all_is_refused(
    source: str,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_bytes(b"")
    Path("empty.txt.gz").write_bytes(gzip.compress(b""))
    Path("mark.txt").write_bytes(b"\xef\xbb\xbf")
    for command in (
        ["predict", classifier, source],
        ["embed", classifier, source, "--out", "o.npy"],
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
        done = run_cli(monkeypatch, capfd, *command)
        assert (done.code, len(done.errors)) == (2, 1)


def test_a_word_or_text_with_line_ends_fills_one_line(
    masked: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        MaskFiller,
        "fill",
        lambda self, text, top: ([[Filler("a\nb", 0.5, "x\u2028a\nb")] * top], False),
    )
    done = run_cli(monkeypatch, capfd, "fill", masked, "[MASK]", "--top", 3)
    assert len(done.out.splitlines()) == 3


def test_predict_needs_no_labels_and_ignores_empty_ones(
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    table = write_table(tmp_path / "t.tsv", [("the film", ""), ("the cast", "unheard of")])
    (tmp_path / "some.jsonl").write_text(
        '{"text": "the film", "label": "good"}\n{"text": "the cast"}\n'
    )
    for file in (table, tmp_path / "some.jsonl"):
        done = run_cli(monkeypatch, capfd, "predict", classifier, file)
        assert done.code == 0
        assert len(done.out.splitlines()) == 2


def test_predict_says_how_many_inputs_were_cut(
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "t.txt").write_text("the film\n" + "the film " * POSITIONS + "\n")
    done = run_cli(monkeypatch, capfd, "predict", classifier, tmp_path / "t.txt")
    assert done.code == 0
    assert f"1 input(s) were longer than {POSITIONS} tokens and were cut" in done.err


def test_evaluate_prints_scores_for_machines(
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    table = write_table(tmp_path / "t.tsv", sentences(30))
    done = run_cli(monkeypatch, capfd, "evaluate", classifier, "--data", table, "--json")
    scores = json.loads(done.out)
    right = sum(
        prediction.label == label
        for prediction, (_, label) in zip(
            Classifier(classifier).predict([text for text, _ in sentences(30)]),
            sentences(30),
            strict=True,
        )
    )
    assert scores["accuracy"] == pytest.approx(right / 30)
    assert scores["examples"] == 30
    plain = run_cli(monkeypatch, capfd, "evaluate", classifier, "--data", table)
    assert f"accuracy {right / 30:.4f}" in plain.out
    assert "macro F1" in plain.out


def test_fillers_are_the_likeliest_words_of_the_model(masked: Path) -> None:
    filler = MaskFiller(masked)
    (choices,), truncated = filler.fill("the [MASK] was warm", top=3)
    model = load(masked)
    ids = torch.tensor([filler.tokenizer.encode("the [MASK] was warm").ids])
    place = (ids[0] == filler.special.mask).nonzero().item()
    expected = model(ids).prediction_logits[0, place].softmax(-1).topk(3)
    assert not truncated
    assert [choice.probability for choice in choices] == pytest.approx(
        expected.values.tolist(), rel=1e-4
    )
    assert [choice.word for choice in choices] == [
        filler.tokenizer.id_to_token(index) for index in expected.indices
    ]


def test_each_mask_has_fillers_and_the_others_stay(masked: Path) -> None:
    masks, _ = MaskFiller(masked).fill("the [MASK] was [MASK]", top=2)
    assert [len(fillers) for fillers in masks] == [2, 2]
    assert all(
        choice.text.count("[MASK]") == 1
        for fillers in masks
        for choice in fillers
        if choice.word != "[MASK]"
    )


def test_a_masked_lm_fills_too(tmp_path: Path) -> None:
    masks, _ = MaskFiller(write_model(tmp_path / "model", BertForMaskedLM)).fill("the [MASK]")
    assert len(masks[0]) == 5


@pytest.mark.parametrize("text", ["the [MASK] was warm", "the <mask> was warm"])
def test_a_byte_level_bpe_fills_its_own_mask_and_berts(text: str, tmp_path: Path) -> None:
    tokenizer = train_byte_level_bpe([text for text, _ in sentences(50)], 330)
    write_model(
        tmp_path, BertForMaskedLM, vocab_size=tokenizer.get_vocab_size(), initializer_range=0.3
    )
    save_tokenizer(tokenizer, tmp_path, POSITIONS)
    filler = MaskFiller(tmp_path)
    (choices,), _ = filler.fill(text, top=3)
    ids = torch.tensor([tokenizer.encode("the <mask> was warm").ids])
    place = (ids[0] == filler.special.mask).nonzero().item()
    expected = load(tmp_path)(ids).logits[0, place].softmax(-1).topk(3)
    assert [choice.probability for choice in choices] == pytest.approx(
        expected.values.tolist(), rel=1e-4
    )
    for choice, index in zip(choices, expected.indices.tolist(), strict=True):
        assert choice.word == (tokenizer.decode([index]).strip() or tokenizer.id_to_token(index))
    with pytest.raises(BertfastError, match="has no <mask> to fill"):
        filler.fill("the film was warm")


def test_a_mask_before_the_cut_is_filled_and_the_cut_is_said(
    masked: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_cli(
        monkeypatch, capfd, "fill", masked, "the [MASK] " + "was " * POSITIONS, "--top", 2
    )
    assert done.code == 0
    assert len(done.out.splitlines()) == 2
    assert "were cut" in done.err


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_a_file_of_any_length_is_predicted_in_order(
    at_once: int,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    texts = [text for text, _ in sentences(7)]
    (tmp_path / "a.tsv").write_text("\n".join(["sentence", *texts[:3], "", *texts[3:]]) + "\n")
    monkeypatch.setattr(predict_module, "AT_ONCE", at_once)
    done = run_cli(monkeypatch, capfd, "predict", classifier, tmp_path / "a.tsv")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["text"] for row in rows] == [*texts[:3], "", *texts[3:]]
    expected = Classifier(classifier).predict([row["text"] for row in rows])
    assert [row["label"] for row in rows] == [one.label for one in expected]


def test_no_more_of_a_file_is_read_than_is_predicted_at_once(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_module, "AT_ONCE", 2)
    read: list[int] = []
    examples = (read.append(number) or Example(number, "the film") for number in range(50))
    stream = Predictor(classifier).stream(examples)
    assert (len(next(stream).predictions), read) == (2, [0, 1])
    assert (len(next(stream).predictions), read) == (2, [0, 1, 2, 3])


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_predictions_go_to_a_file_of_each_format(
    form: str,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(predict_module, "AT_ONCE", 4)
    table = write_table(tmp_path / "a.tsv", [(text,) for text, _ in sentences(9)], ("text",))
    out = tmp_path / f"out.{form}"
    assert run_cli(monkeypatch, capfd, "predict", classifier, table, "--out", out).code == 0
    found = {
        "jsonl": lambda: pandas.read_json(out, lines=True),
        "csv": lambda: pandas.read_csv(out),
        "parquet": lambda: pandas.read_parquet(out),
    }[form]()
    expected = Classifier(classifier).predict([text for text, _ in sentences(9)])
    assert list(found["text"]) == [text for text, _ in sentences(9)]
    assert list(found["label"]) == [one.label for one in expected]
    if form == "csv":
        good = [one.probabilities["good"] for one in expected]
        assert list(found["probabilities.good"]) == pytest.approx(good, abs=1e-6)


def test_a_bad_row_at_the_end_leaves_nothing_half_written(
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(predict_module, "AT_ONCE", 2)
    bad = tmp_path / "a.tsv"
    bad.write_text("text\tmore\n" + "the film\tx\n" * 9 + "the film\n")
    for options in ([], ["--out", tmp_path / "out.csv"]):
        done = run_cli(monkeypatch, capfd, "predict", classifier, bad, *options)
        assert (done.code, done.out, len(done.errors)) == (2, "", 1)
        assert "a.tsv, line 11: has 1 fields" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.tsv"]
